import pytest
import torch
from torch import Tensor

from bivrec.model.packing import LEAST_HISTORIES, Packing

WIDTH = 5


def masks() -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 7, (3 * LEAST_HISTORIES + 5, 1), generator=random)
    return [
        torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool),
        torch.ones(3, 2, dtype=torch.bool),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.arange(6, 0, -1) <= lengths,
    ]


def random_tokens(mask: Tensor) -> Tensor:
    return torch.randn(*mask.shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("mask", masks())
def test_real_tokens_come_back_to_their_places(mask: Tensor) -> None:
    packing, tokens = Packing(mask), random_tokens(mask)
    packed = packing.pack(tokens)
    real = int(mask.sum())
    assert real <= len(packed) <= min(mask.numel(), real + mask.numel() / 16 + 1)
    assert packed[real:].count_nonzero() == 0
    assert torch.equal(packing.unpack(packed), tokens * mask.unsqueeze(-1))
    assert torch.equal(packing.from_groups(packing.to_groups(packed)), packed)


@pytest.mark.parametrize("mask", masks())
def test_a_group_holds_whole_histories_and_is_as_wide_as_the_longest(mask: Tensor) -> None:
    row = torch.arange(1.0, len(mask) + 1).view(-1, 1, 1).expand(*mask.shape, 1)
    packing = Packing(mask)
    seen = []
    for group in packing.to_groups(packing.pack(row)):
        owners = group.squeeze(-1)
        assert ((owners > 0).sum(1).max().clamp(min=1)) == owners.shape[1]
        for history in owners:
            real = history[history > 0]
            assert torch.equal(history[: len(real)], real)
            seen += [(int(owner), len(real)) for owner in real[:1]]
            assert (real == real[:1]).all()
    lengths = mask.sum(1)
    assert sorted(seen) == [(place + 1, int(lengths[place])) for place in range(len(mask)) if lengths[place]]
    assert [count for _, count in seen] == sorted(count for _, count in seen)


@pytest.mark.parametrize("mask", masks())
def test_gradients_go_to_the_tokens_that_were_read(mask: Tensor) -> None:
    packing = Packing(mask)
    tokens = random_tokens(mask).requires_grad_(True)
    weight = random_tokens(mask) + 3
    groups = packing.to_groups(packing.pack(tokens))
    (packing.unpack(packing.from_groups(groups)) * weight).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, weight * mask.unsqueeze(-1))
