"""Joint models on a catalogue that has changed since the training."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from stages import bivrec, config, items_of_split, succeed

from bivrec.artefact import BiVRec
from bivrec.data.domain import Domain, write_domain
from bivrec.data.histories import users_of_split
from bivrec.data.info import SPLITS
from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError
from bivrec.evaluation.scorer import ModelScorer
from bivrec.files import new_folder
from bivrec.hub import publish
from bivrec.pretrain import pretrain
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

GONE, NEW = 3, ("new-1", "new-2")
MODALITIES = ("text", "image")


@pytest.fixture(scope="module", params=["ids", "ids+features"])
def joint(request: pytest.FixtureRequest, source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    trained = config(model={"id_items": request.param, "repeat_bias": True})
    return Path(publish(pretrain(source, folder / "run", trained), str(folder / "model"), "joint"))


@pytest.fixture(scope="module")
def grown(source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """The source in another order of the items, without the GONE rarest ones, and with NEW ones, which nobody has."""
    kept = np.arange(source.num_items - GONE, 0, -1)
    ids = source.item_ids()
    index = np.zeros(source.num_items + 1, np.int32)
    index[kept] = np.arange(1, len(kept) + 1)
    sequences = {split: renumbered(source.sequences(split), index) for split in SPLITS}
    names = [ids[item - 1] for item in kept] + list(NEW)
    items = pa.table({"item_id": names, **{name: pa.nulls(len(names)) for name in ("title", "text", "image")}})
    info = dataclasses.replace(source.info, name="grown", num_items=len(names), features={}, files={})
    folder = tmp_path_factory.mktemp("domains") / "grown"
    with new_folder(folder) as staging:
        write_domain(staging, info, sequences, items)
    old = {name: source.features((name,)) for name in MODALITIES}
    rows = torch.from_numpy(np.concatenate([[0], kept]))
    features = {name: torch.cat([table[rows], table[1:3] + table[5:7]]) for name, table in old.items()}
    present = {name: table.any(1) for name, table in features.items()}
    return Domain.open(folder).with_features(features, present, source.info.features)


def renumbered(part: Sequences, index: np.ndarray) -> Sequences:
    """Without the items whose index is 0."""
    kept = index[part.items] > 0
    offsets = np.concatenate([[0], np.cumsum(kept)])[part.offsets]
    return Sequences(offsets, index[part.items][kept], part.timestamps[kept], part.user_ids)


def scores(scorer: ModelScorer, histories: torch.Tensor) -> torch.Tensor:
    return scorer.score(scorer.encode(histories), 1, scorer.num_items + 1)


@pytest.mark.parametrize("view", ["id", "mm", "both"])
def test_known_items_keep_their_scores(joint: Path, source: Domain, grown: Domain, view: str) -> None:
    before, now = BiVRec.from_pretrained(joint, source), BiVRec.from_pretrained(joint, grown)
    assert (before.num_new_items, now.num_new_items) == (0, len(NEW))
    ids = source.item_ids()
    place = {item: row for row, item in enumerate(grown.item_ids(), start=1)}
    known = [row for row, item in enumerate(ids, start=1) if item in place]
    histories = torch.tensor([known[:4], known[5:9]])
    moved = torch.tensor([[place[ids[item - 1]] for item in row] for row in histories.tolist()])
    expected = scores(before.scorer(view), histories)[:, torch.tensor(known) - 1]
    found = scores(now.scorer(view), moved)
    # Where both views rank, how far apart their scores lie is found from the catalogue, which is another one.
    tolerance = 0.01 if view == "both" else 1e-5
    torch.testing.assert_close(
        found[:, [place[ids[row - 1]] - 1 for row in known]], expected, atol=tolerance, rtol=tolerance
    )
    # A view that knows new items scores them by what they are.
    of_new = found[:, -len(NEW) :]
    by_content = view != "id" or now.config.id_items == "ids+features"
    assert (of_new[:, 0] != of_new[:, 1]).all() == by_content


def test_a_network_that_moves_keeps_the_catalogue(joint: Path, grown: Domain) -> None:
    model = BiVRec.from_pretrained(joint, grown)
    histories = torch.tensor([[1, 2, 3]])
    expected = scores(model.scorer(), histories)
    torch.testing.assert_close(scores(model.to("cpu").scorer(), histories), expected)


@pytest.fixture(scope="module")
def multimodal(source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Run without an ID view."""
    trained = config(model={"repeat_bias": True}, training={"views": ["mm"]})
    return pretrain(source, tmp_path_factory.mktemp("multimodal") / "run", trained)


def test_a_run_of_the_multimodal_view_alone_ranks_what_it_knows_as_before(
    multimodal: Run, source: Domain, grown: Domain, tmp_path: Path
) -> None:
    said, lists = [], []
    for domain in (source, grown):
        file = tmp_path / f"{domain.name}.csv"
        options = ("--to", file, "--k", domain.num_items, "--split", "train", "--keep-seen")
        said.append(succeed("recommend", domain.path, "--run", multimodal.path, *options))
        lists.append(pd.read_csv(file).set_index(["user_id", "item_id"])["score"])
    assert "run mm to" in said[0]
    assert f"run mm, {len(NEW)} new items to" in said[1]
    gone = set(source.item_ids()) - set(grown.item_ids())
    # Of users who had none of what is gone.
    spared = [user for user, items in items_of_split(source, "train").items() if gone.isdisjoint(items)]
    before, now = (scores[scores.index.isin(spared, level="user_id")] for scores in lists)
    assert len(spared) > 20
    assert set(NEW) <= set(now.index.get_level_values("item_id"))
    joined = before.to_frame("before").join(now.rename("now"), how="inner")
    assert len(joined) == len(spared) * (source.num_items - GONE)
    np.testing.assert_allclose(joined["now"], joined["before"], atol=1e-5)


