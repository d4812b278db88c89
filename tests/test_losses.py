import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bivrec.training import losses
from bivrec.training.losses import Repeats, softmax_loss

ROWS, WIDTH, CATALOGUE = 9, 5, 11
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
"""Logits are float32 whatever goes in."""

SCORINGS = ("target-interest", "best-interest", "all-interests")
all_scorings = pytest.mark.parametrize("scored_by", SCORINGS)
interest_counts = pytest.mark.parametrize("count", [1, 3])


Gain = tuple[Repeats, Tensor] | tuple[None, None]
"""Where scores gain, and how much."""
NO_GAIN: Gain = (None, None)


def random_problem(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Interests [R, K, D], targets [R] with repetitions, and the catalogue [V, D], in float64."""
    generator = torch.Generator().manual_seed(count)
    interests = torch.randn(ROWS, count, WIDTH, dtype=torch.float64, generator=generator)
    catalogue = torch.randn(CATALOGUE, WIDTH, dtype=torch.float64, generator=generator)
    targets = torch.randint(CATALOGUE, (ROWS,), generator=generator)
    return interests.requires_grad_(True), targets, catalogue.requires_grad_(True)


def full_softmax_loss(
    interests: Tensor, targets: Tensor, catalogue: Tensor, scored_by: str, gain: Gain = NO_GAIN
) -> Tensor:
    return softmax_loss(interests, catalogue[targets], catalogue, targets, scored_by, None, *gain)


def random_gain(targets: Tensor) -> Gain:
    """Rows are read after positions 0 to 3 of four sequences; some of the items came later, or never (4)."""
    generator = torch.Generator().manual_seed(8)
    since = torch.randint(-1, 5, (4, CATALOGUE), dtype=torch.int32, generator=generator)
    sequence, position = torch.randint(4, (2, ROWS), generator=generator)
    bias = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    return Repeats(since, sequence, position, since[sequence, targets] <= position), bias


def slow_loss(interests: Tensor, targets: Tensor, catalogue: Tensor, scored_by: str, gain: Gain = NO_GAIN) -> Tensor:
    """Eq. 19-21 row by row and item by item, with autograd."""
    total = interests.new_zeros(())
    repeats, bias = gain
    for row, target in enumerate(targets.tolist()):
        scores = [[v @ x for x in catalogue] for v in interests[row]]
        nearest = max(range(len(scores)), key=lambda k: scores[k][target].item())
        logits = {}
        for item in range(len(catalogue)):
            of_item = torch.stack([of_interest[item] for of_interest in scores])
            if scored_by == "all-interests":
                logits[item] = of_item.exp().sum().log()
            else:
                logits[item] = of_item[nearest] if scored_by == "target-interest" else of_item.max()
            if repeats is not None and repeats.since[repeats.sequence[row], item] <= repeats.position[row]:
                logits[item] = logits[item] + bias
        total = total - (logits[target] - torch.stack(list(logits.values())).exp().sum().log())
    return total


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return (loss.detach().double(), *torch.autograd.grad(loss, leaves))


@all_scorings
@interest_counts
@pytest.mark.parametrize("logits_per_chunk", [1, 3 * CATALOGUE, 7 * CATALOGUE, 2**20])
@pytest.mark.parametrize("repeated", [False, True])
def test_full_softmax_has_the_value_and_gradients_of_autograd(
    monkeypatch: pytest.MonkeyPatch, scored_by: str, count: int, logits_per_chunk: int, repeated: bool
) -> None:
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", logits_per_chunk)
    interests, targets, catalogue = random_problem(count)
    gain = random_gain(targets) if repeated else NO_GAIN
    leaves = (interests, catalogue, gain[1]) if repeated else (interests, catalogue)
    found = full_softmax_loss(interests, targets, catalogue, scored_by, gain)
    expected = slow_loss(interests, targets, catalogue, scored_by, gain)
    torch.testing.assert_close(
        value_and_gradients(found, *leaves),
        value_and_gradients(expected, *leaves),
        **TOLERANCE,
    )


@all_scorings
def test_full_softmax_passes_on_the_gradient_from_above(scored_by: str) -> None:
    interests, targets, catalogue = random_problem(3)
    loss = full_softmax_loss(interests, targets, catalogue, scored_by)
    once = torch.autograd.grad(loss, (interests, catalogue), retain_graph=True)
    scaled = torch.autograd.grad(-2.5 * loss, (interests, catalogue))
    for a, b in zip(once, scaled, strict=True):
        torch.testing.assert_close(-2.5 * a, b)


@all_scorings
def test_full_softmax_of_large_scores_is_finite(scored_by: str) -> None:
    interests, targets, catalogue = random_problem(3)
    loss = full_softmax_loss(1e4 * interests, targets, catalogue, scored_by)
    assert all(part.isfinite().all() for part in value_and_gradients(loss, interests, catalogue))


@all_scorings
def test_a_single_item_has_no_loss(scored_by: str) -> None:
    interests = torch.randn(4, 2, WIDTH)
    assert full_softmax_loss(
        interests, torch.zeros(4, dtype=torch.long), torch.randn(1, WIDTH), scored_by
    ).item() == pytest.approx(0, abs=1e-5)


def test_all_scorings_agree_with_one_interest() -> None:
    interests, targets, catalogue = random_problem(1)
    first, *others = (full_softmax_loss(interests, targets, catalogue, scored_by) for scored_by in SCORINGS)
    assert all(torch.equal(other, first) for other in others)


@interest_counts
def test_a_candidate_scored_by_its_own_interest_weighs_more(count: int) -> None:
    interests, targets, catalogue = random_problem(count)
    own, nearest = (
        full_softmax_loss(interests, targets, catalogue, by).item() for by in ("best-interest", "target-interest")
    )
    assert own >= nearest - 1e-5


# Sampled


def random_sample() -> tuple[Tensor, Tensor]:
    """Candidates, some of them targets of rows, and the logarithm of each item's inclusion probability."""
    generator = torch.Generator().manual_seed(6)
    return torch.randperm(CATALOGUE, generator=generator)[:6], torch.rand(CATALOGUE, generator=generator).log()


@all_scorings
@interest_counts
def test_sampled_softmax_follows_the_equations(scored_by: str, count: int) -> None:
    interests, targets, catalogue = random_problem(count)
    candidates, log_inclusion = random_sample()
    is_target = targets.unsqueeze(1) == candidates
    assert is_target.any()
    expected = 0.0
    for row, target in enumerate(targets.tolist()):
        scores = (interests[row] @ catalogue.T).tolist()
        nearest = max(range(count), key=lambda k: scores[k][target])

        def score(item: int, scores: list[list[float]] = scores, nearest: int = nearest) -> float:
            if scored_by == "all-interests":
                return math.log(sum(math.exp(scores[k][item]) for k in range(count)))
            return scores[nearest][item] if scored_by == "target-interest" else max(s[item] for s in scores)

        shown = [target, *(c for c in candidates.tolist() if c != target)]
        total = sum(math.exp(score(item) - log_inclusion[item].item()) for item in shown)
        expected -= score(target) - log_inclusion[target].item() - math.log(total)
    hits = torch.where(is_target.any(1), is_target.int().argmax(1), len(candidates))
    found = softmax_loss(
        interests,
        catalogue[targets],
        catalogue[candidates],
        hits,
        scored_by,
        (log_inclusion[targets], log_inclusion[candidates]),
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)


@all_scorings
@interest_counts
@pytest.mark.parametrize("logits_per_chunk", [1, 3 * CATALOGUE, 2**20])
def test_sampled_softmax_has_the_gradients_of_autograd(
    monkeypatch: pytest.MonkeyPatch, scored_by: str, count: int, logits_per_chunk: int
) -> None:
    """A sample of all items but the first in another order; the target is scored even if it is not among them."""
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", logits_per_chunk)
    interests, targets, catalogue = random_problem(count)
    candidates = torch.arange(CATALOGUE - 1, 0, -1)
    log_inclusion = torch.rand(CATALOGUE, generator=torch.Generator().manual_seed(4)).log()
    found = softmax_loss(
        interests,
        catalogue[targets],
        catalogue[candidates],
        CATALOGUE - 1 - targets,
        scored_by,
        (log_inclusion[targets], log_inclusion[candidates]),
    )
    expected = interests.new_zeros(())
    for row, target in enumerate(targets.tolist()):
        own = interests[row] @ catalogue.T
        if scored_by == "target-interest":
            own = own[own[:, target].argmax()].unsqueeze(0)
        scores = (own.logsumexp(0) if scored_by == "all-interests" else own.amax(0)) - log_inclusion
        unseen = torch.arange(CATALOGUE) == 0
        shown = scores.masked_fill(unseen & (torch.arange(CATALOGUE) != target), -torch.inf)
        expected = expected + shown.logsumexp(0) - scores[target]
    torch.testing.assert_close(
        value_and_gradients(found, interests, catalogue),
        value_and_gradients(expected, interests, catalogue),
        **TOLERANCE,
    )


@all_scorings
def test_accidental_hits_have_no_influence(scored_by: str) -> None:
    interests, targets, catalogue = random_problem(3)

    def loss(second: Tensor) -> Tensor:
        candidates = torch.stack([catalogue[0], second])
        return softmax_loss(interests, catalogue[targets], candidates, torch.ones_like(targets), scored_by)

    assert torch.equal(loss(catalogue[1]), loss(1e3 * catalogue[2]))


@all_scorings
def test_a_row_whose_only_candidate_is_its_target_has_no_loss(scored_by: str) -> None:
    interests, targets, catalogue = random_problem(2)
    loss = softmax_loss(interests, catalogue[targets], catalogue[:1], torch.zeros_like(targets), scored_by)
    assert loss.item() == 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (interests, catalogue)))


