"""A training step of the same model in plain PyTorch: the reference of `train_step`.

nn.TransformerEncoder over the same tokens, every logit of the full softmax in autograd, torch's AdamW and allocator.
Left padding is a key mask, Gaussian attention a mask that is added to the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.config import ModelConfig
from bivrec.data.batches import Batch


class PlainModel(nn.Module):
    """Items and windows -> transformer -> K interests after each read position -> logits of the catalogue."""

    def __init__(self, config: ModelConfig, num_items: int) -> None:
        super().__init__()
        width, self.config = config.hidden_size, config
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(2 * config.max_history, width)
        layer = nn.TransformerEncoderLayer(
            width, config.num_heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(config.dropout)
        self.interests = nn.Parameter(0.02 * torch.randn(config.num_interests[0], width))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.log_sigma = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the targets over the whole catalogue."""
        tokens, real, ages = self._tokens(batch.history)
        bias = -(ages.unsqueeze(1) - ages).square() * torch.exp(-2 * self.log_sigma)
        read_ages = batch.history.shape[1] - 1 - batch.positions
        if self.config.readout == "prefix":
            bias = bias.masked_fill(ages.floor() < ages.floor().unsqueeze(1), -1e9)
            seen = ages.floor() >= read_ages.unsqueeze(1)
        else:
            seen = torch.ones(1, len(ages), dtype=torch.bool)
        padding = torch.zeros(real.shape).masked_fill(~real, -1e9)
        states = self.encoder(self.dropout(tokens), mask=bias, src_key_padding_mask=padding)
        affinity = self.query(self.interests) @ self.key(states).transpose(1, 2) / states.shape[-1] ** 0.5
        shares = affinity.softmax(1).unsqueeze(1) * (real.unsqueeze(1) & seen)[:, :, None, :]
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-6)
        found = self.interests + self.output(torch.einsum("btkm,bmd->btkd", shares, self.value(states)))
        learnt = batch.targets > 0
        scores = found[learnt] @ self.items.weight.T
        logits = scores.logsumexp(1) if self.config.interest_score == "logsumexp" else scores.amax(1)
        return functional.cross_entropy(logits, batch.targets[learnt])

    def _tokens(self, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [B, M, D], which are real [B, M], and their ages [M]: the items, then the windows of each scale."""
        length = history.shape[1]
        ages = torch.arange(length - 1, -1, -1)
        vectors, real = self.items(history) + self.positions(ages), history > 0
        parts, masks, every_age = [vectors], [real], [ages.float()]
        for scale in self.config.scales:
            fill = -length % scale
            shape = (len(history), -1, scale)
            padded = functional.pad(vectors * real.unsqueeze(-1), (0, 0, fill, 0))
            parts.append(padded.view(*shape, vectors.shape[-1]).sum(2))
            masks.append(functional.pad(real, (fill, 0)).view(shape).any(2))
            # The fraction puts a window behind the item that ends it.
            every_age.append(torch.arange(length + fill - scale, -1, -scale) + 0.5)
        return torch.cat(parts, 1), torch.cat(masks, 1), torch.cat(every_age)
