"""Reader of sequences, one user a line: USER ITEM ITEM ..., oldest first.

The format in which S3-Rec (Zhou et al., CIKM 2020) publishes Beauty, Sports, Toys and Yelp, and many after it. Beside
it may lie a JSON file of each item's attributes, {ITEM: [ATTRIBUTE, ...]}: the texts of the items.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bivrec.data.columns import strings
from bivrec.data.raw import RawData, catalogue_table, check_joined, encode_ids
from bivrec.errors import BivrecError
from bivrec.files import read_json


def read_sequence_lines(path: Path, attributes: Path | None = None) -> RawData:
    """Read the sequences, with the rank in the user's sequence for a time, and the attributes as texts.

    Raises BivrecError if a file is missing or of another format, a user has two lines, or no item of the sequences has
    attributes.
    """
    user_ids: list[str] = []
    lengths: list[int] = []
    items: list[str] = []
    for user, sequence in _lines(path):
        user_ids.append(user)
        lengths.append(len(sequence))
        items += sequence
    codes, item_ids = encode_ids(pa.chunked_array([items], pa.string()))
    counts = np.array(lengths, np.int64)
    firsts = np.cumsum(counts) - counts
    source = {"reader": "sequences", "interactions": path.name}
    return RawData(
        users=np.repeat(np.arange(len(user_ids), dtype=np.int32), counts),
        items=codes,
        timestamps=np.arange(len(items)) - np.repeat(firsts, counts),
        user_ids=pa.array(user_ids, pa.string()),
        item_ids=item_ids,
        source=source | ({"items": attributes.name} if attributes else {}),
        catalogue=_catalogue(attributes, path, item_ids) if attributes else None,
    )


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """User and items of each line that is not blank."""
    rows: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for row, line in enumerate(stream, 1):
                if not (words := line.split()):
                    continue
                user, *items = words
                if not items:
                    raise BivrecError(f"{path}: row {row}: '{user[:60]}': expected a user and items; remove the row")
                if user in rows:
                    raise BivrecError(
                        f"{path}: row {row}: user '{user[:60]}' has row {rows[user]} already; expected all items of a "
                        "user in one, oldest first; files of one interaction a row are for `bivrec prepare tables`"
                    )
                rows[user] = row
                yield user, items
    except UnicodeDecodeError as fault:
        raise BivrecError(f"{path}: not UTF-8 text ({fault}); save it as UTF-8, unpacked") from None


def _catalogue(path: Path, sequences: Path, item_ids: pa.StringArray) -> pa.Table:
    listed: Any = read_json(path)
    if not isinstance(listed, dict):
        raise BivrecError(f"{path}: expected an object of items, {{ITEM: [ATTRIBUTE, ...]}}, found {str(listed)[:60]}")
    for item, found in listed.items():
        if not isinstance(found, list) or not all(isinstance(word, str | int) for word in found):
            raise BivrecError(f"{path}: item '{item}': expected a list of attributes, found {str(found)[:60]}; mend it")
    check_joined(path, strings(listed), sequences, "sequences", item_ids, "give the attributes of the same set")
    texts = [", ".join(map(str, found)) for found in listed.values()]
    return catalogue_table(list(listed), [None] * len(texts), texts)
