import math

import pytest
import torch
from tiny_models import randomised
from torch import Tensor

from bivrec.model.multi_scale import MultiScaleEmbedding, Tokens

WIDTH = 4
MAX_HISTORY = 9


def embed(items: Tensor, mask: Tensor, scales: tuple[int, ...]) -> tuple[MultiScaleEmbedding, Tokens]:
    embedding = randomised(MultiScaleEmbedding(WIDTH, MAX_HISTORY, scales))
    return embedding, embedding(items, mask)


def left_padded(lengths: list[int], columns: int) -> tuple[Tensor, Tensor]:
    """Random item vectors, also where masked, and the mask of histories with these lengths."""
    mask = torch.stack([torch.arange(columns) >= columns - length for length in lengths])
    items = torch.randn(len(lengths), columns, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return items, mask


def slow_tokens(embedding: MultiScaleEmbedding, items: Tensor, mask: Tensor) -> list[tuple[Tensor, list[int]]]:
    """Eq. 1-3 for one history: each token's vector, and the ages of the real items that it covers."""
    columns = len(items)
    embedded = {}
    for column in range(columns):
        age = columns - 1 - column
        if mask[column]:
            embedded[age] = items[column] + embedding.item_positions[age]
    tokens = []
    for age in reversed(range(columns)):
        tokens.append((embedded[age], [age]) if age in embedded else (torch.zeros(WIDTH), []))
    for scale, positions in zip(embedding.scales, embedding.window_positions, strict=True):
        for window in reversed(range(math.ceil(columns / scale))):
            ages = [age for age in range(window * scale, window * scale + scale) if age in embedded]
            total = sum((embedded[age] for age in ages), torch.zeros(WIDTH)) + positions[window]
            tokens.append((total if ages else torch.zeros(WIDTH), ages))
    return tokens


@pytest.mark.parametrize("scales", [(), (2,), (3,), (4, 8), (2, 3, 16)])
@pytest.mark.parametrize("columns", [1, 7, 8, 9])
def test_tokens_follow_the_equations(scales: tuple[int, ...], columns: int) -> None:
    items, mask = left_padded([columns, max(1, columns - 2), 1], columns)
    embedding, tokens = embed(items, mask, scales)
    assert tokens.vectors.shape == (3, columns + sum(math.ceil(columns / scale) for scale in scales), WIDTH)
    for row in range(3):
        for place, (vector, ages) in enumerate(slow_tokens(embedding, items[row], mask[row])):
            torch.testing.assert_close(tokens.vectors[row, place], vector.double())
            assert tokens.mask[row, place] == bool(ages)
            if ages:
                assert tokens.position[row, place].item() == pytest.approx(sum(ages) / len(ages))
                assert tokens.newest[place] == min(ages)
                covered = torch.stack([items[row, columns - 1 - age] for age in ages])
                torch.testing.assert_close(tokens.content[row, place], covered.mean(0))


def test_windows_are_aligned_to_the_most_recent_item() -> None:
    embedding = MultiScaleEmbedding(1, MAX_HISTORY, (3,))
    for parameter in embedding.parameters():
        torch.nn.init.zeros_(parameter)
    items = torch.tensor([1.0, 10, 100, 1000, 10000]).view(1, 5, 1)
    tokens = embedding(items, torch.ones(1, 5, dtype=torch.bool))
    assert tokens.vectors[0, 5:, 0].tolist() == [11, 11100]
    assert tokens.position[0, 5:].tolist() == [3.5, 1]


@pytest.mark.parametrize("scales", [(), (3,), (2, 4)])
def test_padding_changes_no_token(scales: tuple[int, ...]) -> None:
    items, mask = left_padded([5, 3], 5)
    embedding, short = embed(items, mask, scales)
    long = embedding(
        torch.nn.functional.pad(items, (0, 0, 4, 0), value=7.0), torch.nn.functional.pad(mask, (4, 0), value=False)
    )
    for row in range(2):
        torch.testing.assert_close(long.vectors[row, long.mask[row]], short.vectors[row, short.mask[row]])
        torch.testing.assert_close(long.position[row, long.mask[row]], short.position[row, short.mask[row]])
    assert long.vectors[~long.mask].count_nonzero() == 0
    assert long.content[~long.mask].count_nonzero() == 0


def test_a_padded_item_has_no_influence_and_no_gradient() -> None:
    items, mask = left_padded([7, 4, 1], 7)
    items.requires_grad_(True)
    embedding, tokens = embed(items, mask, (2, 4))
    (tokens.vectors.square().sum() + tokens.content.square().sum()).backward()
    assert items.grad is not None
    assert items.grad[~mask].count_nonzero() == 0
    assert (items.grad[mask] != 0).all()
    with torch.no_grad():
        assert torch.equal(embedding(items.masked_fill(~mask.unsqueeze(-1), 1e6), mask).vectors, tokens.vectors)


def test_positions_keep_their_fractions_in_half_precision() -> None:
    embedding = MultiScaleEmbedding(WIDTH, 200, (4,))
    tokens = embedding(torch.ones(1, 200, WIDTH, dtype=torch.bfloat16), torch.ones(1, 200, dtype=torch.bool))
    assert tokens.position[0, 200:].tolist() == [4 * window + 1.5 for window in reversed(range(50))]


def test_without_positions_equal_windows_have_equal_tokens() -> None:
    embedding = randomised(MultiScaleEmbedding(WIDTH, MAX_HISTORY, (2,), positions=False))
    assert not list(embedding.parameters())
    items, mask = left_padded([4], 4)
    twice = torch.cat([items, items], 1)
    tokens = embedding(twice, torch.cat([mask, mask], 1))
    torch.testing.assert_close(tokens.vectors[:, :8], twice)
    torch.testing.assert_close(tokens.vectors[:, 8:], (twice[:, ::2] + twice[:, 1::2]))
