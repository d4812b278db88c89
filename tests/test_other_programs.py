"""What another program needs of a Domain, and its ranked lists among the rows of an evaluation."""

import json
from collections import defaultdict
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from stages import bivrec, in_subprocess, succeed

from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.lists import evaluate_lists, read_lists
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.export import export
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


@pytest.fixture(scope="module")
def tables(source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported source."""
    folder = tmp_path_factory.mktemp("export") / "tables"
    succeed("export", source.path, "--to", folder)
    return folder


def test_a_signal_to_end_leaves_nothing_half_written(source: Domain, tmp_path: Path) -> None:
    """As from a supervisor, in the middle of the work."""
    program = (
        "import os, signal, sys\n"
        "from bivrec import cli, export\n"
        "export._interactions = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.main(sys.argv[1:])\n"
    )
    ended = in_subprocess("-c", program, "export", source.path, "--to", tmp_path / "new/tables")
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")
    assert list((tmp_path / "new").iterdir()) == []


def sequences_in(table: pd.DataFrame) -> dict[str, list[tuple[str, int]]]:
    found = defaultdict(list)
    for user, item, time in table.itertuples(index=False):
        found[user].append((item, time))
    return dict(found)


def read(folder: Path, name: str) -> dict[str, list[tuple[str, int]]]:
    return sequences_in(pd.read_parquet(folder / f"{name}.parquet"))


def whole(domain: Domain, split: str) -> dict[str, list[tuple[str, int]]]:
    ids, rows = domain.item_ids(), datasets.load_from_disk(str(domain.path / "sequences" / split))
    return {
        row["user_id"]: [(ids[item - 1], time) for item, time in zip(row["items"], row["timestamps"], strict=True)]
        for row in rows
    }


def lists_of(domain: Domain, users: EvaluationUsers, per_user: int) -> pd.DataFrame:
    """Random lists of items without repeats, the best of each user first."""
    generator = torch.Generator().manual_seed(0)
    ids = domain.item_ids()
    rows = []
    for user in users.user_ids:
        for rank, item in enumerate(torch.randperm(domain.num_items, generator=generator)[:per_user].tolist(), 1):
            rows.append((user, ids[item], rank))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])


# Export


def test_histories_and_targets_are_those_of_the_protocol(source: Domain, tables: Path) -> None:
    assert read(tables, "train") == whole(source, "train")
    for split in ("validation", "test"):
        histories, targets = read(tables, f"{split}_histories"), read(tables, f"{split}_targets")
        sequences = {user: items for user, items in whole(source, split).items() if len(items) > 1}
        assert histories.keys() == targets.keys() == sequences.keys()
        for user, items in sequences.items():
            cut = int(len(items) * 0.8)
            assert (histories[user], targets[user]) == (items[:cut], items[cut:])


def test_the_items_are_described_in_the_order_of_their_index(source: Domain, tables: Path) -> None:
    items = pd.read_parquet(tables / "items.parquet")
    assert items["item_id"].tolist() == source.item_ids()
    assert {"title", "text", "image"} <= set(items.columns)


def test_leave_one_out(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        [(user, f"i{(3 * user + place) % 7}", place) for user in range(9) for place in range(1 + user % 6)],
        columns=["user_id", "item_id", "timestamp"],
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    succeed("prepare", "tables", "--interactions", tmp_path / "rows.csv", "--k-core", 0, "--split", "leave-one-out",
            "--to", tmp_path / "domain")  # fmt: skip
    export(Domain.open(tmp_path / "domain"), tmp_path / "tables")
    expected = sequences_in(rows.astype({"user_id": str}))
    for user, items in read(tmp_path / "tables", "test_histories").items():
        assert items == expected[user][:-1]
        assert read(tmp_path / "tables", "test_targets")[user] == expected[user][-1:]
        assert read(tmp_path / "tables", "train")[user] == expected[user][:-2]


def test_csv_holds_the_same(source: Domain, tables: Path, tmp_path: Path) -> None:
    succeed("export", source.path, "--to", tmp_path / "csv", "--format", "csv")
    for path in tables.iterdir():
        expected = pd.read_parquet(path)
        found = pd.read_csv(tmp_path / "csv" / f"{path.stem}.csv", dtype=str, keep_default_na=False)
        assert found.to_numpy().tolist() == expected.astype(str).to_numpy().tolist()


def test_what_is_there_stays_unless_it_is_to_be_replaced(source: Domain, tables: Path, tmp_path: Path) -> None:
    assert "exists already" in bivrec("export", source.path, "--to", tables).stderr
    succeed("export", source.path, "--to", tables, "--overwrite")
    (tmp_path / "precious.txt").touch()
    assert bivrec("export", source.path, "--to", tmp_path, "--overwrite").exit_code == 1
    assert (tmp_path / "precious.txt").exists()
    # Nor are tables of one format mixed with those of the other.
    for kind in ("csv", "parquet"):
        succeed("export", source.path, "--to", tables, "--overwrite", "--format", kind)
        assert {path.suffix for path in tables.iterdir()} == {f".{kind}"}


# Lists


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("seen", ["--remove-seen", "--keep-seen"])
def test_a_models_own_lists_have_its_metrics(
    source: Domain, pretrained: Run, tables: Path, tmp_path: Path, suffix: str, seen: str
) -> None:
    lists = tmp_path / f"mine.{suffix}"
    succeed("recommend", source.path, "--run", pretrained.path, "--history", tables / "test_histories.parquet", seen,
            "--to", lists)  # fmt: skip
    options = ["--json"] + ["--remove-seen"] * (seen == "--remove-seen")
    printed = succeed("evaluate", source.path, "--run", pretrained.path, "--view", "both", "--lists", lists, *options)
    told = json.loads(printed)
    assert told["results"]["mine"] == pytest.approx(told["results"][f"{pretrained.path.name} both"], abs=1e-12)
    assert told["sources"]["mine"] == {"kind": "lists", "name": "mine"}


@pytest.mark.parametrize("remove_seen", [False, True])
def test_metrics_equal_a_slow_loop(source: Domain, tmp_path: Path, remove_seen: bool) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    table = lists_of(source, users, 12)
    # Neither in order nor of every user.
    without = table[table["user_id"] != users.user_ids[3]].sample(frac=1, random_state=1)
    without.to_csv(tmp_path / "lists.csv", index=False)
    read = read_lists(tmp_path / "lists.csv", source, users)
    assert read.num_missing == 1
    result = evaluate_lists(read, users, (5, 10, 10**15), remove_seen)
    ids = source.item_ids()
    offsets, targets = users.targets()
    for place, user in enumerate(users.user_ids):
        ranked = without[without["user_id"] == user].sort_values("rank")["item_id"].tolist()
        seen = {ids[item - 1] for item in users.items[users.starts[place] : users.cuts[place]]}
        wanted = {ids[item - 1] for item in targets[offsets[place] : offsets[place + 1]]}
        left = [item for item in ranked if not (remove_seen and item in seen)]
        for k in (5, 10, 10**15):
            expected = len(wanted & set(left[:k])) / len(wanted)
            assert result.per_user[f"recall@{k}"][place] == pytest.approx(expected)


def test_without_ranks_the_rows_are_in_order(source: Domain, tmp_path: Path) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    table = lists_of(source, users, 6)
    table.drop(columns="rank").to_csv(tmp_path / "ordered.csv", index=False)
    table.to_csv(tmp_path / "ranked.csv", index=False)
    ordered, ranked = (read_lists(tmp_path / f"{name}.csv", source, users) for name in ("ordered", "ranked"))
    assert (ordered.items == ranked.items).all()
    # As pandas writes them after a merge.
    table.astype({"rank": float}).to_csv(tmp_path / "floats.csv", index=False)
    assert (read_lists(tmp_path / "floats.csv", source, users).items == ranked.items).all()
    assert (
        "no column rank: the rows of a user are taken as in order"
        in bivrec("evaluate", source.path, "--lists", tmp_path / "ordered.csv").stderr
    )
    table.assign(rank=table["rank"].clip(upper=5)).to_csv(tmp_path / "tied.csv", index=False)
    with pytest.raises(BivrecError, match="has two items of rank 5; expected ranks 1, 2, 3"):
        read_lists(tmp_path / "tied.csv", source, users)


def test_what_is_missing_in_lists_is_said(source: Domain, tmp_path: Path) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    table = lists_of(source, users, 6)
    table[table["user_id"] != users.user_ids[0]].to_csv(tmp_path / "short.csv", index=False)
    complaints = bivrec("evaluate", source.path, "--lists", tmp_path / "short.csv").stderr
    assert f"no list of 1 of the {len(users)} users" in complaints
    assert "no list is longer than 6, of 20 items" in complaints
    assert "no list holds a target" not in complaints
    targets = {source.item_ids()[item - 1] for item in users.targets()[1]}
    other = next(item for item in source.item_ids() if item not in targets)
    table[table["rank"] == 1].assign(item_id=other).to_csv(tmp_path / "wrong.csv", index=False)
    complaints = bivrec("evaluate", source.path, "--lists", tmp_path / "wrong.csv").stderr
    assert "no list holds a target; were they ranked after the histories that `bivrec export` writes?" in complaints


def test_lists_of_one_name_are_told_apart(source: Domain, tmp_path: Path) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    paths = [tmp_path / name / "lists.csv" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        lists_of(source, users, 20).to_csv(path, index=False)
    printed = succeed("evaluate", source.path, "--lists", paths[0], "--lists", paths[1], "--test", "--json")
    assert list(json.loads(printed)["results"]) == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"item_id": "no such item"}, "recommendation 1: item 'no such item' is not in source"),
        ({"user_id": "nobody"}, "no list of a user who is asked"),
        ({"rank": "first"}, "rank"),
        ({"item_id": None}, "row 2: item_id is empty"),
    ],
)
def test_wrong_lists(source: Domain, tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    lists_of(source, users, 1)[:1].assign(**change).to_csv(tmp_path / "lists.csv", index=False)
    result = bivrec("evaluate", source.path, "--lists", tmp_path / "lists.csv")
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_item_twice_in_a_list_is_refused(source: Domain, tmp_path: Path) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    table = lists_of(source, users, 4)
    table.loc[2, "item_id"] = table.loc[0, "item_id"]
    table.to_json(tmp_path / "lists.jsonl", orient="records", lines=True)
    complaint = bivrec("evaluate", source.path, "--lists", tmp_path / "lists.jsonl").stderr
    assert f"user '{users.user_ids[0]}' is recommended item '{table.loc[0, 'item_id']}' twice" in complaint


def test_a_name_that_is_taken_is_refused(source: Domain, tmp_path: Path) -> None:
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    lists_of(source, users, 20).to_csv(tmp_path / "popularity.csv", index=False)
    result = bivrec("evaluate", source.path, "--floor", "popularity", "--lists", tmp_path / "popularity.csv")
    assert "two rows are called 'popularity'" in result.stderr


def test_lists_know_nothing_of_shorter_histories(source: Domain, tmp_path: Path) -> None:
    result = bivrec("evaluate", source.path, "--lists", tmp_path / "lists.csv", "--cold", 1)
    assert "--cold says how much of a history is read" in result.stderr


def test_empty_lists(source: Domain, tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user_id,item_id,rank\n")
    assert "no recommendations" in bivrec("evaluate", source.path, "--lists", tmp_path / "lists.csv").stderr
