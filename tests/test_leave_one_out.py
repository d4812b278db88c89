"""Leave-one-out from the command line to the cards: each user's last interaction is the only target."""

import csv
import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stages import bivrec, config, items_of_split, new_run, prepare_shop, settings, succeed

from bivrec.data.domain import Domain, write_domain
from bivrec.data.histories import users_of_domain, users_of_split
from bivrec.data.info import SPLITS
from bivrec.data.noise import noisy_copy
from bivrec.errors import BivrecError
from bivrec.merge import merge
from bivrec.studies.compare import comparison
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

TEXT = {"modalities": ["text"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of a shop, whose users have 1 to 12 interactions, some repeated."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(5)
    rows = ["user_id,item_id,timestamp"]
    for user in range(120):
        items = (40 * random.random(1 + user % 12) ** 2).astype(int)
        rows += [f"u{user},i{item:02},{1000 * user + time}" for time, item in enumerate(items)]
    (folder / "interactions.csv").write_text("\n".join(rows))
    described = [f'i{item:02},"A {"red" if item % 2 else "blue"} thing, number {item}"' for item in range(40)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *described]))
    return folder


@pytest.fixture(scope="module")
def domain(shop: Path) -> Domain:
    """The shop by leave-one-out, with features."""
    path = shop / "domains" / "shop"
    prepare_shop(shop, path, "--split", "leave-one-out")
    succeed("encode", path, "--text", "hashing", "--whiten")
    return Domain.open(path)


@pytest.fixture(scope="module")
def run(domain: Domain, shop: Path) -> Path:
    """A short training of both views."""
    succeed("pretrain", domain.path, "--to", shop / "run", *settings(model=TEXT))
    return shop / "run"


def log(shop: Path) -> dict[str, list[str]]:
    """User -> items in the order of time, from the file."""
    sequences: dict[str, list[str]] = {}
    for row in csv.DictReader((shop / "interactions.csv").read_text().splitlines()):
        sequences.setdefault(row["user_id"], []).append(row["item_id"])
    return sequences


def test_the_metrics_are_those_of_a_slow_ranking(domain: Domain, shop: Path) -> None:
    """Of the most popular items, from the raw file alone."""
    sequences = log(shop)
    trained = {user: items[:-2] if len(items) >= 3 else items for user, items in sequences.items()}
    users, occurrences = Counter[str](), Counter[str]()
    for items in trained.values():
        users.update(set(items))
        occurrences.update(items)
    catalogue = {item for items in sequences.values() for item in items}
    ranked = sorted(catalogue, key=lambda item: (-users[item], -occurrences[item], item))
    for remove_seen in (False, True):
        hits, gains = [], []
        for *history, target in (items for items in sequences.values() if len(items) >= 3):
            seen = set(history) if remove_seen else set()
            top = [item for item in ranked if item not in seen][:5]
            hits.append(target in top)
            gains.append(1 / math.log2(top.index(target) + 2) if target in top else 0.0)
        options = ("--floor", "popularity", "--k", 5, *(["--remove-seen"] if remove_seen else []))
        told = json.loads(succeed("evaluate", domain.path, *options, "--json"))
        assert (told["protocol"], told["users"]) == ("leave-one-out", len(hits))
        metrics = told["results"]["popularity"]
        for metric, values in (("recall", hits), ("hr", hits), ("ndcg", gains), ("ndcg_hits", gains)):
            assert metrics[f"{metric}@5"] == pytest.approx(np.mean(values)), metric
        assert 0 < np.mean(gains) < np.mean(hits) < 1


def test_what_is_the_same_is_told_once(domain: Domain, source: Domain) -> None:
    options = ("--floor", "item-knn", "--floor", "popularity", "--k", 5, "--test")
    told = succeed("evaluate", domain.path, *options)
    for head in (line for line in told.splitlines() if line.startswith(("model", "p (t-test)"))):
        assert head.split()[-3:] == ["recall@5", "ndcg@5", "mrr@5"]
    assert "with one target for each user hr is recall, and ndcg_hits is ndcg" in told
    told = succeed("evaluate", source.path, *options)
    assert "hr@5" in told
    assert "one target" not in told


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_asks_for_the_last_item_that_it_has(domain: Domain, shop: Path, split: str, tmp_path: Path) -> None:
    options = ("--floor", "item-knn", "--split", split)
    said = succeed("evaluate", domain.path, *options, "--k", domain.num_items, "--per-user", tmp_path / "users")
    asked = {user for user, items in items_of_split(domain, split).items() if len(items) >= 2}
    assert f"{len(asked)} {split} users of shop (leave-one-out)" in said
    # Of the whole catalogue ranked, every target is found.
    assert f"recall@{domain.num_items}" in said
    assert " 100.00 " in said


