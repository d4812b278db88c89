"""Paired significance, held against scipy and against slow loops."""

import numpy as np
import pytest
from scipy import stats

from bivrec.studies.significance import holm, paired_bootstrap, paired_tests

USERS = 400


def recalls(*means: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Recalls of users who are hard or easy for every system alike."""
    generator = np.random.default_rng(seed)
    users = generator.normal(size=USERS)
    return {f"s{place}": users + mean + generator.normal(size=USERS) for place, mean in enumerate(means)}


def slow_holm(p_values: list[float], tests: int) -> list[float]:
    """Reject the smallest at level a/m, the next at a/(m-1), ...: the least level at which each would be rejected."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    result = {}
    for rank, index in enumerate(order):
        steps = [(tests - earlier) * p_values[order[earlier]] for earlier in range(rank + 1)]
        result[index] = min(1.0, max(steps))
    return [result[index] for index in range(len(p_values))]


def test_the_t_test_is_that_of_scipy_with_holms_correction() -> None:
    systems = recalls(0.0, 0.3, 0.1, 0.25)
    found = paired_tests(systems)
    assert set(found) == {"s0", "s2", "s3"}
    plain = [stats.ttest_rel(systems["s1"], systems[name]).pvalue for name in found]
    assert [p.t_test for p in found.values()] == pytest.approx(slow_holm(plain, tests=4 * 3 // 2))


def test_a_reference_that_was_named_is_tested_against_each_other_one() -> None:
    systems = recalls(0.0, 0.3, 0.1, 0.25)
    found = paired_tests(systems, "s2")
    assert set(found) == {"s0", "s1", "s3"}
    plain = [stats.ttest_rel(systems["s2"], systems[name]).pvalue for name in found]
    assert [p.t_test for p in found.values()] == pytest.approx(slow_holm(plain, tests=3))


def test_a_named_one_of_equals_is_seldom_significant() -> None:
    alarms = 0
    for seed in range(200):
        found = paired_tests(recalls(*[0.0] * 10, seed=seed), "s3", resamples=10)
        alarms += any(p.t_test < 0.05 for p in found.values())
    assert 0 < alarms <= 0.08 * 200


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.2, 0.9], [1e-9, 0.049, 0.05]])
def test_holm(p_values: list[float]) -> None:
    for tests in (len(p_values), 10):
        assert holm(p_values, tests) == pytest.approx(slow_holm(p_values, tests))


def test_the_best_of_equals_is_seldom_significant() -> None:
    """It is the best by chance, and tested for that."""
    alarms = 0
    for seed in range(200):
        found = paired_tests(recalls(*[0.0] * 10, seed=seed), resamples=10)
        alarms += any(p.t_test < 0.05 for p in found.values())
    assert alarms <= 0.06 * 200


@pytest.mark.parametrize("shift", [0.02, 0.08, 0.12])
def test_the_bootstrap_agrees_with_the_normal_approximation(shift: float) -> None:
    differences = np.random.default_rng(1).normal(size=USERS)
    differences += shift - differences.mean()
    error = differences.std() / np.sqrt(USERS)
    expected = 2 * stats.norm.sf(shift / error)
    assert paired_bootstrap(differences[:, None]) == pytest.approx([expected], abs=0.02)
    # A lead and a lag of one size are equally likely by chance.
    assert paired_bootstrap(-differences[:, None]) == pytest.approx([expected], abs=0.02)


def test_the_bootstrap_resamples_users() -> None:
    differences = np.random.default_rng(2).normal(0.2, size=(7, 2))
    generator = np.random.default_rng(0)
    means = np.array([differences[generator.integers(7, size=7)].mean(0) for _ in range(3000)])
    expected = 2 * np.minimum((means <= 0).mean(0), (means >= 0).mean(0))
    assert paired_bootstrap(differences, 3000) == pytest.approx(expected.clip(max=1.0), abs=0.03)


def test_a_bootstrap_never_claims_more_than_its_resamples_can_tell() -> None:
    assert paired_bootstrap(np.ones((50, 1)), 99) == [pytest.approx(2 / 100)]


def test_pairs_matter() -> None:
    systems = recalls(0.0, 0.3)
    shuffled = systems | {"s0": np.random.default_rng(3).permutation(systems["s0"])}
    assert paired_tests(systems)["s0"].t_test < paired_tests(shuffled)["s0"].t_test


def test_systems_that_are_equal_do_not_differ() -> None:
    same = recalls(0.0)["s0"]
    (found,) = paired_tests({"one": same, "other": same.copy()}).values()
    assert (found.t_test, found.bootstrap) == (1.0, 1.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("users", [2, 4, 60])
@pytest.mark.parametrize("lead", [1.0, 0.1])
def test_two_users_prove_little(users: int, lead: float) -> None:
    """One lead for all has no variance, which would make it certain; users of no preference agree as often as coins."""
    systems = {"best": lead + np.linspace(0, 0.5, users), "other": np.linspace(0, 0.5, users)}
    (found,) = paired_tests(systems, resamples=999).values()
    expected = stats.binomtest(users, users).pvalue
    assert (found.t_test, found.bootstrap) == pytest.approx((expected, max(expected, 2 / 1000)))


@pytest.mark.parametrize("systems", [{"alone": np.ones(9)}, {"a": np.ones(1), "b": np.zeros(1)}])
def test_nothing_to_test(systems: dict[str, np.ndarray]) -> None:
    assert paired_tests(systems) == {}


def test_the_same_twice() -> None:
    assert paired_tests(recalls(0.0, 0.1, 0.12)) == paired_tests(recalls(0.0, 0.1, 0.12))
