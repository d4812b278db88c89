from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from bivrec.data import batches
from bivrec.data.batches import Batch, BatchSampler
from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError

LENGTHS = [2, 9, 3, 30, 1, 5, 12, 2, 7, 4, 6]
"""User `u` has the items 100 u + 1, 100 u + 2, ..., so an item tells its user and its place."""


TENSORS = ("users", "history", "positions", "targets", "earlier")


def make_sequences(lengths: list[int] = LENGTHS) -> Sequences:
    items = [100 * user + place + 1 for user, length in enumerate(lengths) for place in range(length)]
    return Sequences(
        offsets=np.cumsum([0, *lengths]),
        items=np.array(items, dtype=np.int32),
        timestamps=np.arange(len(items)),
        user_ids=[str(user) for user in range(len(lengths))],
    )


def make_sampler(lengths: list[int] = LENGTHS, **changes: Any) -> BatchSampler:
    settings = {"batch_size": 4, "max_history": 6, "min_history": 1, "targets_per_sequence": 1}
    settings |= {"whole_history": False, "seed": 0}
    return BatchSampler(make_sequences(lengths), **{**settings, **changes})


def assert_equal(one: Batch, other: Batch) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


every_target_count = pytest.mark.parametrize("targets_per_sequence", [1, 2, 4, None])


# What a batch holds


@every_target_count
@pytest.mark.parametrize("min_history", [1, 3])
@pytest.mark.parametrize("max_history", [1, 6, 50])
def test_a_history_is_the_stretch_right_before_its_target(
    targets_per_sequence: int | None, min_history: int, max_history: int
) -> None:
    sampler = make_sampler(
        targets_per_sequence=targets_per_sequence, min_history=min_history, max_history=max(min_history, max_history)
    )
    for step in range(40):
        batch = sampler.batch(step)
        columns = batch.history.shape[1]
        assert columns <= max(min_history, max_history)
        assert batch.positions[-1] == columns - 1
        for user, history, targets in zip(batch.users.tolist(), batch.history, batch.targets, strict=True):
            last = targets[-1].item() - 100 * user
            assert min_history < last <= LENGTHS[user]
            stretch = [100 * user + place if place >= 1 else 0 for place in range(last - columns, last + 1)]
            assert history.tolist() == stretch[:-1]
            for position, target in zip(batch.positions.tolist(), targets.tolist(), strict=True):
                follower = stretch[position + 1]
                items_before = follower - 100 * user - 1
                assert target == (follower if items_before >= min_history else 0)


@every_target_count
@pytest.mark.parametrize("part", [0, 1])
def test_history_and_what_came_earlier_are_all_before_the_target(targets_per_sequence: int | None, part: int) -> None:
    sampler = make_sampler(targets_per_sequence=targets_per_sequence, whole_history=True)
    found = 0
    for step in range(40):
        batch = sampler.batch(step, part, parts=2)
        found += batch.earlier.shape[1]
        for row, (user, history, targets) in enumerate(zip(batch.users, batch.history, batch.targets, strict=True)):
            earlier = batch.earlier[1, batch.earlier[0] == row].tolist()
            before = [*earlier, *(item for item in history.tolist() if item)]
            assert before == list(range(100 * user + 1, int(targets[-1])))
    assert found


def test_what_came_earlier_is_given_on_request_alone() -> None:
    assert make_sampler(max_history=1).batch(0).earlier.shape == (2, 0)


def test_tensors_are_indices() -> None:
    batch = make_sampler(targets_per_sequence=None).batch(0)
    assert {getattr(batch, name).dtype for name in TENSORS} == {torch.int64}
    assert_equal(batch, batch.to(torch.device("cpu")))


def test_no_column_is_padding_alone() -> None:
    for step in range(20):
        assert (make_sampler(max_history=50).batch(step).history > 0).any(0).all()


@pytest.mark.parametrize("max_history", [1, 6, 50])
def test_many_targets_take_the_longest_stretch(max_history: int) -> None:
    sampler = make_sampler(targets_per_sequence=None, max_history=max_history)
    for step in range(20):
        batch = sampler.batch(step)
        for user, history in zip(batch.users.tolist(), batch.history, strict=True):
            assert history.count_nonzero() == min(max_history, LENGTHS[user] - 1)


