"""A last training on the validation too: on what, with which settings, and what is told of it."""

import itertools
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stages import (
    bivrec,
    config,
    interrupt_at,
    items_of_split,
    prepare_shop,
    same,
    settings,
    succeed,
    weights,
    write_shop,
)

from bivrec.artefact import Tower
from bivrec.baselines.floors import fit_floor
from bivrec.config import Config
from bivrec.data.domain import Domain
from bivrec.data.info import SPLITS
from bivrec.data.refit import RefitDomain
from bivrec.errors import BivrecError
from bivrec.evaluation.breakdown import PopularityGroups
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.finetune import finetune, finetune_config
from bivrec.hub import publish
from bivrec.pretrain import pretrain, resume
from bivrec.refit import refit
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a shop to which a new item comes every few days, with users of 1 to 9 interactions."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(5)
    rows = [
        (f"u{user:02}", f"i{random.integers(max(0, time // 40 - 8), time // 40 + 4)}", time)
        for user in range(90)
        for time in np.sort(random.choice(1000, 1 + user % 9, replace=False))
    ]
    write_shop(folder, rows, [(f"i{item}", f"thing {item} of kind {item % 4}") for item in range(30)])
    return folder


@pytest.fixture(scope="module", params=["8:1:1", "leave-one-out", "temporal"])
def domain(request: pytest.FixtureRequest, shop: Path) -> Domain:
    path = shop / str(request.param).replace(":", "-")
    prepare_shop(shop, path, "--split", request.param)
    succeed("encode", path, "--text", "hashing", "--whiten")
    return Domain.open(path)


def shop_config(**training: Any) -> Config:
    return config(model={"modalities": ["text"]}, training={"evaluate_every": 1, "seed": 2, **training})


@pytest.fixture(scope="module")
def run(domain: Domain, shop: Path) -> Run:
    return pretrain(domain, shop / "runs" / domain.name, shop_config())


@pytest.fixture(scope="module")
def final(run: Run, shop: Path) -> Run:
    return refit(run, shop / "final" / run.path.name)


def test_all_before_the_test_is_trained_on(domain: Domain) -> None:
    before = {split: items_of_split(domain, split) for split in SPLITS}
    united = RefitDomain(domain)
    after = {split: items_of_split(united, split) for split in SPLITS}
    assert list(after["train"]) == sorted(after["train"])
    # Of a user whom both have, what the validation has begins as what the training has.
    assert after["train"] == {**before["train"], **before["validation"]}
    assert [after[split] for split in SPLITS[1:]] == [before[split] for split in SPLITS[1:]]
    train = united.sequences("train")
    assert all(np.all(np.diff(train.timestamps[a:b]) >= 0) for a, b in pairwise(train.offsets))


def test_users_who_came_since_the_validation_began_are_trained_on(tmp_path: Path) -> None:
    """What they did before the test began is in its histories alone."""
    rows = [(f"u{user}", f"i{(user + time) % 7}", 10 * time + user) for user in range(20) for time in range(40)]
    new = [("new", "i2", 350), ("new", "i5", 352), ("new", "i3", 398), ("newer", "i1", 399), ("newer", "i0", 400)]
    write_shop(tmp_path, rows + new, [(f"i{item}", f"thing {item}") for item in range(7)])
    prepare_shop(tmp_path, tmp_path / "domain", "--split", "temporal")
    domain = Domain.open(tmp_path / "domain")
    assert 300 < domain.info.cutoffs["validation"] < 350
    assert 352 < domain.info.cutoffs["test"] < 398
    assert not {"new", "newer"} & {*items_of_split(domain, "train"), *items_of_split(domain, "validation")}
    after = items_of_split(RefitDomain(domain), "train")
    assert after["new"] == ["i2", "i5"]
    assert "newer" not in after
    assert items_of_split(RefitDomain(domain), "test") == items_of_split(domain, "test")
    for user, items in items_of_split(domain, "validation").items():
        assert after[user] == items


