"""A model as something that ranks: score(u, i) = max_k v_k . x_i, and the sum of both views' scores (section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bivrec.errors import BivrecError
from bivrec.model.bivrec import BiVRec

ITEM_CHUNK = 65536

VIEW_CHOICES = ("id", "mm", "both")


def rankable_views(model: BiVRec) -> tuple[str, ...]:
    """Every `view` that the model can rank with: its own, and `both` if it has two."""
    return (*model.views, "both") if len(model.views) > 1 else model.views


def views_of(model: BiVRec, view: str) -> tuple[str, ...]:
    """The views that `view` (id, mm or both) names; `both` of a model with one view is that view.

    Raises BivrecError if the model does not have the view.
    """
    if view == "both":
        return model.views
    if view not in model.views:
        raise BivrecError(f"view '{view}': the model has only {', '.join(model.views)}")
    return (view,)


class ModelScorer:
    """A Scorer (see `ranking`) of one view of a model, or of both with their scores added.

    Both views are trained by a softmax over the same items, so their scores are log-probabilities up to a constant
    and their sum is the product of the two distributions. The model is put into evaluation mode, and the catalogue is
    embedded once: make a new scorer after a training step.
    """

    @torch.no_grad()
    def __init__(self, model: BiVRec, view: str = "both") -> None:
        model.eval()
        self.num_items = model.num_items
        self._towers = [model.tower(name) for name in views_of(model, view)]
        self.max_history: int | None = self._towers[0].config.max_history
        device = next(model.parameters()).device
        chunks = torch.split(torch.arange(model.num_items + 1, device=device), ITEM_CHUNK)
        self._items = [torch.cat([tower.encode_items(chunk) for chunk in chunks]) for tower in self._towers]
        self._catalogues = [tower.candidates(items) for tower, items in zip(self._towers, self._items, strict=True)]

    @torch.no_grad()
    def encode(self, histories: Tensor) -> list[Tensor]:
        """Interests [B, K, D] of each view for histories [B, L], padded on the left with 0."""
        histories = histories.to(self._catalogues[0].device)
        return [
            tower.encode_histories(functional.embedding(histories, items), histories > 0).vectors[:, -1]
            for tower, items in zip(self._towers, self._items, strict=True)
        ]

    @torch.no_grad()
    def score(self, users: Sequence[Tensor], first: int, last: int) -> Tensor:
        """Scores [B, last - first] of items first..last-1."""
        total = None
        for interests, catalogue in zip(users, self._catalogues, strict=True):
            batch, count, _ = interests.shape
            affinity = interests.flatten(0, 1) @ catalogue[first:last].T
            best = affinity.view(batch, count, -1).amax(1)
            total = best if total is None else total + best
        assert total is not None
        return total