@pytest.mark.parametrize("min_history", [1, 4])
def test_every_place_is_a_target_equally_often(min_history: int) -> None:
    sampler = make_sampler([13], batch_size=1, min_history=min_history)
    seen = Counter(sampler.batch(step).targets.item() for step in range(3000))
    assert sorted(seen) == list(range(min_history + 1, 14))
    expected = 3000 / (13 - min_history)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in seen.values())


def test_positions_are_drawn_anew_for_every_step() -> None:
    sampler = make_sampler([40, 40], batch_size=2, max_history=10, targets_per_sequence=3)
    drawn = [tuple(sampler.batch(step).positions.tolist()) for step in range(100)]
    assert all(len(set(positions)) == 3 and list(positions) == sorted(positions) for positions in drawn)
    assert {position for positions in drawn for position in positions} == set(range(10))


@pytest.mark.parametrize("targets_per_sequence", [10, 11, None])
def test_all_positions_are_targets(targets_per_sequence: int | None) -> None:
    sampler = make_sampler([40], batch_size=1, max_history=10, targets_per_sequence=targets_per_sequence)
    assert sampler.batch(0).positions.tolist() == list(range(10))


@every_target_count
@pytest.mark.parametrize("min_history", [1, 4])
def test_last_targets_are_as_frequent_as_stated(
    monkeypatch: pytest.MonkeyPatch, targets_per_sequence: int | None, min_history: int
) -> None:
    """Users are drawn alike, however long their sequences are."""
    monkeypatch.setattr(batches, "USERS_AT_ONCE", 3)
    sampler = make_sampler(targets_per_sequence=targets_per_sequence, min_history=min_history, max_history=6)
    num_items = 100 * len(LENGTHS)
    stated = sampler.last_target_shares(num_items)
    assert stated.sum() == pytest.approx(1)
    steps = 4000
    drawn = np.concatenate([sampler.batch(step).targets[:, -1].numpy() for step in range(steps)])
    counts = np.bincount(drawn, minlength=num_items + 1)
    deviation = np.sqrt(len(drawn) * stated * (1 - stated))
    assert (np.abs(counts - len(drawn) * stated) <= 5 * deviation + 1).all()


# Who is drawn


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23])
@pytest.mark.parametrize("min_history", [1, 4])
def test_each_epoch_visits_each_user_once_and_short_ones_never(batch_size: int, min_history: int) -> None:
    sampler = make_sampler(batch_size=batch_size, min_history=min_history)
    users = [user for user, length in enumerate(LENGTHS) if length > min_history]
    epochs = 3
    steps = -(-epochs * len(users) // batch_size)
    drawn = [user for step in range(steps) for user in sampler.batch(step).users.tolist()]
    orders = [drawn[epoch * len(users) : (epoch + 1) * len(users)] for epoch in range(epochs)]
    assert all(sorted(order) == users for order in orders)
    assert orders[0] != orders[1]


def test_a_training_set_without_long_enough_users_is_refused() -> None:
    with pytest.raises(BivrecError, match=r"more than 4 items.*min_history"):
        make_sampler([2, 3, 4], min_history=4)


# Purity


@every_target_count
def test_a_batch_is_a_function_of_seed_and_step(targets_per_sequence: int | None) -> None:
    straight, jumping = (make_sampler(targets_per_sequence=targets_per_sequence) for _ in range(2))
    expected = [straight.batch(step) for step in range(12)]
    for step in (7, 0, 11, 3, 7):
        assert_equal(jumping.batch(step), expected[step])
    other = make_sampler(targets_per_sequence=targets_per_sequence, seed=1)
    assert any(not torch.equal(other.batch(step).users, expected[step].users) for step in range(12))


def test_the_state_of_numpy_and_torch_is_neither_read_nor_changed() -> None:
    expected = make_sampler().batch(2)
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert_equal(make_sampler().batch(2), expected)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


@every_target_count
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_parts_make_up_the_global_batch(targets_per_sequence: int | None, parts: int) -> None:
    sampler = make_sampler(batch_size=8, targets_per_sequence=targets_per_sequence)
    for step in range(5):
        whole = sampler.batch(step)
        slices = [sampler.batch(step, part, parts) for part in range(parts)]
        for name in ("users", "history", "targets"):
            assert torch.equal(torch.cat([getattr(part, name) for part in slices]), getattr(whole, name)), name
        assert all(torch.equal(part.positions, whole.positions) for part in slices)
