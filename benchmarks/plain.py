"""A training step of the same model in plain PyTorch: the reference of `train_step`.

nn.TransformerEncoder over the same tokens, every logit of the full softmax in autograd, torch's AdamW and allocator.
Left padding is a key mask, Gaussian attention a mask that is added to the logits, one for all layers and histories.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.config import ModelConfig
from bivrec.data.batches import Batch

HIDDEN = -1e9


class PlainModel(nn.Module):
    """Items and windows -> transformer -> K interests after each read position -> logits of the catalogue."""

    def __init__(self, config: ModelConfig, num_items: int) -> None:
        super().__init__()
        width, self.config = config.hidden_size, config
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        lengths = [-(-config.max_history // scale) for scale in (1, *config.scales)]
        self.positions = nn.ModuleList(nn.Embedding(length, width) for length in lengths)
        layer = nn.TransformerEncoderLayer(
            width, config.num_heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        # Torch's layer drops the MLP's hidden values too, four times as many as all others.
        layer.dropout = nn.Dropout(0.0)
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(config.dropout)
        self.interests = nn.Parameter(0.02 * torch.randn(config.num_interests[0], width))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.log_sigma = nn.Parameter(torch.tensor(2.0))
        if config.readout == "prefix":
            self.state = nn.Linear(width, width, bias=False)
            self.log_decay = nn.Parameter(torch.zeros(config.num_interests[0]))

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the targets over the whole catalogue."""
        tokens, real, ages, newest = self._tokens(batch.history)
        bias = -(ages.unsqueeze(1) - ages).square() * torch.exp(-2 * self.log_sigma)
        weights = torch.ones(1, 1, len(ages))
        read_ages = batch.history.shape[1] - 1 - batch.positions
        if self.config.readout == "prefix":
            bias = bias.masked_fill(newest < newest.unsqueeze(1), HIDDEN)
            elapsed = newest - read_ages.unsqueeze(1)
            forgotten = torch.exp(-self.log_decay.exp().unsqueeze(1) * elapsed.clamp(min=0).unsqueeze(1))
            weights = forgotten * (elapsed >= 0).unsqueeze(1)
        padding = torch.zeros(real.shape).masked_fill(~real, HIDDEN)
        states = self.encoder(self.dropout(tokens), mask=bias, src_key_padding_mask=padding)
        affinity = self.query(self.interests) @ self.key(states).transpose(1, 2) / states.shape[-1] ** 0.5
        shares = (affinity.softmax(1) * real.unsqueeze(1)).unsqueeze(1) * weights
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-6)
        found = self.interests + self.output(torch.einsum("btkm,bmd->btkd", shares, self.value(states)))
        if self.config.readout == "prefix":
            found = found + self.state(states[:, batch.positions]).unsqueeze(2)
        learnt = batch.targets > 0
        # Every item but the padding can be recommended.
        scores = found[learnt] @ self.items.weight[1:].T
        logits = scores.logsumexp(1) if self.config.interest_score == "logsumexp" else scores.amax(1)
        return functional.cross_entropy(logits, batch.targets[learnt] - 1)

    def _tokens(self, history: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors [B, M, D], which are real [B, M], and of full histories their mean and their least ages [M]: the
        items, then the windows of each scale."""
        length = history.shape[1]
        ages = torch.arange(length - 1, -1, -1)
        vectors, real = self.items(history) + self.positions[0](ages), history > 0
        vectors = vectors * real.unsqueeze(-1)
        parts, masks, every_age, every_newest = [vectors], [real], [ages.float()], [ages]
        for scale, positions in zip(self.config.scales, self.positions[1:], strict=True):
            fill = -length % scale
            shape = (len(history), -1, scale)
            windows = functional.pad(vectors, (0, 0, fill, 0)).view(*shape, vectors.shape[-1]).sum(2)
            order = torch.arange(windows.shape[1] - 1, -1, -1)
            parts.append(windows + positions(order))
            masks.append(functional.pad(real, (fill, 0)).view(shape).any(2))
            newest = scale * order
            every_age.append((newest + (newest + scale - 1).clamp(max=length - 1)) / 2)
            every_newest.append(newest)
        return torch.cat(parts, 1), torch.cat(masks, 1), torch.cat(every_age), torch.cat(every_newest)
