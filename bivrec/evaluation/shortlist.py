"""Full-catalogue ranking by upper bounds: most items are ruled out cheaply, and the few that remain are scored exactly.

A processor with bfloat16 matrix units multiplies many times faster in bfloat16 than in float32, but the scores are
rounded, and so are the lists. Here they only bound the float32 scores from above: by Cauchy-Schwarz, rounding errors
are at most a known multiple of the vectors' lengths. Items come in blocks. Those of the blocks with the highest bounds
are scored in float32, and where the k-th best of these scores is above the bound of every other block, the list is
proved to be that of the whole catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 4
STRETCH = 4096
"""Items bounded at a time, a multiple of BLOCK: few enough for the rounded scores to stay in the processor's cache."""
ROUNDING = 2.0**-8
"""Largest relative error of rounding to bfloat16."""


@runtime_checkable
class BoundingScorer(Protocol):
    """A scorer (see `ranking.Scorer`) that can also bound its scores, and score single items."""

    @property
    def bounds_pay(self) -> bool:
        """Whether bounds cost less than scores on this machine."""

    @property
    def num_items(self) -> int:
        """V; items are 1..V."""

    def upper_bounds(self, users: Any) -> Iterator[Tensor]:
        """For stretches of STRETCH items, from item 1 on: bounds [items, R, B].

        The score of an item for a user, as `score` and `score_items` give it, is at most the largest of its R bounds.
        """

    def score_items(self, users: Any, items: Tensor) -> Tensor:
        """Scores [B, M] of items [B, M] (int64), those of row b for user b."""


class RoundedCatalogue:
    """Item vectors [V, D] in bfloat16 that bound their products with interests.

    With v' = v - dv and x' = x - dx the rounded vectors, v.x - v'.x' = dv.x' + v.dx, so that
    v.x <= v'.x' + |x| (|dv| (1 + r) + |v| r) with r the largest |dx| / |x| of the catalogue. The second term is one
    more dimension of the product; it also covers the rounding of the product itself and of the sums in float32.
    """

    def __init__(self, vectors: Tensor) -> None:
        rounded = vectors.bfloat16()
        lengths = vectors.norm(dim=1)
        lost = (vectors - rounded).norm(dim=1)
        self._loss = (lost / lengths.clamp_min(torch.finfo(torch.float32).tiny)).max()
        self._rows = torch.cat([rounded, round_up(lengths)[:, None]], dim=1)

    def bounds(self, interests: Tensor) -> Iterator[Tensor]:
        """For stretches of STRETCH items: bounds [items, K, B] of their products with interests [B, K, D]."""
        batch, count, size = interests.shape
        rounded = interests.bfloat16()
        lost = (interests - rounded).norm(dim=-1)
        sums = (size + 1) * 2.0**-22
        share = self._loss + 1.05 * ROUNDING + sums
        error = lost * (1 + self._loss) + interests.norm(dim=-1) * share
        extended = torch.cat([rounded, round_up(error)[..., None]], dim=-1)
        columns = extended.permute(2, 1, 0).reshape(size + 1, count * batch)
        for rows in torch.split(self._rows, STRETCH):
            yield (rows @ columns).view(len(rows), count, batch)


def num_blocks(k: int) -> int:
    """How many blocks are scored; k could hold the k best items, the others make room between these and the bounds."""
    return 2 * k + 20


def is_worthwhile(scorer: BoundingScorer, k: int) -> bool:
    """Whether bounds are cheap here, and a shortlist leaves out most of the catalogue."""
    return scorer.bounds_pay and scorer.num_items >= 10 * BLOCK * num_blocks(k)


def shortlist(scorer: BoundingScorer, users: Any, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates [B, M] in the order of their index, their scores [B, M], and the score [B] that no other item exceeds.

    exclude: int64 [B, S] items that score -inf, padded with 0.
    """
    bounds = _block_bounds(scorer, users, exclude)
    highest, blocks = bounds.topk(num_blocks(k) + 1, dim=1)
    blocks = blocks[:, :-1].sort(dim=1).values
    items = (blocks[:, :, None] * BLOCK + torch.arange(1, BLOCK + 1, device=blocks.device)).flatten(1)
    scores = scorer.score_items(users, items.clamp(max=scorer.num_items))
    ruled_out = items > scorer.num_items
    if exclude is not None:
        ruled_out |= contained(items, exclude.to(items.device))
    return items, scores.masked_fill(ruled_out, -torch.inf), highest[:, -1].float()


def _block_bounds(scorer: BoundingScorer, users: Any, exclude: Tensor | None) -> Tensor:
    """The highest bound of each block of items, [B, ceil(V / BLOCK)]."""
    excluded, of_user = sorted_pairs(exclude)
    parts, first = [], 1
    for bounds in scorer.upper_bounds(users):
        items, readers, batch = bounds.shape
        inside = slice(*torch.searchsorted(excluded, torch.tensor([first, first + items])).tolist())
        bounds[excluded[inside] - first, :, of_user[inside]] = -torch.inf
        padded = functional.pad(bounds, (0, 0, 0, 0, 0, -items % BLOCK), value=-torch.inf)
        parts.append(padded.view(-1, BLOCK, readers, batch).amax((1, 2)))
        first += items
    return torch.cat(parts).T.contiguous()


def sorted_pairs(exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The excluded items in increasing order, and the row of each."""
    if exclude is None:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    users, places = exclude.nonzero(as_tuple=True)
    items, order = exclude[users, places].sort()
    return items, users[order]


def contained(items: Tensor, exclude: Tensor) -> Tensor:
    """Bool [B, M]: whether an item is among those of its row of `exclude` [B, S]."""
    if not exclude.shape[1]:
        return torch.zeros_like(items, dtype=torch.bool)
    ordered = exclude.sort(dim=1).values
    places = torch.searchsorted(ordered, items).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, places) == items


def round_up(values: Tensor) -> Tensor:
    """Bfloat16 values at least as large as these."""
    return (values + 2 * ROUNDING * values.abs()).bfloat16()
