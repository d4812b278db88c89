"""Metrics of a ranked list against a set of relevant items, one value per user.

`hits` is bool [U, K]: whether the item at each rank (best first) is one of the user's targets; `num_targets` is int64
[U], the number of *distinct* targets, at least 1. All results are float64 [U] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Hits = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
PerUser = npt.NDArray[np.float64]


def find_hits(recommended: Counts, target_offsets: Counts, targets: Counts) -> tuple[Hits, Counts]:
    """Compare ranked lists with targets; returns `hits` [U, K] and `num_targets` [U].

    recommended: [U, K] item indices, best first, none twice; 0 where the list ended early, which is never a hit.
    target_offsets: [U + 1]; targets: [T] item indices of user u at offsets[u]..offsets[u + 1]; repeats count once.
    """
    num_users, num_ranks = recommended.shape
    stride = 1 + max(recommended.max(initial=0), targets.max(initial=0))
    owner = np.repeat(np.arange(num_users, dtype=np.int64), np.diff(target_offsets))
    relevant = np.unique(owner * stride + targets)
    keys = np.arange(num_users, dtype=np.int64)[:, None] * stride + recommended
    hits = np.isin(keys, relevant) & (recommended > 0)
    return hits.reshape(num_users, num_ranks), np.bincount(relevant // stride, minlength=num_users)


def recall(hits: Hits, num_targets: Counts, k: int) -> PerUser:
    """Hits in the first k over the number of distinct targets."""
    return np.asarray(hits[:, :k].sum(1) / num_targets)


def hit_rate(hits: Hits, num_targets: Counts, k: int) -> PerUser:
    """1 if any of the first k is a hit."""
    return np.asarray(hits[:, :k].any(1), dtype=np.float64)


def ndcg(hits: Hits, num_targets: Counts, k: int) -> PerUser:
    """Standard nDCG with binary relevance: the ideal list has min(k, num_targets) hits."""
    return np.asarray(_dcg(hits, k) / _ideal_dcg(np.minimum(num_targets, k)))


def ndcg_hits(hits: Hits, num_targets: Counts, k: int) -> PerUser:
    """ComiRec's nDCG (Cen et al., KDD 2020, their code): the ideal list has as many hits as were found; 0 for none.

    Only the order of the found items counts, so it lies far above `ndcg`; the BiVRec paper's tables report this one.
    """
    found = hits[:, :k].sum(1)
    return np.asarray(_dcg(hits, k) / _ideal_dcg(np.maximum(found, 1)))


def mrr(hits: Hits, num_targets: Counts, k: int) -> PerUser:
    """Reciprocal rank of the first hit among the first k; 0 for none."""
    top = hits[:, :k]
    return np.asarray(top.any(1) / (1 + top.argmax(1)))


METRICS: dict[str, Callable[[Hits, Counts, int], PerUser]] = {
    "recall": recall,
    "ndcg": ndcg,
    "ndcg_hits": ndcg_hits,
    "hr": hit_rate,
    "mrr": mrr,
}


def ranking_metrics(hits: Hits, num_targets: Counts, ks: Sequence[int]) -> dict[str, PerUser]:
    """Every metric at every k, as {"recall@20": [U], ...}."""
    return {f"{name}@{k}": metric(hits, num_targets, k) for k in ks for name, metric in METRICS.items()}


def _discounts(length: int) -> PerUser:
    return 1.0 / np.log2(np.arange(2, length + 2))


def _dcg(hits: Hits, k: int) -> PerUser:
    top = hits[:, :k]
    return np.asarray((top * _discounts(top.shape[1])).sum(1))


def _ideal_dcg(num_hits: Counts) -> PerUser:
    return np.asarray(np.cumsum(_discounts(int(num_hits.max(initial=1))))[num_hits - 1])