@all_scorings
def test_in_half_precision_the_softmax_is_float32(scored_by: str) -> None:
    """Of scores that half precision holds exactly, the loss is exact too."""
    generator = torch.Generator().manual_seed(3)
    catalogue = torch.randint(0, 128, (CATALOGUE, 1), generator=generator) / 16
    interests = torch.ones(ROWS, 1, 1)
    targets = torch.randint(CATALOGUE, (ROWS,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = full_softmax_loss(interests, targets, catalogue, scored_by)
    expected = torch.nn.functional.cross_entropy(catalogue.T.expand(ROWS, -1), targets, reduction="sum")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@all_scorings
def test_in_half_precision_gradients_are_summed_over_chunks_in_full(
    monkeypatch: pytest.MonkeyPatch, scored_by: str
) -> None:
    """Readers that agree push the candidates one way, so a sum in bfloat16 would stop growing."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(16, generator=generator)
    interests = common + 0.3 * torch.randn(1500, 2, 16, generator=generator)
    catalogue = torch.randn(40, 16, generator=generator, requires_grad=True)
    targets = torch.randint(40, (1500,), generator=generator)
    expected = torch.autograd.grad(full_softmax_loss(interests, targets, catalogue, scored_by), catalogue)[0]
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 2 * 2 * 40)
    with torch.autocast("cpu", torch.bfloat16):
        projected = functional.linear(catalogue, torch.eye(16))
        loss = full_softmax_loss(interests, targets, projected, scored_by)
    assert projected.dtype == torch.bfloat16
    found = torch.autograd.grad(loss, catalogue)[0]
    assert (found - expected).norm() < 0.02 * expected.norm()
