"""Whitening of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

# Share of the mean variance that is added to every direction, so that directions of (almost) no variance,
# which are noise or, with fewer items than dimensions, empty, are not blown up.
SHRINKAGE = 1e-3


def whiten(features: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """Float32 [n, d] with mean zero and, up to the shrinkage, identity covariance over the rows (ZCA whitening).

    ZCA is the whitening closest to the input (Kessy et al., "Optimal Whitening and Decorrelation", 2018): the axes
    keep their meaning, so a tower meets about the same axes in another domain, whereas those of PCA whitening are
    the domain's own.
    """
    centred = features.double()
    centred = centred - centred.mean(dim=0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / max(len(centred) - 1, 1))
    floor = shrinkage * variance.mean().clamp_min(torch.finfo(torch.float64).tiny)
    scale = (variance.clamp_min(0) + floor).rsqrt()
    white: Tensor = centred @ (axes * scale) @ axes.T
    return white.float()