def test_what_is_in_the_test_alone_stays_unknown(domain: Domain) -> None:
    known = items_of_split(RefitDomain(domain), "train")
    test = EvaluationUsers.from_sequences(domain.sequences("test"))
    for user, history in zip(test.user_ids, test.cuts - test.starts, strict=True):
        assert len(known.get(user, [])) <= (0 if domain.info.protocol == "user-split" else history)


def test_what_the_validation_told_is_kept(run: Run, final: Run) -> None:
    assert final.config.training.steps == run.progress().best_step == final.progress().best_step
    assert final.id_weight() == run.id_weight()
    assert final.results().keys() == run.results().keys()
    assert not any(line["split"] == "validation" for line in final.metrics())


def test_items_of_the_validation_have_id_vectors(domain: Domain, run: Run, final: Run) -> None:
    counts = torch.from_numpy(RefitDomain(domain).training_counts())
    assert weights(final, "best")["towers.id.items.table.weight"].any(1).equal(counts > 0)
    assert weights(final, "best")["id_trust"].tolist() == pytest.approx((counts / (counts + 2)).tolist())
    if domain.info.protocol == "temporal":
        assert (counts > 0).sum() > weights(run, "best")["towers.id.items.table.weight"].any(1).sum()


def test_it_is_the_training_on_a_domain_that_has_no_more_than_that(domain: Domain, run: Run, tmp_path: Path) -> None:
    steps = run.progress().best_step
    weight = float(weights(run, "best")["id_weight"])
    by_hand = pretrain(domain, tmp_path / "run", shop_config(with_validation=True, steps=steps, id_weight=weight))
    assert same(weights(by_hand, "best"), weights(refit(run, tmp_path / "refit"), "best"))


def test_an_interrupted_refit_goes_on(run: Run, final: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=0)
        with pytest.raises(BivrecError, match=r"interrupted at step 1 .*`bivrec pretrain --to .* --resume`"):
            refit(run, tmp_path / "final")
    assert same(weights(resume(tmp_path / "final"), "best"), weights(final, "best"))


