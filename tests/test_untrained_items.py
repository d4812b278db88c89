"""Items of a catalogue that no training sequence holds: they are not pushed away, and are ranked by what they are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stages import config, succeed, weights
from tiny_models import tiny_model

from bivrec.config import ObjectiveConfig
from bivrec.data.batches import BatchSampler
from bivrec.data.domain import Domain
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.pretrain import pretrain
from bivrec.training.candidates import CandidateSampler
from bivrec.training.objective import Objective
from bivrec.training.run import Run

CANDIDATES = ["full", "uniform", "popularity", "in-batch"]


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """23 items, some of which came only after all that is trained on."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(4)
    rows = []
    for user in range(80):
        for time in np.sort(random.integers(0, 1000, 9)):
            rows.append((f"u{user}", f"i{random.integers(0, 17 if time < 850 else 23)}", time))
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(folder / "rows.csv", index=False)
    titles = [(f"i{item}", f"thing {item} of kind {item % 4}") for item in range(23)]
    pd.DataFrame(titles, columns=["item_id", "title"]).to_csv(folder / "items.csv", index=False)
    tables = ("--interactions", folder / "rows.csv", "--items", folder / "items.csv")
    succeed("prepare", "tables", *tables, "--k-core", 0, "--split", "temporal", "--to", folder / "shop")
    succeed("encode", folder / "shop", "--text", "hashing", "--whiten")
    return Domain.open(folder / "shop")


def test_the_items_that_are_trained_on_come_first(domain: Domain) -> None:
    trained = set(domain.sequences("train").items.tolist())
    assert trained == set(range(1, domain.num_trained_items + 1))
    assert domain.num_trained_items < domain.num_items


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_the_loss_does_not_know_them(domain: Domain, candidates: str) -> None:
    trained = domain.num_trained_items
    sampler = BatchSampler(
        domain.sequences("train"), batch_size=16, max_history=8, min_history=1, targets_per_sequence=1,
        whole_history=True, seed=0,
    )  # fmt: skip
    settings = ObjectiveConfig(candidates=candidates, num_negatives=50)
    shares = sampler.last_target_shares(trained)
    batch = sampler.batch(0)
    drawn = CandidateSampler(settings, trained, 0, shares).draw(0, batch.targets)
    assert drawn is None or int(drawn.items.max()) <= trained
    losses = []
    for moved in (0.0, 5.0):
        torch.manual_seed(0)
        model = tiny_model(dropout=0.0, repeat_bias=True)
        assert model.num_items == domain.num_items
        move_untrained(model, trained, moved)
        losses.append(Objective(model, settings, trained)(batch, drawn)["loss"])
    assert losses[0] == losses[1]


@torch.no_grad()
def move_untrained(model: BiVRecNetwork, trained: int, distance: float) -> None:
    model.tower("id").items.table.weight[trained + 1 :] += distance  # type: ignore[union-attr]
    model.tower("mm").items.features[trained + 1 :] += distance  # type: ignore[union-attr,index]


@pytest.fixture(scope="module", params=["full", "uniform"])
def run(request: pytest.FixtureRequest, domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = config(
        model={"id_items": "ids+features", "modalities": ["text"]},
        training={"id_init": "spectral", "weight_decay": 0.1},
        objective={"candidates": request.param},
    )
    return pretrain(domain, tmp_path_factory.mktemp("runs") / "run", settings)


def test_they_have_no_id_vectors(domain: Domain, run: Run) -> None:
    table = weights(run, "best")["towers.id.items.identity.table.weight"]
    known = table.any(1)
    assert known[1 : domain.num_trained_items + 1].all()
    assert not known[domain.num_trained_items + 1 :].any()


def test_the_id_view_is_trusted_with_what_it_has_seen(domain: Domain, run: Run) -> None:
    trust = weights(run, "best")["id_trust"]
    for item in range(domain.num_items + 1):
        count = int((domain.sequences("train").items == item).sum())
        assert float(trust[item]) == pytest.approx(count / (count + 2))


def test_they_are_recommended_by_their_content(domain: Domain, run: Run, tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    succeed("recommend", domain.path, "--run", run.path, "--to", lists, "--k", 10)
    new = set(domain.item_ids()[domain.num_trained_items :])
    assert new & set(pd.read_csv(lists)["item_id"])
