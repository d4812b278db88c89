"""Items of a catalogue that no training sequence holds: they have no ID vector, and are ranked by what they are."""

import numpy as np
import pytest
import torch
from stages import config, prepare_shop, succeed, weights, write_shop

from bivrec.data.domain import Domain
from bivrec.model.items import IdItems, JointItems
from bivrec.pretrain import pretrain
from bivrec.training.run import Run


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """23 items, some of which came only after all that is trained on."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(4)
    rows = []
    for user in range(80):
        for time in np.sort(random.integers(0, 1000, 9)):
            rows.append((f"u{user}", f"i{random.integers(0, 17 if time < 850 else 23)}", time))
    write_shop(folder, rows, [(f"i{item}", f"thing {item} of kind {item % 4}") for item in range(23)])
    prepare_shop(folder, folder / "shop", "--split", "temporal")
    succeed("encode", folder / "shop", "--text", "hashing", "--whiten")
    return Domain.open(folder / "shop")


def trained_items(domain: Domain) -> torch.Tensor:
    """Bool [V + 1]."""
    return torch.from_numpy(domain.training_counts() > 0)


def test_the_items_that_are_trained_on_come_first(domain: Domain) -> None:
    trained = trained_items(domain)
    assert set(domain.sequences("train").items.tolist()) == set(range(1, int(trained.sum()) + 1))
    assert trained[1:].sum() < domain.num_items


def test_the_table_neither_gives_nor_learns_their_vectors() -> None:
    items = IdItems(num_items=9, hidden_size=4)
    trained = torch.tensor([False, *[True] * 4, False, True, *[False] * 3])
    items.trained = trained
    vectors = items(torch.arange(10))
    assert vectors[trained].equal(items.table.weight[trained])
    assert not vectors[~trained].any()
    vectors.sum().backward()
    assert items.table.weight.grad is not None
    assert items.table.weight.grad.any(1).equal(trained)


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
    assert table.any(1).equal(trained_items(domain))


def test_the_id_view_is_trusted_with_what_it_has_seen(domain: Domain, run: Run) -> None:
    counts = [int((domain.sequences("train").items == item).sum()) for item in range(domain.num_items + 1)]
    assert weights(run, "best")["id_trust"].tolist() == pytest.approx([count / (count + 2) for count in counts])


@torch.no_grad()
def test_the_id_view_knows_them_by_their_content(domain: Domain, run: Run) -> None:
    items = run.load_model(domain).tower("id").items
    assert isinstance(items, JointItems)
    indices = torch.arange(domain.num_items + 1)
    by_content = (items(indices) == items.content(indices)).all(1)
    assert by_content[1:].equal(~trained_items(domain)[1:])
