"""What the attentive baselines share: positions, causal masks, and a pre-norm transformer layer.

The papers differ in layer norm, activation and width of the MLP. Here all have those of BiVRec's own towers, so that a
comparison is about what each system adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.model.attention import TransformerLayer
from bivrec.model.dropout import Dropout
from bivrec.model.tower import Interests

INITIAL_STD = 0.02


class Positions(nn.Module):
    """Learned position vectors that count from the most recent item, so that left padding never moves one."""

    def __init__(self, max_history: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_history, hidden_size))
        nn.init.trunc_normal_(self.table, std=INITIAL_STD)

    def forward(self, length: int) -> Tensor:
        """Vectors [length, D], oldest first."""
        return self.table[:length].flip(0)


def causal_visibility(mask: Tensor) -> Tensor:
    """[B, N, N] bool: token i may attend to real tokens j <= i. Padding sees itself alone, which keeps it finite."""
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return (mask.unsqueeze(1) & causal) | torch.eye(length, dtype=torch.bool, device=mask.device)


def hidden_but(visible: Tensor, logits: Tensor) -> Tensor:
    """Logits in at least float32, with the lowest number where they are not visible: a softmax gives it nothing."""
    logits = in_full(logits)
    return logits.masked_fill(~visible, torch.finfo(logits.dtype).min)


def in_full(values: Tensor) -> Tensor:
    """The values in at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def read_positions(length: int, read: Tensor | None, device: torch.device) -> Tensor:
    """The positions [T] after which histories are read; by default the last alone."""
    return torch.tensor([length - 1], device=device) if read is None else read


def one_interest(vectors: Tensor, mask: Tensor) -> Interests:
    """Vectors [B, T, D] as the single interest of each reader; nothing is allocated."""
    empty = torch.zeros(len(mask), 1, mask.shape[1], dtype=vectors.dtype, device=vectors.device)
    return Interests(vectors.unsqueeze(2), empty, mask)


Sources = Callable[[Tensor], Sequence[Tensor]]
"""From the values to what queries and keys are made of."""


def itself(normed: Tensor) -> Sequence[Tensor]:
    """The source of plain self-attention."""
    return (normed,)


class Attention(nn.Module):
    """Multi-head attention whose logits are summed over several sources of queries and keys.

    One source that is also the values: self-attention. Values apart from the sources: NOVA. Several sources: DIF-SR.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, num_sources: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key = nn.ModuleList(nn.Linear(hidden_size, 2 * hidden_size) for _ in range(num_sources))
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, values: Tensor, visible: Tensor, sources: Sources = itself) -> Tensor:
        """Mixed values [B, N, D], of values [B, N, D] and visible [B, N, N] bool; sources are [B or 1, N, D]."""
        value = self._heads(self.value(values))
        batch, heads, length, width = value.shape
        queries, keys = [], []
        for part, source in zip(self.query_key, sources(values), strict=True):
            query, key = self._heads(part(source)).expand(batch, -1, -1, -1).chunk(2, -1)
            queries.append(query)
            keys.append(key)
        mixed = functional.scaled_dot_product_attention(
            # The sum of the products of several pairs is the product of the pairs side by side.
            torch.cat(queries, -1),
            torch.cat(keys, -1),
            value,
            attn_mask=visible.unsqueeze(1),
            dropout_p=self.dropout if self.training else 0.0,
            scale=1 / math.sqrt(width),
        )
        merged: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, heads * width))
        return merged

    def _heads(self, projected: Tensor) -> Tensor:
        """[B, N, W] as [B, heads, N, W / heads]."""
        batch, length, width = projected.shape
        return projected.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)


def transformer_layer(hidden_size: int, num_heads: int, dropout: float, num_sources: int = 1) -> TransformerLayer:
    """A layer of BiVRec's own towers with this attention: of normed tokens [B, N, D], visible and sources."""
    return TransformerLayer(hidden_size, dropout, Attention(hidden_size, num_heads, dropout, num_sources))


class Transformer(nn.Module):
    """Layers of plain self-attention and a last norm."""

    def __init__(self, hidden_size: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(transformer_layer(hidden_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """States [B, N, D] of tokens [B, N, D]."""
        stream = self.dropout(tokens)
        for layer in self.layers:
            stream = layer(stream, visible)
        states: Tensor = self.norm(stream)
        return states
