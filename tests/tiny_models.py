"""Small models for the tests."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bivrec.config import ModelConfig
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.items import FeatureItems, IdItems
from bivrec.model.tower import TowerNetwork

NUM_ITEMS = 23
FEATURE_SIZE = 7
TINY = ModelConfig(
    hidden_size=8, num_layers=1, num_heads=2, dropout=0.0, max_history=8, scales=(3,), num_interests=(3,)
)
"""Dropout is off, so only the Gumbel noise is random in training."""

M = TypeVar("M", bound=nn.Module)


def randomised(module: M, seed: int = 0, scale: float = 0.5) -> M:
    """The module in float64 with every parameter drawn anew: none is zero, small, or equal to another."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def item_features(seed: int = 0) -> Tensor:
    features = torch.randn(NUM_ITEMS + 1, FEATURE_SIZE, generator=torch.Generator().manual_seed(seed))
    features[0] = 0
    return features


def id_tower(config: ModelConfig, num_items: int) -> TowerNetwork:
    return TowerNetwork(config, IdItems(num_items, config.hidden_size))


def mm_tower(config: ModelConfig, features: Tensor) -> TowerNetwork:
    items = FeatureItems(features.shape[1], config.hidden_size)
    items.attach(features)
    return TowerNetwork(config, items)


def tiny_tower(view: str = "id", **changes: Any) -> TowerNetwork:
    """A tower in float64 and evaluation mode."""
    config = replace(TINY, **changes)
    tower = id_tower(config, NUM_ITEMS) if view == "id" else mm_tower(config, item_features())
    rates = {key: value.clone() for key, value in tower.state_dict().items() if "decay" in key}
    tower = randomised(tower).eval()
    # Rates that are drawn would forget everything at once, or nothing.
    tower.load_state_dict(rates, strict=False)
    if view == "id":
        with torch.no_grad():
            tower.items.table.weight[0] = 0
    return tower


def tiny_model(views: tuple[str, ...] = ("id", "mm"), **changes: Any) -> BiVRecNetwork:
    """Both views in float64 and training mode."""
    model = BiVRecNetwork({view: tiny_tower(view, **changes) for view in views})
    if len(views) > 1:
        randomised(model.cross_view)
    if model.repeat_biases is not None:
        model.repeat_biases = nn.Parameter(torch.linspace(-2, 1, len(views), dtype=torch.float64))
    return model.train()


def random_histories(batch: int, length: int, seed: int = 0) -> Tensor:
    """[batch, length] item indices, padded on the left; the first row is full and the last has a single item."""
    generator = torch.Generator().manual_seed(seed)
    histories = torch.randint(1, NUM_ITEMS + 1, (batch, length), generator=generator)
    for row in range(batch):
        histories[row, : row * (length - 1) // max(1, batch - 1)] = 0
    return histories
