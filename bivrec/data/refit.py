"""A Domain whose validation is trained on too: for a last training, when nothing is left to choose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.domain import Domain
from bivrec.data.sequences import Sequences, UserIds
from bivrec.data.stretches import places_of


class RefitDomain(Domain):
    """A Domain that gives all before the test as its training sequences; the test users are asked as before."""

    def __init__(self, domain: Domain) -> None:
        super().__init__(domain.path, domain.info, domain.repository)
        self._train = _united(super().sequences("train"), super().sequences("validation"))

    def sequences(self, split: str) -> Sequences:
        """As of `Domain`; of `train`, in memory, with the validation's users and what it has of the others."""
        return self._train if split == "train" else super().sequences(split)


def _united(train: Sequences, validation: Sequences) -> Sequences:
    """The users of both by id; of one whom both have, the validation's sequence, which begins as the training's."""
    ids = [pa.array(users.user_ids, pa.string()) for users in (train, validation)]
    later = pc.is_in(ids[0], value_set=ids[1]).to_numpy(zero_copy_only=False)
    rows = np.concatenate([np.flatnonzero(~later), len(train) + np.arange(len(validation))])
    all_ids = pa.concat_arrays(ids)
    rows = rows[pc.sort_indices(all_ids.take(pa.array(rows))).to_numpy()]
    starts = np.concatenate([train.offsets[:-1], len(train.items) + validation.offsets[:-1]])
    offsets, places = places_of(starts[rows], np.concatenate([train.lengths, validation.lengths])[rows])
    return dataclasses.replace(
        train,
        offsets=offsets,
        items=np.concatenate([train.items, validation.items])[places],
        timestamps=np.concatenate([train.timestamps, validation.timestamps])[places],
        user_ids=UserIds(pa.chunked_array([all_ids]), rows),
    )
