"""Gaussian attention (Eq. 4-6) and the pre-norm transformer layer around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INITIAL_SIGMA = 8.0
"""Initial width of the Gaussian in items: near neighbours stand out, and the whole recent history is in reach."""


class GaussianAttention(nn.Module):
    """Multi-head self-attention whose logits are modulated by the distance of the tokens' positions.

    `product` multiplies each logit with the normalised Gaussian G_ij (Eq. 6); `bias` adds log G_ij to it, a prior on
    the attention weights that fused kernels take; `none` is plain self-attention.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, gaussian: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.gaussian = gaussian
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        if gaussian != "none":
            # The logarithm keeps sigma positive under any gradient step.
            self.log_sigma = nn.Parameter(torch.tensor(math.log(INITIAL_SIGMA)))

    def forward(self, tokens: Tensor, visible: Tensor, squared_distance: Tensor) -> Tensor:
        """Attend over `tokens` [B, M, D].

        visible [B, M, M] bool: token i may attend to token j; squared_distance [B, M, M]: of their positions.
        A token that may attend to nothing (padding) yields a meaningless but finite row.
        """
        batch, length, width = tokens.shape
        projected = self.query_key_value(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        lowest = torch.finfo(query.dtype).min
        if self.gaussian == "product":
            prior = self._log_gaussian(squared_distance).masked_fill(~visible, -torch.inf).softmax(-1)
            # Rows of padding tokens see nothing: 0 / 0 above.
            prior = prior.nan_to_num(0.0)
            logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) * prior.unsqueeze(1).to(query.dtype)
            weights = logits.masked_fill(~visible.unsqueeze(1), lowest).softmax(-1)
            mixed = functional.dropout(weights, self.dropout, self.training) @ value
        else:
            # The normalisation of G over j is constant in j, and softmax ignores it.
            prior = (
                self._log_gaussian(squared_distance) if self.gaussian == "bias" else torch.zeros_like(squared_distance)
            )
            bias = prior.to(query.dtype).masked_fill(~visible, lowest).unsqueeze(1)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0
            )
        merged: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return merged

    def _log_gaussian(self, squared_distance: Tensor) -> Tensor:
        return -squared_distance * torch.exp(-2 * self.log_sigma)


class TransformerLayer(nn.Module):
    """Pre-norm layer: Gaussian attention and a GELU MLP of width 4D, each with dropout and a residual."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, gaussian: str) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = GaussianAttention(hidden_size, num_heads, dropout, gaussian)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, visible: Tensor, squared_distance: Tensor) -> Tensor:
        """Tokens [B, M, D] after the layer; the other arguments as in GaussianAttention."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), visible, squared_distance))
        refined: Tensor = tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))
        return refined
