"""Whitening of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

SHRINKAGE = 30.0
"""Soft: whitened fully, the directions that say little weigh as much as those that say much, and a tower that is
narrower than its features keeps a random part of them (pretrain/ablations.md has the measurements)."""
LEAST_SHRINKAGE = 1e-9
"""Less would divide the rounding errors of empty directions by themselves."""
ROWS_AT_ONCE = 65536
"""That are held in float64: all of a large catalogue would be many times its features."""


def whiten(features: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """Float32 [n, d] with mean zero and, up to the shrinkage, identity covariance over the rows (ZCA whitening).

    `shrinkage` is the share of the mean variance that every direction is given before all are scaled to one variance,
    so a direction of the mean variance comes out with variance 1. Near 0 whitens fully; the larger it is, the more the
    directions of much variance stay ahead, until it only centres, and scales all directions alike.

    ZCA is the whitening closest to the input (Kessy et al., "Optimal Whitening and Decorrelation", 2018): the axes
    keep their meaning, so a tower meets about the same axes in another domain, whereas those of PCA whitening are
    the domain's own.
    """
    parts = torch.split(features, ROWS_AT_ONCE)
    width = features.shape[1]
    mean, products = (torch.zeros(shape, dtype=torch.float64) for shape in ((width,), (width, width)))
    for part in parts:
        mean += part.sum(0, dtype=torch.float64) / len(features)
    for part in parts:
        centred = part.double() - mean
        products += centred.T @ centred
    variance, axes = torch.linalg.eigh(products / max(len(features) - 1, 1))
    floor = max(shrinkage, LEAST_SHRINKAGE) * variance.mean().clamp_min(torch.finfo(torch.float64).tiny)
    scale = (1 + shrinkage) ** 0.5 * (variance.clamp_min(0) + floor).rsqrt()
    white = torch.empty(features.shape)
    for part, into in zip(parts, torch.split(white, ROWS_AT_ONCE), strict=True):
        into.copy_((part.double() - mean) @ (axes * scale) @ axes.T)
    return white
