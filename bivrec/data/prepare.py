"""Preparation: raw interactions -> Domain.

Rules, in this order:

1. A user's interactions are ordered by timestamp, those of equal timestamp by their order in the file.
2. Items that another Domain has are dropped, if one is named.
3. Rows that repeat user, item and timestamp are dropped; a later interaction with the same item is kept.
4. Users and items with fewer than `k_core` interactions are dropped, again and again until none is left.
5. The users that remain, sorted by id, are split 8:1:1, or by other shares, by a permutation of the seed, unless the
   source splits them; or the last interactions of each are held out (leave-one-out).
6. Items without interactions are dropped; the rest are numbered by popularity in the training sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.config import MODALITIES
from bivrec.data.domain import MARKS, Domain, write_domain
from bivrec.data.images import find_images
from bivrec.data.info import FORMAT_VERSION, LEAVE_ONE_OUT, SPLITS, USER_SPLIT, DomainInfo
from bivrec.data.raw import RawData, catalogue_table
from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError
from bivrec.files import check_new_folder, new_folder


@dataclass(frozen=True)
class _Log:
    """Interactions sorted by user (in the order of ids) and time."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def where(self, keep: np.ndarray) -> _Log:
        return self if keep.all() else _Log(self.users[keep], self.items[keep], self.timestamps[keep])


Shares = tuple[int, int, int]
"""Parts of the users that are in each of SPLITS."""
DEFAULT_SHARES: Shares = (8, 1, 1)
FEWEST_TO_HOLD_OUT = 3
"""Interactions of a user who is evaluated under leave-one-out: one to train on, and a target of validation and test."""


