"""A model as something that ranks: by what its interests say of an item, in one view or in both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from bivrec.errors import BivrecError
from bivrec.evaluation.shortlist import RoundedCatalogue, bfloat16_is_fast, contained, round_up, sorted_pairs
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.tower import TowerNetwork

ITEM_CHUNK = 65536
USERS_AT_ONCE = 4
"""Of whom single items are scored at a time, so that the items' vectors stay in the processor's cache."""

Scores = TypeVar("Scores", Tensor, float)


def rankable_views(model: BiVRecNetwork) -> tuple[str, ...]:
    """Every `view` that the model can rank with: its own, and `both` if it has two."""
    return (*model.views, "both") if len(model.views) > 1 else model.views


def views_of(model: BiVRecNetwork, view: str) -> tuple[str, ...]:
    """The views that `view` (id, mm or both) names; `both` of a model with one view is that view.

    Raises BivrecError if the model does not have the view.
    """
    if view == "both":
        return model.views
    if view not in model.views:
        raise BivrecError(f"view '{view}': the model has only {', '.join(model.views)}")
    return (view,)


@dataclass(frozen=True)
class EncodedUsers:
    """What a ModelScorer knows of B users."""

    interests: list[Tensor]
    """[B, K, D] of each view."""
    had: Tensor
    """[B, L] int64: the items whose scores gain the repeat bias, padded with 0; no column where there is no bias."""


class ModelScorer:
    """A Scorer (see `ranking`) of one view of a model, or of both with the weighted sum of their scores.

    Both views are trained by a softmax over the same items, so their scores are log-probabilities up to a constant,
    and w s_id + (1 - w) s_mm, with the model's `id_weight` for w, is a weighted product of the two distributions.
    The model is put into evaluation mode, and the catalogue is embedded once: make a new scorer after a training step.
    """

    @torch.no_grad()
    def __init__(self, model: BiVRecNetwork, view: str = "both") -> None:
        model.eval()
        self.num_items = model.num_items
        self._towers = [model.tower(name) for name in views_of(model, view)]
        self._id_weight = float(model.id_weight) if len(self._towers) > 1 else 1.0
        biases = [model.repeat_bias(name) for name in views_of(model, view)]
        self.repeat_biases = [0.0 if bias is None else float(bias) for bias in biases]
        self._repeat_bias = self._weighted(self.repeat_biases)
        self._read_items = self._towers[0].config.max_history
        self.max_history: int | None = None if any(self.repeat_biases) else self._read_items
        device = next(model.parameters()).device
        self.bounds_pay = bfloat16_is_fast(device)
        self._items = [_encode_catalogue(tower, device) for tower in self._towers]
        self._catalogues = [tower.candidates(items) for tower, items in zip(self._towers, self._items, strict=True)]

    @torch.no_grad()
    def encode(self, histories: Tensor) -> EncodedUsers:
        """What is known of users with histories [B, L], padded on the left with 0."""
        histories = histories.to(self._catalogues[0].device)
        recent = histories[:, -self._read_items :]
        interests = [
            tower.encode_histories(functional.embedding(recent, items), recent > 0).vectors[:, -1]
            for tower, items in zip(self._towers, self._items, strict=True)
        ]
        return EncodedUsers(interests, histories if any(self.repeat_biases) else histories[:, :0])

    @torch.no_grad()
    def score(self, users: EncodedUsers, first: int, last: int) -> Tensor:
        """Scores [B, last - first] of items first..last-1."""
        scores = self._weighted(self.view_scores(users, first, last))
        return add_repeat_bias(scores, users.had, first, self._repeat_bias)

    @torch.no_grad()
    def view_scores(self, users: EncodedUsers, first: int, last: int) -> list[Tensor]:
        """What the interests of each view say of items first..last-1, [B, last - first]: without `repeat_biases`."""
        affinities = (
            (interests.flatten(0, 1) @ catalogue[first:last].T).view(*interests.shape[:2], -1)
            for interests, catalogue in zip(users.interests, self._catalogues, strict=True)
        )
        return self._joined(affinities)

    @torch.no_grad()
    def score_items(self, users: EncodedUsers, items: Tensor) -> Tensor:
        """Scores [B, M] of items [B, M], those of row b for user b."""
        groups = zip(*(torch.split(rows, USERS_AT_ONCE) for rows in (items, *users.interests)), strict=True)
        scores = torch.cat([self._score_group(interests, chosen) for chosen, *interests in groups])
        return torch.where(contained(items, users.had), scores + self._repeat_bias, scores)

    @torch.no_grad()
    def upper_bounds(self, users: EncodedUsers) -> Iterator[Tensor]:
        """Bounds of scores (see `shortlist.BoundingScorer`), one for each interest, or one for all.

        One for all where scores are more than the largest product: of two views, or of interests that score together.
        """
        items, of_user = sorted_pairs(users.had.cpu())
        first = 1
        for bounds in self._product_bounds(users.interests):
            inside = slice(*torch.searchsorted(items, torch.tensor([first, first + len(bounds)])).tolist())
            item, user = items[inside] - first, of_user[inside]
            bounds[item, :, user] = round_up(bounds[item, :, user].float() + self._repeat_bias).to(bounds.dtype)
            first += len(bounds)
            yield bounds

    def _product_bounds(self, users: list[Tensor]) -> Iterator[Tensor]:
        """The bounds of what the interests say."""
        views = [rounded.bounds(interests) for interests, rounded in zip(users, self._rounded, strict=True)]
        if len(views) == 1 and self._towers[0].config.interest_score == "max":
            yield from views[0]
        else:
            for stretch in zip(*views, strict=True):
                yield self._fused(bounds.float() for bounds in stretch).unsqueeze(1)

    def _fused(self, affinities: Iterable[Tensor]) -> Tensor:
        """What the interests of all views say together, from what each says: [A, K, B] of each view to [A, B].

        It grows with every affinity, so of upper bounds it is an upper bound.
        """
        return self._weighted(self._joined(affinities))

    def _joined(self, affinities: Iterable[Tensor]) -> list[Tensor]:
        return [tower.join_interests(scores) for tower, scores in zip(self._towers, affinities, strict=True)]

    def _weighted(self, views: list[Scores]) -> Scores:
        return views[0] if len(views) == 1 else weighted(views, self._id_weight)

    def _score_group(self, users: list[Tensor], items: Tensor) -> Tensor:
        return self._fused(
            interests @ functional.embedding(items, catalogue).transpose(1, 2)
            for interests, catalogue in zip(users, self._catalogues, strict=True)
        )

    @cached_property
    def _rounded(self) -> list[RoundedCatalogue]:
        return [RoundedCatalogue(catalogue[1:]) for catalogue in self._catalogues]


class ModelScorers:
    """Scorers (see `ranking`) of a model with two views, each with another weight for the ID view.

    They share all but the weighted sum. With 1 and 0 they are ModelScorers of `id` and `mm` alone.
    """

    def __init__(self, model: BiVRecNetwork, id_weights: Sequence[float]) -> None:
        self._views = ModelScorer(model, "both")
        self._id_weights = id_weights
        self.num_items = self._views.num_items
        self.max_history = self._views.max_history

    def __len__(self) -> int:
        return len(self._id_weights)

    def encode(self, histories: Tensor) -> EncodedUsers:
        """What is known of users with histories [B, L], padded on the left with 0."""
        return self._views.encode(histories)

    @torch.no_grad()
    def score(self, users: EncodedUsers, first: int, last: int) -> Iterator[Tensor]:
        """Scores [B, last - first] of items first..last-1 with each weight in turn."""
        views = self._views.view_scores(users, first, last)
        for weight in self._id_weights:
            bias = weighted(self._views.repeat_biases, weight)
            yield add_repeat_bias(weighted(views, weight), users.had, first, bias)


def weighted(views: Sequence[Scores], id_weight: float) -> Scores:
    """The sum of the ID view's scores and the multimodal view's; with a weight of 1 or 0 one of them, not a copy."""
    if id_weight in (0, 1):
        return views[0 if id_weight else 1]
    return id_weight * views[0] + (1 - id_weight) * views[1]


def add_repeat_bias(scores: Tensor, had: Tensor, first: int, bias: float) -> Tensor:
    """Scores [B, n] of items from `first` on, with the bias of those among the items [B, L] that their users had."""
    if not bias:
        return scores
    row, place = ((had >= first) & (had < first + scores.shape[1])).nonzero(as_tuple=True)
    column = had[row, place] - first
    # Once for an item that was had twice: the same sum is written there again.
    return scores.index_put((row, column), scores[row, column] + bias)


def _encode_catalogue(tower: TowerNetwork, device: torch.device) -> Tensor:
    """Vectors [V + 1, D'] of all items; of a large catalogue there is never a second copy."""
    first, *others = torch.split(torch.arange(tower.items.num_items + 1, device=device), ITEM_CHUNK)
    vectors = tower.encode_items(first)
    if not others:
        return vectors
    catalogue = vectors.new_empty(tower.items.num_items + 1, vectors.shape[1])
    catalogue[first] = vectors
    for chunk in others:
        catalogue[chunk] = tower.encode_items(chunk)
    return catalogue
