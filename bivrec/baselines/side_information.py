"""Attention that side information guides but does not enter: NOVA and DIF-SR.

In both, the stream of states holds IDs alone and is what values are made of. NOVA was built on BERT4Rec; here both are
causal and learn the next item at every position, as DIF-SR does. DIF-SR's auxiliary attribute predictor is left out:
frozen features are no attributes that could be classified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bivrec.baselines.attention import (
    Positions,
    causal_visibility,
    one_interest,
    read_positions,
    transformer_layer,
)
from bivrec.baselines.fdsa import identity_and_features
from bivrec.config import ModelConfig
from bivrec.model.dropout import Dropout
from bivrec.model.tower import Interests


class SideInformed(nn.Module, ABC):
    """Layers whose queries and keys see the ID stream, the features and the positions; values see the stream alone."""

    def __init__(self, config: ModelConfig, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.positions = Positions(config.max_history, config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """One interest after each read position [T]; items [B, N, (1 + M) D]: IDs, then M modalities."""
        identity, features = identity_and_features(items, self.hidden_size)
        side = [*features.unbind(2), self.positions(items.shape[1]).expand_as(identity)]
        visible = causal_visibility(mask)
        stream = self.dropout(identity)
        for number, layer in enumerate(self.layers):
            stream = layer(stream, visible, lambda normed, number=number: self.sources(number, [normed, *side]))
        states = self.norm(stream)[:, read_positions(items.shape[1], read, items.device)]
        return one_interest(states, mask)

    @abstractmethod
    def sources(self, layer: int, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the queries and keys of a layer are made of; parts are the stream, the features and the positions."""


class NOVA(SideInformed):
    """Non-invasive self-attention (Liu et al., AAAI 2021, arXiv 2103.03578).

    Queries and keys come from all parts fused, by gates: sum_i sigmoid(w f_i) f_i, one of the
    paper's three fusors.
    """

    def __init__(self, config: ModelConfig, num_modalities: int) -> None:
        width = config.hidden_size
        layers = [transformer_layer(width, config.num_heads, config.dropout) for _ in range(config.num_layers)]
        super().__init__(config, layers)
        self.gates = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(config.num_layers))

    def sources(self, layer: int, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gated sum of the parts."""
        stacked = torch.stack(list(parts))
        return ((self.gates[layer](stacked).sigmoid() * stacked).sum(0),)


class DIFSR(SideInformed):
    """Decoupled side information fusion (Xie et al., SIGIR 2022, arXiv 2204.11046).

    Each part has queries and keys of its own, and the attention logits of all parts are summed (the `add` fusion).
    """

    def __init__(self, config: ModelConfig, num_modalities: int) -> None:
        layers = [
            transformer_layer(config.hidden_size, config.num_heads, config.dropout, num_sources=num_modalities + 2)
            for _ in range(config.num_layers)
        ]
        super().__init__(config, layers)

    def sources(self, layer: int, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The parts themselves."""
        return parts
