"""What is found and shown of items that the training users had never, seldom and often."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stages import succeed

from bivrec.data.domain import Domain
from bivrec.evaluation.breakdown import PopularityGroups, recall_of
from bivrec.evaluation.metrics import find_hits, recall
from bivrec.evaluation.protocol import EvaluationUsers

GROUPS = {"never": (0, 0), "1-4 times": (1, 4), "5-19 times": (5, 19), "20 or more": (20, 10**9)}


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Split by time, with items that appear late and users who repeat."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(8)
    rows = []
    for user in range(60):
        for time in np.sort(random.integers(0, 1000, 12)):
            item = int(60 * random.random() ** 3) if time < 850 or random.random() < 0.7 else 60 + random.integers(20)
            rows.append((f"u{user}", f"i{item}", time))
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(folder / "rows.csv", index=False)
    options = ("--interactions", folder / "rows.csv", "--k-core", 0, "--split", "temporal")
    succeed("prepare", "tables", *options, "--to", folder / "shop")
    return Domain.open(folder / "shop")


@pytest.fixture(scope="module")
def lists(domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """30 random items for each test user, the best first."""
    random = np.random.default_rng(1)
    users = EvaluationUsers.from_sequences(domain.sequences("test")).user_ids
    rows = [(user, item, rank) for user in users
            for rank, item in enumerate(random.permutation(domain.item_ids())[:30], 1)]  # fmt: skip
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])


def expected(domain: Domain, lists: pd.DataFrame, folder: Path, k: int) -> dict[str, Any]:
    """Group -> recall of each user with such targets, by a slow loop over the exported tables."""
    succeed("export", domain.path, "--to", folder)
    counts = Counter(pd.read_parquet(folder / "train.parquet")["item_id"])
    targets: dict[str, set[str]] = defaultdict(set)
    for row in pd.read_parquet(folder / "test_targets.parquet").itertuples():
        targets[row.user_id].add(row.item_id)
    shown = {user: set(own["item_id"][own["rank"] <= k]) for user, own in lists.groupby("user_id")}
    recalls: dict[str, list[float]] = defaultdict(list)
    for user, items in targets.items():
        for group, (fewest, most) in GROUPS.items():
            if of_group := {item for item in items if fewest <= counts[item] <= most}:
                recalls[group].append(len(of_group & shown[user]) / len(of_group))
    return recalls


def test_groups_are_those_of_a_slow_loop(domain: Domain, lists: pd.DataFrame, tmp_path: Path) -> None:
    wanted = expected(domain, lists, tmp_path / "tables", 20)
    assert set(wanted) == set(GROUPS)
    lists.to_csv(tmp_path / "random.csv", index=False)
    options = ("--lists", tmp_path / "random.csv", "--floor", "popularity", "--by-popularity", "--k", 5, "--k", 20)
    told = json.loads(succeed("evaluate", domain.path, *options, "--json"))["by_popularity"]
    assert told["metric"] == "recall@20"
    assert list(told["users"]) == list(GROUPS)
    for group, recalls in wanted.items():
        assert told["users"][group] == len(recalls)
        assert told["results"]["random"][group] == pytest.approx(np.mean(recalls))
    assert all(0 < np.mean(wanted[group]) < 1 for group in ("never", "20 or more"))
    # The most popular 20 items hold none that nobody had.
    assert told["results"]["popularity"]["never"] == 0
    assert told["recommended"]["popularity"]["never"] == 0
    assert told["recommended"]["popularity"]["catalogue"] == pytest.approx(20 / domain.num_items)
    shown = lists[lists["rank"] <= 20]["item_id"]
    trained = shown.map(Counter(pd.read_parquet(tmp_path / "tables/train.parquet")["item_id"])).fillna(0)
    for group, (fewest, most) in GROUPS.items():
        assert told["recommended"]["random"][group] == pytest.approx(trained.between(fewest, most).mean())
    assert told["recommended"]["random"]["catalogue"] == pytest.approx(shown.nunique() / domain.num_items)
    said = succeed("evaluate", domain.path, *options, "--test")
    assert "recall@20 by how often the training users had the target:" in said
    assert f"{told['targets']['never']} ({told['users']['never']})" in said
    assert said.count("p (t-test)") == 2
    assert "shares of such items in the lists of 20, and of the catalogue that is in any list:" in said


def test_the_groups_make_up_the_whole(domain: Domain) -> None:
    users = EvaluationUsers.from_sequences(domain.sequences("test"))
    lists = np.random.default_rng(0).permuted(np.tile(np.arange(1, domain.num_items + 1), (len(users), 1)), axis=1)[
        :, :20
    ]
    groups = PopularityGroups.of_training(domain.sequences("train"), domain.num_items).targets(users)
    hits, num_targets = find_hits(lists, *users.targets())
    found = np.zeros(len(users))
    counts = np.zeros(len(users), np.int64)
    for targets in groups.values():
        own = find_hits(lists, targets.offsets, targets.items)[1]
        counts += own
        found[targets.users] += recall_of(targets, lists, 20) * own[targets.users]
    np.testing.assert_array_equal(counts, num_targets)
    np.testing.assert_allclose(found / num_targets, recall(hits, num_targets, 20))
    # A group without targets is not told of.
    everything = PopularityGroups.of_training(domain.sequences("test"), domain.num_items).targets(users)
    assert "never" not in everything
