"""Preparation: raw interactions -> Domain.

Rules, in this order:

1. A user's interactions are ordered by timestamp, those of equal timestamp by their order in the file.
2. Items that another Domain has are dropped, if one is named.
3. Rows that repeat user, item and timestamp are dropped; a later interaction with the same item is kept.
4. Users and items with fewer than `k_core` interactions are dropped, again and again until none is left.
5. The users that remain, sorted by id, are split 8:1:1, or by other shares, by a permutation of the seed, unless the
   source splits them; or the last interactions of each are held out (leave-one-out); or all since a time (temporal),
   and those of users of whom nothing was before it are dropped.
6. Items that have no interactions then are dropped, unless the source lists them and `keep_items` is asked for; the
   rest are numbered by popularity in the training sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.config import MODALITIES
from bivrec.data.domain import DOMAIN_FOLDER, Domain, write_domain
from bivrec.data.images import find_images
from bivrec.data.info import FORMAT_VERSION, SPLITS, TEMPORAL, DomainInfo, check_name
from bivrec.data.raw import RawData, catalogue_table
from bivrec.data.sequences import Sequences
from bivrec.data.splits import (
    DEFAULT_SHARES,
    Parts,
    Split,
    leave_one_out,
    ratio,
    split_as_given,
    split_by_time,
    split_by_users,
)
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


def prepare(
    raw: RawData,
    path: str | Path,
    *,
    name: str | None = None,
    without: Domain | None = None,
    k_core: int = 5,
    split: str | None = None,
    seed: int = 0,
    keep_items: bool = False,
    overwrite: bool = False,
) -> Domain:
    """Prepare `raw` by the rules of this module and write the Domain to `path`; `name` defaults to the folder's.

    without: a Domain whose items (by id) are left out. split: `8:1:1` of the users (the default, unless the source
    splits them), `leave-one-out`, `temporal` or `temporal:8:1:1` (see `DomainInfo`); only the first draws by the seed.
    keep_items: also keep items of the source's catalogue that have no interactions, or none that the k-core left.
    Raises BivrecError if nothing is left, if too few users are left to split, if they are to be split twice, if a
    split leaves nobody to train on or to evaluate, or if there is no catalogue of which to keep items.
    """
    path = Path(path)
    if k_core < 0 or seed < 0:
        raise BivrecError(f"k-core {k_core}, seed {seed}: expected 0 or more")
    check_new_folder(path, overwrite, kind=DOMAIN_FOLDER)
    name = name or path.resolve().name
    check_name(name, "name")
    asked = Split.parse(split) if split else Split(shares=DEFAULT_SHARES if raw.splits is None else None)
    if split and raw.splits is not None:
        raise BivrecError("the split column splits the users already; leave --split or --split-column out")
    if not len(raw.users):
        raise BivrecError(f"{_file_names(raw)}: there are no interactions; check what was given")
    if keep_items:
        raw = _with_listed_items(raw)
    shared = _shared_items(raw, without)
    kept_items = _kept_items(raw, shared) if keep_items else np.zeros(len(raw.item_ids), bool)
    user_order, user_rank = _by_id(raw.user_ids)
    log, dropped = _filter(_in_time_order(raw, user_rank), k_core, shared, kept_items)
    lengths = np.bincount(log.users, minlength=len(user_order))
    if raw.splits is not None:
        parts = split_as_given(lengths, raw.splits[user_order], k_core)
    else:
        parts = _parts(log, lengths, asked, seed, k_core)
    without_history = len(log)
    log = log.where((parts.lengths > 0)[log.users])
    without_history -= len(log)
    trained = _first(parts.kept[0], parts.lengths)
    item_index, item_codes = _popularity_index(log, trained, raw.item_ids, kept_items)
    items, not_listed, images_not_found = _item_table(raw, item_codes)
    user_ids = raw.user_ids.take(pa.array(user_order))
    sequences = {
        name: _sequences(log.where(_first(kept, parts.lengths)), kept, item_index, user_ids)
        for name, kept in zip(SPLITS, parts.kept, strict=True)
    }
    info = DomainInfo(
        format_version=FORMAT_VERSION,
        name=name,
        source={
            **raw.source,
            **({"without": without.name} if without else {}),
            **({"split": ratio(asked.shares)} if asked.shares else {}),
        },
        images=_images_location(raw.images, path),
        seed=seed,
        k_core=k_core,
        num_items=len(items),
        users={name: len(part) for name, part in sequences.items()},
        interactions={name: len(part.items) for name, part in sequences.items()},
        num_users=int(np.count_nonzero(parts.lengths)),
        num_interactions=len(log),
        dropped={
            **raw.dropped,
            **dropped,
            **({"interactions_without_history": without_history} if asked.protocol == TEMPORAL else {}),
            "items_without_interactions": _num_only_listed(raw),
            "images_not_found": images_not_found,
        },
        items_not_listed=not_listed,
        missing={name: items[name].null_count for name in MODALITIES},
        features={},
        files={},
        protocol=asked.protocol,
        cutoffs=dict(parts.cutoffs),
        items_without_interactions=len(items) - int(np.count_nonzero(np.bincount(log.items))),
    )
    with new_folder(path, overwrite, kind=DOMAIN_FOLDER) as staging:
        write_domain(staging, info, sequences, items)
    return Domain.open(path)


def _parts(log: _Log, lengths: np.ndarray, split: Split, seed: int, k_core: int) -> Parts:
    """What each split has. lengths: int64 [users], interactions of each."""
    if split.shares is None:
        return leave_one_out(lengths, k_core)
    if split.protocol == TEMPORAL:
        return split_by_time(log.users, log.timestamps, lengths, split.shares)
    return split_by_users(lengths, split.shares, seed, k_core)


def _shared_items(raw: RawData, other: Domain | None) -> np.ndarray | None:
    """Bool [items of the source]: those that the other Domain has; None: there is no other."""
    if other is None:
        return None
    shared: np.ndarray = pc.is_in(raw.item_ids, value_set=other.original_item_ids()).to_numpy(False)
    return shared


def _with_listed_items(raw: RawData) -> RawData:
    """With the ids of what the catalogue has and no interaction, after the others."""
    if raw.catalogue is None:
        raise BivrecError("no table of items, whose items are to be kept; name one, or leave --keep-items out")
    listed = pc.unique(raw.catalogue["item_id"])
    more = listed.filter(pc.invert(pc.is_in(listed, value_set=raw.item_ids)))
    return replace(raw, item_ids=pa.concat_arrays([raw.item_ids, more]))


def _kept_items(raw: RawData, unwanted: np.ndarray | None) -> np.ndarray:
    """Bool [items of the source]: those of the catalogue that are not unwanted."""
    assert raw.catalogue is not None
    listed: np.ndarray = pc.is_in(raw.item_ids, value_set=raw.catalogue["item_id"]).to_numpy(False)
    return listed if unwanted is None else listed & ~unwanted


def _filter(log: _Log, k_core: int, unwanted: np.ndarray | None, kept: np.ndarray) -> tuple[_Log, dict[str, int]]:
    """What rules 2 to 4 leave, and how much they drop; of the items that are `kept`, interactions alone."""
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
    droppable = (items > 0) & ~kept[: len(items)]
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
        "k_core_items": int(np.count_nonzero(droppable & (items == 0))),
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
            # Widened first: NumPy 1 keeps int32 where the factor fits into it.
            key = users.astype(np.int64)
            key *= span
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


def _file_names(raw: RawData) -> str:
    """Of the interactions."""
    names = raw.source.get("interactions", raw.source["reader"])
    return names if isinstance(names, str) else ", ".join(names)


def _first(kept: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Bool [interactions]: the first `kept` of each user's `lengths`."""
    # The running sum of a 1 where a stretch begins and a -1 behind its end, which takes a byte for an interaction.
    starts, some = np.cumsum(lengths) - lengths, kept > 0
    steps = np.zeros(lengths.sum() + 1, np.int8)
    steps[starts[some]] += 1
    steps[(starts + kept)[some]] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).view(bool)


def _popularity_index(
    log: _Log, trained: np.ndarray, item_ids: pa.StringArray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Item index (1..V) by code, 0 for items that are dropped; and the codes in the order of the index.

    trained: bool [interactions], those of the training sequences. kept: bool [item ids], those that stay if they have
    no interactions, too.
    """
    stays = (np.bincount(log.items, minlength=len(item_ids)) > 0) | kept
    popularity = np.bincount(log.items[trained], minlength=len(item_ids))
    _, id_rank = _by_id(item_ids)
    order = np.lexsort((id_rank, -popularity))
    codes = order[stays[order]]
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
        nothing = pa.nulls(len(ids), pa.string())
        table, unknown = catalogue_table(ids, nothing, nothing), 0
    else:
        rows = pc.index_in(ids, value_set=raw.catalogue["item_id"].combine_chunks())
        table, unknown = raw.catalogue.take(rows).set_column(0, "item_id", ids), rows.null_count
    if raw.images is None:
        # Names of files that nobody has are no images.
        return table.set_column(3, "image", pa.nulls(len(table), pa.string())), unknown, 0
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