def test_the_whole_sequence_is_recommended_from(domain: Domain, shop: Path, run: Path, tmp_path: Path) -> None:
    sequences = log(shop)
    for user in ("u0", "u1", "u2", "u11"):
        lines = succeed("recommend", domain.path, "--run", run, "--user", user).splitlines()
        assert lines[0] == f"user {user}: {len(sequences[user])} interactions, the most recent:"
        shown = [line.split()[0] for line in lines[1 : lines.index("recommended:")]]
        assert shown == sequences[user][-10:]
    whole = {split: set(items_of_split(domain, split)) for split in SPLITS}
    assert whole["train"] == set(sequences)
    for split in SPLITS:
        path = tmp_path / f"{split}.csv"
        succeed("recommend", domain.path, "--run", run, "--split", split, "--to", path, "--k", domain.num_items)
        lists: dict[str, set[str]] = {}
        for row in csv.DictReader(path.read_text().splitlines()):
            lists.setdefault(row["user_id"], set()).add(row["item_id"])
        # Nothing that the user has had, the held-out items included.
        assert lists == {user: set(domain.item_ids()) - set(sequences[user]) for user in whole[split]}


def test_users_have_their_whole_sequences(domain: Domain, shop: Path) -> None:
    ids, sequences = domain.item_ids(), log(shop)
    assert sorted(users_of_split(domain, "all").user_ids) == sorted(sequences)
    for users in (
        *(users_of_split(domain, split) for split in (*SPLITS, "all")),
        users_of_domain(domain, ["u7", "u0", "u119", "u1", "u2"]),
    ):
        assert len(users)
        for place, user in enumerate(users.user_ids):
            assert [ids[item - 1] for item in users[place]] == sequences[user]
            times = users.timestamps[users.offsets[place] : users.offsets[place + 1]]
            assert times.tolist() == [1000 * int(user[1:]) + time for time in range(len(sequences[user]))]


def test_a_split_by_users_gives_its_own_sequences(source: Domain) -> None:
    for split in SPLITS:
        part, users = source.sequences(split), users_of_split(source, split)
        assert users.user_ids == part.user_ids
        assert (users.items == part.items).all()


def test_what_is_held_out_is_not_learnt_by_the_floors(domain: Domain, shop: Path, tmp_path: Path) -> None:
    """A Domain whose users end otherwise, with the same items, has the same floors."""
    other = shutil.copytree(domain.path, tmp_path / "other", ignore=shutil.ignore_patterns("sequences"))
    sequences = {split: domain.sequences(split) for split in SPLITS}
    test = sequences["test"]
    items = test.items.copy()
    items[test.offsets[1:] - 1] = 1
    sequences["test"] = dataclasses.replace(test, items=items)
    shutil.rmtree(other / "items")
    (other / "domain.json").unlink()
    write_domain(other, domain.info, sequences, domain.item_table().data.table)
    lists = []
    for path in (domain.path, other):
        told = succeed("evaluate", path, "--floor", "item-knn", "--floor", "spectral-knn", "--split", "validation")
        lists.append(told)
    assert lists[0] == lists[1]


def test_trained_published_and_told(domain: Domain, run: Path, tmp_path: Path) -> None:
    results = Run.open(run).results()
    assert set(results) == {"id", "mm", "both"}
    for metrics in results.values():
        for k in (10, 20, 50):
            assert metrics[f"recall@{k}"] == metrics[f"hr@{k}"]
            assert metrics[f"ndcg@{k}"] == metrics[f"ndcg_hits@{k}"]
    told = json.loads(succeed("evaluate", domain.path, "--run", run, "--json"))
    assert told["results"]["run both"]["recall@20"] == pytest.approx(results["both"]["recall@20"])
    for kind in ("tower", "joint"):
        model = tmp_path / kind
        succeed("publish", run, "--model", kind, "--to", model)
        succeed("evaluate", domain.path, "--from-hub", model)
        card = " ".join((model / "README.md").read_text().split())
        users = domain.info.users["test"]
        assert f"Leave-one-out: the {users} users of the same Domain with 3 interactions or more." in card
        assert "recall at 20 of the validation targets" in card
        assert "protocol: leave-one-out" in card
        assert "targets: the last interaction of a user" in card
        assert "With one target for each user recall is the hit rate" in card
        for untrue in ("none of them trained on", "last 20 %"):
            assert untrue not in card


def test_the_card_of_the_domain(domain: Domain) -> None:
    said = succeed("publish-domain", domain.path, "--to", "org/shop", "--dry-run")
    card = " ".join(said.split())
    assert "Leave-one-out: the last interaction of a user is the test target" in card
    total = sum(len(items) for items in log(domain.path.parents[1]).values())
    assert f"there are 120 users and {total} interactions" in card
    for untrue in ("Users, not interactions, are split", "a split of its own", "last 20 %"):
        assert untrue not in card


