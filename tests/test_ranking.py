import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError
from bivrec.evaluation.metrics import METRICS
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate, evaluate_each, recommend_users, top_k, top_k_of_each, write_per_user

NUM_ITEMS = 101


class DotScorer:
    """Mean of the history's vectors, dot product. Small integers make sums exact, so no order is left to rounding."""

    def __init__(self, num_items=NUM_ITEMS, max_history=5, levels=1000):
        generator = torch.Generator().manual_seed(0)
        self.num_items = num_items
        self.max_history = max_history
        self.table = torch.randint(-levels, levels + 1, (num_items + 1, 4), generator=generator).float()
        self.table[0] = 0

    def encode(self, histories):
        return self.table[histories].sum(1)

    def score(self, users, first, last):
        return users @ self.table[first:last].T


class GivenScores:
    """Scores that do not depend on the history; the last dimension is the item, from 1."""

    max_history = None

    def __init__(self, scores):
        self.scores = torch.as_tensor(scores)
        self.num_items = self.scores.shape[1]

    def encode(self, histories):
        return self.scores[: len(histories)]

    def score(self, users, first, last):
        return users[:, first - 1 : last - 1]


class Several:
    """Scorers that share nothing."""

    def __init__(self, *scorers):
        self.scorers = scorers
        self.num_items, self.max_history = scorers[0].num_items, scorers[0].max_history

    def __len__(self):
        return len(self.scorers)

    def encode(self, histories):
        return [scorer.encode(histories) for scorer in self.scorers]

    def score(self, users, first, last):
        return (scorer.score(own, first, last) for scorer, own in zip(self.scorers, users, strict=True))


