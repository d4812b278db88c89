"""Whether one system's lead over each other one is more than chance: paired tests over users."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bivrec.errors import not_installed
from bivrec.evaluation.metrics import PerUser

RESAMPLES = 10_000
_DRAWS_AT_ONCE = 2**24


@dataclass(frozen=True)
class PValues:
    """Probabilities, were there no difference, of one at least as large; corrected for the number of tests."""

    t_test: float
    bootstrap: float


def check_libraries(names: Sequence[str]) -> None:
    """Raise BivrecError if a library of comparisons is missing: better before the work than after."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        raise not_installed(" and ".join(absent), "compare")


def paired_tests(
    systems: Mapping[str, PerUser], reference: str | None = None, resamples: int = RESAMPLES
) -> dict[str, PValues]:
    """P-values of the difference in means between one system and each other one, two-sided, paired over users.

    systems: name -> a metric of each user [U], the users in one order (of several seeds: the mean over seeds).
    The t-test is Student's for pairs; the bootstrap resamples users (Efron & Tibshirani 1993, chapter 15), from a
    fixed seed. Both are corrected by Holm's method: over the other systems if the one to be tested, `reference`, was
    named before anything was measured; else it is the best, and since any of them might have been that, over all pairs.
    The one that is tested is not in the result.
    """
    tested = reference or max(systems, key=lambda name: systems[name].mean())
    others = [name for name in systems if name != tested]
    if not others or len(systems[tested]) < 2:
        return {}
    differences = np.stack([systems[tested] - systems[name] for name in others], axis=1)
    pairs = len(others) if reference else len(systems) * (len(systems) - 1) // 2
    t_tests, bootstraps = (holm(p, pairs) for p in (_t_test(differences), paired_bootstrap(differences, resamples)))
    return {name: PValues(t, b) for name, t, b in zip(others, t_tests, bootstraps, strict=True)}


def paired_bootstrap(differences: PerUser, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """Two-sided p-values of the mean of each column of `differences` [U, M] being zero.

    Means of users drawn with replacement; p is twice the share of means on the other side of zero, and never below
    2 / (resamples + 1), since that many resamples cannot tell less, nor below that of `_sign_test`.
    """
    num_users = len(differences)
    generator = np.random.default_rng(seed)
    below = above = np.zeros(differences.shape[1])
    chunk = max(1, _DRAWS_AT_ONCE // num_users)
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        drawn = generator.integers(num_users, size=(count, num_users))
        # The same resample for all columns; how often each user was drawn times the differences is a matrix product.
        rows = np.arange(count)[:, None] * num_users
        times = np.bincount((rows + drawn).ravel(), minlength=count * num_users).reshape(count, num_users)
        means = times @ differences
        below, above = below + (means <= 0).sum(0), above + (means >= 0).sum(0)
    smallest = _sign_test(num_users)
    return [float(min(1.0, max(smallest, 2 * (least + 1) / (resamples + 1)))) for least in np.minimum(below, above)]


def holm(p_values: Sequence[float], tests: int) -> list[float]:
    """Step-down correction (Holm 1979) of some of so many `tests`, in the order of the input.

    Those that are not given are taken to have larger p-values, which can only make these too large.
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (tests - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _t_test(differences: PerUser) -> list[float]:
    from scipy.stats import ttest_rel

    p_values = []
    for column in differences.T:
        # t is not defined without a variance, which differences that are all alike, as those of few users may be, lack.
        if np.allclose(column, column[0]):
            p_values.append(1.0 if np.allclose(column, 0) else _sign_test(len(column)))
        else:
            p_values.append(float(ttest_rel(column, np.zeros_like(column)).pvalue))
    return p_values


def _sign_test(num_users: int) -> float:
    """Two-sided p-value of differences that all have one sign: the least that so many users can tell."""
    return 2.0 ** (1 - num_users)
