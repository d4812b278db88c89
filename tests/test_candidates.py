import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bivrec.config import ObjectiveConfig
from bivrec.training.candidates import Candidates, CandidateSampler
from bivrec.training.losses import softmax_loss

NUM_ITEMS = 40
SHARES = np.array([0, *range(2 * NUM_ITEMS, NUM_ITEMS, -1)]) / sum(range(2 * NUM_ITEMS, NUM_ITEMS, -1))
TARGETS = torch.tensor([[3, 9], [0, 3], [7, 39]])


def make_sampler(kind: str, num_negatives: int = 16, seed: int = 0) -> CandidateSampler:
    config = ObjectiveConfig(candidates=kind, num_negatives=num_negatives)
    return CandidateSampler(config, NUM_ITEMS, seed, SHARES)


def draw(sampler: CandidateSampler, step: int, targets: torch.Tensor = TARGETS) -> Candidates:
    candidates = sampler.draw(step, targets)
    assert candidates is not None
    return candidates


def test_the_full_catalogue_needs_no_sample() -> None:
    assert make_sampler("full").draw(0, TARGETS) is None


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("num_negatives", [1, 16, 200])
def test_items_are_drawn_as_often_as_stated(kind: str, num_negatives: int) -> None:
    sampler = make_sampler(kind, num_negatives)
    draws = 2000
    seen = np.zeros(NUM_ITEMS + 1)
    for step in range(draws):
        items = draw(sampler, step).items.numpy()
        assert len(np.unique(items)) == len(items)
        seen[items] += 1
    assert seen[0] == 0
    stated = draw(sampler, 0).log_inclusion.double().exp().numpy()
    deviation = np.sqrt(draws * stated * (1 - stated))
    # Five deviations, and one for the items that are all but certain.
    assert (np.abs(seen - draws * stated)[1:] <= 5 * deviation[1:] + 1).all()


@pytest.mark.parametrize("num_negatives", [1, 50])
def test_popularity_is_log_uniform_over_the_rank(num_negatives: int) -> None:
    stated = draw(make_sampler("popularity", num_negatives), 0).log_inclusion
    for rank in range(1, NUM_ITEMS + 1):
        probability = math.log((rank + 1) / rank) / math.log(NUM_ITEMS + 1)
        assert stated[rank].item() == pytest.approx(math.log(1 - (1 - probability) ** num_negatives), rel=1e-4)


def test_an_item_that_is_every_last_target_is_surely_in_the_batch() -> None:
    shares = np.zeros(NUM_ITEMS + 1)
    # As sums of many shares come out.
    shares[1] = 1 + 1e-15
    sampler = CandidateSampler(ObjectiveConfig(candidates="in-batch"), NUM_ITEMS, 0, shares)
    stated = draw(sampler, 0, torch.ones(3, 1, dtype=torch.long)).log_inclusion
    assert stated.isfinite().all()
    assert stated[1] == 0


def test_in_batch_candidates_are_the_last_targets() -> None:
    candidates = draw(make_sampler("in-batch"), 0)
    assert candidates.items.tolist() == [3, 9, 39]


def test_in_batch_targets_are_as_frequent_as_in_training() -> None:
    shares = np.array([0.0, 0.6, 0.3, 0.1, 0.0])
    sampler = CandidateSampler(ObjectiveConfig(candidates="in-batch"), 4, 0, shares)
    stated = draw(sampler, 0, torch.tensor([[1], [2]])).log_inclusion
    assert stated.isfinite().all()
    for item, share in enumerate([0.6, 0.3, 0.1], start=1):
        assert stated[item].item() == pytest.approx(math.log(1 - (1 - share) ** 2), rel=1e-4)
    assert stated[4] < stated[3]


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_sample_is_a_function_of_seed_and_step(kind: str) -> None:
    """So all processes draw the same candidates, whatever their targets are, and a resumed run does too."""
    once, again = make_sampler(kind), make_sampler(kind)
    for step in (5, 0, 3):
        draw(once, step)
    expected = draw(again, 5).items
    assert torch.equal(draw(once, 5).items, expected)
    assert torch.equal(draw(once, 5, TARGETS[1:] + 1).items, expected)
    assert not torch.equal(draw(once, 6).items, expected)
    assert not torch.equal(draw(make_sampler(kind, seed=1), 5).items, expected)


def hits(targets: Tensor, candidates: Tensor) -> Tensor:
    """Where each target is among the candidates; their number, if it is not."""
    is_target = targets.unsqueeze(1) == candidates
    return torch.where(is_target.any(1), is_target.int().argmax(1), len(candidates))


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("scored_by", ["target-interest", "best-interest", "all-interests"])
def test_a_large_sample_gives_the_full_softmax(kind: str, scored_by: str) -> None:
    generator = torch.Generator().manual_seed(1)
    interests = torch.randn(8, 3, 4, generator=generator)
    catalogue = torch.randn(NUM_ITEMS + 1, 4, generator=generator)
    targets = torch.tensor([1, 1, 2, 5, 17, 30, 39, 40])
    candidates = draw(make_sampler(kind, num_negatives=20_000), 0)
    sampled = softmax_loss(
        interests,
        catalogue[targets],
        catalogue[candidates.items],
        hits(targets, candidates.items),
        scored_by,
        (candidates.log_inclusion[targets], candidates.log_inclusion[candidates.items]),
    )
    full = softmax_loss(interests, catalogue[targets], catalogue[1:], targets - 1, scored_by)
    torch.testing.assert_close(sampled, full, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("num_negatives", [8, 64])
def test_the_correction_leaves_the_true_distribution_the_best(kind: str, num_negatives: int) -> None:
    """At scores log P the expected gradient is zero, be the likely items frequent in the sample or rare."""
    occurrences = {1: 18, 30: 18, 2: 1, 10: 1, 20: 1, 40: 1}
    targets = torch.tensor([item for item, count in occurrences.items() for _ in range(count)])
    probability = targets.bincount(minlength=NUM_ITEMS + 1) / len(targets)
    scores = probability.clamp(min=1e-9).log().requires_grad_(True)
    sampler = make_sampler(kind, num_negatives)
    total, steps = torch.zeros(()), 2000
    for step in range(steps):
        candidates = draw(sampler, step)
        total = total + softmax_loss(
            torch.ones(len(targets), 1, 1),
            scores[targets, None],
            scores[candidates.items, None],
            hits(targets, candidates.items),
            "best-interest",
            (candidates.log_inclusion[targets], candidates.log_inclusion[candidates.items]),
        )
    (gradient,) = torch.autograd.grad(total / (len(targets) * steps), scores)
    assert gradient.abs().max() < 0.02
