"""Stretches of a flat array, such as the histories of some users in the items of all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def places_of(starts: Integers, lengths: Integers) -> tuple[Integers, Integers]:
    """Where the stretches starts[u], starts[u] + 1, ... of these lengths lie in the array, one after the other.

    Returns their offsets [U + 1] among these places, and the places [total].
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
