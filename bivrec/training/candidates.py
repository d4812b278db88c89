"""Softmax candidates: the whole catalogue, shared sampled negatives, or the targets of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bivrec.config import ObjectiveConfig
from bivrec.training.distributed import gather_rows


@dataclass(frozen=True)
class Candidates:
    """Sampled candidates that all rows of the global batch share."""

    items: Tensor
    """[C] item indices, each once."""
    log_inclusion: Tensor
    """[V + 1]: logarithm of each item's probability of being in the sample."""


class CandidateSampler:
    """Draws candidates as a pure function of (seed, step)."""

    def __init__(
        self, config: ObjectiveConfig, num_items: int, seed: int, target_shares: np.ndarray | None = None
    ) -> None:
        """The index of an item is its rank by popularity.

        target_shares [V + 1]: how often an item is the last target of a sequence (`BatchSampler.last_target_shares`),
        which in-batch candidates need.
        """
        self._config = config
        self._num_items = num_items
        self._seed = seed
        self._probability = torch.from_numpy(self._probabilities(target_shares))
        self._draws = 0
        self._log_inclusion = torch.empty(0)

    def draw(self, step: int, targets: Tensor) -> Candidates | None:
        """Candidates of a step whose batch has `targets` [B, T] on this process; None: the full catalogue."""
        kind = self._config.candidates
        if kind == "full":
            return None
        if kind == "in-batch":
            gathered = gather_rows(targets[:, -1])
            items, draws = torch.unique(gathered), len(gathered)
        else:
            uniform = np.random.default_rng([self._seed, 2, step]).random(self._config.num_negatives)
            # The inverse of the cumulative distribution of the log-uniform law P(i) = log((i + 1) / i) / log(V + 1).
            drawn = uniform * self._num_items + 1 if kind == "uniform" else (self._num_items + 1) ** uniform
            items = torch.from_numpy(np.unique(np.clip(drawn.astype(np.int64), 1, self._num_items))).to(targets.device)
            draws = len(drawn)
        return Candidates(items, self._inclusion(draws, targets.device))

    def _inclusion(self, draws: int, device: torch.device) -> Tensor:
        """[V + 1]: logarithm of the probability of being among `draws` items; kept, since most steps draw as many."""
        if draws != self._draws:
            # Of n draws, an item with probability p is in the sample with 1 - (1 - p)^n. Where n p is large,
            # correcting by n p and keeping repetitions would favour the frequent items.
            inclusion = -torch.expm1(draws * torch.log1p(-self._probability))
            self._draws, self._log_inclusion = draws, inclusion.log().float().to(device)
        return self._log_inclusion

    def _probabilities(self, target_shares: np.ndarray | None) -> np.ndarray:
        index = np.arange(1, self._num_items + 1)
        if self._config.candidates == "popularity":
            probability = np.log1p(1 / index) / np.log(self._num_items + 1)
        elif self._config.candidates == "in-batch":
            assert target_shares is not None
            # What is never the last target may be an earlier one; half the rarest share keeps its logarithm finite.
            shares = target_shares[1:]
            least = shares[shares > 0].min() / 2
            # Rounded sums of shares may exceed 1, of which log1p(-p) is not a number.
            probability = np.clip(shares, least, 1)
        else:
            probability = np.full(self._num_items, 1 / self._num_items)
        # Padding is never drawn; 1 keeps its logarithm finite.
        return np.concatenate([[1.0], probability])
