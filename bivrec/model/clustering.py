"""Multi-stage interest clustering (Eq. 7-12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INTEREST_STD = 0.02
QUERY_GAIN = 2.5 / INTEREST_STD
"""Makes the affinities of Eq. 7 about as large as standard Gumbel noise at the start."""


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `like`."""
    return -torch.empty_like(like, dtype=torch.float32).exponential_().log().to(like.dtype)


def keep_largest(soft: Tensor, count: int) -> Tensor:
    """The filter of Eq. 8 with the straight-through gradient of Eq. 10.

    soft [B, K, M]: along K, the `count` largest entries become 1 and the rest 0; the gradient is that of `soft`.
    """
    hard = torch.zeros_like(soft).scatter_(1, soft.topk(count, dim=1).indices, 1.0)
    # In this order the forward value is exactly 0 or 1; (hard - soft) + soft would round.
    return hard + (soft - soft.detach())


class InterestClustering(nn.Module):
    """One stage: M tokens distribute themselves over K trainable interest tokens, which gather them."""

    def __init__(
        self,
        hidden_size: int,
        num_interests: int,
        *,
        interests_per_item: int,
        assignment: str,
        temperature: float,
        aggregation: str,
        free: bool,
    ) -> None:
        """A stage that is not `free` has no weights of Eq. 12, c_k + W_a(...): its interests are what they gather."""
        super().__init__()
        self.free = free
        self.interests_per_item = interests_per_item
        self.assignment = assignment
        self.temperature = temperature
        self.aggregation = aggregation
        self.interests = nn.Parameter(torch.empty(num_interests, hidden_size))
        nn.init.trunc_normal_(self.interests, std=INTEREST_STD)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        if assignment == "gumbel-hard":
            # Interest tokens are small; without this gain all affinities would be near 0, far below the noise, and
            # allocations would stay random for thousands of steps.
            nn.init.normal_(self.query.weight, std=QUERY_GAIN / math.sqrt(hidden_size))
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        if free:
            self.value = nn.Linear(hidden_size, hidden_size, bias=False)
            self.output = nn.Linear(hidden_size, hidden_size, bias=False)
            # Allocations are noise at first; what they gather must not drown the rest before it means something.
            nn.init.trunc_normal_(self.output.weight, std=0.02)

    def allocate(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Allocation [B, K, M] of tokens [B, M, D] to interests (Eq. 7-10); columns of masked tokens are zero."""
        # In bfloat16, affinities of some tens would be rounded by more than those of two interests differ.
        with torch.autocast(tokens.device.type, enabled=False):
            # q (W x) = (q W) x: K products of a token with a vector instead of one with a matrix.
            query = self.query(self.interests) @ self.key.weight / math.sqrt(tokens.shape[-1])
            affinity = functional.linear(tokens.to(query.dtype), query).transpose(1, 2).contiguous()
        if self.assignment == "gumbel-hard" and self.training:
            affinity = affinity + gumbel_noise(affinity)
        allocation = (affinity / self.temperature).softmax(dim=1)
        if self.assignment != "softmax-soft":
            allocation = keep_largest(allocation, self.interests_per_item)
        masked: Tensor = allocation * mask.unsqueeze(1)
        return masked

    def forward(
        self, tokens: Tensor, content: Tensor | None, mask: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gather the tokens into interests, once for each of T readers (Eq. 12).

        tokens, content [B, M, D]; mask [B, M]; weight [1 or B, T, 1 or K, M]: how much each reader's interest counts
        a token. Returns interests [B, T, K, D], what they gather of the content [B, T, K, D] (None: of none), and the
        allocation [B, K, M]. The interests of a stage that is not free are what they gather of the content.
        """
        allocation = self.allocate(tokens, mask)
        shares = allocation.unsqueeze(1) * weight
        gathered = None if content is None else self._gather(shares, content.to(tokens.dtype))
        if not self.free:
            assert gathered is not None
            return gathered, gathered, allocation
        # Values are linear: of tokens and what they are gathered into, the fewer are projected.
        if shares.shape[1] * shares.shape[2] > tokens.shape[1]:
            values = self._gather(shares, self.value(tokens))
        else:
            values = self.value(self._gather(shares, tokens))
        interests: Tensor = self.interests + self.output(values)
        return interests, gathered, allocation

    def _gather(self, shares: Tensor, values: Tensor) -> Tensor:
        """Values [B, M, D] gathered by the shares [B, T, K, M] of interests, [B, T, K, D]."""
        batch, readers, interests, _ = shares.shape
        gathered = (shares.flatten(1, 2).to(values.dtype) @ values).view(batch, readers, interests, -1)
        if self.aggregation == "sum":
            return gathered
        # Of hard shares, an interest has none or at least one whole token; less than one are memories that fade.
        # Dividing by less would blow up the straight-through gradient of interests that got no token.
        # An interest whose soft shares add up to less fades as well; its exact mean, in logarithms, ranked no better.
        least = 1e-6 if self.assignment == "softmax-soft" else 1.0
        return gathered / shares.sum(-1, keepdim=True).clamp(min=least).to(values.dtype)
