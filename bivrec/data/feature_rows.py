"""Features of items that stay in their file; only rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


class FeatureRows:
    """The features of several modalities side by side, each modality's part of a row with length 1 (or zeros)."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """parts: a tensor [V + 1, d] for each modality, memory-mapped where it comes from a file."""
        self.parts = tuple(parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(V + 1, F), F the sum of the dimensions."""
        return len(self.parts[0]), sum(part.shape[1] for part in self.parts)

    def __getitem__(self, items: Tensor) -> Tensor:
        """Float32 [..., F] on the CPU: the rows of these items."""
        rows = [functional.normalize(functional.embedding(items, part).float(), dim=-1) for part in self.parts]
        return torch.cat(rows, dim=-1)
