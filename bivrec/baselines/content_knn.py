"""Nearest neighbours by frozen content features: no training at all, so the floor of zero-shot transfer."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from bivrec.data.domain import Domain


class ContentKNN:
    """Scores an item by its mean cosine similarity to the items of the history."""

    def __init__(self, features: Tensor, max_history: int = 20) -> None:
        """features: [V + 1, d]; row 0 is padding, and an item without features is a zero row, similar to none."""
        self.num_items = len(features) - 1
        self.max_history = max_history
        self._features = normalize(features.float(), dim=1)

    @classmethod
    def fit(cls, domain: Domain, modalities: tuple[str, ...] = ("text",), max_history: int = 20) -> ContentKNN:
        """Read the features of a Domain; BivrecError if it was not encoded."""
        return cls(domain.features(modalities), max_history)

    def encode(self, histories: Tensor) -> Tensor:
        """Mean of the unit features of the history, [B, d]: its dot product with an item is the mean similarity."""
        lengths = (histories > 0).sum(1, keepdim=True).clamp(min=1)
        return self._features[histories].sum(1) / lengths

    def score(self, users: Tensor, first: int, last: int) -> Tensor:
        """[B, last - first]."""
        return users @ self._features[first:last].T
