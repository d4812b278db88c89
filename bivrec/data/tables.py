"""Reader of the user's own tables: interactions and, optionally, items."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from bivrec.data.columns import ID, NUMBER, TEXT, TIME, column_names, read_columns
from bivrec.data.info import SPLITS
from bivrec.data.raw import RawData, catalogue_table, check_joined, encode_ids, only_rated
from bivrec.errors import BivrecError

SPLIT_NAMES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}


@dataclass(frozen=True)
class Columns:
    """What the columns of the tables are called; each that has a name here must exist."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    split: str | None = None
    """Column that assigns every user to train, validation or test; None: `prepare` splits."""
    id: str | None = None
    """Of the items their ids; None: `item`, as in the interactions."""
    rating: str | None = None
    """None: `rating`, if a least rating is asked for."""
    title: str | None = None
    """None: `title`, if there is one; likewise `image`."""
    text: tuple[str, ...] = ()
    """Put together where they are several; none: `text`, if there is one."""
    image: str | None = None

    def __post_init__(self) -> None:
        """Raises BivrecError if one column of the interactions has two roles."""
        roles: dict[str, str] = {}
        for role in ("user", "item", "timestamp", "split", "rating"):
            name = getattr(self, role)
            if name is not None and (other := roles.setdefault(name, role)) != role:
                raise BivrecError(
                    f"column '{name}' is both {other} and {role}; name another with --{other}-column or --{role}-column"
                )


def read_tables(
    interactions: Path,
    items: Path | None = None,
    *,
    images: Path | None = None,
    columns: Columns | None = None,
    min_rating: float | None = None,
) -> RawData:
    """Read CSV, TSV, Parquet or JSON lines, each a file or a folder of parts; timestamps as `read_columns` says.

    Interactions rated below `min_rating` are left out.
    Raises BivrecError for unreadable files, missing columns, bad values, users of two splits, items that are described
    twice, items of which none is in the interactions, and if no interaction is left.
    """
    columns = columns or Columns()
    required = {columns.user: ID, columns.item: ID, columns.timestamp: TIME}
    if columns.split:
        required[columns.split] = ID
    if min_rating is not None:
        columns = replace(columns, rating=columns.rating or "rating")
        required[str(columns.rating)] = NUMBER
    table = read_columns(interactions, required)
    users, user_ids = encode_ids(table[columns.user])
    item_codes, item_ids = encode_ids(table[columns.item])
    source = {"reader": "tables", "interactions": interactions.name}
    if items:
        source["items"] = items.name
    raw = RawData(
        users=users,
        items=item_codes,
        timestamps=table[columns.timestamp].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
        source=source,
        catalogue=_read_items(items, columns, interactions, item_ids) if items else None,
        images=images,
        splits=_read_splits(interactions, table[columns.split], users, user_ids) if columns.split else None,
    )
    return raw if min_rating is None else only_rated(raw, table[columns.rating], min_rating)


def _read_items(path: Path, columns: Columns, interactions: Path, item_ids: pa.StringArray) -> pa.Table:
    names = [columns.title or "title", *(columns.text or ("text",)), columns.image or "image"]
    # An id may be a title or the name of an image as well.
    ids = columns.id or columns.item
    table = read_columns(path, {ids: ID}, {name: TEXT for name in names if name != ids})
    # JSON lines have no header, so that there a column that is absent is one without a value.
    held = [name for name in table.column_names if table[name].null_count < len(table)]
    for given in (columns.title, *columns.text, columns.image):
        if given is not None and given not in held:
            raise BivrecError(
                f"{path}: no column '{given}', or nothing in it; found {', '.join(column_names(path))}; "
                "name the right columns by the options"
            )
    if not any(name in held for name in names):
        raise BivrecError(
            f"{path}: no column {', '.join(names)}, or nothing in them; found {', '.join(column_names(path))}; "
            "name the right columns by the options, or leave --items out"
        )
    _check_item_ids(path, table[ids], interactions, item_ids)
    unknown = pa.nulls(len(table), TEXT)
    title, *texts, image = (table[name].cast(TEXT) if name in held else unknown for name in names)
    return catalogue_table(table[ids].cast(TEXT), title, _joined(texts), image)


def _joined(texts: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Those that are not blank of each row, one after the other."""
    if len(texts) == 1:
        return texts[0]
    # Arrow's own join of strings loses rows in which all are null.
    rows = zip(*(column.to_pylist() for column in texts), strict=True)
    joined = (". ".join(text for text in row if text and not text.isspace()) for row in rows)
    return pa.chunked_array([pa.array(joined, pa.large_string())])


def _check_item_ids(path: Path, column: pa.ChunkedArray, interactions: Path, item_ids: pa.StringArray) -> None:
    """Raise BivrecError if an item has two rows, or if none is in the interactions."""
    codes, listed = encode_ids(column)
    advice = "make them alike, or name the right --item-column and --id-column"
    check_joined(path, listed, interactions, "interactions", item_ids, advice)
    rows = np.bincount(codes)
    if rows.max(initial=0) > 1:
        item = int(rows.argmax())
        raise BivrecError(f"{path}: item '{listed[item]}' has {rows[item]} rows; expected one; remove the others")


def _read_splits(path: Path, column: pa.ChunkedArray, users: np.ndarray, user_ids: pa.StringArray) -> np.ndarray:
    codes, names = encode_ids(column)
    known = np.array([SPLIT_NAMES.get(name, -1) for name in names.to_pylist()], np.int8)
    if (known < 0).any():
        wrong = int(np.flatnonzero(known < 0)[0])
        row = int(np.flatnonzero(codes == wrong)[0])
        raise BivrecError(
            f"{path}: interaction {row + 1}: split '{names[wrong]}': expected {', '.join(SPLITS)}; mend the column"
        )
    of_row = known[codes]
    split = np.empty(len(user_ids), np.int8)
    split[users] = of_row
    if len(clash := np.flatnonzero(split[users] != of_row)):
        user = user_ids[int(users[clash[0]])]
        raise BivrecError(
            f"{path}: interaction {clash[0] + 1}: user '{user}' is in two splits; "
            "expected all interactions of a user in one"
        )
    return split
