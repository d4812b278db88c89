import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from stages import config, encode, in_subprocess, new_run, same, weights

from bivrec.card_facts import card_facts
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import finetune, finetune_config, zero_shot_model
from bivrec.hub import is_repository, load_tower, publish, tower_of_run
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def copy(tower: Path, tmp_path: Path) -> Path:
    """A copy of the tower that a test may spoil."""
    return Path(shutil.copytree(tower, tmp_path / "copy"))


def spoil(tower: Path, **change: Any) -> None:
    path = tower / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def load_fault(source: object) -> str:
    with pytest.raises(BivrecError) as caught:
        load_tower(str(source))
    message = str(caught.value)
    assert message.startswith(str(source))
    assert "\n" not in message
    return message


# There and back


def test_an_artefact_holds_no_code(tower: Path) -> None:
    files = sorted(path.name for path in tower.iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "training_curve.png"]


def test_the_weights_are_those_of_the_best_step(tower: Path, pretrained: Run) -> None:
    published = load_file(tower / "model.safetensors")
    assert same(published, weights(pretrained, "best", "towers.mm."))
    assert load_tower(str(tower)).num_parameters == sum(tensor.numel() for tensor in published.values())


def test_what_was_published_is_read_again(tower: Path, pretrained: Run, source: Domain) -> None:
    read, direct = load_tower(str(tower)), tower_of_run(pretrained)
    assert same(read.weights, direct.weights)
    assert (read.config, read.features) == (direct.config, direct.features)
    assert read.training == {**direct.training, **card_facts(pretrained)}
    assert read.config == pretrained.config.model
    assert read.features == source.info.features
    assert read.source["name"] == str(tower)
    assert read.source["revision"] is None


def test_a_published_tower_ranks_exactly_like_the_run(tower: Path, pretrained: Run, source: Domain) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    before = ModelScorer(pretrained.load_model(source), "mm")
    after = ModelScorer(zero_shot_model(source, load_tower(str(tower))), "mm")
    histories = users.histories(0, len(users), before.max_history)
    everything = (1, source.num_items + 1)
    assert torch.equal(
        before.score(before.encode(histories), *everything), after.score(after.encode(histories), *everything)
    )
    metrics = evaluate(after, users, (10, 20, 50)).metrics
    assert metrics == evaluate(before, users, (10, 20, 50)).metrics == pretrained.results()["mm"]


def test_the_training_is_recorded_without_paths_of_the_data(tower: Path, pretrained: Run, source: Domain) -> None:
    training = load_tower(str(tower)).training
    assert training["domain"]["name"] == "source"
    assert "path" not in training["domain"]
    assert training["config"] == pretrained.config.to_dict()
    assert training["best_step"] == pretrained.progress().best_step
    assert training["results"] == pretrained.results()


def test_publishing_again(tower: Path, pretrained: Run, tmp_path: Path) -> None:
    twin = publish(pretrained, str(tmp_path / "twin"))
    for name in ("config.json", "model.safetensors"):
        assert (tower / name).read_bytes() == (Path(twin) / name).read_bytes()
    with pytest.raises(BivrecError, match="exists already"):
        publish(pretrained, twin)
    assert publish(pretrained, twin, overwrite=True) == twin


def test_a_finetuned_tower_says_what_it_started_from(tower: Path, target: Domain, tmp_path: Path) -> None:
    start = load_tower(str(tower))
    wanted = finetune_config({"training": {"steps": 1, "batch_size": 8, "warmup_steps": 0}}, start)
    publish(finetune(target, tmp_path / "run", wanted, start), str(tmp_path / "again"))
    assert load_tower(str(tmp_path / "again")).training["started_from"] == start.source


# What cannot be published