def make_users(num_users=70, num_items=NUM_ITEMS, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 30, num_users)
    items = generator.integers(1, num_items + 1, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = [f"u{user}" for user in range(num_users)]
    return EvaluationUsers.from_sequences(Sequences(offsets, items, np.zeros(len(items), np.int64), ids))


def slow_top_k(scores, k, excluded=()):
    candidates = [item for item in range(1, len(scores) + 1) if item not in excluded]
    best = sorted(candidates, key=lambda item: (-scores[item - 1], item))[:k]
    return best + [0] * (k - len(best))


@pytest.fixture
def items_at_once(request, monkeypatch):
    monkeypatch.setattr("bivrec.evaluation.ranking.ITEMS_AT_ONCE", request.param)


@pytest.mark.parametrize("items_at_once", [1, 7, 10, 11, 50, 101, 1000], indirect=True)
@pytest.mark.parametrize("levels", [0, 1, 1000])
@pytest.mark.usefixtures("items_at_once")
def test_top_k_equals_a_full_sort_however_many_items_are_scored_at_once(levels):
    # levels=0: all tie; 1: nearly all tie.
    scorer = DotScorer(levels=levels)
    histories = make_users().histories(0, 40, 5)
    items, scores = top_k(scorer, histories, 10)
    everything = scorer.encode(histories) @ scorer.table[1:].T
    assert items.tolist() == [slow_top_k(row, 10) for row in everything.tolist()]
    assert scores.equal(everything.gather(1, items - 1))


@pytest.mark.parametrize("items_at_once", [7, 50, 1000], indirect=True)
@pytest.mark.usefixtures("items_at_once")
def test_several_scorers_at_once_rank_as_each_alone():
    # The last one leaves most to the order of ties.
    scorers = [DotScorer(), GivenScores(torch.rand(40, NUM_ITEMS)), DotScorer(levels=1)]
    histories = make_users().histories(0, 40, 5)
    together = top_k_of_each(Several(*scorers), histories, 10)
    for scorer, (items, scores) in zip(scorers, together, strict=True):
        expected_items, expected_scores = top_k(scorer, histories, 10)
        assert items.equal(expected_items)
        assert scores.equal(expected_scores)


@pytest.mark.parametrize("items_at_once", range(1, 9), indirect=True)
@pytest.mark.usefixtures("items_at_once")
def test_ties_go_to_the_lowest_item_across_stretches():
    scores = [[1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 2.0]]
    items, _ = top_k(GivenScores(scores), torch.ones(1, 1, dtype=torch.int64), 5)
    assert items.tolist() == [[2, 4, 6, 8, 1]]


def test_padding_changes_no_recommendation():
    scorer = DotScorer()
    histories = make_users().histories(0, 40, 5)
    padded = torch.nn.functional.pad(histories, (9, 0))
    assert top_k(scorer, padded, 10)[0].equal(top_k(scorer, histories, 10)[0])


@pytest.mark.parametrize("items_at_once", [4], indirect=True)
@pytest.mark.usefixtures("items_at_once")
def test_item_0_is_never_recommended_and_short_lists_end_with_it():
    scorer = DotScorer(num_items=6)
    # Every item scores below the padding item's 0.
    scorer.table[1:] = -1
    scorer.encode = lambda histories: torch.ones(len(histories), 4)
    histories = torch.ones(1, 1, dtype=torch.int64)
    items, scores = top_k(scorer, histories, 8, exclude=torch.tensor([[0, 2, 2]]))
    assert items.tolist() == [[1, 3, 4, 5, 6, 0, 0, 0]]
    assert scores[0, 5:].eq(-torch.inf).all()


def test_a_list_is_no_longer_than_the_catalogue():
    """However long it may be: memory for it could not be had."""
    scorer, users = DotScorer(), make_users()
    ks = (10, NUM_ITEMS, 10**15)
    for result in (evaluate(scorer, users, ks), *evaluate_each(Several(scorer, scorer), users, ks)):
        assert result.recommended.shape == (len(users), NUM_ITEMS)
        for metric in METRICS:
            assert result.metrics[f"{metric}@{10**15}"] == result.metrics[f"{metric}@{NUM_ITEMS}"]
        assert result.metrics[f"recall@{NUM_ITEMS}"] == 1 > result.metrics["recall@10"]


@pytest.mark.parametrize("items_at_once", [13, 1000], indirect=True)
@pytest.mark.usefixtures("items_at_once")
def test_remove_seen_masks_the_whole_history_not_only_what_is_read():
    scorer, users = DotScorer(max_history=2), make_users()
    recommended = recommend_users(scorer, users, 20, remove_seen=True, user_chunk=16)
    everything = scorer.encode(users.histories(0, len(users), 2)) @ scorer.table[1:].T
    seen = users.seen(0, len(users)).tolist()
    assert max(map(len, seen)) > 2
    expected = [slow_top_k(row, 20, set(excluded)) for row, excluded in zip(everything.tolist(), seen, strict=True)]
    assert recommended.tolist() == expected


@pytest.mark.parametrize("user_chunk", [1, 9, 64, 1000])
@pytest.mark.parametrize("items", [17, 1000])
def test_how_many_are_scored_at_once_changes_no_result(user_chunk, items, monkeypatch):
    scorer, users = DotScorer(), make_users()
    expected = evaluate(scorer, users, (5, 10))
    monkeypatch.setattr("bivrec.evaluation.ranking.ITEMS_AT_ONCE", items)
    result = evaluate(scorer, users, (5, 10), user_chunk=user_chunk)
    assert result.metrics == expected.metrics
    assert list(expected.metrics) == [f"{name}@{k}" for k in (5, 10) for name in METRICS]
    for name, values in expected.per_user.items():
        np.testing.assert_array_equal(result.per_user[name], values)


def test_a_planted_answer_is_found():
    users = make_users(num_users=30)
    offsets, targets = users.targets()
    scores = np.zeros((len(users), NUM_ITEMS), np.float32)
    scores[np.repeat(np.arange(len(users)), np.diff(offsets)), targets - 1] = 1
    result = evaluate(GivenScores(scores), users, (50,))
    assert result.metrics == dict.fromkeys(("recall@50", "ndcg@50", "ndcg_hits@50", "hr@50", "mrr@50"), 1.0)
    assert evaluate(GivenScores(-scores), users, (50,)).metrics["hr@50"] == 0.0
    assert len(result.per_user["hr@50"]) == len(users) == 30 - users.skipped < 30


def _evaluate_in_a_process(folder):
    # Threads do not survive the fork, and an Accelerator of an earlier test would be taken for this process's own.
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    generator = torch.Generator().manual_seed(0)
    scorer = DotScorer()
    scorer.table = torch.randn(NUM_ITEMS + 1, 4, generator=generator)
    users = make_users()
    recommended = recommend_users(scorer, users, 20, user_chunk=16, accelerator=accelerator)
    result = evaluate(scorer, users, (10, 20), user_chunk=16, accelerator=accelerator)
    first, second = evaluate_each(Several(scorer, DotScorer()), users, (10,), user_chunk=16, accelerator=accelerator)
    each = {"first": first.per_user["recall@10"], "second": second.per_user["recall@10"]}
    np.savez(f"{folder}/{accelerator.process_index}.npz", recommended=recommended, **result.per_user, **each)


def test_two_processes_give_exactly_the_result_of_one(tmp_path):
    debug_launcher(_evaluate_in_a_process, (str(tmp_path),))
    generator = torch.Generator().manual_seed(0)
    scorer = DotScorer()
    scorer.table = torch.randn(NUM_ITEMS + 1, 4, generator=generator)
    users = make_users()
    expected = evaluate(scorer, users, (10, 20), user_chunk=16).per_user
    expected["first"] = expected["recall@10"]
    expected["second"] = evaluate(DotScorer(), users, (10,), user_chunk=16).per_user["recall@10"]
    expected["recommended"] = recommend_users(scorer, users, 20, user_chunk=16)
    for process in range(2):
        result = np.load(tmp_path / f"{process}.npz")
        assert sorted(result) == sorted(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(result[name], values)


def test_nan_scores_are_refused():
    scores = torch.rand(40, NUM_ITEMS)
    scores[3, 60] = torch.nan
    with pytest.raises(BivrecError, match="not numbers"):
        evaluate(GivenScores(scores), make_users(num_users=30), (5,))


def test_nobody_to_evaluate_is_an_error():
    users = EvaluationUsers.from_sequences(
        Sequences(np.array([0, 1]), np.array([1], np.int32), np.zeros(1, np.int64), ["a"])
    )
    with pytest.raises(BivrecError, match="all 1 users"):
        evaluate(DotScorer(), users)
    with pytest.raises(BivrecError, match="all 1 users"):
        evaluate_each(Several(DotScorer()), users)


def test_k_below_1_is_an_error():
    with pytest.raises(BivrecError, match="k = 0"):
        evaluate(DotScorer(), make_users(), (10, 0))


def test_per_user_results_as_parquet(tmp_path):
    users = make_users()
    result = evaluate(DotScorer(), users, (5,))
    write_per_user(tmp_path / "users.parquet", users, result)
    table = pq.read_table(tmp_path / "users.parquet")
    assert table.column_names == ["user_id", *result.metrics]
    assert table["user_id"].to_pylist() == users.user_ids
    np.testing.assert_array_equal(table["recall@5"].to_numpy(), result.per_user["recall@5"])
