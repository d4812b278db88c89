import math

import pytest
import torch
from tiny_models import randomised
from torch import Tensor

from bivrec.model.cross_view import CrossViewProjection, allocation_loss, contrastive_loss

WIDTH = 6
SCALE = torch.tensor(5.0, dtype=torch.float64)


def unit_rows(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def whole_batch_loss(id_view: Tensor, mm_view: Tensor, users: list[int]) -> Tensor:
    return contrastive_loss(id_view, mm_view, id_view, mm_view, torch.tensor(users), first_row=0, scale=SCALE)


def slow_info_nce(id_view: Tensor, mm_view: Tensor) -> float:
    """Eq. 14-16 for distinct users, user by user, in both directions."""
    losses = []
    for anchors, others in ((id_view, mm_view), (mm_view, id_view)):
        for u in range(len(anchors)):
            exponentials = [math.exp(SCALE.item() * (anchors[u] @ other).item()) for other in others]
            losses.append(-math.log(exponentials[u] / sum(exponentials)))
    return sum(losses) / len(losses)


# Coarse (Eq. 13-16)


def test_a_user_is_a_unit_vector_of_the_pooled_interests() -> None:
    projection = randomised(CrossViewProjection(WIDTH, 3))
    interests = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    for view in ("id", "mm"):
        shares = [math.exp(logit) for logit in projection.pooling[view].tolist()]
        first, _, second = projection.projection[view]
        found = projection(view, interests)
        for user in range(4):
            pooled = sum(share / sum(shares) * interests[user, k] for k, share in enumerate(shares))
            inner = first.weight @ pooled + first.bias
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            outer = second.weight @ inner + second.bias
            torch.testing.assert_close(found[user], outer / outer.norm())


def test_pooling_starts_as_the_mean_and_the_temperature_at_0_07() -> None:
    projection = CrossViewProjection(WIDTH, 4)
    assert projection.pooling["id"].softmax(0).tolist() == pytest.approx([0.25] * 4)
    assert 1 / projection.scale().item() == pytest.approx(0.07)


@pytest.mark.parametrize("far", [-30.0, 0.0, 6.0])
def test_the_temperature_is_learnable_and_bounded(far: float) -> None:
    projection = CrossViewProjection(WIDTH, 4)
    parameter = next(value for name, value in projection.named_parameters() if "scale" in name)
    with torch.no_grad():
        parameter.fill_(far)
    projection.scale().backward()
    assert 0 < projection.scale().item() <= 100
    assert parameter.grad > 0, "a bound that holds the temperature for ever"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_contrastive_loss_is_symmetric_info_nce(count: int) -> None:
    id_view, mm_view = unit_rows(count, 1), unit_rows(count, 2)
    loss = whole_batch_loss(id_view, mm_view, list(range(count)))
    assert loss.item() == pytest.approx(slow_info_nce(id_view, mm_view), rel=1e-5, abs=1e-7)
    assert loss.item() == pytest.approx(whole_batch_loss(mm_view, id_view, list(range(count))).item(), rel=1e-6)


@pytest.mark.parametrize("users", [[7, 3, 9, 3], [7, 3, 9, 7, 7], [7, 7, 3, 9]])
def test_a_repeated_user_counts_once(users: list[int]) -> None:
    """Rows of a user repeat neither the user's term nor the negatives; only the first row is read."""
    id_view, mm_view = unit_rows(len(users), 3), unit_rows(len(users), 4)
    first = [row for row, user in enumerate(users) if user not in users[:row]]
    loss = whole_batch_loss(id_view, mm_view, users)
    assert loss.item() == pytest.approx(slow_info_nce(id_view[first], mm_view[first]), rel=1e-5)


def test_one_user_alone_has_nothing_to_tell_apart() -> None:
    id_view, mm_view = unit_rows(3, 5).requires_grad_(True), unit_rows(3, 6)
    loss = whole_batch_loss(id_view, mm_view, [4, 4, 4])
    loss.backward()
    assert loss.item() == 0
    assert id_view.grad.isfinite().all()


def test_matching_views_have_the_lower_loss() -> None:
    rows, users = unit_rows(6, 7), list(range(6))
    assert whole_batch_loss(rows, rows, users) < whole_batch_loss(rows, rows.roll(1, 0), users)


def test_the_order_of_users_does_not_matter() -> None:
    id_view, mm_view = unit_rows(5, 8), unit_rows(5, 9)
    order = [2, 4, 0, 3, 1]
    expected = whole_batch_loss(id_view, mm_view, [0, 1, 2, 3, 4]).item()
    assert whole_batch_loss(id_view[order], mm_view[order], order).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("users", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 1, 4, 0], [3, 3, 3, 3, 3, 1]])
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_processes_average_to_the_loss_of_the_global_batch(users: list[int], processes: int) -> None:
    id_view, mm_view = unit_rows(6, 10), unit_rows(6, 11)
    size = 6 // processes
    shares = [
        contrastive_loss(
            id_view[first : first + size],
            mm_view[first : first + size],
            id_view,
            mm_view,
            torch.tensor(users),
            first_row=first,
            scale=SCALE,
        ).item()
        for first in range(0, 6, size)
    ]
    assert sum(shares) / processes == pytest.approx(whole_batch_loss(id_view, mm_view, users).item(), rel=1e-6)


# Fine (Eq. 17-18)


def slow_allocation_loss(id_allocation: Tensor, mm_allocation: Tensor) -> float:
    total = 0.0
    for a, b in zip(id_allocation.flatten(0, 1), mm_allocation.flatten(0, 1), strict=True):
        norms = math.sqrt((a @ a).item() * (b @ b).item())
        total += (a @ b).item() / norms if norms else 0.0
    return -total / len(id_allocation)


@pytest.mark.parametrize("soft", [False, True])
def test_allocation_loss_is_minus_the_summed_row_cosines(soft: bool) -> None:
    generator = torch.Generator().manual_seed(12)
    id_allocation, mm_allocation = (torch.rand(3, 4, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    if not soft:
        id_allocation, mm_allocation = (id_allocation > 0.6).double(), (mm_allocation > 0.6).double()
        id_allocation[0, 1] = 0
        mm_allocation[1, 2] = 0
    loss = allocation_loss(id_allocation, mm_allocation)
    assert loss.item() == pytest.approx(slow_allocation_loss(id_allocation, mm_allocation))


def test_equal_allocations_have_the_least_loss() -> None:
    allocation = torch.eye(4).repeat(1, 2).expand(3, 4, 8)
    assert allocation_loss(allocation, allocation).item() == pytest.approx(-4)
    assert allocation_loss(allocation, allocation.roll(1, 1)).item() == pytest.approx(0)


def test_an_empty_row_counts_nothing_and_pulls_nowhere() -> None:
    id_allocation = torch.tensor([[[1.0, 0, 1], [0, 0, 0], [0, 0, 0]]], requires_grad=True)
    mm_allocation = torch.tensor([[[1.0, 0, 0], [0, 1, 1], [0, 0, 0]]], requires_grad=True)
    loss = allocation_loss(id_allocation, mm_allocation)
    loss.backward()
    assert loss.item() == pytest.approx(-1 / math.sqrt(2))
    assert id_allocation.grad[0, 1:].count_nonzero() == 0
    assert mm_allocation.grad[0, 1:].count_nonzero() == 0
    assert id_allocation.grad[0, 0].count_nonzero() > 0
