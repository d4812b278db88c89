"""The tower that all baselines are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bivrec.model.tower import Interests, TowerNetwork, in_full_precision


class BaselineTower(TowerNetwork):
    """A tower whose item vectors may hold more than the D dimensions that are scored, which are the first."""

    def encode_items(self, indices: Tensor) -> Tensor:
        """Vectors [..., D'] of the items with these indices."""
        return self.normalised(self.items(indices))

    def normalised(self, vectors: Tensor) -> Tensor:
        """Item vectors [..., D'] with their scored part made ready for the score of the configuration."""
        vectors = in_full_precision(vectors)
        if self.config.score == "cosine":
            scored, rest = vectors.tensor_split([self.config.hidden_size], dim=-1)
            vectors = torch.cat([functional.normalize(scored, dim=-1, eps=1e-6), rest], dim=-1)
        return vectors

    def candidates(self, item_vectors: Tensor) -> Tensor:
        """The scored part [..., D] of item vectors [..., D']."""
        return item_vectors[..., : self.config.hidden_size]

    def auxiliary_loss(self, item_vectors: Tensor, mask: Tensor, interests: Interests) -> Tensor | None:
        """The further loss of what reads the histories, if it has one."""
        own = getattr(self.sequence, "auxiliary_loss", None)
        loss: Tensor | None = None if own is None else own(item_vectors, mask, interests)
        return loss
