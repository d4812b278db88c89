"""FDSA: feature-level deeper self-attention (Zhang et al., IJCAI 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivrec.baselines.attention import one_interest, read_positions
from bivrec.baselines.sasrec import SASRec
from bivrec.config import ModelConfig
from bivrec.model.tower import Interests


class FDSA(nn.Module):
    """One self-attention block over the items and one over their features, joined by a linear layer.

    A vanilla attention weighs an item's features, f = sum_m softmax_m(w f_m) f_m; here they are its modalities.
    The joined state is scored against the ID vectors.
    """

    def __init__(self, config: ModelConfig, num_modalities: int) -> None:
        super().__init__()
        self.feature_weight = nn.Linear(config.hidden_size, 1, bias=False)
        self.item_block = SASRec(config)
        self.feature_block = SASRec(config)
        self.output = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """One interest after each read position [T]; items [B, N, (1 + M) D]: IDs, then M modalities."""
        identity, features = identity_and_features(items, self.output.out_features)
        feature = (self.feature_weight(features).softmax(2) * features).sum(2)
        both = torch.cat([self.item_block.states(identity, mask), self.feature_block.states(feature, mask)], -1)
        states = self.output(both[:, read_positions(items.shape[1], read, items.device)])
        return one_interest(states, mask)


def identity_and_features(items: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
    """The ID vectors [B, N, D] and the vectors [B, N, M, D] of the M modalities in items [B, N, (1 + M) D]."""
    parts = items.view(*items.shape[:2], -1, hidden_size)
    return parts[:, :, 0], parts[:, :, 1:]
