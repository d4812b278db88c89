"""What the items of a tower are: rows of a table, projected features, or the sum of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.errors import BivrecError

RESIDENT_BYTES = 2**30
RESIDENT_SHARE_OF_GPU = 0.25
"""Features up to this size, or this share of a GPU's memory, are held on the device; of larger ones, only rows that are
asked for are read and sent."""
READ_AT_ONCE = 2**16
"""Rows of what is to be held, so that the host needs no room for the whole."""


class Rows(Protocol):
    """A table of features [V+1, F] that gives rows; a tensor is one, and so is a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(V+1, F)."""

    def __getitem__(self, items: Tensor, /) -> Tensor:
        """Rows [..., F] of items on the CPU."""


class AttachedFeatures:
    """Features [V+1, F] of a Domain, which all towers of a model share: what is held on a device lies there once."""

    def __init__(self, rows: Rows) -> None:
        """Rows that are no tensor are read as a whole, when they are first used, if they fit the device."""
        self._rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(V+1, F)."""
        return self._rows.shape

    def __getitem__(self, items: Tensor) -> Tensor:
        """Rows [..., F] of items on the CPU."""
        return self._rows[items]

    def principal_axes(self) -> Tensor:
        """Orthonormal [F, F]: the direction that the rows share most is the first, and so on (no mean is taken off)."""
        products = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
        for part in torch.split(torch.arange(self.shape[0]), READ_AT_ONCE):
            rows = self._rows[part].cpu().double()
            products += rows.T @ rows
        axes = torch.linalg.eigh(products).eigenvectors.T.flip(0)
        # Which of its two ends a direction points to is left to the library.
        longest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        same_ends: Tensor = (axes * longest.sign()).float()
        return same_ends

    def of(self, items: Tensor, like: Tensor) -> Tensor:
        """Rows [..., F] of items, where `like` lies and in its precision."""
        if not isinstance(self._rows, Tensor):
            if 4 * self.shape[0] * self.shape[1] > resident_bytes(like.device):
                return self._rows[items.cpu()].to(like)
            held = like.new_empty(self.shape)
            for part in torch.split(torch.arange(self.shape[0]), READ_AT_ONCE):
                held[part[0] : part[-1] + 1] = self._rows[part].to(like)
            self._rows = held
        self._rows = self._rows.to(like)
        return functional.embedding(items, self._rows)


def resident_bytes(device: torch.device) -> int:
    """Size of the largest features that are held on a device."""
    if device.type != "cuda":
        return RESIDENT_BYTES
    return max(RESIDENT_BYTES, int(RESIDENT_SHARE_OF_GPU * torch.cuda.get_device_properties(device).total_memory))


class Items(nn.Module, ABC):
    """Item vectors [..., D'] from indices (0: padding, a zero vector)."""

    def attach(self, features: Rows) -> None:
        """Use the features [V + 1, F] of a Domain; row 0 is padding and must be zero. A table of IDs has none."""

    @property
    @abstractmethod
    def num_items(self) -> int:
        """V, the size of the catalogue."""


class IdItems(Items):
    """Item vectors from a trainable table, one row per item of a Domain.

    With `table.sparse`, the gradient of the table holds only the rows that were read.
    """

    def __init__(self, num_items: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items + 1, hidden_size, padding_idx=0)
        nn.init.trunc_normal_(self.table.weight, std=0.02)
        with torch.no_grad():
            self.table.weight[0].zero_()
        # Not a buffer: it is of a training, and not of the model.
        self.trained: Tensor | None = None
        """Bool [V + 1]: items that a training sequence holds; the others have no vector, and none is learnt."""

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self.table.num_embeddings - 1

    def forward(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of the items with these indices (0: padding, a zero vector)."""
        if self.trained is not None:
            self.trained = self.trained.to(indices.device)
            indices = indices * self.trained[indices]
        vectors: Tensor = self.table(indices)
        return vectors


class FeatureItems(Items):
    """Item vectors from frozen features, through a projection that transfers between Domains.

    The features belong to a Domain, not to the model: attach them with `attach`; they are not saved.
    """

    features: AttachedFeatures | None

    def __init__(self, feature_size: int, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(feature_size, hidden_size, bias=False)
        self.hidden_size = hidden_size
        # Orthogonal: before any training, similar features already give similar item vectors.
        nn.init.orthogonal_(self.projection.weight)
        # Not a buffer: data parallelism sends buffers from rank 0 to the others at every step.
        self.features = None

    def attach(self, features: Rows) -> None:
        """Use the features [V+1, F] of a Domain; row 0 is padding and must be zero."""
        if features.shape[1] != self.projection.in_features:
            raise BivrecError(
                f"features have {features.shape[1]} dimensions, the tower reads {self.projection.in_features}; "
                "encode the Domain with the tower's encoders and modalities"
            )
        self.features = features if isinstance(features, AttachedFeatures) else AttachedFeatures(features)

    @torch.no_grad()
    def project_along(self, axes: Tensor) -> None:
        """Start from the first D of the axes [F, F], turned at random, in place of D random directions."""
        for block in self.projection.weight.view(-1, self.hidden_size, len(axes)):
            turn = nn.init.orthogonal_(torch.empty(self.hidden_size, self.hidden_size))
            block.copy_(turn @ axes[: self.hidden_size])

    def copy(self) -> FeatureItems:
        """The same projection with weights of its own, on the same features."""
        outputs, inputs = self.projection.weight.shape
        other = FeatureItems(inputs, outputs)
        other.load_state_dict(self.state_dict())
        other.features = self.features
        return other

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self._attached().shape[0] - 1

    def forward(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of the items with these indices (0: padding, a zero vector)."""
        vectors: Tensor = self.projection(self.feature_rows(indices))
        return vectors

    def feature_rows(self, indices: Tensor) -> Tensor:
        """Features [..., F] of the items with these indices, where the projection lies."""
        return self._attached().of(indices, self.projection.weight)

    def _attached(self) -> AttachedFeatures:
        if self.features is None:
            raise BivrecError("the multimodal tower has no item features yet; attach those of a Domain first")
        return self.features


class JointItems(Items):
    """The sum of an item's ID vector and its projected features.

    That is what a linear map of the two side by side gives, whose part for the ID vector is absorbed by the table.
    """

    def __init__(self, identity: IdItems, content: FeatureItems) -> None:
        super().__init__()
        self.identity = identity
        self.content = content

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self.identity.num_items

    def attach(self, features: Rows) -> None:
        """Use the features [V+1, F] of a Domain; row 0 is padding and must be zero."""
        self.content.attach(features)

    def forward(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of the items with these indices (0: padding, a zero vector)."""
        vectors: Tensor = self.identity(indices) + self.content(indices)
        return vectors
