"""Nearest neighbours by frozen content features: no training at all, so the floor of zero-shot transfer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bivrec.data.domain import Domain


class ContentKNN:
    """Scores an item by its mean cosine similarity to the items of the history, or a mean that favours recent items."""

    def __init__(self, features: Tensor, max_history: int = 20, decay: float = 0.0) -> None:
        """features: [V + 1, d]; row 0 is padding, and an item without features is a zero row, similar to none.

        decay: rate at which the weight of a history item falls with its age in items; 0 weighs all alike.
        """
        self._decay = decay
        self.num_items = len(features) - 1
        self.max_history = max_history
        self._features = normalize(features.float(), dim=1)

    @classmethod
    def fit(
        cls, domain: Domain, modalities: tuple[str, ...] = ("text",), max_history: int = 20, decay: float = 0.0
    ) -> ContentKNN:
        """Read the features of a Domain; BivrecError if it was not encoded."""
        return cls(domain.features(modalities), max_history, decay)

    def encode(self, histories: Tensor) -> Tensor:
        """Weighted mean of the unit features of the history, [B, d]; its dot product with an item is the score."""
        age = torch.arange(histories.shape[1] - 1, -1, -1)
        weights = torch.exp(-self._decay * age) * (histories > 0)
        means: Tensor = (weights.unsqueeze(1) @ self._features[histories]).squeeze(1)
        return means / weights.sum(1, keepdim=True).clamp(min=1)

    def score(self, users: Tensor, first: int, last: int) -> Tensor:
        """[B, last - first]."""
        return users @ self._features[first:last].T
