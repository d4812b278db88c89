import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from stages import config, encode, new_run, same, untrained, weights

from bivrec.data.domain import FEATURES_FILE, Domain, write_domain
from bivrec.data.info import SPLITS
from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError
from bivrec.pretrain import pretrain
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

SPEC = {"encoder": "hashing", "revision": "1", "dimension": 256, "pooling": "sum", "whitening": None}


@pytest.fixture
def copy(pretrained: Run, tmp_path: Path) -> Run:
    """A copy of `pretrained` that a test may spoil."""
    return Run.open(shutil.copytree(pretrained.path, tmp_path / "copy"))


def spoil(run: Run, change: dict[str, Any]) -> None:
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def open_fault(path: Path) -> str:
    with pytest.raises(BivrecError) as caught:
        Run.open(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_only_formats_that_hold_no_code_are_written(pretrained: Run) -> None:
    files = sorted(path.relative_to(pretrained.path).as_posix() for path in pretrained.path.rglob("*"))
    expected = ["best.safetensors", "items.json", "last.safetensors", "metrics.jsonl", "results.json", "run.json"]
    assert files == expected


def test_a_run_says_what_was_trained(pretrained: Run, source: Domain) -> None:
    opened = Run.open(pretrained.path)
    assert opened.info == pretrained.info
    assert opened.config == config()
    assert opened.info.stage == "pretrain"
    assert opened.info.started_from is None
    assert opened.feature_specs == source.info.features
    assert opened.info.domain["num_items"] == source.num_items
    assert opened.info.versions["torch"] == torch.__version__
    assert opened.open_domain().path == source.path.resolve()


def test_metrics_of_every_evaluation_and_view(pretrained: Run) -> None:
    validation = [(line["step"], line["view"]) for line in pretrained.metrics() if line["split"] == "validation"]
    assert validation == [(step, view) for step in (2, 4) for view in ("id", "mm", "both")]
    assert set(pretrained.results()) == {"id", "mm", "both"}
    assert {"recall@20", "ndcg@20", "hr@20"} <= set(pretrained.results()["both"])


@pytest.mark.parametrize("views", [["id"], ["mm"], ["mm", "id"]])
def test_only_the_chosen_views_are_trained(source: Domain, tmp_path: Path, views: list[str]) -> None:
    run = pretrain(source, tmp_path / "run", config(training={"steps": 1, "views": views}))
    fused = {"both"} if len(views) > 1 else set()
    assert set(run.results()) == {*views, *fused}
    assert set(run.load_model(source).views) == set(views)
    assert bool(run.feature_specs) == ("mm" in views)


def test_the_best_weights_are_loaded(pretrained: Run, source: Domain) -> None:
    assert same(dict(pretrained.load_model(source).state_dict()), weights(pretrained, "best"))


def test_features_are_not_saved(pretrained: Run) -> None:
    assert not any("features" in name for name in weights(pretrained, "best"))


def test_fresh_models_differ_between_seeds_only(source: Domain) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(dict(untrained(source, config()).state_dict()))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


# What cannot be opened


def test_not_a_run(tmp_path: Path, source: Domain) -> None:
    for path in (tmp_path / "none", tmp_path, source.path):
        assert "not a Run (no run.json)" in open_fault(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ('{"format_version": 1, "sta', "not valid JSON"),
        ("[]", "format version None"),
        ('{"format_version": 2}', "format version 2, this bivrec reads 1; upgrade bivrec"),
        ('{"format_version": 1}', "not the description of a Run"),
    ],
)
def test_damaged_description(copy: Run, content: str, message: str) -> None:
    (copy.path / "run.json").write_text(content)
    assert message in open_fault(copy.path)


