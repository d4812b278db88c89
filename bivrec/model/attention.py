"""Gaussian attention (Eq. 4-6), and the pre-norm transformer layer around it and around that of the baselines."""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from bivrec.model.dropout import Dropout, keep_mask
from bivrec.model.packing import Packing

INITIAL_SIGMA = 8.0
"""Initial width of the Gaussian in items: near neighbours stand out, and the whole recent history is in reach."""
WEIGHTS_AT_ONCE = 2**20
"""Attention weights that a processor holds at once: small enough for its cache."""


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
    batch, length, _ = projected.shape
    size = batch if projected.device.type != "cpu" else max(1, WEIGHTS_AT_ONCE // (num_heads * length * length))
    chunks = [
        _Attention.apply(some, num_heads, some_factor, some_bias, dropout)  # type: ignore[no-untyped-call]
        for some, some_factor, some_bias in zip(
            torch.split(projected, size),
            repeat(None) if factor is None else torch.split(factor, size),
            torch.split(bias, size),
            strict=False,
        )
    ]
    return torch.cat(chunks)


class _Attention(torch.autograd.Function):
    """All heads at once: few and large kernels. Of what is M x M, only the weights and their dropout are kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, num_heads: int, factor: Tensor | None, bias: Tensor, dropout: float
    ) -> Tensor:
        parts = _split_heads(projected, 3, num_heads)
        query, key, value = parts
        scale = query.shape[-1] ** -0.5
        length = query.shape[1]
        products = torch.bmm(query, key.transpose(1, 2)).view(-1, num_heads, length, length)
        if factor is None:
            logits = torch.add(bias.unsqueeze(1), products, alpha=scale)
        else:
            logits = torch.addcmul(bias.unsqueeze(1), products, factor.unsqueeze(1) * scale)
        # Autocast makes it float32 on some devices; the backward pass is without autocast.
        weight = logits.softmax(-1).to(logits.dtype)
        mask = _dropout_mask(weight, dropout)
        ctx.save_for_backward(parts, factor, weight, mask)  # type: ignore[arg-type]
        return _merge_heads(torch.bmm(_kept(weight, mask), value).unsqueeze(0), num_heads)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, factor, weight, mask = ctx.saved_tensors  # type: ignore[attr-defined]
        query, key, value = parts
        num_heads, scale = weight.shape[1], query.shape[-1] ** -0.5
        mixed_gradient = _split_heads(gradient, 1, num_heads)[0]
        gradients = torch.empty_like(parts)
        torch.bmm(_kept(weight, mask).transpose(1, 2), mixed_gradient, out=gradients[2])
        towards = torch.bmm(mixed_gradient, value.transpose(1, 2)).view_as(weight)
        if mask is not None:
            towards *= mask
        logit = torch.ops.aten._softmax_backward_data(towards, weight, -1, weight.dtype)
        bias_gradient = logit.sum(1) if ctx.needs_input_grad[3] else None  # type: ignore[attr-defined]
        factor_gradient = None
        if factor is not None:
            products = torch.bmm(query, key.transpose(1, 2)).view_as(weight)
            factor_gradient = products.mul_(logit).sum(1).mul_(scale)
            logit *= factor.unsqueeze(1)
        logit = logit.mul_(scale).flatten(0, 1)
        torch.bmm(logit, key, out=gradients[0])
        torch.bmm(logit.transpose(1, 2), query, out=gradients[1])
        return _merge_heads(gradients, num_heads), None, factor_gradient, bias_gradient, None


def _split_heads(joined: Tensor, parts: int, num_heads: int) -> Tensor:
    """[parts, B H, M, d] of vectors [B, M, parts H d]."""
    batch, length, width = joined.shape
    heads = joined.view(batch, length, parts, num_heads, width // (parts * num_heads)).permute(2, 0, 3, 1, 4)
    return heads.flatten(1, 2).contiguous()


def _merge_heads(split: Tensor, num_heads: int) -> Tensor:
    """[B, M, parts H d] of vectors [parts, B H, M, d]."""
    parts, _, length, width = split.shape
    return split.view(parts, -1, num_heads, length, width).permute(1, 3, 0, 2, 4).flatten(2)


def _kept(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Weights [B, H, M, M] after dropout, [B H, M, M]."""
    return (weight if mask is None else weight * mask).flatten(0, 1)


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
