"""Dropout whose masks are cheap on a processor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 2**16
"""Lanes of 16 bits decide; a rate is met to 1 / 65,536, and the scale corrects by the rate that is met."""


class Dropout(nn.Module):
    """Zeroes each value with probability `rate` in training and scales the others so that the mean stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """The values with dropout, drawn from torch's generator."""
        if not self.training or not self.rate:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.rate)
        return values * keep_mask(values.shape, self.rate, values.dtype)


def keep_mask(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """A mask on the CPU to multiply with: 0 with probability `rate`, otherwise the inverse of the rate that is kept.

    `bernoulli_` draws value by value, which takes a quarter of a training step; here a draw of 64 bits serves four.
    """
    kept = max(1, round((1 - rate) * LEVELS))
    if kept == LEVELS:
        return torch.ones(shape, dtype=dtype)
    count = math.prod(shape)
    # From the lowest to no bound: all 64 bits are random; without bounds the sign would always be positive.
    lanes = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask = torch.empty(count, dtype=dtype)
    torch.lt(lanes[:count], kept - LEVELS // 2, out=mask)
    return mask.mul_(LEVELS / kept).view(shape)
