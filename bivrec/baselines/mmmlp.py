"""MMMLP: multi-modal multilayer perceptron (Liang et al., WWW 2023, arXiv 2302.11243)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.baselines.attention import INITIAL_STD, one_interest
from bivrec.config import ModelConfig
from bivrec.model.dropout import Dropout
from bivrec.model.tower import Interests


class SequenceMixer(nn.Module):
    """x + W_2 GELU(W_1 norm(x)) along the history; weights belong to ages, so left padding has none."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.inner = nn.Parameter(torch.empty(config.max_history, config.max_history))
        self.outer = nn.Parameter(torch.empty(config.max_history, config.max_history))
        for weight in (self.inner, self.outer):
            nn.init.trunc_normal_(weight, std=INITIAL_STD)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Mixed tokens [B, N, D]; mask [B, N]."""
        length = tokens.shape[1]
        by_age = (self.norm(tokens) * mask.unsqueeze(-1)).flip(1)
        hidden = functional.gelu(self.inner[:, :length] @ by_age)
        mixed: Tensor = tokens + self.dropout((self.outer[:length] @ hidden).flip(1))
        return mixed


def _perceptron(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), Dropout(dropout))


class ChannelMixer(nn.Module):
    """x + W_4 GELU(W_3 norm(x)) along the channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mixer = _perceptron(config.hidden_size, config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixed tokens [..., D]."""
        mixed: Tensor = tokens + self.mixer(self.norm(tokens))
        return mixed


class FusionMixer(nn.Module):
    """x + W_6 GELU(W_5 norm(x)) across the modalities; of the two or three of them alone, a norm would leave signs."""

    def __init__(self, config: ModelConfig, num_parts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mixer = _perceptron(num_parts, config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixed modalities [B, 1 + M, D]."""
        mixed: Tensor = tokens + self.mixer(self.norm(tokens).transpose(1, 2)).transpose(1, 2)
        return mixed


class FeatureMixer(nn.Module):
    """Layers that mix one modality of a history along its items, then along its channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sequence = nn.ModuleList(SequenceMixer(config) for _ in range(config.num_layers))
        self.channels = nn.ModuleList(ChannelMixer(config) for _ in range(config.num_layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Mixed tokens [B, N, D]; mask [B, N]."""
        for sequence, channels in zip(self.sequence, self.channels, strict=True):
            tokens = channels(sequence(tokens, mask))
        return tokens


class MMMLP(nn.Module):
    """A feature mixer for each modality, IDs among them, and a fusion mixer across them.

    The mean of the fused modalities at the most recent item is scored against the ID vectors.
    """

    def __init__(self, config: ModelConfig, num_modalities: int) -> None:
        super().__init__()
        self.feature_mixers = nn.ModuleList(FeatureMixer(config) for _ in range(1 + num_modalities))
        self.fusion_mixer = FusionMixer(config, 1 + num_modalities)
        self.channel_mixer = ChannelMixer(config)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """One interest [B, 1, 1, D] of each history; items [B, N, (1 + M) D]: IDs, then M modalities."""
        parts = zip(self.feature_mixers, items.tensor_split(len(self.feature_mixers), dim=-1), strict=True)
        latest = torch.stack([mixer(part, mask)[:, -1] for mixer, part in parts], 1)
        fused = self.channel_mixer(self.fusion_mixer(latest))
        return one_interest(self.norm(fused.mean(1)).unsqueeze(1), mask)
