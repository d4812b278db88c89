"""Gaussian attention (Eq. 4-6), and the pre-norm transformer layer around it and around that of the baselines."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from bivrec.model.dropout import Dropout, keep_mask
from bivrec.model.packing import Packing

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

    def forward(
        self, tokens: Tensor, packing: Packing, visible: list[Tensor], squared_distance: list[Tensor]
    ) -> Tensor:
        """Attend over the real tokens [R, D] of a batch; the result [R, D] is in the same order.

        Of each group of `packing`: visible [b, m, m] bool: token i may attend to token j; squared_distance [b, m, m]:
        of their positions. A token that may attend to nothing yields a meaningless but finite row.
        """
        groups = packing.to_groups(self.query_key_value(tokens))
        mixed = [self._attend(*group) for group in zip(groups, visible, squared_distance, strict=True)]
        merged: Tensor = self.output(packing.from_groups(mixed))
        return merged

    def _attend(self, projected: Tensor, visible: Tensor, squared_distance: Tensor) -> Tensor:
        factor, bias = self._modulation(visible, squared_distance, projected.dtype)
        rate = self.dropout if self.training else 0.0
        if factor is None and projected.device.type != "cpu":
            return fused_attention(projected, self.num_heads, bias, rate)
        return attention(projected, self.num_heads, factor, bias, rate)

    def _modulation(
        self, visible: Tensor, squared_distance: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor]:
        """What each logit is multiplied with (None: nothing), and what is added to it; both [B, M, M]."""
        # Halved: fused kernels multiply it with log2(e), and infinities would make rows that see nothing NaN.
        lowest = torch.finfo(dtype).min / 2
        if self.gaussian == "bias":
            # The normalisation of G over j is constant in j, and softmax ignores it.
            return None, self._log_gaussian(squared_distance).to(dtype).masked_fill(~visible, lowest)
        hidden = torch.zeros_like(squared_distance, dtype=dtype).masked_fill(~visible, lowest)
        if self.gaussian == "none":
            return None, hidden
        prior = self._log_gaussian(squared_distance).masked_fill(~visible, -torch.inf).softmax(-1)
        # Rows of padding tokens see nothing: 0 / 0 above.
        return prior.nan_to_num(0.0).to(dtype), hidden

    def _log_gaussian(self, squared_distance: Tensor) -> Tensor:
        return -squared_distance * torch.exp(-2 * self.log_sigma)


def fused_attention(projected: Tensor, num_heads: int, bias: Tensor, dropout: float) -> Tensor:
    """The attention of `attention` without a factor, by the fused kernels of an accelerator."""
    batch, length, _ = projected.shape
    query, key, value = projected.view(batch, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value, bias.unsqueeze(1), dropout_p=dropout)
    return mixed.transpose(1, 2).reshape(batch, length, -1)


def attention(projected: Tensor, num_heads: int, factor: Tensor | None, bias: Tensor, dropout: float) -> Tensor:
    """Values mixed by softmax(factor * q k^T / sqrt(d_head) + bias), [B, M, D].

    projected [B, M, 3 D]: queries, keys and values, each with its heads side by side; factor and bias [B, M, M] are
    shared by the heads.
    """
    mixed: Tensor = _Attention.apply(projected, num_heads, factor, bias, dropout)  # type: ignore[no-untyped-call]
    return mixed


class _Attention(torch.autograd.Function):
    """Head by head on strided views: neither heads nor gradients are ever copied into another layout."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, num_heads: int, factor: Tensor | None, bias: Tensor, dropout: float
    ) -> Tensor:
        batch, length, width = projected.shape
        mixed = projected.new_empty(batch, length, width // 3)
        weights, masks = [], []
        for out, (query, key, value) in zip(_parts(mixed, num_heads), _heads(projected, num_heads), strict=True):
            scale = query.shape[-1] ** -0.5
            if factor is None:
                logits = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
            else:
                logits = torch.bmm(query, key.transpose(1, 2)).mul_(scale).mul_(factor).add_(bias)
            # Autocast makes it float32 on some devices; the backward pass is without autocast.
            weight = logits.softmax(-1).to(logits.dtype)
            mask = _dropout_mask(weight, dropout)
            out.copy_((weight if mask is None else weight * mask) @ value)
            weights.append(weight)
            masks.append(mask)
        ctx.save_for_backward(projected, factor, *weights, *masks)  # type: ignore[arg-type]
        ctx.num_heads = num_heads  # type: ignore[attr-defined]
        return mixed

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count: int = ctx.num_heads  # type: ignore[attr-defined]
        projected, factor, *saved = ctx.saved_tensors  # type: ignore[attr-defined]
        projected_gradient = torch.empty_like(projected)
        factor_gradient = None if factor is None else torch.zeros_like(factor)
        bias_gradient = torch.zeros_like(saved[0]) if ctx.needs_input_grad[3] else None  # type: ignore[attr-defined]
        for out, (query, key, value), into, weight, mask in zip(
            _parts(gradient, count),
            _heads(projected, count),
            _heads(projected_gradient, count),
            saved[:count],
            saved[count:],
            strict=True,
        ):
            scale = query.shape[-1] ** -0.5
            into[2].copy_((weight if mask is None else weight * mask).transpose(1, 2) @ out)
            towards = out @ value.transpose(1, 2)
            if mask is not None:
                towards *= mask
            logit = torch.ops.aten._softmax_backward_data(towards, weight, -1, weight.dtype)
            if bias_gradient is not None:
                bias_gradient += logit
            if factor_gradient is not None:
                factor_gradient += logit * (query @ key.transpose(1, 2)).mul_(scale)
                logit = logit * factor
            logit *= scale
            into[0].copy_(logit @ key)
            into[1].copy_(logit.transpose(1, 2) @ query)
        return projected_gradient, None, factor_gradient, bias_gradient, None


def _heads(projected: Tensor, num_heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value [B, M, D / H] of each head, as views."""
    return list(zip(*(_parts(part, num_heads) for part in projected.chunk(3, -1)), strict=True))


def _parts(vectors: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    return vectors.chunk(num_heads, -1)


def _dropout_mask(weight: Tensor, rate: float) -> Tensor | None:
    if not rate:
        return None
    if weight.device.type != "cpu":
        return functional.dropout(torch.ones_like(weight), rate)
    return keep_mask(weight.shape, rate, weight.dtype)


class TransformerLayer(nn.Module):
    """Pre-norm layer: attention and a GELU MLP of width 4D, each with dropout and a residual."""

    def __init__(self, hidden_size: int, dropout: float, attention: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, *context: Any) -> Tensor:
        """Tokens [..., D] after the layer; `context` is what its attention takes beside them."""
        mixed = self.attention(self.attention_norm(tokens), *context)
        tokens = tokens + self.dropout(mixed)
        refined: Tensor = tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))
        return refined
