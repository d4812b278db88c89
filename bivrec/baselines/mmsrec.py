"""MMSRec: self-supervised multi-modal sequential recommendation (Song et al. 2023, arXiv 2304.13277)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivrec.baselines.attention import INITIAL_STD, Positions, Transformer, one_interest
from bivrec.baselines.base import BaselineTower
from bivrec.config import ModelConfig
from bivrec.model.tower import Interests

MOST_ROWS = 2**15
"""Items that are encoded at once: kernels of attention on a GPU take fewer than 65,536 rows."""


class MMSRec(nn.Module):
    """One bidirectional transformer encodes users and items, whose tokens are modalities, so that both lie alike.

    A user is the history and a mask token for each modality of the next item, read at the latter; an item is a history
    of itself alone. A token's output is projected by its modality, and the largest of each dimension is taken. The
    paper masks random items in training; here the next item alone is masked, as it does when ranking. Its pretraining
    on videos is left out.
    """

    def __init__(self, config: ModelConfig, num_modalities: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_modalities = num_modalities
        self.positions = Positions(config.max_history + 1, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.kinds = nn.Parameter(torch.empty(num_modalities, width))
        for vectors in (self.mask_token, self.kinds):
            nn.init.trunc_normal_(vectors, std=INITIAL_STD)
        self.input_norm = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.num_layers, config.num_heads, config.dropout)
        self.outputs = nn.ModuleList(nn.Linear(width, width) for _ in range(num_modalities))
        self.output_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_modalities))

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """One interest [B, 1, 1, D] of each history; items [B, N, D + M D]: encoded ones, then M modalities."""
        batch, length = mask.shape
        width = self.mask_token.shape[0]
        modalities = items[..., width:].view(batch, length, self.num_modalities, width)
        asked = self.mask_token.expand(batch, 1, self.num_modalities, -1)
        real = torch.cat([mask, mask.new_ones(batch, 1)], 1)
        return one_interest(self._encode(torch.cat([self.input_norm(modalities), asked], 1), real).unsqueeze(1), mask)

    def encode_items(self, modalities: Tensor) -> Tensor:
        """Encoded items [..., D] of modalities [..., M D]."""
        tokens = self.input_norm(modalities.view(-1, 1, self.num_modalities, self.mask_token.shape[0]))
        parts = [self._encode(part, part.new_ones(len(part), 1, dtype=torch.bool)) for part in tokens.split(MOST_ROWS)]
        return torch.cat(parts).view(*modalities.shape[:-1], -1)

    def _encode(self, tokens: Tensor, real: Tensor) -> Tensor:
        """The last place [B, D] of tokens [B, N, M, D]; real [B, N]."""
        tokens = tokens + self.positions(tokens.shape[1]).unsqueeze(1) + self.kinds
        visible = real.repeat_interleave(self.num_modalities, 1).unsqueeze(1)
        visible = visible.expand(-1, visible.shape[2], -1)
        last = self.transformer(tokens.flatten(1, 2), visible)[:, -self.num_modalities :]
        parts = zip(self.outputs, self.output_norms, last.unbind(1), strict=True)
        return torch.stack([norm(output(state)) for output, norm, state in parts]).amax(0)


class MMSRecTower(BaselineTower):
    """Items are scored as the sequence encoder sees them, one by one."""

    def encode_items(self, indices: Tensor) -> Tensor:
        """Vectors [..., D + M D]: encoded items, then their M modalities."""
        assert isinstance(self.sequence, MMSRec)
        modalities = self.items(indices)
        return self.normalised(torch.cat([self.sequence.encode_items(modalities), modalities], -1))
