import numpy as np
import pytest

from bivrec.evaluation.metrics import find_hits, ndcg_hits, ranking_metrics

KS = (1, 5, 10, 30)


@pytest.fixture(scope="module")
def rankings():
    """Random rankings of 30 out of 60 items, some ended early, and 1-25 targets per user with repeats."""
    generator = np.random.default_rng(0)
    recommended = np.argsort(generator.random((200, 60)), axis=1)[:, :30] + 1
    recommended[:20, 12:] = 0
    lengths = generator.integers(1, 26, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return recommended, offsets, generator.integers(1, 61, offsets[-1])


def test_standard_metrics_equal_ranx(rankings, monkeypatch):
    # ranx compiles for half a minute, longer than its pure Python takes here.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    ranx = pytest.importorskip("ranx")
    recommended, offsets, targets = rankings
    users = range(len(recommended))
    qrels = ranx.Qrels({f"{u:03}": {str(i): 1 for i in targets[offsets[u] : offsets[u + 1]]} for u in users})
    run = ranx.Run({f"{u:03}": {str(i): -float(r) for r, i in enumerate(recommended[u]) if i} for u in users})
    ours = ranking_metrics(*find_hits(*rankings), KS)
    names = {"recall": "recall", "ndcg": "ndcg", "hr": "hit_rate", "mrr": "mrr"}
    expected = ranx.evaluate(qrels, run, [f"{ranxs}@{k}" for ranxs in names.values() for k in KS], return_mean=False)
    for name, theirs in names.items():
        for k in KS:
            np.testing.assert_allclose(
                ours[f"{name}@{k}"], expected[f"{theirs}@{k}"], atol=1e-12, err_msg=f"{name}@{k}"
            )


def test_ndcg_hits_equals_a_slow_loop(rankings):
    recommended, offsets, targets = rankings
    hits, num_targets = find_hits(*rankings)
    for k in KS:
        expected = []
        for user, ranked in enumerate(recommended):
            relevant = set(targets[offsets[user] : offsets[user + 1]].tolist())
            found = [rank for rank, item in enumerate(ranked[:k].tolist(), 1) if item in relevant]
            gain = sum(1 / np.log2(rank + 1) for rank in found)
            ideal = sum(1 / np.log2(rank + 1) for rank in range(1, len(found) + 1))
            expected.append(gain / ideal if found else 0.0)
        np.testing.assert_allclose(ndcg_hits(hits, num_targets, k), expected, atol=1e-12)


def test_values_worked_out_by_hand():
    # Targets 7 and 3 (given twice); 3 is found at rank 2.
    hits, num_targets = find_hits(np.array([[5, 3, 9]]), np.array([0, 3]), np.array([3, 7, 3]))
    values = {name: float(value[0]) for name, value in ranking_metrics(hits, num_targets, (3,)).items()}
    second = 1 / np.log2(3)
    assert values == pytest.approx(
        {"recall@3": 0.5, "ndcg@3": second / (1 + second), "ndcg_hits@3": second, "hr@3": 1.0, "mrr@3": 0.5}, abs=1e-12
    )


def test_a_list_that_ended_early_hits_nothing_at_its_end():
    hits, _ = find_hits(np.array([[4, 0, 0], [0, 0, 0]]), np.array([0, 1, 2]), np.array([4, 4]))
    assert hits.tolist() == [[True, False, False], [False, False, False]]


def test_a_hit_counts_only_for_its_own_user():
    hits, num_targets = find_hits(np.array([[1, 2], [1, 2]]), np.array([0, 1, 3]), np.array([2, 1, 5]))
    assert hits.tolist() == [[False, True], [True, False]]
    assert num_targets.tolist() == [1, 2]