def test_other_splits_of_the_same_shop_are_refused(shop: Path, domain: Domain, run: Path, tmp_path: Path) -> None:
    """In both directions, though the file is the same."""
    other = tmp_path / "by-users"
    prepare_shop(shop, other)
    succeed("encode", other, "--text", "hashing", "--whiten")
    training = {"steps": 1, "evaluate_every": 1, "views": ["id"]}
    succeed("pretrain", other, "--to", tmp_path / "run", *settings(model={"modalities": []}, training=training))
    for path, trained, protocols in (
        (other, run, "user-split now, leave-one-out then"),
        (domain.path, tmp_path / "run", "leave-one-out now, user-split then"),
    ):
        result = bivrec("evaluate", path, "--run", trained)
        assert result.exit_code == 1
        assert f"was prepared anew since the training of {trained}: {protocols}; prepare it as it was" in result.stderr


def test_the_protocol_is_part_of_what_a_run_was_trained_on(domain: Domain, tmp_path: Path) -> None:
    """Even if the items, their order, and all counts were the same."""
    trained = new_run(tmp_path / "run", domain, config(model=TEXT))
    path = shutil.copytree(domain.path, tmp_path / "shop") / "domain.json"
    path.write_text(path.read_text().replace("leave-one-out", "user-split"))
    with pytest.raises(BivrecError, match=r"was prepared anew since .*: user-split now, leave-one-out then; prepare"):
        trained.check_domain(Domain.open(path.parent))


def test_a_domain_of_an_unknown_protocol(domain: Domain, tmp_path: Path) -> None:
    path = shutil.copytree(domain.path, tmp_path / "shop") / "domain.json"
    path.write_text(path.read_text().replace("leave-one-out", "leave-two-out"))
    with pytest.raises(BivrecError, match="protocol 'leave-two-out': expected one of user-split, leave-one-out"):
        Domain.open(path.parent)


def test_a_domain_that_names_no_protocol_is_refused(source: Domain, tmp_path: Path) -> None:
    path = shutil.copytree(source.path, tmp_path / "old") / "domain.json"
    values = json.loads(path.read_text())
    del values["protocol"]
    path.write_text(json.dumps(values))
    with pytest.raises(BivrecError, match=r"fields missing or unknown .*protocol"):
        Domain.open(path.parent)


def test_merged_domains_keep_what_is_held_out(shop: Path, domain: Domain, source: Domain, tmp_path: Path) -> None:
    tables = ("--interactions", shop / "interactions.csv", "--items", shop / "items.csv")
    succeed("prepare", "tables", *tables, "--split", "leave-one-out", "--k-core", 2, "--to", tmp_path / "twin")
    succeed("encode", tmp_path / "twin", "--text", "hashing", "--whiten")
    twin = Domain.open(tmp_path / "twin")
    merged = merge([domain, twin], tmp_path / "both")
    assert merged.info.protocol == "leave-one-out"
    for split in SPLITS:
        assert items_of_split(merged, split) == {
            f"{part.name}:{user}": [f"{part.name}:{item}" for item in items]
            for part in (domain, twin)
            for user, items in items_of_split(part, split).items()
        }
    assert merged.info.num_interactions == domain.info.num_interactions + twin.info.num_interactions
    with pytest.raises(BivrecError, match=r"its protocol is leave-one-out, that of .* is user-split; prepare both"):
        merge([source, domain], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_noise_is_in_what_is_trained_on_alone(domain: Domain, tmp_path: Path) -> None:
    noisy = noisy_copy(domain, tmp_path / "noisy", 0.3, seed=1)
    assert noisy.info.protocol == "leave-one-out"
    for split in SPLITS:
        assert (noisy.sequences(split).items == domain.sequences(split).items).all() == (split != "train")


def test_figures_of_the_paper_do_not_stand_beside_another_protocol(shop: Path, tmp_path: Path) -> None:
    studies = {}
    for split in ("8:1:1", "leave-one-out"):
        prepare_shop(shop, tmp_path / split, "--split", split, "--name", "ml-1m")
        studies[split] = comparison([Domain.open(tmp_path / split)], ["popularity", "pure-id"])
    assert studies["8:1:1"].entries[1].paper
    assert not studies["leave-one-out"].entries[1].paper
    for split, study in studies.items():
        assert any("paper: Table 1" in note for note in study.notes) == (split == "8:1:1")


def test_the_tables_of_a_study_say_the_protocol(domain: Domain, tmp_path: Path) -> None:
    said = succeed("compare", domain.path, "--models", "popularity,item-knn", "--to", tmp_path / "study")
    assert f"{domain.info.users['test']} test users (leave-one-out), {domain.num_items} items ranked" in said
    assert "With one target for each user recall is hr, and ndcg is ndcg_hits." in said
    rows = list(csv.DictReader((tmp_path / "study/comparison.csv").read_text().splitlines()))
    assert {row["protocol"] for row in rows} == {"leave-one-out"}
    assert all(row["recall@20"] == row["hr@20"] for row in rows)
