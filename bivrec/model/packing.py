"""Packing: the real tokens of a padded batch one after another, and attention among histories of like lengths."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

GROUPS = 8
LEAST_HISTORIES = 64
"""Fewer in a group save little padding and make small products; so many keep the weights of attention in a cache."""
SIZES = 16
"""Different numbers of rows that batches of one shape have: kernels that are made for a shape can be used again."""


class Packing:
    """Where the real tokens of a padded batch lie.

    Most of a batch of short histories is padding. Layers that treat every token by itself work on R rows: the real
    tokens, and a few zeros after them. Attention works on groups, the histories by their lengths, each of which is as
    wide as its longest.
    """

    def __init__(self, mask: Tensor) -> None:
        """mask [B, M] bool: the real tokens."""
        self._shape = mask.shape
        lengths, order = mask.sum(1).sort()
        # All that the host must know comes at once: every question makes it wait for an accelerator.
        counts = lengths.tolist()
        row, column = torch.nonzero_static(mask[order], size=sum(counts)).unbind(1)
        self._places = order[row] * mask.shape[1] + column
        within = torch.arange(len(row), device=mask.device) - (lengths.cumsum(0) - lengths)[row]
        size = max(LEAST_HISTORIES, -(-len(counts) // GROUPS))
        step = max(1, mask.numel() // SIZES)
        self._rows = min(mask.numel(), -(-len(row) // step) * step)
        self._groups: list[tuple[tuple[int, int], Tensor]] = []
        first = 0
        for start in range(0, len(counts), size):
            members = counts[start : start + size]
            width, last = max(1, members[-1]), first + sum(members)
            places = (row[first:last] - start) * width + within[first:last]
            self._groups.append(((len(members), width), places))
            first = last

    def pack(self, padded: Tensor) -> Tensor:
        """The rows [R, D] of tokens [B, M, D]."""
        packed: Tensor = _Gather.apply(padded.flatten(0, 1), self._places, self._rows)  # type: ignore[no-untyped-call]
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Tokens [B, M, D], zero where there is padding, of rows [R, D]."""
        return _unpacked(packed, self._places, *self._shape)

    def to_groups(self, packed: Tensor) -> list[Tensor]:
        """Tokens [b, m, D] of each group, the real ones of a history first and zeros after them."""
        counts = [len(places) for _, places in self._groups]
        parts = torch.split(packed, [*counts, self._rows - sum(counts)])[:-1]
        return [_unpacked(part, places, *shape) for part, (shape, places) in zip(parts, self._groups, strict=True)]

    def from_groups(self, groups: list[Tensor]) -> Tensor:
        """The rows [R, D] of tokens [b, m, D] of each group."""
        parts = [
            _Gather.apply(group.flatten(0, 1), places, len(places))  # type: ignore[no-untyped-call]
            for group, (_, places) in zip(groups, self._groups, strict=True)
        ]
        zeros = parts[0].new_zeros(self._rows - len(self._places), parts[0].shape[1])
        return torch.cat([*parts, zeros])


def _unpacked(packed: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
    rows: Tensor = _Scatter.apply(packed, places, batch * length)  # type: ignore[no-untyped-call]
    return rows.view(batch, length, -1)


def _scatter(rows: Tensor, places: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, rows.shape[1]).index_copy_(0, places, rows[: len(places)])


def _gather(rows: Tensor, places: Tensor, count: int) -> Tensor:
    gathered = rows.new_empty(count, rows.shape[1])
    gathered[len(places) :] = 0
    torch.index_select(rows, 0, places, out=gathered[: len(places)])
    return gathered


class _Gather(torch.autograd.Function):
    """Rows at distinct places, and zeros after them; unlike that of indexing, the gradient has nothing to add up."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(rows)  # type: ignore[attr-defined]
        return _gather(rows, places, count)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _scatter(gradient, places, ctx.count), None, None  # type: ignore[attr-defined]


class _Scatter(torch.autograd.Function):
    """The inverse: rows to their places among zeros; rows after them go nowhere."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(rows)  # type: ignore[attr-defined]
        return _scatter(rows, places, count)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _gather(gradient, places, ctx.count), None, None  # type: ignore[attr-defined]
