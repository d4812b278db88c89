"""Training batches as a pure function of (seed, step).

Sequences lie in one flat array (CSR), a batch is one vectorised gather, and nothing is remembered between steps. So
there are no loader workers, a resumed run replays nothing, and the global batch of a step does not depend on how many
processes share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bivrec.data.sequences import Sequences
from bivrec.data.stretches import places_of
from bivrec.errors import BivrecError

USERS_AT_ONCE = 65536
"""Whose sequences are widened together where all are counted."""


@dataclass(frozen=True)
class Batch:
    """Histories and the items that followed."""

    users: Tensor
    """[B] int64: row of the user in the training split."""
    history: Tensor
    """[B, N] int64 item indices, padded on the left with 0."""
    positions: Tensor
    """[T] int64, increasing: the positions of the history after which a target is learnt; the last is N - 1."""
    targets: Tensor
    """[B, T] int64: the item that followed each of these positions; 0 where there is none to learn from."""
    earlier: Tensor
    """[2, E] int64: row of the batch and item of all that came before the histories, if the sampler gives them."""
    mean_targets: float
    """Targets of the global batch over the number of its slices."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            self.users.to(device, non_blocking=True),
            self.history.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.earlier.to(device, non_blocking=True),
            self.mean_targets,
        )


class BatchSampler:
    """Draws users without replacement epoch by epoch, and a random stretch of each user's sequence.

    targets_per_sequence: 1 learns the last item of the stretch alone; more learn that many of its positions, drawn
    anew for every step; None learns all. whole_history: also give what came before the stretches.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        batch_size: int,
        max_history: int,
        min_history: int,
        targets_per_sequence: int | None,
        whole_history: bool,
        seed: int,
    ) -> None:
        lengths = sequences.lengths
        self._users = np.flatnonzero(lengths > min_history)
        if not len(self._users):
            raise BivrecError(
                f"no training user has more than {min_history} items; lower training.min_history or prepare more data"
            )
        self._sequences = sequences
        self._batch_size = batch_size
        self._max_history = max_history
        self._min_history = min_history
        self._targets_per_sequence = targets_per_sequence
        self._whole_history = whole_history
        self._seed = seed
        self._epoch = -1
        self._order = self._users

    def last_target_shares(self, num_items: int) -> np.ndarray:
        """Float64 [V + 1]: how often each item is the last target of a sequence, as a share of all draws."""
        shares = np.zeros(num_items + 1)
        for start in range(0, len(self._users), USERS_AT_ONCE):
            users = self._users[start : start + USERS_AT_ONCE]
            first, length, earliest = self._stretches(users)
            choices = length - earliest
            _, places = places_of(first + earliest, choices)
            weights = np.repeat(1 / choices / len(self._users), choices)
            shares += np.bincount(self._sequences.items[places], weights, num_items + 1)
        return shares

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """The `part`-th of `parts` equal slices of the batch of a step."""
        users = self._draw_users(step)
        generator = np.random.default_rng([self._seed, 1, step])
        first, target = self._draw_targets(users, generator)
        # No row of the global batch has more history than this; further columns would only be padding.
        length = min(self._max_history, int((target - first).max()))
        positions = self._draw_positions(length, generator)

        first, target = first[:, None], target[:, None]
        place = target - np.arange(length, -1, -1)
        learnt = (place >= first + self._min_history)[:, 1:][:, positions]

        mine = slice(part * len(users) // parts, (part + 1) * len(users) // parts)
        first, target, place = first[mine], target[mine], place[mine]
        # Places before the sequence read the target's, which is always valid, and are blanked.
        stretch = self._sequences.items[np.where(place >= first, place, target)] * (place >= first)
        targets = stretch[:, 1:][:, positions] * learnt[mine]
        earlier = self._earlier(first[:, 0], place[:, 0])
        arrays = (users[mine], stretch[:, :-1], positions, targets, earlier)
        tensors = [torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays]
        return Batch(
            tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], mean_targets=float(learnt.sum()) / parts
        )

    def _earlier(self, first: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """[2, E]: row and item of the places first..begin-1 of the flat array, one stretch for each row."""
        lengths = np.maximum(begin - first, 0) * self._whole_history
        _, places = places_of(first, lengths)
        return np.stack([np.repeat(np.arange(len(first)), lengths), self._sequences.items[places]])

    def _draw_users(self, step: int) -> np.ndarray:
        rows = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, places = np.divmod(rows, len(self._users))
        return np.concatenate([self._epoch_order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, 0, epoch]).permutation(self._users)
        return self._order

    def _draw_targets(self, users: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where each user's sequence begins and where the target lies that ends the stretch, in the flat array."""
        first, length, earliest = self._stretches(users)
        return first, first + earliest + (generator.random(len(users)) * (length - earliest)).astype(np.int64)

    def _stretches(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each user's sequence begins in the flat array, its length, and the earliest of it to be a target."""
        first = self._sequences.offsets[users]
        length = self._sequences.offsets[users + 1] - first
        earliest = np.full(len(users), self._min_history)
        if self._targets_per_sequence != 1:
            # A reader of many positions learns from the whole stretch, so it should be as long as can be.
            earliest = np.maximum(earliest, np.minimum(self._max_history, length - 1))
        return first, length, earliest

    def _draw_positions(self, length: int, generator: np.random.Generator) -> np.ndarray:
        count = self._targets_per_sequence
        if count is None or count >= length:
            return np.arange(length)
        return np.append(np.sort(generator.permutation(length - 1)[: count - 1]), length - 1)
