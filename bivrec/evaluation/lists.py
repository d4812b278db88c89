"""Ranked lists that anything may have made, held against the targets like those of a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.columns import ID, NUMBER, read_columns
from bivrec.data.domain import Domain
from bivrec.data.raw import encode_ids
from bivrec.data.stretches import Integers, places_of
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import EvaluationResult, check_askable, compare_with_targets

USERS_AT_ONCE = 1024


@dataclass(frozen=True)
class RankedLists:
    """A list for each user of an evaluation."""

    items: Integers
    """[U, longest]: item indices, best first, filled up with 0."""
    ranked: bool
    """Whether ranks said so, and not the order of the rows."""

    @property
    def num_missing(self) -> int:
        """Users without a list, for whom nothing is found."""
        return int((self.items[:, 0] == 0).sum())


def read_lists(path: Path, domain: Domain, users: EvaluationUsers) -> RankedLists:
    """Read a table (CSV, TSV, Parquet or JSON lines) of user_id, item_id and, unless the rows are in order, rank.

    Lists of users who are not asked are left out. Raises BivrecError for unreadable files, missing columns, bad values,
    items that the Domain does not have, an item or a rank that is twice in a list, and if no list is of a user who is
    asked.
    """
    table = read_columns(path, {"user_id": ID, "item_id": ID}, {"rank": NUMBER})
    if not len(table):
        raise BivrecError(f"{path}: no recommendations; expected rows of user_id, item_id and rank")
    item_codes, item_ids = encode_ids(table["item_id"])
    items = domain.item_indices(item_ids)[item_codes]
    if not items.all():
        row = int(np.flatnonzero(items == 0)[0])
        raise BivrecError(
            f"{path}: recommendation {row + 1}: item '{item_ids[int(item_codes[row])]}' is not in {domain.name}; "
            "rank the items of the Domain alone"
        )
    user_codes, user_ids = encode_ids(table["user_id"])
    asked = pa.array(users.user_ids, pa.string())
    owners = pc.fill_null(pc.index_in(user_ids, value_set=asked), -1).to_numpy()[user_codes]
    ranked = "rank" in table.column_names
    ranks = table["rank"].to_numpy() if ranked else np.arange(len(table))
    order = np.lexsort((ranks, owners))
    order = order[owners[order] >= 0]
    if not len(order):
        raise BivrecError(
            f"{path}: no list of a user who is asked, such as '{asked[0]}', but of others, such as '{user_ids[0]}'; "
            f"rank after the histories that `bivrec export {domain.location}` writes"
        )
    tied = np.flatnonzero((np.diff(owners[order]) == 0) & (np.diff(ranks[order]) == 0))
    if len(tied):
        row = order[tied[0]]
        user = users.user_ids[int(owners[row])]
        raise BivrecError(f"{path}: user '{user}' has two items of rank {ranks[row]:g}; expected ranks 1, 2, 3, ...")
    lengths = np.bincount(owners[order], minlength=len(users))
    _, columns = places_of(np.zeros_like(lengths), lengths)
    lists = np.zeros((len(users), lengths.max()), np.int64)
    lists[owners[order], columns] = items[order]
    _refuse_repeats(path, lists, users, domain)
    return RankedLists(lists, ranked)


def evaluate_lists(
    lists: RankedLists, users: EvaluationUsers, ks: Sequence[int], remove_seen: bool = False
) -> EvaluationResult:
    """Metrics of the lists, as `ranking.evaluate` gives those of a scorer.

    remove_seen: leave out the items of a user's history; what is behind them moves up.
    Raises BivrecError if there is no user to evaluate or a k is below 1.
    """
    check_askable(users, ks)
    items = lists.items.copy()
    if remove_seen:
        for first in range(0, len(users), USERS_AT_ONCE):
            last = min(first + USERS_AT_ONCE, len(users))
            items[first:last] = _without(items[first:last], users.seen(first, last).numpy())
    return compare_with_targets(items[:, : max(ks)], users, ks)


def _without(items: Integers, seen: Integers) -> Integers:
    """Lists [U, L] without the items [U, S] of the same row, filled up with 0."""
    stride = 1 + max(items.max(initial=0), seen.max(initial=0))
    row = np.arange(len(items))[:, None] * stride
    left = np.where(np.isin(row + items, row + seen), 0, items)
    return np.take_along_axis(left, np.argsort(left == 0, axis=1, kind="stable"), axis=1)


def _refuse_repeats(path: Path, lists: Integers, users: EvaluationUsers, domain: Domain) -> None:
    """Raise BivrecError if an item is twice in a list: it would be found twice."""
    ordered = np.sort(lists, axis=1)
    row, place = np.nonzero((np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] > 0))
    if len(row):
        user, item = users.user_ids[int(row[0])], domain.item_ids()[int(ordered[row[0], place[0]]) - 1]
        raise BivrecError(
            f"{path}: user '{user}' is recommended item '{item}' twice; expected each item once in a list"
        )