def test_a_run_of_the_multimodal_view_alone_says_what_it_does_not_have(
    multimodal: Run, grown: Domain, tmp_path: Path
) -> None:
    options = ("--run", multimodal.path, "--to", tmp_path / "lists.csv")
    assert "the model has only mm" in bivrec("recommend", grown.path, *options, "--view", "id").output
    (multimodal.path / "results.json").rename(tmp_path / "results.json")
    assert "run: not ended (step" in bivrec("recommend", grown.path, *options).stderr
    (tmp_path / "results.json").rename(multimodal.path / "results.json")
    # Its users may have been trained on.
    refused = bivrec("evaluate", grown.path, "--run", multimodal.path)
    assert "`bivrec recommend` ranks a catalogue that has changed" in refused.output


@pytest.fixture(scope="module")
def later(source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """The source with the same items in the same order, and as many test users with as much, who are others."""
    folder = tmp_path_factory.mktemp("later") / "later"
    sequences = {split: source.sequences(split) for split in SPLITS}
    others = [f"new-{user}" for user in sequences["test"].user_ids]
    sequences["test"] = dataclasses.replace(sequences["test"], user_ids=others)
    with new_folder(folder) as staging:
        write_domain(staging, dataclasses.replace(source.info, features={}), sequences, source.item_table().data.table)
    features = {name: source.features((name,)) for name in MODALITIES}
    present = {name: table.any(1) for name, table in features.items()}
    return Domain.open(folder).with_features(features, present, source.info.features)


@pytest.mark.parametrize("views", [["mm"], ["id", "mm"]])
def test_other_users_may_be_recommended_to(source: Domain, later: Domain, tmp_path: Path, views: list[str]) -> None:
    """Those who came since the training, of whom nothing is held out."""
    run = pretrain(source, tmp_path / "run", config(training={"views": views, "steps": 1}))
    refused = bivrec("evaluate", later.path, "--run", run.path)
    assert "as many test users and interactions as then, but others" in refused.output
    succeed("recommend", later.path, "--run", run.path, "--to", tmp_path / "lists.csv")
    assert set(pd.read_csv(tmp_path / "lists.csv")["user_id"]) == set(users_of_split(later, "all").user_ids)


def test_other_users_are_not_those_of_a_published_model(
    joint: Path, source: Domain, later: Domain, tmp_path: Path
) -> None:
    """It may have been trained on them."""
    succeed("evaluate", source.path, "--from-hub", joint)
    refused = bivrec("evaluate", later.path, "--from-hub", joint)
    assert "trained on another preparation of these items, and perhaps on these users" in refused.output
    tower = publish(Run.open(joint.parent / "run"), str(tmp_path / "tower"), "tower")
    assert f"{tower} mm" in succeed("evaluate", source.path, "--from-hub", tower)
    assert f"{tower} trained on 100 % of these items" in succeed("evaluate", later.path, "--from-hub", tower)


@pytest.mark.parametrize("kind", ["--from-hub", "--run"])
def test_new_items_are_recommended_and_counted(joint: Path, grown: Domain, tmp_path: Path, kind: str) -> None:
    model = {"--from-hub": joint, "--run": joint.parent / "run"}[kind]
    lists = tmp_path / "lists.csv"
    said = succeed("recommend", grown.path, kind, model, "--to", lists, "--k", grown.num_items)
    assert f"both, {len(NEW)} new items" in said
    assert all(item in lists.read_text() for item in NEW)


def test_a_domain_may_be_replaced_by_the_changed_one(source: Domain, grown: Domain, tmp_path: Path) -> None:
    """As a shop does that prepares the same folder anew every night."""
    shop = Path(shutil.copytree(source.path, tmp_path / "shop"))
    pretrain(Domain.open(shop), tmp_path / "run", config())
    shutil.rmtree(shop)
    shutil.copytree(grown.path, shop)
    options = ("--run", tmp_path / "run", "--k", grown.num_items)
    for ended in (True, False):
        said = bivrec("recommend", shop, *options, "--to", tmp_path / "lists.csv", "--overwrite")
        assert f"both, {len(NEW)} new items" in said.stdout
        assert ("run: not ended (step" in said.stderr) != ended
        (tmp_path / "run/results.json").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["--from-hub", "--run"])
def test_users_of_another_preparation_are_not_evaluated(joint: Path, grown: Domain, kind: str) -> None:
    """They may have been trained on."""
    model = {"--from-hub": joint, "--run": joint.parent / "run"}[kind]
    result = bivrec("evaluate", grown.path, kind, model)
    assert result.exit_code == 1
    assert "`bivrec recommend` ranks a catalogue that has changed" in result.output


def test_a_catalogue_of_others_is_refused(joint: Path, target: Domain) -> None:
    with pytest.raises(BivrecError, match=r"trained on 0 of the .* items .*--zero-shot"):
        BiVRec.from_pretrained(joint, target)
