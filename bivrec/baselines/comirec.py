"""ComiRec: several interests by attention or by routing (Cen et al., KDD 2020, arXiv 2005.09347).

Its aggregation module, which trades accuracy for diversity of the list, is left out: ranking is by the best interest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivrec.baselines.attention import Positions, hidden_but, read_positions
from bivrec.config import ModelConfig
from bivrec.model.dropout import Dropout
from bivrec.model.tower import Interests

ROUTING_ITERATIONS = 3


def readable(mask: Tensor, read: Tensor | None) -> Tensor:
    """[B, T, 1, N] bool: which real items lie at or before each read position [T] (default: the last)."""
    length = mask.shape[1]
    last = read_positions(length, read, mask.device)
    seen = torch.arange(length, device=mask.device) <= last.unsqueeze(1)
    return (mask.unsqueeze(1) & seen).unsqueeze(2)


class SelfAttentive(nn.Module):
    """ComiRec-SA: A = softmax(W_2 tanh(W_1 (H + P))) over the items, K rows; interests V = A H (Section 4.2).

    Positions P only choose, so that interests lie in the space of the items.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.positions = Positions(config.max_history, width)
        self.dropout = Dropout(config.dropout)
        self.inner = nn.Linear(width, 4 * width, bias=False)
        self.outer = nn.Linear(4 * width, config.num_interests[-1], bias=False)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """K interests after each read position [T] of histories with item vectors [B, N, D] and mask [B, N]."""
        items = self.dropout(items)
        visible = readable(mask, read)
        weights = hidden_but(visible, self.logits(items).unsqueeze(1)).softmax(-1) * visible
        return Interests(weights.to(items.dtype) @ items.unsqueeze(1), weights[:, -1], mask)

    def logits(self, items: Tensor) -> Tensor:
        """[B, K, N]: how much each interest attends to each item."""
        hidden = torch.tanh(self.inner(items + self.positions(items.shape[1])))
        logits: Tensor = self.outer(hidden).transpose(1, 2)
        return logits


class DynamicRouting(nn.Module):
    """ComiRec-DR: interests are capsules that items are routed to (Algorithm 1).

    Predictions u_ji = W_j h_i share W_j over the items, since histories differ in length. As in the authors' code,
    gradients pass through the last iteration alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout)
        self.num_interests = config.num_interests[-1]
        self.predictions = nn.Linear(config.hidden_size, self.num_interests * config.hidden_size, bias=False)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """K interests after each read position [T] of histories with item vectors [B, N, D] and mask [B, N]."""
        visible = readable(mask, read)
        predictions = self.predictions(self.dropout(items)).unflatten(-1, (self.num_interests, -1)).transpose(1, 2)
        fixed = predictions.detach()
        logits = predictions.new_zeros(len(items), visible.shape[1], self.num_interests, items.shape[1])
        for _ in range(ROUTING_ITERATIONS - 1):
            capsules = squash(torch.einsum("btkn,bknd->btkd", logits.softmax(2) * visible, fixed))
            logits = logits + torch.einsum("btkd,bknd->btkn", capsules, fixed)
        coupling = logits.softmax(2) * visible
        return Interests(squash(torch.einsum("btkn,bknd->btkd", coupling, predictions)), coupling[:, -1], mask)


def squash(capsules: Tensor) -> Tensor:
    """Shrink vectors to a length below 1 and keep their direction."""
    squared = capsules.square().sum(-1, keepdim=True)
    return squared / (1 + squared) * capsules / (squared + 1e-9).sqrt()
