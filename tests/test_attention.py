import math

import pytest
import torch
from tiny_models import randomised
from torch import Tensor

from bivrec.model.attention import GaussianAttention, TransformerLayer
from bivrec.model.packing import Packing

WIDTH = 8
GAUSSIANS = ["product", "bias", "none"]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def position() -> Tensor:
    """Real-valued positions of six tokens: four items, and two windows."""
    return torch.tensor([3.0, 2, 1, 0, 2.5, 0.5], dtype=torch.float64).expand(3, -1)


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 1]], dtype=torch.bool)


def squared_distance(position: Tensor) -> Tensor:
    return (position.unsqueeze(2) - position.unsqueeze(1)) ** 2


def everyone_sees(mask: Tensor) -> Tensor:
    return mask.unsqueeze(1).expand(-1, mask.shape[1], -1)


def apply(layer: torch.nn.Module, tokens: Tensor, visible: Tensor, squared_distance: Tensor) -> Tensor:
    """A layer's result [B, M, D] for tokens that are all real, and thus one group."""
    packing = Packing(torch.ones(tokens.shape[:2], dtype=torch.bool))
    return packing.unpack(layer(packing.pack(tokens), packing, [visible], [squared_distance]))


def slow_attention(layer: GaussianAttention, tokens: Tensor, mask: Tensor, position: Tensor) -> dict[int, Tensor]:
    """Eq. 4-6 for one history, real token by real token."""
    real = [place for place in range(len(tokens)) if mask[place]]
    head_width = WIDTH // layer.num_heads
    query, key, value = (
        tokens @ weight.T + bias
        for weight, bias in zip(layer.query_key_value.weight.chunk(3), layer.query_key_value.bias.chunk(3), strict=True)
    )
    mixed = {}
    for i in real:
        gaussian = dict.fromkeys(real, 1.0)
        if layer.gaussian != "none":
            sigma = math.exp(layer.log_sigma.item())
            unnormalised = {j: math.exp(-((position[i] - position[j]).item() ** 2) / sigma**2) for j in real}
            gaussian = {j: g / sum(unnormalised.values()) for j, g in unnormalised.items()}
        heads = []
        for head in range(layer.num_heads):
            part = slice(head * head_width, (head + 1) * head_width)
            logits = {}
            for j in real:
                dot = (query[i, part] @ key[j, part]).item() / math.sqrt(head_width)
                logits[j] = dot + math.log(gaussian[j]) if layer.gaussian == "bias" else gaussian[j] * dot
            total = sum(math.exp(logit) for logit in logits.values())
            heads.append(sum(math.exp(logit) / total * value[j, part] for j, logit in logits.items()))
        mixed[i] = torch.cat(heads) @ layer.output.weight.T + layer.output.bias
    return mixed


@pytest.mark.parametrize("gaussian", GAUSSIANS)
@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_follows_the_equations(
    gaussian: str, num_heads: int, tokens: Tensor, mask: Tensor, position: Tensor
) -> None:
    layer = randomised(GaussianAttention(WIDTH, num_heads, 0.0, gaussian))
    mixed = apply(layer, tokens, everyone_sees(mask), squared_distance(position))
    for row in range(len(tokens)):
        for place, expected in slow_attention(layer, tokens[row], mask[row], position[row]).items():
            torch.testing.assert_close(mixed[row, place], expected)


@pytest.mark.parametrize("gaussian", GAUSSIANS)
def test_a_token_that_is_not_visible_has_no_influence(
    gaussian: str, tokens: Tensor, mask: Tensor, position: Tensor
) -> None:
    layer = randomised(GaussianAttention(WIDTH, 2, 0.0, gaussian))
    expected = apply(layer, tokens, everyone_sees(mask), squared_distance(position))[mask]
    others = tokens.masked_fill(~mask.unsqueeze(-1), 100.0)
    elsewhere = position.masked_fill(~mask, 55.0)
    torch.testing.assert_close(apply(layer, others, everyone_sees(mask), squared_distance(elsewhere))[mask], expected)


