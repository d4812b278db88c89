"""A model as something that ranks: by what its interests say of an item, in one view or in both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from bivrec.device import bfloat16_is_fast
from bivrec.errors import BivrecError
from bivrec.evaluation.shortlist import RoundedCatalogue, contained, round_up, sorted_pairs
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.tower import TowerNetwork

ITEM_CHUNK = 65536
USERS_AT_ONCE = 4
"""Of whom single items are scored at a time, so that the items' vectors stay in the processor's cache."""

LEVEL_ITEMS = 1024
"""From which the levels of the scores of two views are found: few beside a catalogue whose ranking takes long."""


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
    gap: Tensor
    """[B]: how far the scores of the ID view lie above those of the multimodal view; 0 where there is one view."""


class ModelScorer:
    """A Scorer (see `ranking`) of one view of a model, or of both with the weighted sum of their scores.

    Both views are trained by a softmax over the same items, so their scores are log-probabilities up to a constant for
    each user, of which the difference between the views is found from LEVEL_ITEMS that the ID view knows. The sum of
    item i, a_i s_id + (1 - a_i) s_mm, is then that of a weighted product of two distributions; a_i is the model's
    `id_weight` times its `id_trust` of the item.
    The model is put into evaluation mode, and the catalogue is embedded once: make a new scorer after a training step.
    """

    @torch.no_grad()
    def __init__(self, model: BiVRecNetwork, view: str = "both") -> None:
        model.eval()
        self.num_items = model.num_items
        self._towers = [model.tower(name) for name in views_of(model, view)]
        biases = [model.repeat_bias(name) for name in views_of(model, view)]
        self.repeat_biases = [0.0 if bias is None else float(bias) for bias in biases]
        self._read_items = self._towers[0].config.max_history
        self.max_history: int | None = None if any(self.repeat_biases) else self._read_items
        device = next(model.parameters()).device
        # On GPUs a product in bfloat16 may sum in bfloat16 too, which the bounds do not allow for.
        self.bounds_pay = device.type == "cpu" and bfloat16_is_fast(device)
        self._items = [_encode_catalogue(tower, device) for tower in self._towers]
        self._catalogues = [tower.candidates(items) for tower, items in zip(self._towers, self._items, strict=True)]
        self._mixture = Mixture(self.repeat_biases)
        if len(self._towers) > 1:
            self._mixture = Mixture(self.repeat_biases, model.id_weight * model.id_trust)
            # Where both views know something; of a model that trusts no item of the catalogue all are alike.
            known = model.id_trust[1:].nonzero().flatten() + 1
            known = known if len(known) else torch.arange(1, self.num_items + 1, device=device)
            count = min(len(known), LEVEL_ITEMS)
            self._level_items = known[torch.arange(count, device=device) * len(known) // count]

    @torch.no_grad()
    def encode(self, histories: Tensor) -> EncodedUsers:
        """What is known of users with histories [B, L], padded on the left with 0."""
        histories = histories.to(self._catalogues[0].device)
        recent = histories[:, -self._read_items :]
        interests = [
            tower.encode_histories(functional.embedding(recent, items), recent > 0).vectors[:, -1]
            for tower, items in zip(self._towers, self._items, strict=True)
        ]
        had = histories if any(self.repeat_biases) else histories[:, :0]
        return EncodedUsers(interests, had, self._gap(interests))

    @torch.no_grad()
    def score(self, users: EncodedUsers, first: int, last: int) -> Tensor:
        """Scores [B, last - first] of items first..last-1."""
        return self._mixture.of_stretch(self.view_scores(users, first, last), users, first)

    @torch.no_grad()
    def view_scores(self, users: EncodedUsers, first: int, last: int) -> list[Tensor]:
        """What the interests of each view say of items first..last-1, [B, last - first]: without `repeat_biases`."""
        return self._products(users.interests, slice(first, last))

    @torch.no_grad()
    def score_items(self, users: EncodedUsers, items: Tensor) -> Tensor:
        """Scores [B, M] of items [B, M], those of row b for user b."""
        groups = zip(*(torch.split(rows, USERS_AT_ONCE) for rows in (items, users.gap, *users.interests)), strict=True)
        scores = torch.cat([self._score_group(interests, chosen, gap) for chosen, gap, *interests in groups])
        had = contained(items, users.had)
        return torch.where(had, scores + self._mixture.repeat_bias(items), scores)

    @torch.no_grad()
    def upper_bounds(self, users: EncodedUsers) -> Iterator[Tensor]:
        """Bounds of scores (see `shortlist.BoundingScorer`), one for each interest, or one for all.

        One for all where scores are more than the largest product: of two views, or of interests that score together.
        """
        items, of_user = sorted_pairs(users.had.cpu())
        first = 1
        for bounds in self._product_bounds(users):
            inside = slice(*torch.searchsorted(items, torch.tensor([first, first + len(bounds)])).tolist())
            place, user = items[inside] - first, of_user[inside]
            bias = self._mixture.repeat_bias(items[inside]).view(-1, 1)
            bounds[place, :, user] = round_up(bounds[place, :, user].float() + bias).to(bounds.dtype)
            first += len(bounds)
            yield bounds

    def _product_bounds(self, users: EncodedUsers) -> Iterator[Tensor]:
        """The bounds of what the interests say."""
        views = [rounded.bounds(interests) for interests, rounded in zip(users.interests, self._rounded, strict=True)]
        if len(views) == 1 and self._towers[0].config.interest_score == "max":
            yield from views[0]
            return
        first = 1
        for stretch in zip(*views, strict=True):
            # What joins interests and views grows with each of them, so of upper bounds it makes an upper bound.
            joined = [bounds.T for bounds in self._joined(bounds.float() for bounds in stretch)]
            yield self._mixture.of_views(joined, users.gap, slice(first, first + len(stretch[0]))).T.unsqueeze(1)
            first += len(stretch[0])

    def _gap(self, interests: Sequence[Tensor]) -> Tensor:
        if len(self._towers) == 1:
            return interests[0].new_zeros(len(interests[0]))
        id_level, mm_level = (scores.logsumexp(1) for scores in self._products(interests, self._level_items))
        return id_level - mm_level

    def _products(self, interests: Sequence[Tensor], items: slice | Tensor) -> list[Tensor]:
        """Scores [B, n] of each view for n items that all users share."""
        affinities = (
            (of_view.flatten(0, 1) @ catalogue[items].T).view(*of_view.shape[:2], -1)
            for of_view, catalogue in zip(interests, self._catalogues, strict=True)
        )
        return self._joined(affinities)

    def _joined(self, affinities: Iterable[Tensor]) -> list[Tensor]:
        return [tower.join_interests(scores) for tower, scores in zip(self._towers, affinities, strict=True)]

    def _score_group(self, users: list[Tensor], items: Tensor, gap: Tensor) -> Tensor:
        affinities = (
            interests @ functional.embedding(items, catalogue).transpose(1, 2)
            for interests, catalogue in zip(users, self._catalogues, strict=True)
        )
        return self._mixture.of_views(self._joined(affinities), gap, items)

    @cached_property
    def _rounded(self) -> list[RoundedCatalogue]:
        return [RoundedCatalogue(catalogue[1:]) for catalogue in self._catalogues]


class ModelScorers:
    """Scorers (see `ranking`) of a model with two views, each with other shares of the ID view.

    They share all but the weighted sum.
    """

    def __init__(self, model: BiVRecNetwork, id_shares: Sequence[Tensor | str]) -> None:
        """id_shares: for each scorer the share [V + 1] that the ID view has of each item, or the view that has all."""
        self._views = ModelScorer(model, "both")
        biases = self._views.repeat_biases
        self._mixtures = [
            Mixture(biases, alone=model.views.index(shares)) if isinstance(shares, str) else Mixture(biases, shares)
            for shares in id_shares
        ]
        self.num_items = self._views.num_items
        self.max_history = self._views.max_history

    def __len__(self) -> int:
        return len(self._mixtures)

    def encode(self, histories: Tensor) -> EncodedUsers:
        """What is known of users with histories [B, L], padded on the left with 0."""
        return self._views.encode(histories)

    @torch.no_grad()
    def score(self, users: EncodedUsers, first: int, last: int) -> Iterator[Tensor]:
        """Scores [B, last - first] of items first..last-1 with each weight in turn."""
        views = self._views.view_scores(users, first, last)
        for mixture in self._mixtures:
            yield mixture.of_stretch(views, users, first)


class Mixture:
    """What the views of a model count in the scores of items: one view alone, or both by each item's share."""

    def __init__(self, repeat_biases: Sequence[float], id_shares: Tensor | None = None, alone: int = 0) -> None:
        """repeat_biases: of each view. id_shares: [V + 1], those of the ID view; None: the view at `alone` counts."""
        self._repeat_biases = repeat_biases
        self._id_shares = id_shares
        self._alone = alone

    def of_views(self, views: Sequence[Tensor], gap: Tensor, items: slice | Tensor) -> Tensor:
        """Scores [B, n] from those of each view, without repeat biases.

        gap: [B], see `EncodedUsers`. items: those that are scored, alike for all users, or [B, n].
        """
        if self._id_shares is None:
            return views[self._alone]
        id_scores, mm_scores = views
        scores = id_scores - gap.unsqueeze(1)
        return scores.sub_(mm_scores).mul_(self._id_shares[items]).add_(mm_scores)

    def of_stretch(self, views: Sequence[Tensor], users: EncodedUsers, first: int) -> Tensor:
        """Scores [B, n] of items from `first` on, from those of each view, with the repeat biases."""
        scores = self.of_views(views, users.gap, slice(first, first + views[0].shape[1]))
        if not any(self._repeat_biases):
            return scores
        row, place = ((users.had >= first) & (users.had < first + scores.shape[1])).nonzero(as_tuple=True)
        item = users.had[row, place]
        # Once for an item that was had twice: the same sum is written there again.
        return scores.index_put((row, item - first), scores[row, item - first] + self.repeat_bias(item))

    def repeat_bias(self, items: Tensor) -> Tensor:
        """What the scores of items [...] gain for users who have had them."""
        if self._id_shares is None:
            return torch.full(items.shape, self._repeat_biases[self._alone], device=items.device)
        of_id, of_mm = self._repeat_biases
        return of_mm + self._id_shares[items] * (of_id - of_mm)


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
