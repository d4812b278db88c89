"""Items that the table of items lists and nobody has had: from the tables to the lists of recommendations."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from stages import bivrec, config, prepare_shop, settings, succeed, weights, write_shop

from bivrec.baselines.floors import fit_floor
from bivrec.baselines.spectral import spectral_vectors
from bivrec.config import FLOORS
from bivrec.data.domain import Domain
from bivrec.domain_hub import preview
from bivrec.merge import merge
from bivrec.pretrain import pretrain
from bivrec.training.run import Run

NEW = ("new-0", "new-1", "new-2")
TEXT_ALONE = {"modalities": ["text"], "id_items": "ids+features"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of 40 users with 18 items of three kinds, beside which NEW items are listed, one of each kind."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(2)
    rows = [
        (f"u{user}", f"i{3 * random.integers(6) + user % 3}", time)
        for user in range(40)
        for time in np.sort(random.choice(1000, 8, replace=False))
    ]
    kinds = ("red shoes leather", "green tea organic", "blue lamp desk")
    items = [(f"i{item}", f"{kinds[item % 3]} {item}") for item in range(18)]
    items += [(item, f"{kinds[place]} latest") for place, item in enumerate(NEW)]
    write_shop(folder, rows, items)
    return folder


@pytest.fixture(scope="module")
def domain(shop: Path) -> Domain:
    said = prepare_shop(shop, shop / "kept", "--keep-items")
    assert "  21 items, density" in said
    assert "without interactions (kept, ranked by their content): 3 items" in said
    succeed("encode", shop / "kept", "--text", "hashing", "--whiten")
    return Domain.open(shop / "kept")


@pytest.fixture(scope="module")
def run(domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    chosen = settings(model=TEXT_ALONE, training={"steps": 30, "evaluate_every": 15, "id_init": "spectral"})
    succeed("pretrain", domain.path, "--to", path, *chosen)
    return path


def recommended(domain: Path, run: Path, *options: object) -> pd.DataFrame:
    lists = run.parent / "lists.csv"
    succeed("recommend", domain, "--run", run, "--to", lists, "--overwrite", *options)
    return pd.read_csv(lists)


@pytest.mark.parametrize("view", ["mm", "both"])
def test_they_are_recommended(domain: Domain, run: Path, view: str) -> None:
    lists = recommended(domain.path, run, "--view", view, "--k", domain.num_items, "--split", "train")
    assert set(NEW) <= set(lists["item_id"])
    # To those who like such items before others: user u has items of the kind u % 3.
    of_kind = {
        item: lists[lists["item_id"] == item].assign(kind=lists["user_id"].str[1:].astype(int) % 3) for item in NEW
    }
    for place, item in enumerate(NEW):
        ranks = of_kind[item].groupby("kind")["rank"].mean()
        assert ranks.idxmin() == place


def test_they_have_no_id_vector(domain: Domain, run: Path) -> None:
    table = weights(Run.open(run), "best")["towers.id.items.identity.table.weight"]
    assert domain.item_ids()[-3:] == list(NEW)
    assert not table[-3:].any()
    assert table[1:-3].any(1).all()


@pytest.mark.parametrize("candidates", ["full", "uniform", "popularity", "in-batch"])
def test_every_kind_of_candidates_bears_them(domain: Domain, tmp_path: Path, candidates: str) -> None:
    chosen = config(model=TEXT_ALONE, objective={"candidates": candidates})
    losses = [line["loss"] for line in pretrain(domain, tmp_path / "run", chosen).metrics() if line["split"] == "train"]
    assert np.isfinite(losses).all()


def test_floors_bear_them(domain: Domain, run: Path) -> None:
    assert not spectral_vectors(domain, 8)[-3:].any()
    assert all(fit_floor(floor, domain).num_items == 21 for floor in FLOORS)
    floors = [word for floor in FLOORS for word in ("--floor", floor)]
    said = succeed("evaluate", domain.path, "--run", run, *floors, "--by-popularity")
    assert "never" in said


def test_the_data_card_counts_them(domain: Domain, tmp_path: Path) -> None:
    _, card = preview(domain, str(tmp_path / "published"))
    assert "- Without interactions: 3 items, which the source lists; only their content can rank them." in card
    assert "Items that the source lists were kept nevertheless" in card


def test_they_are_exported_and_published(domain: Domain, tmp_path: Path) -> None:
    succeed("export", domain.path, "--to", tmp_path / "tables")
    assert list(pd.read_parquet(tmp_path / "tables" / "items.parquet")["item_id"])[-3:] == list(NEW)
    succeed("publish-domain", domain.path, "--to", tmp_path / "published")
    rows = load_dataset(str(tmp_path / "published"), "items", split="items", cache_dir=str(tmp_path / "cache"))
    assert rows["item_id"][-3:] == list(NEW)


def test_a_merge_keeps_them(domain: Domain, shop: Path, tmp_path: Path) -> None:
    prepare_shop(shop, tmp_path / "plain")
    succeed("encode", tmp_path / "plain", "--text", "hashing", "--whiten")
    merged = merge([domain, Domain.open(tmp_path / "plain")], tmp_path / "both")
    assert (merged.num_items, merged.info.items_without_interactions) == (21 + 18, 3)
    rows = [merged.item_ids().index(f"kept:{item}") + 1 for item in NEW]
    assert merged.features(("text",))[rows].allclose(domain.features(("text",))[-3:])


def test_what_is_listed_after_the_training_is_ranked(shop: Path, tmp_path: Path) -> None:
    """A shop prepares its tables anew, with one more item in them, and recommends with the Run of before."""
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "interactions.csv").write_text((shop / "interactions.csv").read_text())
    items = (shop / "items.csv").read_text().splitlines()
    (tables / "items.csv").write_text("\n".join(items[:-3]))
    for day, listing in enumerate([items[:-3], items[:-2]]):
        (tables / "items.csv").write_text("\n".join([*listing, ""]))
        prepare_shop(tables, tmp_path / "domain", "--keep-items", "--overwrite")
        succeed("encode", tmp_path / "domain", "--text", "hashing", "--whiten")
        if day == 0:
            succeed("pretrain", tmp_path / "domain", "--to", tmp_path / "run", *settings(model=TEXT_ALONE))
            assert len(recommended(tmp_path / "domain", tmp_path / "run", "--k", 18)["item_id"].unique()) == 18
    assert Domain.open(tmp_path / "domain").item_ids()[-1] == NEW[0]
    lists = recommended(tmp_path / "domain", tmp_path / "run", "--k", 19)
    assert (lists["item_id"] == NEW[0]).sum() == lists["user_id"].nunique()


def test_a_title_that_is_mended_changes_nothing_for_a_run(shop: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    shutil.copytree(shop, tables, ignore=shutil.ignore_patterns("kept"))
    for step in ("train", "evaluate"):
        prepare_shop(tables, tmp_path / "domain", "--keep-items", "--overwrite")
        succeed("encode", tmp_path / "domain", "--text", "hashing", "--whiten")
        if step == "train":
            succeed("pretrain", tmp_path / "domain", "--to", tmp_path / "run", *settings(model=TEXT_ALONE))
            items = (tables / "items.csv").read_text()
            (tables / "items.csv").write_text(items.replace("lamp desk 5", "desk lamp 5"))
    assert "run both" in succeed("evaluate", tmp_path / "domain", "--run", tmp_path / "run")
    # Its tower is on its own Domain, still.
    succeed("publish", tmp_path / "run", "--to", tmp_path / "tower", "--model", "tower")
    said = succeed("evaluate", tmp_path / "domain", "--from-hub", tmp_path / "tower")
    assert "tower mm" in said
    assert "of these items" not in said


@pytest.mark.parametrize("reader", ["tables", "amazon"])
def test_there_must_be_a_table_of_items(shop: Path, tmp_path: Path, reader: str) -> None:
    table, missing = {"tables": ("--interactions", "--items"), "amazon": ("--reviews", "--metadata")}[reader]
    result = bivrec("prepare", reader, table, shop / "interactions.csv", "--keep-items", "--to", tmp_path / "d")
    assert result.exit_code == 1
    assert result.output == f"Error: leave --keep-items out: of no use without {missing}\n"


def test_films_that_nobody_rated(tmp_path: Path) -> None:
    rows = "\n".join(f"{user},{item},4.0,{item}" for user in range(5) for item in range(5))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,One,Drama\n77,Unseen,Comedy\n")
    succeed("prepare", "movielens", tmp_path, "--keep-items", "--to", tmp_path / "d")
    assert Domain.open(tmp_path / "d").item_ids() == ["0", "1", "2", "3", "4", "77"]
