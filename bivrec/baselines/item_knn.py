"""Item-based nearest neighbours (Sarwar et al., WWW 2001), the floor that a neural model has to beat."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bivrec.baselines.interactions import user_item_matrix
from bivrec.data.domain import Domain

MOST_NEIGHBOURS, MOST_PAIRS = 4000, 200_000_000
"""Of an item, and of all together, which take 20 bytes each."""
_BLOCK = 1024


class ItemKNN:
    """Scores an item by the sum of its cosine similarities to the items of the history, or one that favours recent
    items.

    Two items are similar if the same training users have them, however often. An item is no neighbour of itself; an
    item that the history holds twice counts twice.
    """

    def __init__(self, similarities: Tensor, max_history: int = 50, decay: float = 0.0) -> None:
        """similarities: sparse float32 [V + 1, V + 1]; row i holds the neighbours of item i.

        decay: rate at which the weight of a history item falls with its age in items; 0 weighs all alike.
        """
        self._decay = decay
        self.num_items = len(similarities) - 1
        self.max_history = max_history
        self._similarities = similarities

    @classmethod
    def fit(
        cls, domain: Domain, max_neighbours: int | None = None, max_history: int = 50, decay: float = 0.0
    ) -> ItemKNN:
        """Cosines between the items of a Domain over its training users, of each item the nearest `max_neighbours`.

        None: MOST_NEIGHBOURS, or as many as come to MOST_PAIRS together. Similarities are made in blocks of items.
        """
        if max_neighbours is None:
            max_neighbours = min(MOST_NEIGHBOURS, max(1, MOST_PAIRS // domain.num_items))
        by_user = user_item_matrix(domain)
        by_item = by_user.t().coalesce()
        inverse_norms = torch.sparse.sum(by_item, 1).to_dense().clamp(min=1).rsqrt()
        blocks = [
            _block_cosines(by_item, by_user, inverse_norms, first, max_neighbours)
            for first in range(0, len(by_item), _BLOCK)
        ]
        pairs, cosines = torch.cat([pairs for pairs, _ in blocks], 1), torch.cat([cosines for _, cosines in blocks])
        size = (domain.num_items + 1, domain.num_items + 1)
        return cls(_sparse(pairs, cosines, size).coalesce(), max_history, decay)

    def encode(self, histories: Tensor) -> Tensor:
        """Scores of the whole catalogue, float32 [B, V + 1]."""
        users, places = histories.nonzero(as_tuple=True)
        pairs = torch.stack([users, histories[users, places]])
        weights = torch.exp(-self._decay * (histories.shape[1] - 1 - places))
        wanted = _sparse(pairs, weights, (len(histories), self.num_items + 1))
        return _product(wanted.coalesce(), self._similarities).to_dense()

    def score(self, users: Tensor, first: int, last: int) -> Tensor:
        """[B, last - first]."""
        return users[:, first:last]


def _block_cosines(
    by_item: Tensor, by_user: Tensor, inverse_norms: Tensor, first: int, max_neighbours: int
) -> tuple[Tensor, Tensor]:
    """Pairs [2, P] of an item in first..first+_BLOCK-1 and a neighbour of it, and their cosines [P]."""
    last = min(first + _BLOCK, len(by_item))
    begin, end = torch.searchsorted(by_item.indices()[0].contiguous(), torch.tensor([first, last])).tolist()
    offset = torch.tensor([[first], [0]])
    block = _sparse(by_item.indices()[:, begin:end] - offset, by_item.values()[begin:end], (last - first, len(by_user)))
    common = _product(block, by_user).coalesce()
    pairs = common.indices() + offset
    cosines = common.values() * inverse_norms[pairs].prod(0)
    kept = ((pairs[0] != pairs[1]) & (cosines > 0)).nonzero().squeeze(1)
    kept = kept[_nearest(pairs[0, kept] - first, cosines[kept], last - first, max_neighbours)]
    return pairs[:, kept], cosines[kept]


def _nearest(rows: Tensor, cosines: Tensor, num_rows: int, max_neighbours: int) -> Tensor:
    """Places of the `max_neighbours` largest cosines of each row; ties keep their order."""
    counts = torch.bincount(rows, minlength=num_rows)
    if counts.max() <= max_neighbours:
        return torch.arange(len(rows))
    order = cosines.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rank = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < max_neighbours]


def _sparse(indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=False)


def _product(left: Tensor, right: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # On some machines torch multiplies sparse matrices as CSR, which it still calls beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        product: Tensor = torch.sparse.mm(left, right)
    return product