def test_a_finetuning_starts_from_its_tower_again(
    target: Domain, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "tower"
    shutil.copytree(tower, published)
    recipe = {"training": {"steps": 4, "evaluate_every": 4, "batch_size": 16, "learning_rate": 0.0}}
    monkeypatch.chdir(tmp_path)
    opened = Tower.from_pretrained("tower")
    tuned = finetune(target, tmp_path / "run", finetune_config(recipe, opened), opened)
    # Wherever one is.
    monkeypatch.chdir(tmp_path.parent)
    again = refit(tuned, tmp_path / "final")
    assert again.info.started_from == tuned.info.started_from
    # Nothing was learnt, so what it began with is what it has.
    assert same(weights(again, "best", "towers.mm."), opened.weights)
    scratch = finetune(target, tmp_path / "scratch", finetune_config(recipe, opened), opened, from_scratch=True)
    assert refit(scratch, tmp_path / "scratch-final").info.started_from is None
    shutil.rmtree(published)
    publish(again, str(published), "tower")
    other = pretrain(target, tmp_path / "other", config())
    publish(other, str(published), overwrite=True)
    with pytest.raises(BivrecError, match="has other weights than"):
        refit(tuned, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_all_there_is_can_be_trained_on(domain: Domain) -> None:
    splits = [items_of_split(domain, split) for split in SPLITS]
    known = items_of_split(RefitDomain(domain, with_test=True), "train")
    # Of a user whom several have, a later one begins as those before it.
    assert known == splits[0] | splits[1] | splits[2]


def test_a_training_on_all_there_is_has_no_results(run: Run, domain: Domain, tmp_path: Path) -> None:
    told = succeed("refit", run.path, "--with-test", "--to", tmp_path / "final")
    assert "trained on the test users too, so that no results can be measured" in told
    final = Run.open(tmp_path / "final")
    assert final.has_ended()
    assert final.unfinished() is None
    assert final.results() == {}
    assert final.config.training.steps == run.progress().best_step
    table = weights(final, "best")["towers.id.items.table.weight"]
    counts = torch.from_numpy(RefitDomain(domain, with_test=True).training_counts())
    assert table.any(1).equal(counts > 0)
    succeed("recommend", domain.path, "--run", final.path, "--to", tmp_path / "lists.csv")
    assert "trained on the validation and the test too" in succeed("info", final.path)
    for kind in ("joint", "tower"):
        published = tmp_path / kind
        succeed("publish", final.path, "--to", published, "--model", kind)
        card = (published / "README.md").read_text()
        assert "this one was trained on the validation and the test too" in card
        assert "None: it was trained on the test users too." in card
        assert "metrics:" not in card
        succeed("info", published)
    models = (("--run", final.path), ("--from-hub", tmp_path / "joint"), ("--from-hub", tmp_path / "tower"))
    for model, split in itertools.product(models, SPLITS[1:]):
        refused = bivrec("evaluate", domain.path, *model, "--split", split)
        assert refused.exit_code == 1
        assert f"was trained on the {split}, and cannot be evaluated on it" in refused.output
    refused = bivrec("refit", final.path, "--to", tmp_path / "never")
    assert "was trained on the validation already" in refused.output


def test_the_command(source: Domain, tmp_path: Path) -> None:
    run, final = tmp_path / "run", tmp_path / "final"
    succeed("pretrain", source.path, "--to", run, *settings(training={"steps": 2, "evaluate_every": 1}))
    told = succeed("refit", run, "--to", final)
    assert f"{final}: last weights, of step {Run.open(run).progress().best_step}" in told
    assert "trained on the validation too" in succeed("info", final)
    succeed("evaluate", source.path, "--run", final, "--run", run)
    succeed("publish", final, "--to", tmp_path / "model", "--model", "joint")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "this one was trained on the validation too" in card
    assert "trained_on: the training split and the validation" in card
    for source_of_model in (("--run", final), ("--from-hub", tmp_path / "model")):
        refused = bivrec("evaluate", source.path, *source_of_model, "--split", "validation")
        assert refused.exit_code == 1
        assert "was trained on the validation" in refused.output


def test_a_domain_of_other_items_may_be_a_mistake(source: Domain, target: Domain, tmp_path: Path) -> None:
    succeed("pretrain", source.path, "--to", tmp_path / "run", *settings(training={"steps": 1, "evaluate_every": 1}))
    refit = ("refit", tmp_path / "run", "--overwrite", "--to", tmp_path / "final")
    assert "Warning" not in bivrec(*refit, "--domain", source.path).stderr
    items = source.num_items
    told = bivrec(*refit, "--domain", target.path)
    assert told.exit_code == 0
    assert told.stderr.splitlines()[0] == (
        f"Warning: {target.path} has 0 of the {items} items that {tmp_path / 'run'} was trained on: another shop?"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("{final}", "--to", "{new}"), "was trained on the validation already"),
        (("{run}", "--to", "{run}", "--overwrite"), "choose another --to"),
        (("{run}", "--to", "{final}"), "exists already; go on with `bivrec pretrain --to {final} --resume`"),
        (("{run}", "--to", "{new}", "--domain", "{other}"), "; prepare the Domain in the same way"),
        (("{new}", "--to", "{final}"), "not a Run"),
    ],
)
def test_what_is_refused(
    run: Run, final: Run, shop: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    paths = {"run": run.path, "final": final.path, "new": tmp_path / "new", "other": tmp_path / "other"}
    if "{other}" in arguments:
        other = "leave-one-out" if run.info.domain["protocol"] != "leave-one-out" else "8:1:1"
        prepare_shop(shop, paths["other"], "--split", other)
    result = bivrec("refit", *(argument.format(**paths) for argument in arguments))
    assert result.exit_code == 1
    assert line.format(**paths) in result.output
    assert "Traceback" not in result.output
    assert not paths["new"].exists()
    assert run.results()


def test_an_unfinished_training_is_not_refit(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=2)
        with pytest.raises(BivrecError, match="interrupted"):
            pretrain(domain, tmp_path / "run", shop_config())
    with pytest.raises(BivrecError, match="not ended"):
        refit(Run.open(tmp_path / "run"), tmp_path / "final")


def test_no_curve_is_drawn_of_it(final: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = bivrec("plot", final.path, "--to", tmp_path / "curve.png")
    assert result.exit_code == 1
    assert "has no validation metrics" in result.output


def test_a_domain_with_what_came_since(run: Run, shop: Path, domain: Domain, tmp_path: Path) -> None:
    shutil.copy(shop / "items.csv", tmp_path)
    rows = pd.read_csv(shop / "interactions.csv")
    since = rows.assign(timestamp=rows["timestamp"] + 1000, user_id="later-" + rows["user_id"])
    pd.concat([rows, since]).to_csv(tmp_path / "interactions.csv", index=False)
    prepare_shop(tmp_path, tmp_path / "now", "--split", domain.info.protocol.replace("user-split", "8:1:1"))
    refused = bivrec("refit", run.path, "--domain", tmp_path / "now", "--to", tmp_path / "never")
    assert refused.exit_code == 1
    assert "bivrec encode" in refused.output
    succeed("encode", tmp_path / "now", "--text", "hashing", "--whiten")
    succeed("refit", run.path, "--domain", tmp_path / "now", "--to", tmp_path / "run")
    today = Run.open(tmp_path / "run")
    assert today.info.domain["users"] != run.info.domain["users"]
    today.load_model(Domain.open(tmp_path / "now"))


def test_where_nothing_is_measured_any_split_will_do(run: Run, shop: Path, tmp_path: Path) -> None:
    """Of a split by time, users who began after the test did are in no part; the default one has all."""
    prepare_shop(shop, tmp_path / "all", "--split", "8:1:1")
    succeed("encode", tmp_path / "all", "--text", "hashing", "--whiten")
    succeed("refit", run.path, "--with-test", "--domain", tmp_path / "all", "--to", tmp_path / "run")
    table = weights(Run.open(tmp_path / "run"), "best")["towers.id.items.table.weight"]
    counts = pd.read_csv(shop / "interactions.csv")["item_id"].value_counts()
    items = Domain.open(tmp_path / "all").item_ids()
    assert table[1:].any(1).tolist() == [item in counts for item in items]
    succeed("recommend", tmp_path / "all", "--run", tmp_path / "run", "--to", tmp_path / "lists.csv")
    assert set(pd.read_csv(tmp_path / "lists.csv")["user_id"]) == {f"u{user:02}" for user in range(90)}


def test_floors_and_groups_know_what_a_refit_knows(domain: Domain, run: Run, final: Run) -> None:
    options = ("--floor", "item-knn", "--by-popularity", "--json")
    of_run = bivrec("evaluate", domain.path, "--run", run.path, *options)
    of_final = bivrec("evaluate", domain.path, "--run", final.path, *options)
    for told, known in ((of_run, domain), (of_final, RefitDomain(domain))):
        assert told.stderr == ""
        found = json.loads(told.stdout)
        users = EvaluationUsers.from_sequences(domain.sequences("test"))
        assert found["results"]["item-knn"] == evaluate(fit_floor("item-knn", known), users, (20,)).metrics
        groups = PopularityGroups.of_training(known.sequences("train"), domain.num_items).targets(users)
        assert found["by_popularity"]["targets"] == {group: len(targets.items) for group, targets in groups.items()}
    both = bivrec("evaluate", domain.path, "--run", run.path, "--run", final.path, "--floor", "item-knn", "--json")
    assert both.stderr.startswith("Warning: some models were trained on the validation too, ")
    assert "; the floors know the training alone" in both.stderr
