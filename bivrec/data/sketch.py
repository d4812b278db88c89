"""Which items a model was trained on, told by a few hashes: enough to tell how many items of another Domain it knows.

Of the hashes of all items the smallest are kept, whatever the order of the items: a sample by chance, but the same one
of every catalogue, so that two can be compared. Source: bottom-k sketches (Cohen and Kaplan, PODC 2007).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.domain import Domain

SKETCH_SIZE = 256
ROWS_AT_ONCE = 65536

Hashes = npt.NDArray[np.uint64]


def item_sketch(domain: Domain) -> list[str]:
    """The smallest hashes of the items of a Domain, in increasing order: SKETCH_SIZE, or all if there are fewer.

    An item is its id and its title. A hash is 64 bits of BLAKE2b in hexadecimal digits.
    """
    smallest = np.zeros(0, np.uint64)
    for hashes in _hashes(domain):
        smallest = np.unique(np.concatenate([smallest, hashes]))[:SKETCH_SIZE]
    return [f"{value:016x}" for value in smallest.tolist()]


def join_sketches(*sketches: Sequence[str]) -> list[str]:
    """The sketch of the items of several."""
    return sorted({value for sketch in sketches for value in sketch})[:SKETCH_SIZE]


def share_known(domain: Domain, sketch: Sequence[str]) -> float:
    """Estimated share, 0 to 1, of the items of a Domain that are among those of a sketch; 0 where nothing can be told.

    Of the sketched items all hashes up to the largest of the sketch are known, or all of them if they are few. The
    share is that of the Domain's items with such hashes.
    """
    known = np.array([int(value, 16) for value in sketch], np.uint64)
    if not len(known):
        return 0.0
    limit = known.max() if len(known) == SKETCH_SIZE else np.iinfo(np.uint64).max
    asked = found = 0
    for hashes in _hashes(domain):
        comparable = hashes[hashes <= limit]
        asked += len(comparable)
        found += int(np.isin(comparable, known).sum())
    return found / asked if asked else 0.0


def _hashes(domain: Domain) -> Iterator[Hashes]:
    """Of all items, in parts."""
    table = domain.item_table().data.table
    ids = domain.original_item_ids()
    for first in range(0, len(table), ROWS_AT_ONCE):
        titles = pc.fill_null(table["title"].slice(first, ROWS_AT_ONCE), "")
        texts = pc.binary_join_element_wise(ids.slice(first, ROWS_AT_ONCE), titles, "\n").cast(pa.binary())
        digests = [hashlib.blake2b(text, digest_size=8).digest() for text in texts.to_pylist()]
        yield np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
