import math
from typing import Any

import pytest
import torch
from tiny_models import randomised
from torch import Tensor

from bivrec.model.clustering import InterestClustering, gumbel_noise, keep_largest

WIDTH = 6
INTERESTS = 4


def make_stage(**changes: Any) -> InterestClustering:
    settings = {
        "interests_per_item": 1,
        "assignment": "softmax-hard",
        "temperature": 1.0,
        "aggregation": "mean",
        "free": True,
    }
    return randomised(InterestClustering(WIDTH, INTERESTS, **{**settings, **changes}), scale=0.4).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 7, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)


def gather(stage: InterestClustering, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Interests [B, K, D] of one reader who counts every real token once, and the allocation.

    The content of a token is minus its vector, which only interests that are not free may read.
    """
    interests, _, allocation = stage(tokens, -tokens, mask, mask[:, None, None, :].to(tokens.dtype))
    return interests[:, 0], allocation


def slow_allocation(stage: InterestClustering, tokens: Tensor, mask: Tensor) -> list[list[float]]:
    """Eq. 7-10 for one history without noise: the share [K][M] of each token in each interest."""
    shares = [[0.0] * len(tokens) for _ in range(INTERESTS)]
    for m in range(len(tokens)):
        if not mask[m]:
            continue
        key = stage.key.weight @ tokens[m]
        affinity = [(stage.query.weight @ c @ key).item() / math.sqrt(WIDTH) for c in stage.interests]
        exponentials = [math.exp(a / stage.temperature) for a in affinity]
        soft = [e / sum(exponentials) for e in exponentials]
        largest = sorted(range(INTERESTS), key=lambda k: -soft[k])[: stage.interests_per_item]
        for k in range(INTERESTS):
            shares[k][m] = soft[k] if stage.assignment == "softmax-soft" else float(k in largest)
    return shares


def slow_interests(stage: InterestClustering, tokens: Tensor, shares: list[list[float]]) -> list[Tensor]:
    """Eq. 12: v_k = c_k + W_a (A W_v x), as a mean or as a sum."""
    interests = []
    for k in range(INTERESTS):
        total = torch.zeros(WIDTH, dtype=torch.float64)
        for m, share in enumerate(shares[k]):
            total = total + share * (stage.value.weight @ tokens[m])
        if stage.aggregation == "mean" and sum(shares[k]) > 0:
            total = total / sum(shares[k])
        interests.append(stage.interests[k] + stage.output.weight @ total)
    return interests


@pytest.mark.parametrize("assignment", ["gumbel-hard", "softmax-hard", "softmax-soft"])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize("interests_per_item", [1, 2])
def test_a_stage_follows_the_equations(
    assignment: str, temperature: float, aggregation: str, interests_per_item: int, tokens: Tensor, mask: Tensor
) -> None:
    stage = make_stage(
        assignment=assignment,
        temperature=temperature,
        aggregation=aggregation,
        interests_per_item=interests_per_item,
    )
    interests, allocation = gather(stage, tokens, mask)
    for row in range(len(tokens)):
        shares = slow_allocation(stage, tokens[row], mask[row])
        torch.testing.assert_close(allocation[row].double(), torch.tensor(shares).double(), atol=1e-6, rtol=1e-5)
        expected = torch.stack(slow_interests(stage, tokens[row], shares))
        torch.testing.assert_close(interests[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, INTERESTS])
def test_each_real_token_belongs_to_as_many_interests_as_allowed(count: int, tokens: Tensor, mask: Tensor) -> None:
    stage = make_stage(assignment="gumbel-hard", interests_per_item=count).train()
    allocation = stage.allocate(tokens, mask)
    assert set(allocation.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(allocation.sum(1), count * mask.to(allocation.dtype))


def test_an_interest_without_tokens_is_its_trained_vector(tokens: Tensor, mask: Tensor) -> None:
    stage = make_stage()
    interests, allocation = gather(stage, tokens, mask)
    empty = allocation.sum(-1) == 0
    assert empty.any()
    torch.testing.assert_close(interests[empty], stage.interests.expand_as(interests)[empty])


def test_the_mean_does_not_grow_with_the_history_and_the_sum_does(tokens: Tensor) -> None:
    token = tokens[:1, :1]
    once, thrice = (torch.ones(1, n, dtype=torch.bool) for n in (1, 3))
    mean, total = make_stage(aggregation="mean"), make_stage(aggregation="sum")
    torch.testing.assert_close(gather(mean, token.expand(-1, 3, -1), thrice)[0], gather(mean, token, once)[0])
    grown = gather(total, token.expand(-1, 3, -1), thrice)[0] - total.interests
    torch.testing.assert_close(grown, 3 * (gather(total, token, once)[0] - total.interests))


def test_the_filter_is_hard_forward_and_soft_backward() -> None:
    generator = torch.Generator().manual_seed(4)
    soft = torch.rand(2, INTERESTS, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.rand(2, INTERESTS, 5, dtype=torch.float64, generator=generator)
    hard = keep_largest(soft, 2)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    for b in range(2):
        for m in range(5):
            kept = hard[b, :, m].nonzero().flatten().tolist()
            assert kept == sorted(sorted(range(INTERESTS), key=lambda k: -soft[b, k, m].item())[:2])
    (hard * upstream).sum().backward()
    assert torch.equal(soft.grad, upstream)


def test_the_gradient_of_a_hard_allocation_is_that_of_the_soft_one(tokens: Tensor, mask: Tensor) -> None:
    upstream = torch.rand(3, INTERESTS, 7, generator=torch.Generator().manual_seed(5))
    gradients = []
    for assignment in ("softmax-hard", "softmax-soft"):
        leaf = tokens.clone().requires_grad_(True)
        (make_stage(assignment=assignment).allocate(leaf, mask) * upstream).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("assignment", ["softmax-hard", "softmax-soft"])
@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_a_masked_token_has_no_influence_and_no_gradient(
    assignment: str, aggregation: str, tokens: Tensor, mask: Tensor
) -> None:
    stage = make_stage(assignment=assignment, aggregation=aggregation)
    leaf = tokens.clone().requires_grad_(True)
    interests, allocation = gather(stage, leaf, mask)
    (interests.square().sum() + allocation.square().sum()).backward()
    assert leaf.grad[~mask].count_nonzero() == 0
    changed = gather(stage, tokens.masked_fill(~mask.unsqueeze(-1), 50.0), mask)
    torch.testing.assert_close(changed, (interests.detach(), allocation.detach()))


def test_gumbel_noise_has_the_moments_of_a_standard_gumbel() -> None:
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(100_000))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.04)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_gumbel_assignment_draws_from_the_softmax_of_the_affinities(temperature: float, tokens: Tensor) -> None:
    """The Gumbel-max trick: the interest of the largest noisy affinity is distributed as their softmax."""
    count = 20_000
    same = tokens[:1, :1].expand(1, count, WIDTH)
    everything = torch.ones(1, count, dtype=torch.bool)
    torch.manual_seed(0)
    stage = make_stage(assignment="gumbel-hard", temperature=temperature).train()
    frequency = stage.allocate(same, everything).mean(-1)[0]
    expected = make_stage(assignment="softmax-soft").allocate(same[:, :1], everything[:, :1])[0, :, 0]
    torch.testing.assert_close(frequency, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("assignment", ["gumbel-hard", "softmax-hard", "softmax-soft"])
def test_noise_is_for_training_alone(assignment: str) -> None:
    tokens, mask = torch.randn(1, 500, WIDTH, dtype=torch.float64), torch.ones(1, 500, dtype=torch.bool)
    stage = make_stage(assignment=assignment)
    assert torch.equal(stage.allocate(tokens, mask), stage.allocate(tokens, mask))
    stage.train()
    assert torch.equal(stage.allocate(tokens, mask), stage.allocate(tokens, mask)) == (assignment != "gumbel-hard")


def test_a_reader_weighs_the_tokens(tokens: Tensor, mask: Tensor) -> None:
    """Tokens of weight zero are not read, and readers do not meet."""
    stage = make_stage(aggregation="sum")
    first_half = mask & (torch.arange(7) < 4)
    weight = torch.stack([first_half, mask], 1).unsqueeze(2).to(tokens.dtype)
    interests, _, _ = stage(tokens, -tokens, mask, weight)
    torch.testing.assert_close(interests[:, 0], gather(stage, tokens, first_half)[0])
    torch.testing.assert_close(interests[:, 1], gather(stage, tokens, mask)[0])
    halved, _, _ = stage(tokens, -tokens, mask, weight / 2)
    torch.testing.assert_close(2 * (halved - stage.interests), interests - stage.interests)


@pytest.mark.parametrize("assignment", ["softmax-hard", "softmax-soft"])
def test_affinities_are_not_rounded_to_half_precision(assignment: str) -> None:
    """Two interests whose affinities differ by less than bfloat16 tells apart, as large as trained ones."""
    stage = make_stage(assignment=assignment).float()
    tokens = 30 * torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(7))
    mask = torch.ones(2, 7, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = stage.allocate(tokens, mask)
    assert torch.equal(rounded, stage.allocate(tokens, mask))


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize("free", [False, True])
def test_a_stage_gathers_content(free: bool, aggregation: str, tokens: Tensor, mask: Tensor) -> None:
    """Interests that are not free are what is gathered; beside free ones, it is the same."""
    stage = make_stage(aggregation=aggregation, free=free)
    interests, gathered, allocation = stage(tokens, -tokens, mask, mask[:, None, None, :].to(tokens.dtype))
    assert torch.equal(interests, gathered) != free
    for row in range(len(tokens)):
        shares = torch.tensor(slow_allocation(stage, tokens[row], mask[row])).double()
        torch.testing.assert_close(allocation[row].double(), shares)
        for k in range(INTERESTS):
            total = sum(-tokens[row, m] for m in range(7) if shares[k, m])
            count = shares[k].sum() if aggregation == "mean" else 1
            torch.testing.assert_close(
                gathered[row, 0, k], total / count if shares[k].any() else torch.zeros(WIDTH).double()
            )


def test_a_free_stage_gathers_no_content_that_it_is_not_given(tokens: Tensor, mask: Tensor) -> None:
    stage = make_stage()
    weight = mask[:, None, None, :].to(tokens.dtype)
    interests, gathered, _ = stage(tokens, None, mask, weight)
    assert gathered is None
    torch.testing.assert_close(interests, stage(tokens, -tokens, mask, weight)[0])


def test_interests_start_as_a_truncated_normal() -> None:
    torch.manual_seed(0)
    stage = InterestClustering(
        64, 64, interests_per_item=1, assignment="gumbel-hard", temperature=1.0, aggregation="mean", free=True
    )
    assert stage.interests.std().item() == pytest.approx(0.02, rel=0.1)
    assert stage.interests.abs().max() <= 2