@pytest.mark.parametrize("line", ["garbage", "[3]", '{"step": 2}', "\0" * 40, '{"st\xff'])
def test_a_damaged_line_of_metrics(copy: Run, line: str) -> None:
    """As after a power failure, and more lines since."""
    path = copy.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line.encode("latin-1"), b"\n", *lines[2:]]))
    for read in (copy.metrics, partial(copy.forget_metrics_after, 2)):
        with pytest.raises(BivrecError) as fault:
            read()
        assert str(fault.value) == f"{path}: line 3: damaged, expected metrics of a step; remove the line"
    assert len(path.read_bytes().splitlines()) == len(lines) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"colour": "blue"}, "colour"),
        ({"config": {"model": {"hidden_siez": 8}}}, "did you mean hidden_size?"),
        ({"config": None}, "expected keys and values"),
        ({"versions": None}, "versions: unexpected None"),
        ({"features": {"text": {**SPEC, "whitening": "much"}}}, "features.text.whitening: unexpected 'much'"),
    ],
)
def test_spoilt_description(copy: Run, change: dict[str, Any], message: str) -> None:
    spoil(copy, change)
    assert message in open_fault(copy.path)


@pytest.mark.parametrize(
    "change",
    [
        {"domain": {}},
        {"domain": None},
        {"domain": {"catalogue": "x", "protocol": "user-split", "users": None}},
        {"domain": {"catalogue": "x", "protocol": "user-split", "users": {"train": "x"}, "interactions": {}}},
        {"domain": {"catalogue": "x", "protocol": "user-split", "users": {}, "interactions": {}, "held_out": "y"}},
        {"features": {"text": {"size": 3}}},
    ],
)
def test_spoilt_provenance(copy: Run, source: Domain, change: dict[str, Any]) -> None:
    spoil(copy, change)
    with pytest.raises(BivrecError, match=r"run\.json"):
        Run.open(copy.path).load_model(source)


def test_missing_and_damaged_checkpoints(copy: Run, source: Domain) -> None:
    (copy.path / "results.json").unlink()
    assert "the best so far" in str(copy.unfinished())
    (copy.path / "best.safetensors").unlink()
    with pytest.raises(BivrecError, match=r"best\.safetensors: no such checkpoint; .* after training\.evaluate_every"):
        copy.load_model(source)
    assert copy.unfinished() is None
    (copy.path / "best.safetensors").write_bytes(b"")
    with pytest.raises(BivrecError, match=r"best\.safetensors: not a checkpoint of bivrec, or damaged"):
        copy.load_model(source)


def test_checkpoint_of_another_architecture(copy: Run, source: Domain) -> None:
    spoil(copy, {"config": config(model={"hidden_size": 16}).to_dict()})
    with pytest.raises(BivrecError, match=r"best\.safetensors: the weights are of another model: .* expected"):
        Run.open(copy.path).load_model(source)


