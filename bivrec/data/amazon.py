"""Reader of the Amazon review sets of 2014, 2018 and 2023 (https://amazon-reviews-2023.github.io and its forerunners).

Every review is an interaction, whatever its rating, unless a least one is asked for. An item's text is its title,
brand, categories and description, or where it has no description its features.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bivrec.data.columns import (
    ID,
    NUMBER,
    PARQUET,
    TIME,
    column_names,
    kind_of,
    parts_of,
    read_columns,
    read_json_lines,
    strings,
)
from bivrec.data.raw import RawData, catalogue_table, check_joined, encode_ids, only_rated
from bivrec.errors import BivrecError

# User, item, time (2023: in milliseconds; 2014 and 2018: in seconds).
REVIEW_COLUMNS = (("user_id", "parent_asin", "timestamp"), ("reviewerID", "asin", "unixReviewTime"))
RATING_COLUMNS = dict(zip(REVIEW_COLUMNS, ("rating", "overall"), strict=True))
ITEM_KEYS = ("parent_asin", "asin")
# Each line is one part of the text, and the fields that it is taken from: the first that is not empty.
TEXT_KEYS = (
    ("title",),
    ("brand", "store"),
    ("categories", "category"),
    ("description", "features", "feature"),
)

MARKUP = re.compile(r"<(script|style)\b.*?</\1>|</?[a-z!][^<>]*>", re.IGNORECASE | re.DOTALL)
PAGE_SOURCE = "getTime()"
"""In titles of 2018 for which the script of the page was taken."""


def read_amazon(
    reviews: Sequence[Path],
    metadata: Sequence[Path] = (),
    *,
    images: Path | None = None,
    keep_items: bool = False,
    min_rating: float | None = None,
) -> RawData:
    """Read JSON lines (also with .gz), Parquet, or CSV with a header; several files are read one after another.

    The metadata of 2014 may be Python literals instead of JSON. An item's image is the file of `images` named by its
    asin. The catalogue is that of the items that were reviewed, or with `keep_items` of all in the metadata.
    Interactions rated below `min_rating` are left out.
    Raises BivrecError naming the file and row of the first fault, for reviews of 2023 beside older ones, and if no
    interaction is left.
    """
    layouts = [_layout(path) for path in reviews]
    _check_alike(reviews, layouts)
    parts = [_read_reviews(path, layout, min_rating is not None) for path, layout in zip(reviews, layouts, strict=True)]
    table = pa.concat_tables(parts).unify_dictionaries()
    users, user_ids = encode_ids(table["user"])
    items, item_ids = encode_ids(table["item"])
    raw = RawData(
        users=users,
        items=items,
        timestamps=table["timestamp"].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
        source={
            "reader": "amazon",
            "interactions": [path.name for path in reviews],
            "items": [path.name for path in metadata],
        },
        catalogue=_read_metadata(metadata, item_ids, keep_items) if metadata else None,
        images=images,
    )
    return raw if min_rating is None else only_rated(raw, table["rating"], min_rating)


def _layout(path: Path) -> tuple[str, str, str]:
    """The columns of a file of reviews, as in REVIEW_COLUMNS."""
    found = column_names(path)
    for columns in REVIEW_COLUMNS:
        if set(columns) <= set(found):
            return columns
    expected = " or ".join(", ".join(names) for names in REVIEW_COLUMNS)
    raise BivrecError(
        f"{path}: row 1: expected {expected}; found {', '.join(found)[:200]}; "
        "give a file of reviews, and a CSV file without a header one"
    )


def _check_alike(paths: Sequence[Path], layouts: Sequence[tuple[str, str, str]]) -> None:
    """Raise BivrecError if the files are of sets that do not go together."""
    other = next((place for place, layout in enumerate(layouts) if layout != layouts[0]), None)
    if other is not None:
        new, old = sorted((0, other), key=lambda place: REVIEW_COLUMNS.index(layouts[place]))
        raise BivrecError(
            f"{paths[new]} is of the set of 2023, {paths[old]} of an older one: their users have other ids, and their "
            "times other units; give files of one set"
        )


def _read_reviews(path: Path, layout: tuple[str, str, str], rated: bool) -> pa.Table:
    user, item, timestamp = layout
    ratings = {RATING_COLUMNS[layout]: NUMBER} if rated else {}
    table = read_columns(path, {user: ID, item: ID, timestamp: TIME, **ratings})
    return table.rename_columns(["user", "item", "timestamp", "rating"][: table.num_columns])


def _read_metadata(paths: Sequence[Path], reviewed: pa.StringArray, keep_items: bool) -> pa.Table:
    """The catalogue of the items that were reviewed, or of all; of an item that is listed twice, the first."""
    wanted = set(reviewed.to_pylist())
    rows: dict[str, tuple[str, str]] = {}
    first: list[str] = []
    for path in chain.from_iterable(map(parts_of, paths)):
        for row, values in _metadata_rows(path):
            item = next((values[key] for key in ITEM_KEYS if values.get(key)), None)
            if not isinstance(item, str):
                raise BivrecError(
                    f"{path}: row {row}: no {' or '.join(ITEM_KEYS)}; found {', '.join(values)[:200]}; "
                    "give a file of metadata"
                )
            first = first or [item]
            if (keep_items or item in wanted) and item not in rows:
                rows[item] = _title_and_text(values)
    advice = "give the metadata of the same category and year"
    check_joined(paths[0], strings(rows or first), "the reviews", "reviews", reviewed, advice)
    return catalogue_table(list(rows), [title for title, _ in rows.values()], [text for _, text in rows.values()])


def _metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if kind_of(path) != PARQUET:
        yield from read_json_lines(path, _parse)
        return
    keys = {*ITEM_KEYS, *(key for keys in TEXT_KEYS for key in keys)}
    columns = [name for name in column_names(path) if name in keys]
    row = 0
    for batch in pq.ParquetFile(path).iter_batches(columns=columns):
        for values in batch.to_pylist():
            row += 1
            yield row, values


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        # Metadata of 2014 are Python literals. This reads literals only; it runs nothing.
        try:
            return ast.literal_eval(line)
        except (ValueError, SyntaxError):
            raise ValueError("nor a Python literal, as those of 2014 are") from None


def _title_and_text(values: dict[str, Any]) -> tuple[str, str]:
    title, brand, categories, description = (
        next((found for key in keys if (found := _strings(values.get(key)))), []) for keys in TEXT_KEYS
    )
    if any(PAGE_SOURCE in part for part in title):
        title = []
    # Categories repeat their parents.
    parts = [" ".join(title), " ".join(brand), ", ".join(dict.fromkeys(categories)), " ".join(description)]
    return parts[0], ". ".join(part.rstrip(". ") for part in parts if part)


def _strings(value: Any) -> list[str]:
    """All strings in a string or nested list, without markup and surplus blanks; [] for anything else."""
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    text = " ".join(MARKUP.sub(" ", html.unescape(value)).split()) if isinstance(value, str) else ""
    return [text] if text else []
