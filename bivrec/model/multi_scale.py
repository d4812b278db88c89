"""Multi-scale interest embedding (Eq. 1-3): item tokens and window tokens of a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """The N' tokens of a batch of histories: first the N items (scale 1), then the windows of each coarser scale."""

    vectors: Tensor
    """[B, N', D]; zero where masked."""
    content: Tensor
    """[B, N', D]: mean of the item vectors that the token covers, without positions; zero where masked."""
    mask: Tensor
    """[B, N'] bool: the token covers at least one real item."""
    position: Tensor
    """[B, N'] float: mean age of the real items in the token (0 = most recent item)."""
    newest: Tensor
    """[N'] int: age of the most recent item that the token covers; a causal reader sees it from there on."""


class MultiScaleEmbedding(nn.Module):
    """Adds positions to a history's item vectors and sums them in windows of every scale.

    Histories are padded on the left. Positions count from the most recent item, and windows are aligned to it, so
    the padding never moves a position or a window. Without `positions`, items and windows have no embedding of their
    position, and a reader in the midst of a history meets what a reader at its end meets.
    """

    def __init__(self, hidden_size: int, max_history: int, scales: Sequence[int], positions: bool = True) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.has_positions = positions
        if not positions:
            return
        self.item_positions = nn.Parameter(torch.empty(max_history, hidden_size))
        self.window_positions = nn.ParameterList(
            nn.Parameter(torch.empty(-(-max_history // scale), hidden_size)) for scale in self.scales
        )
        for table in (self.item_positions, *self.window_positions):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, items: Tensor, mask: Tensor) -> Tokens:
        """Tokens of the item vectors [B, N, D] with mask [B, N] (True: a real item), N <= max_history."""
        batch, length, width = items.shape
        age = torch.arange(length - 1, -1, -1, device=items.device)
        embedded = (items + self.item_positions[age] if self.has_positions else items) * mask.unsqueeze(-1)

        vectors, masks = [embedded], [mask]
        contents = [items * mask.unsqueeze(-1)]
        # Always float32: in bfloat16, positions beyond 64 would lose their fractions.
        positions, newest = [age.expand(batch, length).float()], [age]
        for index, scale in enumerate(self.scales):
            windows = -(-length // scale)
            fill = windows * scale - length
            real = nn.functional.pad(mask, (fill, 0)).view(batch, windows, scale)
            ages = nn.functional.pad(age, (fill, 0)).view(windows, scale)
            count = real.sum(-1)
            window_age = torch.arange(windows - 1, -1, -1, device=items.device)
            summed, content = (
                nn.functional.pad(values, (0, 0, fill, 0)).view(batch, windows, scale, width).sum(2)
                for values in (embedded, contents[0])
            )
            if self.has_positions:
                summed = summed + self.window_positions[index][window_age]
            vectors.append(summed * (count > 0).unsqueeze(-1))
            contents.append(content / count.clamp(min=1).unsqueeze(-1).to(content.dtype))
            masks.append(count > 0)
            positions.append((ages * real).sum(-1) / count.clamp(min=1))
            newest.append(window_age * scale)
        return Tokens(
            vectors=torch.cat(vectors, 1),
            content=torch.cat(contents, 1),
            mask=torch.cat(masks, 1),
            position=torch.cat(positions, 1),
            newest=torch.cat(newest),
        )
