"""Item vectors of baselines that see the parts of an item apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bivrec.model.items import FeatureItems, IdItems, Items, Rows


class ModalityItems(Items):
    """Each modality's features projected by itself, side by side; before them the ID vector, if there is one."""

    def __init__(self, identity: IdItems | None, sizes: Sequence[int], hidden_size: int) -> None:
        """sizes: dimensions of the features of each modality."""
        super().__init__()
        self.identity = identity
        self.modalities = nn.ModuleList(FeatureItems(size, hidden_size) for size in sizes)
        self._sizes = list(sizes)

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self._parts()[0].num_items

    def attach(self, features: Rows) -> None:
        """Use the features [V+1, F] of a Domain, modalities side by side; row 0 is padding and must be zero."""
        last = 0
        for part, size in zip(self._parts(), self._sizes, strict=True):
            first, last = last, last + size
            part.attach(_Columns(features, first, last))

    def _parts(self) -> list[FeatureItems]:
        return [part for part in self.modalities if isinstance(part, FeatureItems)]

    def forward(self, indices: Tensor) -> Tensor:
        """Vectors [..., (1 +) M, D] flattened to one axis: of the ID, if there is one, and of the M modalities."""
        identity = [] if self.identity is None else [self.identity(indices)]
        return torch.cat([*identity, *(part(indices) for part in self.modalities)], dim=-1)


class _Columns:
    """Columns of a table of features, as a table of its own."""

    def __init__(self, rows: Rows, first: int, last: int) -> None:
        self._rows, self._columns = rows, slice(first, last)
        self.shape = (rows.shape[0], last - first)

    def __getitem__(self, items: Tensor) -> Tensor:
        return self._rows[items][..., self._columns]
