"""The sequences of many users in one flat array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


class UserIds(Sequence[str]):
    """Ids that stay in a memory-mapped column, or in another sequence, until one is asked for."""

    def __init__(self, source: pa.ChunkedArray | Sequence[str], rows: np.ndarray | None = None) -> None:
        """rows: which entries of the source, in this order (default: all)."""
        self._source = source
        self._rows = range(len(source)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        found = self._source[int(self._rows[place])]
        return found if isinstance(found, str) else found.as_py()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Sequences:
    """The users of a split in CSR layout: user `u` has the items `items[offsets[u]:offsets[u + 1]]`, oldest first."""

    offsets: np.ndarray
    """int64 [U + 1]."""
    items: np.ndarray
    """int32 [interactions]: item indices, 1..V; a view of the memory-mapped file."""
    timestamps: np.ndarray
    """int64 [interactions], in the unit of the source: seconds, microseconds where any has a fraction, or a rank."""
    user_ids: Sequence[str]
    leave_one_out: bool = False
    """Whether an evaluation asks for the last item alone, instead of for the last 20 %."""
    cutoff: int | None = None
    """The time from which on an evaluation asks for all interactions, instead."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U]: interactions of each user."""
        return np.diff(self.offsets)
