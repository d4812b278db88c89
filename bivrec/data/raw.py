"""RawData: what every reader hands to `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.columns import strings
from bivrec.data.domain import ITEM_COLUMNS
from bivrec.errors import BivrecError

Column: TypeAlias = "pa.Array | pa.ChunkedArray | list[str | None]"


@dataclass(frozen=True)
class RawData:
    """Interactions in the order of the file, as codes, and what is known of the items."""

    users: np.ndarray
    """int32 [n]: position in `user_ids`."""
    items: np.ndarray
    """int32 [n]: position in `item_ids`."""
    timestamps: np.ndarray
    """int64 [n]."""
    user_ids: pa.StringArray
    item_ids: pa.StringArray
    source: Mapping[str, Any]
    """Reader and names of the files, for domain.json."""
    catalogue: pa.Table | None = None
    """Columns item_id, title, text, image (null where unknown), in any order; may lack items."""
    images: Path | None = None
    """Folder or tar in which the images lie."""
    splits: np.ndarray | None = None
    """int8 [len(user_ids)]: position in SPLITS, if the source splits the users itself."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of interactions of the files that the reader left out."""


def check_joined(
    path: Path, listed: pa.StringArray, source: Path | str, whose: str, item_ids: pa.StringArray, advice: str
) -> None:
    """Raise BivrecError if none of the items that a table lists is among those of the source's interactions.

    whose: what these are called, in the plural.
    """
    if len(item_ids) and not pc.any(pc.is_in(item_ids, value_set=listed)).as_py():
        found = f"ids such as '{listed[0]}'" if len(listed) else "none"
        raise BivrecError(
            f"{path}: none of its items is in {source}: it has {found}, the {whose} ids such as '{item_ids[0]}'; "
            f"{advice}"
        )


def encode_ids(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.StringArray]:
    """Codes (int32 [n]) and the id of every code, for a column of strings or integers without nulls.

    Categories of a data frame that no row has are none of the ids.
    """
    encoded = column.dictionary_encode().combine_chunks()
    codes, used = _used(encoded.indices.to_numpy(), len(encoded.dictionary))
    return codes, encoded.dictionary.filter(pa.array(used)).cast(pa.string())


def only_rated(raw: RawData, ratings: pa.ChunkedArray, least: float) -> RawData:
    """The interactions with a rating [n] of `least` or more; what has no others is left out.

    Raises BivrecError if there are none.
    """
    kept = pc.greater_equal(ratings, least).to_numpy()
    if len(kept) and not kept.any():
        highest = pc.max(ratings).as_py()
        raise BivrecError(f"no interaction is rated {least:g} or more, the highest {highest:g}; lower --min-rating")
    user_codes, users = _used(raw.users[kept], len(raw.user_ids))
    item_codes, items = _used(raw.items[kept], len(raw.item_ids))
    return replace(
        raw,
        users=user_codes,
        items=item_codes,
        timestamps=raw.timestamps[kept],
        user_ids=raw.user_ids.filter(pa.array(users)),
        item_ids=raw.item_ids.filter(pa.array(items)),
        source={**raw.source, "min_rating": least},
        splits=None if raw.splits is None else raw.splits[users],
        dropped={**raw.dropped, "rated_below": int((~kept).sum())},
    )


def _used(codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes without gaps (int32), and which of `count` codes there were (bool)."""
    used = np.bincount(codes, minlength=count) > 0
    return codes if used.all() else (np.cumsum(used, dtype=np.int32) - 1)[codes], used


def catalogue_table(item_ids: Column, titles: Column, texts: Column, images: Column | None = None) -> pa.Table:
    """A catalogue of items; blank values count as unknown, and an unknown text is replaced by the title."""
    columns = [item_ids, titles, texts, pa.nulls(len(item_ids), pa.string()) if images is None else images]
    item_ids, *others = (
        column if isinstance(column, pa.Array | pa.ChunkedArray) else strings(column) for column in columns
    )
    titles, texts, images = (_null_if_blank(column) for column in others)
    texts = pc.coalesce(*(column.cast(ITEM_COLUMNS.field("text").type) for column in (texts, titles)))
    return pa.Table.from_arrays([item_ids, titles, texts, images], schema=ITEM_COLUMNS)


def _null_if_blank(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)
