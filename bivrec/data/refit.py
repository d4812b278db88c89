"""A Domain whose validation, or all of it, is trained on: for a last training, when nothing is left to choose."""

from __future__ import annotations

import dataclasses
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.domain import Domain
from bivrec.data.info import TEMPORAL
from bivrec.data.sequences import Sequences, UserIds
from bivrec.data.stretches import places_of


class RefitDomain(Domain):
    """A Domain that gives all before the test as its training sequences, or with `with_test` all that there is.

    The test users are asked as before.
    """

    def __init__(self, domain: Domain, *, with_test: bool = False) -> None:
        super().__init__(domain.path, domain.info, domain.repository)
        parts = [super().sequences("train"), super().sequences("validation")]
        if with_test:
            parts.append(dataclasses.replace(super().sequences("test"), cutoff=None))
        elif domain.info.protocol == TEMPORAL:
            # Of users who came between the two times, the test alone knows what they did before the second.
            parts.append(_before_targets(super().sequences("test")))
        self._train = reduce(_united, parts)

    def sequences(self, split: str) -> Sequences:
        """As of `Domain`; of `train`, in memory, with what the other parts have of its users and with their own, and of
        a Domain that was split by time with the users who came since the validation began."""
        return self._train if split == "train" else super().sequences(split)


def _before_targets(test: Sequences) -> Sequences:
    """The histories of users who are asked what they did since a time."""
    assert test.cutoff is not None
    before = test.timestamps < test.cutoff
    ends = np.concatenate([[0], np.cumsum(before)])[test.offsets]
    return dataclasses.replace(
        test, offsets=ends.astype(np.int64), items=test.items[before], timestamps=test.timestamps[before], cutoff=None
    )


def _united(train: Sequences, later: Sequences) -> Sequences:
    """The users of both by id; of one whom both have, the later sequence, which begins as the other."""
    ids = [pa.array(users.user_ids, pa.string()) for users in (train, later)]
    goes_on = pc.is_in(ids[0], value_set=ids[1]).to_numpy(zero_copy_only=False)
    rows = np.concatenate([np.flatnonzero(~goes_on), len(train) + np.arange(len(later))])
    all_ids = pa.concat_arrays(ids)
    rows = rows[pc.sort_indices(all_ids.take(pa.array(rows))).to_numpy()]
    starts = np.concatenate([train.offsets[:-1], len(train.items) + later.offsets[:-1]])
    offsets, places = places_of(starts[rows], np.concatenate([train.lengths, later.lengths])[rows])
    return dataclasses.replace(
        train,
        offsets=offsets,
        items=np.concatenate([train.items, later.items])[places],
        timestamps=np.concatenate([train.timestamps, later.timestamps])[places],
        user_ids=UserIds(pa.chunked_array([all_ids]), rows),
    )
