"""Why an item is recommended: the item of the history that speaks most for it."""

from __future__ import annotations

import torch
from torch import Tensor

from bivrec.evaluation.ranking import Scorer, stretches

RECENT = 50
"""Items of a history that are asked; each costs a ranking of the catalogue."""


@torch.no_grad()
def reasons(scorer: Scorer, histories: Tensor, items: Tensor) -> Tensor:
    """For each recommended item the item of the history without which it would be the least likely, int64 [B, k].

    histories: int64 [B, L], padded on the left with 0, none empty; their last RECENT items are left out one after the
    other, each wherever it occurs. items: int64 [B, k], padded with 0. An item is as likely as the softmax of the
    scores over the whole catalogue says. 0 where no item of the history makes an item likelier, and for padding.
    Source: erasure of parts of the input (Li, Monroe and Jurafsky, arXiv 1612.08220).
    """
    whole = _log_probabilities(scorer, histories, items)
    items = items.to(whole.device)
    largest, found = torch.zeros_like(whole), torch.zeros_like(items)
    for place in range(max(0, histories.shape[1] - RECENT), histories.shape[1]):
        item = histories[:, place : place + 1]
        others, alone = _without(histories, item)
        fall = whole - _log_probabilities(scorer, others, items)
        # Nothing can be said without any history, and nobody else can be the reason.
        fall = fall.masked_fill(alone.to(fall.device), torch.inf).masked_fill((item == 0).to(fall.device), 0.0)
        found = torch.where(fall > largest, item.to(fall.device), found)
        largest = torch.maximum(largest, fall)
    return found.masked_fill(items == 0, 0)


def _without(histories: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """Histories [B, L] without `item` [B, 1], and bool [B, 1]: it is all there is, and was left in."""
    others = histories.masked_fill(histories == item, 0)
    order = (others > 0).to(torch.int8).argsort(dim=1, stable=True)
    alone = (others == 0).all(1, keepdim=True)
    return torch.where(alone, histories, others.gather(1, order)), alone


def _log_probabilities(scorer: Scorer, histories: Tensor, items: Tensor) -> Tensor:
    """Of items [B, k] after the histories, float32 [B, k]; meaningless but finite for item 0."""
    users = scorer.encode(histories)
    parts, chosen = [], None
    for first, last in stretches(scorer.num_items):
        scores = scorer.score(users, first, last).float()
        parts.append(scores.logsumexp(1, keepdim=True))
        column = items.to(scores.device) - first
        here = scores.gather(1, column.clamp(0, last - first - 1))
        chosen = here if chosen is None else torch.where(column >= 0, here, chosen)
    assert chosen is not None
    return chosen - torch.cat(parts, 1).logsumexp(1, keepdim=True)
