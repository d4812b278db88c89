"""Vectors of items from who had what: a truncated singular value decomposition, without training."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from bivrec.baselines.interactions import user_item_matrix
from bivrec.data.domain import Domain

POWER_ITERATIONS = 6
OVERSAMPLING = 16


def spectral_vectors(domain: Domain, size: int, seed: int = 0) -> Tensor:
    """Vectors [V + 1, D] of length 1 that lie near to each other where the same training users had the items.

    The right singular vectors, times the singular values, of the matrix of users and items whose entry is
    1 / sqrt(items of the user x users of the item) where the user had the item, and 0 elsewhere. Randomised, with power
    iterations (Halko et al. 2011, algorithm 4.4). Padding, and items that no training user had, are zero.
    """
    had = user_item_matrix(domain)
    users, items = had.indices()
    num_items, num_users = torch.bincount(users), torch.bincount(items, minlength=had.shape[1])
    entries = (num_items[users] * num_users[items]).rsqrt()
    matrix = torch.sparse_coo_tensor(had.indices(), entries, had.shape, is_coalesced=True, check_invariants=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        by_user, by_item = matrix.to_sparse_csr(), matrix.t().coalesce().to_sparse_csr()
        width = min(size + OVERSAMPLING, *had.shape)
        basis = torch.randn(had.shape[1], width, generator=torch.Generator().manual_seed(seed))
        for _ in range(POWER_ITERATIONS):
            basis = torch.linalg.qr(by_item @ (by_user @ basis)).Q
        reduced = by_user @ basis
    squares, rotation = torch.linalg.eigh(reduced.T @ reduced)
    largest_first = (basis @ rotation * squares.clamp(min=0).sqrt()).flip(1)[:, :size]
    vectors = functional.normalize(functional.pad(largest_first, (0, size - largest_first.shape[1])), dim=1)
    # Of an item that nobody had, rounding errors are left, which would have become a vector too.
    return vectors * (num_users > 0).unsqueeze(1)
