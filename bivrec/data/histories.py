"""Histories to recommend from: of users that a Domain knows, or from a file of other users."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.columns import ID, TIME, read_columns
from bivrec.data.domain import Domain
from bivrec.data.info import ALL, SPLITS, USER_SPLIT
from bivrec.data.raw import encode_ids
from bivrec.data.refit import RefitDomain
from bivrec.data.sequences import Sequences
from bivrec.data.stretches import places_of
from bivrec.data.tables import Columns
from bivrec.errors import BivrecError


@dataclass(frozen=True)
class ReadHistories:
    """The content of a file of histories."""

    users: Sequences
    """Ordered by user id. Without a timestamp column, timestamps are the rows of the file."""
    unknown_items: int
    """Interactions that were left out, since the Domain does not have the item."""
    unknown_item: str | None
    """The first of them, in words; None: there is none."""
    unknown_users: int
    """Users of whom nothing is left without them."""
    timed: bool
    """Whether the file has timestamps."""


def read_histories(path: Path, domain: Domain, columns: Columns | None = None, *, timed: bool = False) -> ReadHistories:
    """Read interactions (CSV, TSV, Parquet or JSON lines, a file or a folder of parts) of users of any kind.

    They are ordered by timestamp where the file has one, as it must if `timed`, then by row. Items that the Domain does
    not have, such as those that came after its preparation, are left out and counted.
    Raises BivrecError for unreadable files, missing columns, bad values, and if the Domain has none of the items.
    """
    columns = columns or Columns()
    ids, time = {columns.user: ID, columns.item: ID}, {columns.timestamp: TIME}
    table = read_columns(path, ids | time) if timed else read_columns(path, ids, time)
    user_codes, user_ids = encode_ids(table[columns.user])
    item_codes, item_ids = encode_ids(table[columns.item])
    items = domain.item_indices(item_ids)[item_codes]
    rows = np.flatnonzero(items)
    unknown = np.flatnonzero(items == 0)
    example = None
    if len(unknown):
        row = int(unknown[0])
        example = f"{path}: interaction {row + 1}: item '{item_ids[int(item_codes[row])]}' is not in {domain.name}"
    if not len(items):
        raise BivrecError(f"{path}: no interactions; expected rows of {columns.user} and {columns.item}")
    if not len(rows):
        raise BivrecError(
            f"{path}: none of its {len(items):,} interactions is of an item of {domain.name}; the first is of "
            f"'{item_ids[int(item_codes[0])]}'; expected item ids such as '{domain.item_table()[0]['item_id']}'"
        )
    has_times = columns.timestamp in table.column_names
    times = table[columns.timestamp].to_numpy() if has_times else np.arange(len(items))
    order = pc.sort_indices(user_ids).to_numpy()
    rank = np.argsort(order)[user_codes]
    rows = rows[np.lexsort((times[rows], rank[rows]))]
    lengths = np.bincount(rank[rows], minlength=len(user_ids))
    ids = user_ids.take(pa.array(order)).filter(pa.array(lengths > 0))
    users = Sequences(
        offsets=np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64),
        items=items[rows].astype(np.int32),
        timestamps=times[rows].astype(np.int64),
        user_ids=ids.to_pylist(),
    )
    return ReadHistories(users, len(unknown), example, int((lengths == 0).sum()), has_times)


def find_users(sources: Sequence[Sequences], user_ids: Sequence[str], where: str) -> Sequences:
    """The users with these ids, in this order, each from the first source that has it.

    sources: ordered by user id. Raises BivrecError, naming `where`, if none has a user.
    """
    parts = [_find_user(sources, user, where) for user in user_ids]
    lengths = [len(items) for items, _ in parts]
    return Sequences(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate([items for items, _ in parts]),
        timestamps=np.concatenate([timestamps for _, timestamps in parts]),
        user_ids=list(user_ids),
    )


def users_of_domain(domain: Domain, user_ids: Sequence[str]) -> Sequences:
    """Whole sequences of users, of whatever split. Raises BivrecError if the Domain does not have one of them."""
    # Of splits that share users, the last has their whole sequences.
    return find_users([domain.sequences(split) for split in reversed(SPLITS)], user_ids, domain.name)


def users_of_split(domain: Domain, split: str) -> Sequences:
    """The users of a split, or of ALL, ordered by user id, with whole sequences: where splits share users they have
    parts."""
    if split != ALL and (domain.info.protocol == USER_SPLIT or split == "test"):
        return domain.sequences(split)
    everybody = RefitDomain(domain, with_test=True).sequences("train")
    if split == ALL:
        return everybody
    users = domain.sequences(split)
    rows = pc.index_in(pa.array(users.user_ids, pa.string()), value_set=pa.array(everybody.user_ids, pa.string()))
    rows = rows.to_numpy()
    offsets, places = places_of(everybody.offsets[:-1][rows], everybody.lengths[rows])
    return dataclasses.replace(
        users, offsets=offsets, items=everybody.items[places], timestamps=everybody.timestamps[places]
    )


def _find_user(sources: Sequence[Sequences], user: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    for users in sources:
        row = bisect_left(users.user_ids, user)
        if row < len(users) and users.user_ids[row] == user:
            stretch = slice(users.offsets[row], users.offsets[row + 1])
            return users.items[stretch], users.timestamps[stretch]
    example = next((users.user_ids[0] for users in sources if len(users)), None)
    raise BivrecError(f"user '{user}': not in {where}; expected a user id such as '{example}'")
