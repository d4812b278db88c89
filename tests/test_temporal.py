"""The split by time from the command line to the cards: what came since a time is the target, and nobody knew it."""

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stages import bivrec, items_of_split, prepare_shop, settings, succeed

from bivrec.data.domain import Domain
from bivrec.data.histories import users_of_domain, users_of_split
from bivrec.data.info import SPLITS
from bivrec.errors import BivrecError
from bivrec.merge import merge

DAY = 86_400
START = 1_577_836_800
"""2020-01-01 UTC."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of a shop: users come and go over 100 days, and from day 70 on there are new items."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(3)
    rows = []
    for user in range(150):
        first, last = np.sort(random.integers(0, 100, 2))
        for day in np.sort(random.integers(first, last + 1, 1 + user % 11)):
            item = int(30 * random.random() ** 2) if day < 70 or random.random() < 0.5 else 30 + random.integers(10)
            rows.append((f"u{user:03}", f"i{item:02}", START + int(day) * DAY))
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).drop_duplicates()
    table.to_csv(folder / "interactions.csv", index=False)
    described = [f'i{item:02},"A {"red" if item % 2 else "blue"} thing, number {item}"' for item in range(40)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *described]))
    return folder


@pytest.fixture(scope="module")
def domain(shop: Path) -> Domain:
    """The shop split by time, with features."""
    path = shop / "domains" / "shop"
    prepare_shop(shop, path, "--split", "temporal:6:2:2")
    succeed("encode", path, "--text", "hashing", "--whiten")
    return Domain.open(path)


def cutoffs(shop: Path, shares: tuple[int, int, int] = (6, 2, 2)) -> tuple[int, int]:
    times = sorted(int(row["timestamp"]) for row in rows(shop))
    first, second, _ = shares
    return times[len(times) * first // sum(shares)], times[len(times) * (first + second) // sum(shares)]


def rows(shop: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((shop / "interactions.csv").read_text().splitlines()))


def log(shop: Path) -> dict[str, list[tuple[str, int]]]:
    """User -> items and times in their order, from the file."""
    sequences: dict[str, list[tuple[str, int]]] = {}
    for row in rows(shop):
        sequences.setdefault(row["user_id"], []).append((row["item_id"], int(row["timestamp"])))
    return sequences


def expected_parts(shop: Path) -> dict[str, dict[str, list[str]]]:
    """Split -> user -> items, by a slow loop."""
    validation, test = cutoffs(shop)
    parts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for user, sequence in log(shop).items():
        trained = [item for item, time in sequence if time < validation]
        before_test = [item for item, time in sequence if time < test]
        if trained:
            parts["train"][user] = trained
        if trained and len(before_test) > len(trained):
            parts["validation"][user] = before_test
        if before_test and len(sequence) > len(before_test):
            parts["test"][user] = [item for item, _ in sequence]
    return parts


def test_the_parts_are_those_of_a_slow_loop(domain: Domain, shop: Path) -> None:
    parts = expected_parts(shop)
    for split in SPLITS:
        assert items_of_split(domain, split) == parts[split]
        assert list(domain.sequences(split).user_ids) == sorted(parts[split])
    # Users of every kind are among them.
    train, validation, test = (set(parts[split]) for split in SPLITS)
    assert train & validation & test
    assert test - train
    assert train - validation - test
    everybody = set(log(shop))
    assert everybody - train - validation - test
    info = domain.info
    assert info.protocol == "temporal"
    assert info.cutoffs == dict(zip(("validation", "test"), cutoffs(shop), strict=True))
    assert info.num_users == len(train | validation | test)
    assert info.num_interactions == sum(len(log(shop)[user]) for user in train | validation | test)
    assert info.dropped["interactions_without_history"] == len(rows(shop)) - info.num_interactions


def test_popularity_is_that_before_the_first_cutoff(domain: Domain, shop: Path) -> None:
    counts = Counter(item for items in expected_parts(shop)["train"].values() for item in items)
    kept = {item for items in expected_parts(shop).values() for own in items.values() for item in own}
    assert domain.item_ids() == sorted(kept, key=lambda item: (-counts[item], item))
    assert any(counts[item] == 0 for item in kept)


def test_the_metrics_are_those_of_a_slow_ranking(domain: Domain, shop: Path) -> None:
    """Of the most popular items, from the raw file alone."""
    parts = expected_parts(shop)
    users, occurrences = Counter[str](), Counter[str]()
    for items in parts["train"].values():
        users.update(set(items))
        occurrences.update(items)
    ranked = sorted(domain.item_ids(), key=lambda item: (-users[item], -occurrences[item], item))
    for split, cutoff in zip(("validation", "test"), cutoffs(shop), strict=True):
        recalls, gains = [], []
        for user, items in parts[split].items():
            num_before = sum(time < cutoff for _, time in log(shop)[user])
            targets, seen = set(items[num_before:]), set(items[:num_before])
            top = [item for item in ranked if item not in seen][:5]
            recalls.append(len(targets & set(top)) / len(targets))
            gain = sum(1 / math.log2(place + 2) for place, item in enumerate(top) if item in targets)
            gains.append(gain / sum(1 / math.log2(place + 2) for place in range(min(5, len(targets)))))
        options = ("--floor", "popularity", "--k", 5, "--split", split, "--remove-seen", "--json")
        told = json.loads(succeed("evaluate", domain.path, *options))
        assert (told["protocol"], told["users"], told["skipped_users"]) == ("temporal", len(recalls), 0)
        assert told["results"]["popularity"]["recall@5"] == pytest.approx(np.mean(recalls))
        assert told["results"]["popularity"]["ndcg@5"] == pytest.approx(np.mean(gains))
        assert 0 < np.mean(recalls) < 1


def test_the_shares_are_of_the_interactions(shop: Path, tmp_path: Path) -> None:
    said = prepare_shop(shop, tmp_path / "d", "--split", "temporal")
    domain = Domain.open(tmp_path / "d")
    assert tuple(domain.info.cutoffs.values()) == cutoffs(shop, (8, 1, 1))
    assert domain.info.source["split"] == "8:1:1"
    validation = pd.Timestamp(domain.info.cutoffs["validation"], unit="s")
    assert f"validation targets from {domain.info.cutoffs['validation']} ({validation:%Y-%m-%d} UTC) on" in said
    left_out = domain.info.dropped["interactions_without_history"]
    assert f"of users who begin too late for any split (left out): {left_out} interactions" in said
    assert "each counted once" in said
    # Only the ratio counts, however large the numbers are.
    prepare_shop(shop, tmp_path / "e", "--split", "temporal:" + ":".join(["8" + 30 * "0", *2 * ["1" + 30 * "0"]]))
    assert Domain.open(tmp_path / "e").info.cutoffs == domain.info.cutoffs


def test_the_whole_sequence_is_recommended_from(domain: Domain, shop: Path) -> None:
    ids, sequences = domain.item_ids(), log(shop)
    everybody = sorted({user for part in expected_parts(shop).values() for user in part})
    assert users_of_split(domain, "all").user_ids == everybody
    for users in (*(users_of_split(domain, split) for split in (*SPLITS, "all")), users_of_domain(domain, everybody)):
        assert len(users)
        for place, user in enumerate(users.user_ids):
            times = users.timestamps[users.offsets[place] : users.offsets[place + 1]]
            assert [ids[item - 1] for item in users[place]] == [item for item, _ in sequences[user]]
            assert times.tolist() == [time for _, time in sequences[user]]


def test_exported_targets_are_those_since_the_cutoff(domain: Domain, shop: Path, tmp_path: Path) -> None:
    succeed("export", domain.path, "--to", tmp_path / "tables")
    for split, cutoff in zip(("validation", "test"), cutoffs(shop), strict=True):
        histories, targets = (
            pd.read_parquet(tmp_path / f"tables/{split}_{part}.parquet") for part in ("histories", "targets")
        )
        assert histories["timestamp"].max() < cutoff <= targets["timestamp"].min()
        assert set(histories["user_id"]) == set(targets["user_id"]) == set(expected_parts(shop)[split])
    assert pd.read_parquet(tmp_path / "tables/train.parquet")["timestamp"].max() < cutoffs(shop)[0]


def test_trained_published_and_told(domain: Domain, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("pretrain", domain.path, "--to", run, *settings(model={"modalities": ["text"]}))
    for kind in ("tower", "joint"):
        succeed("publish", run, "--model", kind, "--to", tmp_path / kind)
        card = " ".join((tmp_path / kind / "README.md").read_text().split())
        validation, test = cutoffs(domain.path.parents[1])
        users = domain.info.users["test"]
        assert (
            f"Split by time: the {users} users of the same Domain who did something both before time {test} and" in card
        )
        assert f"the model was trained on what was before time {validation}" in card
        assert "recall at 20 of the validation targets" in card
        assert "protocol: temporal" in card
        for untrue in ("none of them trained on", "last 20 %", "hit rate, and"):
            assert untrue not in card
    said = succeed("publish-domain", domain.path, "--to", "org/shop", "--dry-run")
    card = " ".join(said.split())
    assert f"Split by time, 6:2:2 of all interactions: what was before {validation} is for training" in card
    assert f"there are {domain.info.num_users} users and {domain.info.num_interactions} interactions" in card
    for untrue in ("Users, not interactions, are split", "last 20 %"):
        assert untrue not in card


def test_domains_split_by_time_are_not_merged(shop: Path, domain: Domain, tmp_path: Path) -> None:
    prepare_shop(shop, tmp_path / "twin", "--split", "temporal:7:2:1")
    with pytest.raises(BivrecError, match="were split by time have cutoffs of their own and cannot be merged; "):
        merge([domain, Domain.open(tmp_path / "twin")], tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("times", "complaint"),
    [
        ([[0, 1, 2], [1, 2], [0, 1, 2, 3]], "most users begin at time 0: these are positions in sequences, not times"),
        ([[5, 5, 5, 5], [4, 5, 5, 5]], "no validation users: nobody has interactions both before time 5 and since;"),
        ([[1, 2, 3], [4, 5, 6], [7], [8], [9]], "no validation users: nobody has interactions both before time 8 and"),
    ],
)
def test_times_that_cannot_be_split(times: list[list[int]], complaint: str, tmp_path: Path) -> None:
    table = [f"u{user},i{place},{time}" for user, own in enumerate(times) for place, time in enumerate(own)]
    (tmp_path / "rows.csv").write_text("\n".join(["user_id,item_id,timestamp", *table]))
    options = ("--interactions", tmp_path / "rows.csv", "--k-core", 0, "--split", "temporal")
    result = bivrec("prepare", "tables", *options, "--to", tmp_path / "d")
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert not (tmp_path / "d").exists()
