"""Whom the evaluation asks, and for what; the protocol is the Domain's (see `DomainInfo`).

user-split: ComiRec's strong generalisation (Cen et al., KDD 2020). The users of validation and test were never trained
on. The first 80 % of a user's sequence is the history, the rest is the target.
leave-one-out: that of SASRec (Kang & McAuley, ICDM 2018) and its successors. The last interaction of a user is the test
target, the one before it the validation target, and all before these two is trained on. The history is all that was
before the target.
temporal: the global temporal split (Meng et al., RecSys 2020; Ji et al., TOIS 2023). What came after a time is neither
trained on nor read; the targets are all that a user did since, and the history all that was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bivrec.data.sequences import Sequences, UserIds
from bivrec.data.stretches import Integers, places_of
from bivrec.errors import BivrecError


@dataclass(frozen=True)
class EvaluationUsers:
    """Histories and targets as stretches of one flat item array; nothing is copied from the Domain.

    User u's history is items[starts[u]:cuts[u]] and its targets are items[cuts[u]:ends[u]], oldest first.
    """

    items: npt.NDArray[np.int32]
    starts: Integers
    cuts: Integers
    ends: Integers
    user_ids: Sequence[str]
    skipped: int
    """Users of the split left out because they have no history or no target."""
    history_limit: int | None = None
    """Only this many of the most recent history items may be read."""

    @classmethod
    def from_sequences(cls, sequences: Sequences) -> EvaluationUsers:
        """Cut each sequence of L items: after int(0.8 L), so that one target is left at least; under leave-one-out
        before the last item, and where there is a cutoff in time before what came since.

        Users with fewer than 2 items are left out and counted in `skipped`.
        """
        offsets = np.asarray(sequences.offsets, dtype=np.int64)
        lengths = sequences.lengths
        rows = np.flatnonzero(lengths >= 2)
        starts, ends = offsets[rows], offsets[rows + 1]
        return cls(
            items=sequences.items,
            starts=starts,
            cuts=_cuts(sequences, starts, ends),
            ends=ends,
            user_ids=UserIds(sequences.user_ids, rows),
            skipped=len(lengths) - len(rows),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def cold_start(self, last: int) -> EvaluationUsers:
        """The same users and targets with only the `last` most recent items of each history kept.

        Items that were cut off still count as seen. Raises BivrecError if `last` is below 1.
        """
        if last < 1:
            raise BivrecError(f"cold start keeps the last {last} items of a history; expected 1 or more")
        return replace(self, history_limit=last)

    def histories(self, first: int, last: int, max_history: int | None = None) -> Tensor:
        """Most recent history items of users first..last-1, int64 [B, L], padded on the left with 0.

        L is the longest of these histories, at most `max_history` and at most `history_limit`.
        """
        starts, cuts = self.starts[first:last], self.cuts[first:last]
        for limit in (max_history, self.history_limit):
            if limit is not None:
                starts = np.maximum(starts, cuts - limit)
        return self._left_padded(starts, cuts)

    def seen(self, first: int, last: int) -> Tensor:
        """Whole histories of users first..last-1, whatever a model reads of them, int64 [B, L], padded with 0."""
        return self._left_padded(self.starts[first:last], self.cuts[first:last])

    def targets(self) -> tuple[Integers, Integers]:
        """Targets in CSR form: offsets [U + 1] and items [T], in time order, repeats kept."""
        offsets, places = places_of(self.cuts, self.ends - self.cuts)
        return offsets, self.items[places].astype(np.int64)

    def _left_padded(self, starts: Integers, ends: Integers) -> Tensor:
        width = int((ends - starts).max(initial=0))
        places = ends[:, None] - np.arange(width, 0, -1)
        inside = places >= starts[:, None]
        padded = np.where(inside, self.items[np.where(inside, places, 0)], 0)
        return torch.from_numpy(padded.astype(np.int64))


def _cuts(sequences: Sequences, starts: Integers, ends: Integers) -> Integers:
    """Where the targets of stretches of the sequences begin."""
    if sequences.leave_one_out:
        return ends - 1
    if sequences.cutoff is None:
        return starts + (ends - starts) * 4 // 5
    earlier = np.concatenate([[0], np.cumsum(sequences.timestamps < sequences.cutoff)])
    cuts: Integers = starts + earlier[ends] - earlier[starts]
    return cuts
