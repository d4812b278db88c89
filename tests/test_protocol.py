import numpy as np
import pytest

from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers


def sequences_of(*rows, leave_one_out=False):
    items = np.array([item for row in rows for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    ids = [f"user{row}" for row in range(len(rows))]
    return Sequences(offsets, items, np.zeros(len(items), np.int64), ids, leave_one_out)


@pytest.fixture
def users():
    return EvaluationUsers.from_sequences(
        sequences_of([1, 2, 3, 4, 5, 6, 7], [], [9], [8, 9], [5, 5, 6, 6, 7, 7, 8, 8, 8, 8])
    )


def test_the_first_four_fifths_are_the_history(users):
    assert users.histories(0, 3).tolist() == [
        [0, 0, 0, 1, 2, 3, 4, 5],
        [0, 0, 0, 0, 0, 0, 0, 8],
        [5, 5, 6, 6, 7, 7, 8, 8],
    ]
    offsets, targets = users.targets()
    assert offsets.tolist() == [0, 2, 3, 5]
    assert targets.tolist() == [6, 7, 9, 8, 8]


def test_the_cut_is_comirecs():
    lengths = np.arange(2, 1000)
    users = EvaluationUsers.from_sequences(sequences_of(*(range(1, length + 1) for length in lengths)))
    assert (users.cuts - users.starts).tolist() == [int(length * 0.8) for length in lengths]
    assert (users.starts < users.cuts).all()
    assert (users.cuts < users.ends).all()


def test_leave_one_out_asks_for_the_last_item():
    rows = [range(1, length + 1) for length in (*range(8), 50)]
    users = EvaluationUsers.from_sequences(sequences_of(*rows, leave_one_out=True))
    assert users.skipped == 2
    assert users.user_ids == [f"user{row}" for row in range(2, 9)]
    offsets, targets = users.targets()
    assert offsets.tolist() == list(range(8))
    assert targets.tolist() == [2, 3, 4, 5, 6, 7, 50]
    assert users.histories(0, 2).tolist() == [[0, 1], [1, 2]]
    assert users.seen(6, 7).tolist() == [list(range(1, 50))]
    assert users.cold_start(1).histories(0, 7).tolist() == [[1], [2], [3], [4], [5], [6], [49]]


def test_users_without_history_or_target_are_skipped_and_counted(users):
    assert len(users) == 3
    assert users.skipped == 2
    assert users.user_ids == ["user0", "user3", "user4"]


def test_a_model_reads_its_most_recent_items_only(users):
    assert users.histories(0, 3, max_history=3).tolist() == [[3, 4, 5], [0, 0, 8], [7, 8, 8]]
    assert users.histories(1, 2, max_history=3).tolist() == [[8]]
    assert users.histories(0, 3, max_history=0).shape == (3, 0)


def test_cold_start_keeps_the_last_items_and_changes_neither_targets_nor_seen_items(users):
    cold = users.cold_start(2)
    assert cold.histories(0, 3).tolist() == [[4, 5], [0, 8], [8, 8]]
    assert cold.histories(0, 3, max_history=1).tolist() == [[5], [8], [8]]
    for cold_part, part in zip(cold.targets(), users.targets(), strict=True):
        np.testing.assert_array_equal(cold_part, part)
    assert cold.seen(0, 3).equal(users.seen(0, 3))
    assert cold.seen(0, 1).tolist() == [[1, 2, 3, 4, 5]]


def test_cold_start_needs_an_item(users):
    with pytest.raises(BivrecError, match="last 0 items"):
        users.cold_start(0)


def test_a_split_without_users():
    users = EvaluationUsers.from_sequences(sequences_of())
    assert len(users) == 0
    assert users.targets()[0].tolist() == [0]
