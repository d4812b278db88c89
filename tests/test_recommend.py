"""Recommendations: the lists of a slow ranking of everything, in every format, and for users from anywhere."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from stages import bivrec, succeed

from bivrec.data.domain import Domain
from bivrec.data.histories import read_histories
from bivrec.data.info import SPLITS
from bivrec.data.sequences import Sequences
from bivrec.data.tables import Columns
from bivrec.errors import BivrecError
from bivrec.evaluation.scorer import ModelScorer
from bivrec.recommend import recommend, write_recommendations
from bivrec.scorers import named_scorers
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

Lists = dict[str, list[tuple[str, float]]]


@pytest.fixture(scope="session")
def model(source: Domain, pretrained: Run) -> list[object]:
    """The arguments that name a trained model on its Domain."""
    return [source.path, "--run", pretrained.path]


def slow_lists(domain: Domain, scorer: Any, users: Sequences, k: int, remove_seen: bool) -> Lists:
    """One user at a time: score everything after the whole sequence, strike out what was seen, sort."""
    ids = domain.item_ids()
    lists: Lists = {}
    for row, user in enumerate(users.user_ids):
        history = torch.from_numpy(users[row].astype(np.int64))[None]
        limit = scorer.max_history
        state = scorer.encode(history if limit is None else history[:, -limit:])
        scores = scorer.score(state, 1, scorer.num_items + 1)[0].tolist()
        seen = set(users[row].tolist()) if remove_seen else set()
        ranked = sorted((-score, item) for item, score in enumerate(scores, 1) if item not in seen)
        lists[user] = [(ids[item - 1], -score) for score, item in ranked[:k]]
    return lists


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream)) if path.suffix == ".csv" else [json.loads(line) for line in stream]


def lists_of(rows: list[dict[str, Any]]) -> Lists:
    """The lists of a file, of which the ranks must be 1, 2, ..."""
    lists: Lists = {}
    for row in rows:
        own = lists.setdefault(row["user_id"], [])
        own.append((row["item_id"], float(row["score"])))
        assert int(row["rank"]) == len(own)
    return lists


def assert_same(found: Lists, expected: Lists) -> None:
    assert list(found) == list(expected)
    for user, items in expected.items():
        assert [item for item, _ in found[user]] == [item for item, _ in items]
        assert [score for _, score in found[user]] == pytest.approx([score for _, score in items], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("seen", ["remove", "keep"])
def test_every_format_holds_the_lists_of_a_slow_ranking(
    model: list[object], source: Domain, pretrained: Run, tmp_path: Path, suffix: str, seen: str
) -> None:
    path = tmp_path / f"lists{suffix}"
    printed = succeed("recommend", *model, "--to", path, "--k", 7, f"--{seen}-seen", "--split", "test")
    users = source.sequences("test")
    assert f"{7 * len(users)} recommendations of pretrained both to {len(users)} users" in printed
    rows = read(path)
    assert list(rows[0]) == ["user_id", "rank", "item_id", "score"]
    scorer = ModelScorer(pretrained.load_model(source), "both")
    assert_same(lists_of(rows), slow_lists(source, scorer, users, 7, seen == "remove"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("view", ["id", "mm"])
def test_split_and_view(
    model: list[object], source: Domain, pretrained: Run, tmp_path: Path, split: str, view: str
) -> None:
    succeed("recommend", *model, "--to", tmp_path / "l.parquet", "--k", 3, "--split", split, "--view", view)
    scorer = ModelScorer(pretrained.load_model(source), view)
    expected = slow_lists(source, scorer, source.sequences(split), 3, remove_seen=True)
    assert_same(lists_of(read(tmp_path / "l.parquet")), expected)


def test_every_user_is_asked(model: list[object], source: Domain, pretrained: Run, tmp_path: Path) -> None:
    succeed("recommend", *model, "--to", tmp_path / "l.csv", "--k", 3)
    scorer = ModelScorer(pretrained.load_model(source))
    parts = (slow_lists(source, scorer, source.sequences(split), 3, remove_seen=True) for split in SPLITS)
    expected = {user: items for part in parts for user, items in part.items()}
    assert_same(lists_of(read(tmp_path / "l.csv")), dict(sorted(expected.items())))


def test_a_tower_recommends_where_it_was_never_trained(tower: Path, target: Domain, tmp_path: Path) -> None:
    options = ("--k", 5, "--titles", "--split", "test")
    succeed("recommend", target.path, "--from-hub", tower, "--to", tmp_path / "l.csv", *options)
    rows = read(tmp_path / "l.csv")
    (found,) = named_scorers(target, published=[str(tower)])
    assert_same(lists_of(rows), slow_lists(target, found.scorer, target.sequences("test"), 5, remove_seen=True))
    titles = {row["item_id"]: row["title"] for row in target.item_table()}
    assert all(row["title"] == titles[row["item_id"]] for row in rows)


def test_lists_end_where_all_else_was_seen(model: list[object], source: Domain, tmp_path: Path) -> None:
    succeed("recommend", *model, "--to", tmp_path / "l.jsonl", "--k", source.num_items)
    users = source.sequences("test")
    lists = lists_of(read(tmp_path / "l.jsonl"))
    for row, user in enumerate(users.user_ids):
        assert len(lists[user]) == source.num_items - len(set(users[row].tolist()))
        assert all(math.isfinite(score) for _, score in lists[user])


class Counting:
    """Prefers late items, and counts whom it was asked for."""

    num_items, max_history = 20, 3

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, histories: torch.Tensor) -> int:
        self.asked += len(histories)
        return len(histories)

    def score(self, users: int, first: int, last: int) -> torch.Tensor:
        return torch.arange(float(first), float(last)).expand(users, -1)


def test_users_are_ranked_when_their_part_is_wanted(source: Domain) -> None:
    scorer = Counting()
    tables = recommend(source, scorer, source.sequences("train"), 2, user_chunk=10)
    assert scorer.asked == 0
    next(tables)
    assert scorer.asked == 10
    rows = sum(len(table) for table in tables)
    assert scorer.asked == len(source.sequences("train"))
    assert rows == 2 * (scorer.asked - 10)


def test_parts_do_not_change_the_lists(source: Domain, pretrained: Run) -> None:
    scorer = ModelScorer(pretrained.load_model(source))
    users = source.sequences("test")
    whole, parts = (
        lists_of(pa.concat_tables(recommend(source, scorer, users, 5, user_chunk=chunk)).to_pylist())
        for chunk in (1000, 4)
    )
    assert_same(parts, whole)


def test_nobody_to_recommend_to(source: Domain) -> None:
    nothing = np.zeros(0, np.int32)
    with pytest.raises(BivrecError, match="source: no users to recommend to"):
        recommend(source, Counting(), Sequences(np.zeros(1, np.int64), nothing, nothing, []))


def test_no_file_is_left_half_written(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.Table]:
        yield pa.table({"user_id": ["a"] * 200_000})
        raise BivrecError("the disk is gone")

    with pytest.raises(BivrecError, match="the disk is gone"):
        write_recommendations(tmp_path / "l.parquet", broken())
    assert not list(tmp_path.iterdir())


# One user


def test_a_user_is_shown_with_history_and_list(model: list[object], source: Domain, pretrained: Run) -> None:
    users = source.sequences("train")
    asked = [users.user_ids[4], source.sequences("test").user_ids[1]]
    printed = succeed("recommend", *model, "--user", asked[0], "--user", asked[1], "--user", asked[0], "--k", 4)
    shown = printed.split("user ")[1:]
    assert [part.partition(":")[0] for part in shown] == asked
    titles, ids = source.item_table()["title"][:], source.item_ids()
    history, _, recommended = shown[0].partition("recommended:\n")
    last = users[4][-10:].tolist()
    assert [line.split()[0] for line in history.splitlines()[1:]] == [ids[item - 1] for item in last]
    assert all(titles[item - 1] in history for item in last)
    scorer = ModelScorer(pretrained.load_model(source))
    expected = slow_lists(source, scorer, users, 4, remove_seen=True)[asked[0]]
    assert [line.split()[2] for line in recommended.splitlines()] == [item for item, _ in expected]


def test_chosen_users_can_be_written(model: list[object], source: Domain, tmp_path: Path) -> None:
    asked = [source.sequences("test").user_ids[2], source.sequences("validation").user_ids[0]]
    options = [word for user in asked for word in ("--user", user)]
    succeed("recommend", *model, *options, "--to", tmp_path / "l.csv", "--k", 2)
    assert list(lists_of(read(tmp_path / "l.csv"))) == asked


def test_reasons_are_items_of_the_history(model: list[object], source: Domain, tmp_path: Path) -> None:
    users, ids = source.sequences("test"), source.item_ids()
    titles = dict(zip(ids, source.item_table()["title"], strict=True))
    bought = {user: {ids[item - 1] for item in users[row].tolist()} for row, user in enumerate(users.user_ids)}
    for path, more in ((tmp_path / "plain.parquet", ()), (tmp_path / "titled.jsonl", ("--titles",))):
        succeed("recommend", *model, "--to", path, "--k", 3, "--because", "--split", "test", *more)
        rows = [row for row in read(path) if row["because_item_id"] is not None]
        assert rows
        for row in rows:
            assert row["because_item_id"] in bought[row["user_id"]]
            assert row.get("because_title") == (titles[row["because_item_id"]] if more else None)
    printed = succeed("recommend", *model, "--user", users.user_ids[0], "--k", 3, "--because")
    reasons = [row["because_item_id"] for row in rows if row["user_id"] == users.user_ids[0]]
    shown = [line.split()[2] for line in printed.splitlines() if line.startswith("    because of")]
    assert shown == reasons


# Users from a file


def interactions(domain: Domain, split: str) -> pa.Table:
    """The sequences of a split as a table, of which the rows are shuffled."""
    users, ids = domain.sequences(split), domain.item_ids()
    rows = [
        (f"new-{users.user_ids[row]}", ids[item - 1], place)
        for row in range(len(users))
        for place, item in enumerate(users[row].tolist())
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    columns = zip(*(rows[row] for row in order), strict=True)
    return pa.table([pa.array(column) for column in columns], names=["user_id", "item_id", "timestamp"])


def test_a_file_of_histories_gives_what_the_domain_gives(model: list[object], source: Domain, tmp_path: Path) -> None:
    table = interactions(source, "test")
    pq.write_table(table, tmp_path / "h.parquet")
    succeed("recommend", *model, "--split", "test", "--to", tmp_path / "known.csv", "--k", 6)
    succeed("recommend", *model, "--history", tmp_path / "h.parquet", "--to", tmp_path / "new.csv", "--k", 6)
    known, new = (lists_of(read(tmp_path / name)) for name in ("known.csv", "new.csv"))
    assert_same(new, {f"new-{user}": items for user, items in known.items()})


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_without_timestamps_the_rows_are_in_order(
    model: list[object], source: Domain, tmp_path: Path, suffix: str
) -> None:
    table = interactions(source, "test").sort_by("timestamp")
    history = tmp_path / f"h.{suffix}"
    lists = []
    for name, own in (("timed", table), ("rows", table.select(["user_id", "item_id"]))):
        renamed = own.rename_columns(["who", "what", "when"][: own.num_columns])
        if suffix == "parquet":
            pq.write_table(renamed, history)
        else:
            history.write_text("".join(json.dumps(row) + "\n" for row in renamed.to_pylist()))
        times = ("--timestamp-column", "when") if "when" in renamed.column_names else ()
        columns = ("--user-column", "who", "--item-column", "what", *times)
        out = tmp_path / f"{name}.parquet"
        result = bivrec("recommend", *model, "--history", history, *columns, "--to", out, "--k", 3)
        assert result.exit_code == 0, result.output
        said = "" if times else f"Warning: {history}: no column timestamp: the rows are taken as in order\n"
        assert result.stderr == said
        lists.append(lists_of(read(out)))
    assert_same(*lists)


def test_items_that_the_domain_does_not_have_are_counted(model: list[object], source: Domain, tmp_path: Path) -> None:
    first, second = source.item_ids()[:2]
    lines = f"user_id,item_id,timestamp\na,{first},1\nb,gone,1\na,gone,2\na,{second},3\nc,later,1\n"
    (tmp_path / "h.csv").write_text(lines)
    result = bivrec("recommend", *model, "--history", tmp_path / "h.csv", "--to", tmp_path / "l.csv", "--k", 3)
    assert result.exit_code == 0, result.output
    assert result.stderr.strip() == (
        f"Warning: {tmp_path / 'h.csv'}: interaction 2: item 'gone' is not in source; "
        "left out 3 such interactions, and 2 users who have no others"
    )
    assert list(lists_of(read(tmp_path / "l.csv"))) == ["a"]
    shown = succeed("recommend", *model, "--history", tmp_path / "h.csv", "--user", "a", "--k", 3)
    assert "user a: 2 interactions" in shown


def test_the_list_of_the_only_user_of_a_history_is_printed(model: list[object], source: Domain, tmp_path: Path) -> None:
    first, second = source.item_ids()[:2]
    (tmp_path / "h.csv").write_text(f"user_id,item_id\na,{first}\na,{second}\n")
    options = ("recommend", *model, "--history", tmp_path / "h.csv", "--k", 3)
    assert succeed(*options) == succeed(*options, "--user", "a")
    # One item needs no order.
    (tmp_path / "h.csv").write_text(f"user_id,item_id\na,{first}\n")
    assert not bivrec(*options).stderr


def test_a_history_with_dates(model: list[object], source: Domain, tmp_path: Path) -> None:
    items = source.item_ids()[:3]
    dates = ("2024-01-03", "2023-12-31T23:30:00-01:00", "2024-01-01 00:00:00")
    rows = "".join(f"a,{item},{date}\n" for item, date in zip(items, dates, strict=True))
    (tmp_path / "h.csv").write_text(f"user_id,item_id,when\n{rows}")
    read = read_histories(tmp_path / "h.csv", source, Columns(timestamp="when"), timed=True).users
    assert [source.item_ids()[item - 1] for item in read[0]] == [items[2], items[1], items[0]]
    options = ("--history", tmp_path / "h.csv", "--timestamp-column", "when", "--user", "a", "--k", 3)
    shown = succeed("recommend", *model, *options).splitlines()
    assert [line.split()[0] for line in shown[1:4]] == [items[2], items[1], items[0]]


@pytest.mark.parametrize("view", ["id", "both"])
def test_only_some_items(model: list[object], source: Domain, pretrained: Run, tmp_path: Path, view: str) -> None:
    stock = source.item_ids()[3:20:2]
    (tmp_path / "stock.csv").write_text("\n".join(["sku", "gone", *stock, stock[0]]) + "\n")
    options = ("--only", tmp_path / "stock.csv", "--item-column", "sku", "--view", view, "--k", 30, "--split", "test")
    result = bivrec("recommend", *model, "--to", tmp_path / "l.csv", *options)
    assert result.exit_code == 0, result.output
    assert "1 items, such as 'gone', are not in source" in result.stderr
    scorer = ModelScorer(pretrained.load_model(source), view)
    everything = slow_lists(source, scorer, source.sequences("test"), source.num_items, remove_seen=True)
    expected = {user: [pair for pair in pairs if pair[0] in stock] for user, pairs in everything.items()}
    assert_same(lists_of(read(tmp_path / "l.csv")), {user: pairs for user, pairs in expected.items() if pairs})


def test_categories_that_no_row_has_are_not_in_stock(model: list[object], source: Domain, tmp_path: Path) -> None:
    """As pandas writes them for a part of a table."""
    stock = pa.array([2, 5], pa.int32())
    column = pa.DictionaryArray.from_arrays(stock, source.original_item_ids().combine_chunks())
    pq.write_table(pa.table({"item_id": column}), tmp_path / "stock.parquet")
    succeed("recommend", *model, "--to", tmp_path / "l.csv", "--only", tmp_path / "stock.parquet", "--keep-seen")
    found = {row["item_id"] for row in read(tmp_path / "l.csv")}
    assert found == {source.item_ids()[place] for place in stock.to_pylist()}


def test_only_items_of_another_catalogue(model: list[object], tmp_path: Path) -> None:
    (tmp_path / "stock.csv").write_text("item_id\ngone\n")
    result = bivrec("recommend", *model, "--to", tmp_path / "l.csv", "--only", tmp_path / "stock.csv")
    assert "stock.csv: none of its items is in source; expected ids such as" in result.stderr


# What is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--user nobody", "user 'nobody': not in source; expected a user id such as '"),
        ("--history {h} --user nobody", "user 'nobody': not in {h}; expected a user id such as 'a'"),
        (
            "--history {unknown} --to {new}.csv",
            "{unknown}: none of its 1 interactions is of an item of source; the first is of 'gone'; expected item ids",
        ),
        ("--history {new} --to {new}.csv", "unknown format ''"),
        ("--history {new}.csv --to {new}.csv", "{new}.csv: no such file"),
        ("--history {nameless} --to {new}.csv", "{nameless}: no column 'user_id', 'item_id'; found 'u', 'i'"),
        ("--history {h} --user-column item_id --to {new}.csv", "column 'item_id' is both user and item"),
        (
            "--history {h} --timestamp-column when --to {new}.csv",
            "{h}: no column 'when'; found 'user_id', 'item_id'; rename the columns, or name them by the options",
        ),
        ("--to {new}.csv --k 100000", "k = 100000: expected 1 to "),
        ("--to {new}.xlsx", "{new}.xlsx: unknown format '.xlsx'; expected .parquet, .csv, .jsonl"),
        ("--to {h}", "{h}: exists already; choose another file or pass --overwrite"),
        ("", "nowhere to write: give --to FILE, or --user ID"),
        ("--history {two}", "{two}: 2 users; give --to FILE, or --user ID to print the list of one"),
        ("--user x --split test", "leave it out beside --user and --history"),
        ("--to {new}.csv --user-column who", "leave --user-column out: of no use without --history"),
        ("--user x --overwrite", "leave --overwrite out: of no use without --to"),
        ("--to {new}.csv --from-hub {tower}", "expected one model: give --run or --from-hub"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    model: list[object], tower: Path, tmp_path: Path, source: Domain, options: str, message: str
) -> None:
    places = {name: tmp_path / f"{name}.csv" for name in ("h", "two", "unknown", "nameless")}
    places["h"].write_text(f"user_id,item_id\na,{source.item_ids()[0]}\n")
    places["two"].write_text("".join(["user_id,item_id\n", *(f"{user},{source.item_ids()[0]}\n" for user in "ab")]))
    places["unknown"].write_text("user_id,item_id\na,gone\n")
    places["nameless"].write_text("u,i\n1,2\n")
    before = sorted(tmp_path.iterdir())
    places |= {"new": tmp_path / "new", "tower": tower}
    result = bivrec("recommend", *model, *options.format(**places).split())
    assert (result.exit_code, result.stdout) == (1, "")
    (complaint,) = result.stderr.splitlines()
    assert message.format(**places) in complaint
    assert sorted(tmp_path.iterdir()) == before


def test_a_tower_has_no_id_view(tower: Path, target: Domain, tmp_path: Path) -> None:
    result = bivrec("recommend", target.path, "--from-hub", tower, "--view", "id", "--to", tmp_path / "l.csv")
    assert result.exit_code == 1
    assert "a tower has only the multimodal view, mm; leave out --view id" in result.stderr


def test_overwrite(model: list[object], tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("old")
    succeed("recommend", *model, "--to", tmp_path / "l.csv", "--k", 1, "--overwrite")
    assert (tmp_path / "l.csv").read_text().startswith('"user_id"')
