import pytest
import torch

from bivrec.model.dropout import Dropout


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(400_003,), (3, 7, 19_001)])
def test_the_rate_is_met_and_the_mean_stays(rate: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    found = Dropout(rate)(torch.ones(shape))
    dropped = (found == 0).double()
    deviation = (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert abs(dropped.mean().item() - rate) <= 5 * deviation + 1e-5
    assert found[found != 0].unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-3)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(2)
    kept = (Dropout(0.3)(torch.ones(400_000)) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 8):
        correlation = (kept[:-distance] * kept[distance:]).mean().item() / 0.21
        assert abs(correlation) < 5 / 400_000**0.5
    # Every lane of a draw has the same rate.
    for lane in kept.view(-1, 4).T:
        assert abs(lane.mean().item()) < 5 * (0.21 / 100_000) ** 0.5


@pytest.mark.parametrize("rate", [1e-5, 7e-6, 1e-6, 1e-9])
def test_a_tiny_rate_drops_next_to_nothing(rate: float) -> None:
    torch.manual_seed(1)
    assert Dropout(rate)(torch.ones(10_000)).mean().item() > 0.99


def test_the_seed_of_torch_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.4)(torch.ones(1000))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_the_mask(dtype: torch.dtype) -> None:
    values = torch.randn(50, 3, dtype=dtype).requires_grad_(True)
    found = Dropout(0.5)(values)
    assert found.dtype == dtype
    found.sum().backward()
    assert torch.equal(values.grad, torch.where(found == 0, 0.0, 2.0).to(dtype))


def test_evaluation_keeps_everything() -> None:
    values = torch.randn(50)
    assert Dropout(0.5).eval()(values) is values