def test_a_run_that_was_never_trained_has_nothing_to_load(source: Domain, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", source, config())
    assert run.results() == {}
    assert run.metrics() == []
    with pytest.raises(BivrecError, match="no such checkpoint"):
        run.load_model(source)


# The Domain of a Run


def test_another_catalogue_is_refused(pretrained: Run, target: Domain) -> None:
    with pytest.raises(BivrecError, match=r"was trained on the items of source .*, not on those of") as caught:
        pretrained.load_model(target)
    assert str(target.path) in str(caught.value)


def altered(
    source: Domain, folder: Path, *, items: pa.Table | None = None, test: Sequences | None = None, **info: Any
) -> Domain:
    """A copy with other items or test users, which has the features of the source."""
    sequences = {split: source.sequences(split) for split in SPLITS}
    folder.mkdir()
    shutil.copyfile(source.path / FEATURES_FILE, folder / FEATURES_FILE)
    write_domain(
        folder,
        dataclasses.replace(source.info, **info),
        sequences if test is None else {**sequences, "test": test},
        source.item_table().data.table if items is None else items,
    )
    return Domain.open(folder)


def test_the_same_items_in_another_order_are_told_as_another_preparation(
    pretrained: Run, source: Domain, tmp_path: Path
) -> None:
    """As another seed or split makes it, which orders them by popularity in other training sequences."""
    table = source.item_table().data.table
    other = altered(source, tmp_path / "other", items=table.take([*range(1, len(table)), 0]))
    with pytest.raises(BivrecError) as caught:
        pretrained.check_domain(other)
    assert str(caught.value) == (
        f"{other.path}: was prepared anew since the training of {pretrained.path}: the items have another order now, "
        "as other training users give them; prepare it as it was, or train again, as `bivrec refit --domain` does"
    )


@pytest.mark.parametrize("column", ["title", "text", "image"])
def test_what_is_told_of_the_items_may_change(pretrained: Run, source: Domain, tmp_path: Path, column: str) -> None:
    """As when a spelling mistake is mended."""
    table = source.item_table().data.table
    mended = pa.array([*table[column].to_pylist()[:-1], "Mended"], pa.string())
    items = table.set_column(table.column_names.index(column), column, mended)
    domain = altered(source, tmp_path / "mended", items=items)
    assert domain.catalogue == source.catalogue
    assert same(dict(pretrained.load_model(domain).state_dict()), dict(pretrained.load_model(source).state_dict()))


@pytest.mark.parametrize("others", ["users", "interactions"])
def test_as_many_others_are_refused(pretrained: Run, source: Domain, tmp_path: Path, others: str) -> None:
    """For whom the training users of before may be held out now."""
    users = source.sequences("test")
    test = (
        dataclasses.replace(users, user_ids=[f"other-{user}" for user in users.user_ids])
        if others == "users"
        else dataclasses.replace(users, items=users.items[::-1].copy())
    )
    domain = altered(source, tmp_path / "anew", test=test)
    with pytest.raises(
        BivrecError, match=r"anew: was prepared anew since the training of .*: as many test users and i"
    ):
        pretrained.load_model(domain)


def test_a_domain_that_was_prepared_anew_is_refused(pretrained: Run, source: Domain, tmp_path: Path) -> None:
    """With the same items, but without the last test user."""
    users = source.sequences("test")
    cut = users.offsets[-2]
    fewer = dataclasses.replace(
        users,
        offsets=users.offsets[:-1],
        items=users.items[:cut],
        timestamps=users.timestamps[:cut],
        user_ids=users.user_ids[:-1],
    )
    domain = altered(source, tmp_path / "anew", test=fewer, users={**source.info.users, "test": len(users) - 1})
    with pytest.raises(BivrecError, match="anew: was prepared anew since the training of ") as caught:
        pretrained.load_model(domain)
    assert f"{len(users) - 1} test users now" in str(caught.value)
    assert f"{len(users)} test then" in str(caught.value)


def test_other_features_are_refused_and_both_sides_named(pretrained: Run, source: Domain, tmp_path: Path) -> None:
    copied = shutil.copytree(source.path.parent, tmp_path / "world") / "source"
    raw = encode(Domain.open(copied), whitening=None)
    with pytest.raises(BivrecError, match="features differ") as caught:
        pretrained.load_model(raw)
    for side in (pretrained.path, raw.path, "whitened", f"bivrec encode {raw.path}"):
        assert str(side) in str(caught.value)


def test_a_domain_that_is_gone(copy: Run, tmp_path: Path) -> None:
    spoil(copy, {"domain": {**copy.info.domain, "path": str(tmp_path / "gone")}})
    with pytest.raises(BivrecError, match=r"gone: the Domain that .* is not there any more"):
        Run.open(copy.path).open_domain()


def test_a_domain_that_moved_still_fits(pretrained: Run, source: Domain, tmp_path: Path) -> None:
    moved = Domain.open(shutil.copytree(source.path, tmp_path / "moved"))
    assert pretrained.load_model(moved).num_items == source.num_items


def test_the_information_of_a_run_cannot_be_changed(pretrained: Run) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        pretrained.info.stage = "other"  # type: ignore[misc]