def prepare(
    raw: RawData,
    path: str | Path,
    *,
    name: str | None = None,
    without: Domain | None = None,
    k_core: int = 5,
    split: Shares | str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Domain:
    """Prepare `raw` by the rules of this module and write the Domain to `path`; `name` defaults to the folder's.

    without: a Domain whose items (by id) are left out. split: shares of the users, 8:1:1 unless the source splits them;
    or `leave-one-out`, which splits no users (see `DomainInfo.protocol`) and draws nothing.
    Raises BivrecError if nothing is left, if too few users are left to split, if they are to be split twice, or if the
    source's own split or leave-one-out leaves nobody to train on or to evaluate.
    """
    path = Path(path)
    if k_core < 0 or seed < 0:
        raise BivrecError(f"k-core {k_core}, seed {seed}: expected 0 or more")
    check_new_folder(path, overwrite, marks=MARKS)
    if isinstance(split, str) and split != LEAVE_ONE_OUT:
        raise BivrecError(f"split '{split}': expected shares of the users, such as 8:1:1, or {LEAVE_ONE_OUT}")
    if split and raw.splits is not None:
        raise BivrecError("the split column splits the users already; leave --split or --split-column out")
    if not len(raw.users):
        raise BivrecError(f"{_file_names(raw)}: there are no interactions; check what was given")
    user_order, user_rank = _by_id(raw.user_ids)
    log, dropped = _filter(_in_time_order(raw, user_rank), k_core, _shared_items(raw, without))
    lengths = np.bincount(log.users, minlength=len(user_order))
    shares = None
    if isinstance(split, str):
        kept = _leave_one_out(lengths, k_core)
    elif raw.splits is None:
        shares = split or DEFAULT_SHARES
        kept = _split(lengths, shares, seed, k_core)
    else:
        kept = _given_split(lengths, raw.splits[user_order], k_core)
    item_index, item_codes = _popularity_index(log, _first(log, kept[0], lengths), raw.item_ids)
    items, not_listed, images_not_found = _item_table(raw, item_codes)
    user_ids = raw.user_ids.take(pa.array(user_order))
    sequences = {
        name: _sequences(log.where(_first(log, part, lengths)), part, item_index, user_ids)
        for name, part in zip(SPLITS, kept, strict=True)
    }
    info = DomainInfo(
        format_version=FORMAT_VERSION,
        name=name or path.resolve().name,
        source={
            **raw.source,
            **({"without": without.name} if without else {}),
            **({"split": _ratio(shares)} if shares else {}),
        },
        images=_images_location(raw.images, path),
        seed=seed,
        k_core=k_core,
        num_items=len(items),
        users={name: len(part) for name, part in sequences.items()},
        interactions={name: len(part.items) for name, part in sequences.items()},
        dropped={
            **raw.dropped,
            **dropped,
            "items_without_interactions": _num_only_listed(raw),
            "images_not_found": images_not_found,
        },
        items_not_listed=not_listed,
        missing={name: items[name].null_count for name in MODALITIES},
        features={},
        files={},
        protocol=LEAVE_ONE_OUT if isinstance(split, str) else USER_SPLIT,
    )
    with new_folder(path, overwrite, marks=MARKS) as staging:
        write_domain(staging, info, sequences, items)
    return Domain.open(path)


def _shared_items(raw: RawData, other: Domain | None) -> np.ndarray | None:
    """Bool [items of the source]: those that the other Domain has; None: there is no other."""
    if other is None:
        return None
    shared: np.ndarray = pc.is_in(raw.item_ids, value_set=other.original_item_ids()).to_numpy(False)
    return shared


def _filter(log: _Log, k_core: int, unwanted: np.ndarray | None) -> tuple[_Log, dict[str, int]]:
    """What rules 2 to 4 leave, and how much they drop."""
    # Every name for a log keeps it in memory, and of 90 million interactions it takes 1.4 GB.
    read = len(log)
    if unwanted is not None:
        log = log.where(~unwanted[log.items])
        if not len(log):
            raise BivrecError("all items are in the Domain that is to be left out; leave --without out")
    wanted = len(log)
    log = log.where(~_repeated(log))
    unique = len(log)
    users, items = np.bincount(log.users), np.bincount(log.items)
    num_users, num_items = np.count_nonzero(users), np.count_nonzero(items)
    while (few := (users < k_core)[log.users] | (items < k_core)[log.items]).any():
        users -= np.bincount(log.users[few], minlength=len(users))
        items -= np.bincount(log.items[few], minlength=len(items))
        log = log.where(~few)
    if not len(log):
        raise BivrecError(
            f"k-core {k_core} removes every one of the {unique} interactions of {num_users} users and {num_items} "
            "items; lower --k-core"
        )
    return log, {
        **({} if unwanted is None else {"interactions_with_other_domain": read - wanted}),
        "duplicate_interactions": wanted - unique,
        "k_core_users": int(num_users - np.count_nonzero(users)),
        "k_core_items": int(num_items - np.count_nonzero(items)),
        "k_core_interactions": unique - len(log),
    }


def _by_id(ids: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in the order of their ids, and the rank of every code in that order (int32)."""
    order = pc.sort_indices(ids).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return order, rank


def _in_time_order(raw: RawData, user_rank: np.ndarray) -> _Log:
    users = user_rank[raw.users]
    order = _stable_order(users, raw.timestamps)
    return _Log(users[order], raw.items[order], raw.timestamps[order])


def _stable_order(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Rows by user, then time; those that are equal in both keep the order of the file."""
    if len(users):
        earliest = int(timestamps.min())
        span = int(timestamps.max()) - earliest + 1
        if (int(users.max()) + 1) * span <= 2**63 - 1:
            # One sort of one number is several times faster than lexsort's two.
            key = users * np.int64(span)
            key += timestamps
            key -= earliest
            return np.argsort(key, kind="stable")
    return np.lexsort((timestamps, users))


def _repeated(log: _Log) -> np.ndarray:
    """Bool [n]: rows whose user, item and timestamp occurred in an earlier row."""
    same_as_previous = np.zeros(len(log), bool)
    same_as_previous[1:] = (log.users[1:] == log.users[:-1]) & (log.timestamps[1:] == log.timestamps[:-1])
    tied = same_as_previous.copy()
    tied[:-1] |= same_as_previous[1:]
    rows = np.flatnonzero(tied)
    moment = np.cumsum(~same_as_previous[rows])
    order = np.lexsort((log.items[rows], moment))
    again = (np.diff(moment[order]) == 0) & (np.diff(log.items[rows][order]) == 0)
    repeated = np.zeros(len(log), bool)
    repeated[rows[order[1:][again]]] = True
    return repeated


def _given_split(lengths: np.ndarray, given: np.ndarray, k_core: int) -> np.ndarray:
    """Int64 [splits, users]: of how many interactions, from the first, each split has of a user, as the source says.

    lengths: int64 [users], interactions of each.
    """
    kept = _whole(lengths, given)
    # Of a user who is evaluated, one interaction at least is the history and one the target.
    for name, part, fewest in zip(SPLITS, kept, (1, 2, 2), strict=True):
        if not (part >= fewest).any():
            enough = " with 2 interactions or more" if fewest == 2 else ""
            advice = ", or lower --k-core" if k_core > 1 else ""
            raise BivrecError(f"no {name} users{enough} are left; check the split column{advice}")
    return kept


def _whole(lengths: np.ndarray, user_split: np.ndarray) -> np.ndarray:
    """The same of users who are in one split, given by its position in SPLITS."""
    return np.where(user_split == np.arange(len(SPLITS))[:, None], lengths, 0)


def _file_names(raw: RawData) -> str:
    """Of the interactions."""
    names = raw.source.get("interactions", raw.source["reader"])
    return names if isinstance(names, str) else ", ".join(names)


def _split(lengths: np.ndarray, shares: Shares, seed: int, k_core: int) -> np.ndarray:
    """The same by shares of the users."""
    split = np.zeros(len(lengths), np.int8)
    users = np.flatnonzero(lengths)
    validation, test = (max(1, len(users) * share // sum(shares)) for share in shares[1:])
    if len(users) <= validation + test:
        raise BivrecError(f"{len(users)} users are left, too few to split {_ratio(shares)}; {_more_data(k_core)}")
    shuffled = np.random.default_rng(seed).permutation(users)
    split[shuffled[-validation - test : -test]] = 1
    split[shuffled[-test:]] = 2
    return _whole(lengths, split)


def _leave_one_out(lengths: np.ndarray, k_core: int) -> np.ndarray:
    """The same if the last interaction is the test target and the one before it the validation target."""
    # Something must be left to train on.
    evaluated = lengths >= FEWEST_TO_HOLD_OUT
    if not evaluated.any():
        raise BivrecError(
            f"no user with {FEWEST_TO_HOLD_OUT} interactions or more is left, as leave-one-out needs; "
            f"{_more_data(k_core)}"
        )
    return np.stack([lengths - 2 * evaluated, (lengths - 1) * evaluated, lengths * evaluated])


def _more_data(k_core: int) -> str:
    return "prepare more data, or lower --k-core" if k_core > 1 else "prepare more data"


def _first(log: _Log, kept: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Bool [interactions]: the first `kept` of each user's `lengths`, which are none or all but a few."""
    first: np.ndarray = (kept > 0)[log.users]
    held_out = np.where(kept > 0, lengths - kept, 0)
    ends = np.cumsum(lengths)
    for place in range(1, int(held_out.max()) + 1):
        first[ends[held_out >= place] - place] = False
    return first


def _ratio(shares: Shares) -> str:
    return ":".join(map(str, shares))


def _popularity_index(log: _Log, trained: np.ndarray, item_ids: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Item index (1..V) by code, 0 for items without interactions; and the codes in the order of the index.

    trained: bool [interactions], those of the training sequences.
    """
    occurs = np.bincount(log.items, minlength=len(item_ids)) > 0
    popularity = np.bincount(log.items[trained], minlength=len(item_ids))
    _, id_rank = _by_id(item_ids)
    order = np.lexsort((id_rank, -popularity))
    codes = order[occurs[order]]
    index = np.zeros(len(item_ids), np.int32)
    index[codes] = np.arange(1, len(codes) + 1, dtype=np.int32)
    return index, codes


def _sequences(part: _Log, lengths: np.ndarray, item_index: np.ndarray, user_ids: pa.StringArray) -> Sequences:
    """lengths: int64 [users], interactions of each in this part of the log."""
    present = lengths > 0
    return Sequences(
        offsets=np.concatenate([[0], np.cumsum(lengths[present])]).astype(np.int64),
        items=item_index[part.items],
        timestamps=part.timestamps,
        user_ids=user_ids.filter(pa.array(present)).to_pylist(),
    )


def _item_table(raw: RawData, codes: np.ndarray) -> tuple[pa.Table, int, int]:
    """The items in the order of the index; how many the catalogue lacks, and how many named images do not exist."""
    ids = raw.item_ids.take(pa.array(codes))
    if raw.catalogue is None:
        table, unknown = catalogue_table(ids, pa.nulls(len(ids)), pa.nulls(len(ids))), 0
    else:
        rows = pc.index_in(ids, value_set=raw.catalogue["item_id"].combine_chunks())
        table, unknown = raw.catalogue.take(rows).set_column(0, "item_id", ids), rows.null_count
    if raw.images is None:
        return table, unknown, 0
    images, unfound = find_images(raw.images, ids.to_pylist(), table["image"].to_pylist())
    return table.set_column(3, "image", pa.array(images, pa.string())), unknown, unfound


def _num_only_listed(raw: RawData) -> int:
    if raw.catalogue is None:
        return 0
    return int(pc.sum(pc.invert(pc.is_in(raw.catalogue["item_id"], value_set=raw.item_ids))).as_py() or 0)


def _images_location(images: Path | None, domain: Path) -> str | None:
    """Relative if the images lie beside the Domain, so that both can be moved together."""
    if images is None:
        return None
    if images.resolve().parent == domain.resolve().parent:
        return f"../{images.resolve().name}"
    return str(images.resolve())