def test_a_run_without_the_multimodal_view(id_only: Run, tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match="trained with the ID view alone"):
        publish(id_only, str(tmp_path / "tower"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_weights(source: Domain, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", source, config())
    with pytest.raises(BivrecError, match=r"best\.safetensors: no such checkpoint"):
        publish(run, str(tmp_path / "tower"))
    assert not (tmp_path / "tower").exists()


# What cannot be read


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in load_fault(copy)


@pytest.mark.parametrize("keep", [0, 20, -1])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_truncated_file(copy: Path, name: str, keep: int) -> None:
    content = (copy / name).read_bytes().rstrip()
    (copy / name).write_bytes(content[:keep])
    assert name in load_fault(copy)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"model_type": "bert", "hidden_size": 768}', '{"architectures": ["ResNetModel"]}']
)
def test_foreign_config(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    assert "not a bivrec tower" in load_fault(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this bivrec reads 1; upgrade bivrec"),
        ({"model": {"hidden_size": "wide"}}, "model.hidden_size: expected int, found 'wide'"),
        ({"model": {"num_headz": 2}}, "did you mean num_heads?"),
        ({"model": None}, "expected keys and values"),
        ({"features": {"text": {"dimension": 3}}}, "not the configuration of a tower"),
        ({"features": None}, "not the configuration of a tower"),
        ({"training": None}, "not the configuration of a tower"),
    ],
)
def test_spoilt_config(copy: Path, change: dict[str, Any], message: str) -> None:
    spoil(copy, **change)
    assert message in load_fault(copy)


def test_weights_of_another_shape(copy: Path, source: Domain) -> None:
    spoil(copy, model={**json.loads((copy / "config.json").read_text())["model"], "hidden_size": 16})
    with pytest.raises(BivrecError, match=r"model\.safetensors: the weights are of another model: .* expected"):
        load_tower(str(copy)).attach(source)


@pytest.mark.parametrize("missing", [True, False])
def test_weights_are_neither_left_out_nor_ignored(copy: Path, source: Domain, missing: bool) -> None:
    stored = load_file(copy / "model.safetensors")
    if missing:
        stored.pop(min(stored))
    else:
        stored["further"] = torch.zeros(1)
    save_file(stored, copy / "model.safetensors")
    with pytest.raises(BivrecError, match="is missing" if missing else "further is unknown"):
        load_tower(str(copy)).attach(source)


def test_other_features_are_refused_and_both_sides_named(tower: Path, target: Domain, tmp_path: Path) -> None:
    shutil.copytree(target.path.parent, tmp_path / "world")
    raw = encode(Domain.open(tmp_path / "world" / "target"), whiten=False)
    with pytest.raises(BivrecError, match="features differ") as caught:
        load_tower(str(tower)).attach(raw)
    for side in (tower, raw.path, "whitened", f"bivrec encode {raw.path}"):
        assert str(side) in str(caught.value)


def test_a_domain_without_features_is_refused(tower: Path, small_domain: Domain) -> None:
    with pytest.raises(BivrecError, match=r"is missing.*bivrec encode"):
        load_tower(str(tower)).attach(small_domain)


# Names


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("org/name", True),
        ("an-org/a.name_2", True),
        ("name", False),
        ("./org/name", False),
        ("../name", False),
        ("~/towers", False),
        ("/tmp/name", False),
        ("org/name/more", False),
        ("org/", False),
        ("", False),
        ("org/name@main", False),
        ("folder/name", False),
    ],
)
def test_is_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, repository: bool) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert is_repository(name) is repository


@pytest.mark.parametrize("name", ["nowhere", "./org/name", "a/b/c"])
def test_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such folder, and not of the form ORG/NAME[@revision]" in load_fault(name)


# The Hub, without a network


@pytest.mark.parametrize("revision", [None, "v1"])
def test_the_revision_is_asked_for(
    tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    snapshot = shutil.copytree(tower, tmp_path / "0123abc")
    asked = {}

    def download(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load_tower("org/name" + (f"@{revision}" if revision else ""))
    assert (asked["name"], asked["revision"]) == ("org/name", revision)
    assert loaded.source["revision"] == "0123abc"


def test_not_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("a\nlong\nstory")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "not in the local cache, and the Hub cannot be reached" in load_fault("org/name")


@pytest.mark.parametrize(
    "arguments",
    [("finetune", "{target}", "--from-hub", "org/name", "--to", "{new}"), ("publish", "{run}", "--to", "org/name")],
    ids=["finetune", "publish"],
)
@pytest.mark.parametrize(
    "setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": UNREACHABLE}], ids=["offline", "unreachable"]
)
def test_no_network_is_one_line(
    pretrained: Run, target: Domain, tmp_path: Path, arguments: tuple[str, ...], setting: dict[str, str]
) -> None:
    run = shutil.copytree(pretrained.path, tmp_path / "run")
    words = [word.format(target=target.path, new=tmp_path / "new", run=run) for word in arguments]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_none", **setting}
    result = in_subprocess("-m", "bivrec", *words, env=environment, cwd=tmp_path)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("Error: org/name: ")
    assert not (tmp_path / "new").exists()
