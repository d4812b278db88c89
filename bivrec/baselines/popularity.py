"""The floor without personalisation: the same most popular items for everyone."""

from __future__ import annotations

import torch
from torch import Tensor

from bivrec.baselines.interactions import user_item_matrix
from bivrec.data.domain import Domain


class Popularity:
    """Scores an item by the number of training users who have it."""

    max_history = 0

    def __init__(self, counts: Tensor) -> None:
        """counts: float32 [V + 1]; entry 0 is padding."""
        self.num_items = len(counts) - 1
        self._counts = counts

    @classmethod
    def fit(cls, domain: Domain) -> Popularity:
        """Count the training users of a Domain."""
        return cls(torch.sparse.sum(user_item_matrix(domain), 0).to_dense())

    def encode(self, histories: Tensor) -> int:
        """Only the number of users matters."""
        return len(histories)

    def score(self, users: int, first: int, last: int) -> Tensor:
        """The same counts for each user, [B, last - first]."""
        return self._counts[first:last].expand(users, -1)
