"""Item vectors of baselines that read IDs and features in one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bivrec.model.tower import FeatureItems, IdItems, Items, Rows


class JointItems(Items):
    """The sum of an item's ID vector and its projected features.

    That is what a linear map of the two side by side gives, whose part for the ID vector is absorbed by the table.
    """

    def __init__(self, identity: IdItems, content: FeatureItems) -> None:
        super().__init__()
        self.identity = identity
        self.content = content

    def attach(self, features: Rows) -> None:
        """Use the features [V + 1, F] of a Domain; row 0 is padding and must be zero."""
        self.content.attach(features)

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self.identity.num_items

    def forward(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of the items with these indices (0: padding, a zero vector)."""
        vectors: Tensor = self.identity(indices) + self.content(indices)
        return vectors


class ModalityItems(Items):
    """Each modality's features projected by itself, side by side; before them the ID vector, if there is one."""

    def __init__(self, identity: IdItems | None, features: Rows, sizes: Sequence[int], hidden_size: int) -> None:
        """features [V + 1, F]: modalities of these sizes side by side."""
        super().__init__()
        self.identity = identity
        self._sizes = list(sizes)
        self.modalities = nn.ModuleList(FeatureItems(size, hidden_size) for size in sizes)
        self.attach(features)

    def attach(self, features: Rows) -> None:
        """Use the features [V + 1, F] of a Domain, modalities side by side; row 0 is padding and must be zero."""
        last = 0
        for part, size in zip(self.modalities, self._sizes, strict=True):
            assert isinstance(part, Items)
            first, last = last, last + size
            part.attach(_Columns(features, first, last))

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        part = self.modalities[0]
        assert isinstance(part, Items)
        return part.num_items

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