@pytest.mark.parametrize("gaussian", GAUSSIANS)
def test_a_token_that_sees_nothing_is_harmless(gaussian: str, tokens: Tensor, mask: Tensor, position: Tensor) -> None:
    layer = randomised(GaussianAttention(WIDTH, 2, 0.0, gaussian))
    visible = everyone_sees(mask) & mask.unsqueeze(2)
    mixed = apply(layer, tokens, visible, squared_distance(position))
    assert mixed.isfinite().all()
    mixed[mask].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("gaussian", ["product", "bias"])
def test_sigma_is_trained_and_stays_positive(gaussian: str, tokens: Tensor, mask: Tensor, position: Tensor) -> None:
    layer = randomised(GaussianAttention(WIDTH, 2, 0.0, gaussian))
    apply(layer, tokens, everyone_sees(mask), squared_distance(position)).square().sum().backward()
    assert layer.log_sigma.grad.abs() > 1e-6
    with torch.no_grad():
        layer.log_sigma -= 5.0
    assert apply(layer, tokens, everyone_sees(mask), squared_distance(position)).isfinite().all()


@pytest.mark.parametrize("gaussian", GAUSSIANS)
def test_how_many_histories_are_held_at_once_does_not_matter(
    gaussian: str, tokens: Tensor, mask: Tensor, position: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for weights in (2 * 2 * 6 * 6, 2**20):
        monkeypatch.setattr("bivrec.model.attention.WEIGHTS_AT_ONCE", weights)
        layer, leaf = randomised(GaussianAttention(WIDTH, 2, 0.0, gaussian)), tokens.clone().requires_grad_(True)
        mixed = apply(layer, leaf, everyone_sees(mask), squared_distance(position))
        mixed.square().sum().backward()
        found.append([mixed, leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(*found)


def test_plain_attention_has_no_sigma() -> None:
    assert not hasattr(GaussianAttention(WIDTH, 2, 0.0, "none"), "log_sigma")


@pytest.mark.parametrize("gaussian", GAUSSIANS)
def test_a_layer_is_pre_norm_with_two_residuals(gaussian: str, tokens: Tensor, mask: Tensor, position: Tensor) -> None:
    def normalised(vector: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        centred = vector - vector.mean()
        return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias

    def gelu(vector: Tensor) -> Tensor:
        return vector * 0.5 * (1 + torch.erf(vector / math.sqrt(2)))

    layer = randomised(TransformerLayer(WIDTH, 0.3, GaussianAttention(WIDTH, 2, 0.3, gaussian))).eval()
    widen, _, narrow = layer.mlp
    assert widen.out_features == 4 * WIDTH
    found = apply(layer, tokens, everyone_sees(mask), squared_distance(position))
    for row in range(len(tokens)):
        normed = torch.stack([normalised(token, layer.attention_norm) for token in tokens[row]])
        for place, mixed in slow_attention(layer.attention, normed, mask[row], position[row]).items():
            middle = tokens[row, place] + mixed
            inner = gelu(normalised(middle, layer.mlp_norm) @ widen.weight.T + widen.bias)
            torch.testing.assert_close(found[row, place], middle + inner @ narrow.weight.T + narrow.bias)


@pytest.mark.parametrize("gaussian", GAUSSIANS)
def test_dropout_acts_in_training_alone(gaussian: str, tokens: Tensor, mask: Tensor, position: Tensor) -> None:
    layer = randomised(GaussianAttention(WIDTH, 2, 0.5, gaussian))
    inputs = (tokens, everyone_sees(mask), squared_distance(position))
    assert not torch.equal(apply(layer.train(), *inputs), apply(layer, *inputs))
    assert torch.equal(apply(layer.eval(), *inputs), apply(layer, *inputs))
