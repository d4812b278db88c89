"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018, arXiv 1808.09781)."""

from __future__ import annotations

from torch import Tensor, nn

from bivrec.baselines.attention import Positions, Transformer, causal_visibility, one_interest, read_positions
from bivrec.config import ModelConfig
from bivrec.model.tower import Interests


class SASRec(nn.Module):
    """Item vectors plus learned positions (Eq. 1), then causal self-attention blocks (Eq. 2-5).

    The state after each item is the user there; its dot product with an item vector is the score (Eq. 6).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = Positions(config.max_history, config.hidden_size)
        self.transformer = Transformer(config.hidden_size, config.num_layers, config.num_heads, config.dropout)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """One interest after each read position [T] of histories with item vectors [B, N, D] and mask [B, N]."""
        states = self.states(items, mask)
        return one_interest(states[:, read_positions(items.shape[1], read, items.device)], mask)

    def states(self, items: Tensor, mask: Tensor) -> Tensor:
        """States [B, N, D] after every position."""
        states: Tensor = self.transformer(items + self.positions(items.shape[1]), causal_visibility(mask))
        return states
