from typing import Any

import pytest
import torch
from stages import config
from torch import nn

from bivrec.config import TrainingConfig
from bivrec.model.tower import FeatureItems
from bivrec.training.optimizer import learning_rate_factor, make_optimizer


def training(**changes: Any) -> TrainingConfig:
    return config(training={"learning_rate": 0.1, "weight_decay": 0.5, "steps": 100, **changes}).training


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_kinds(model: nn.Module, name: str, kind: type) -> None:
    assert type(make_optimizer(model, [], training(optimizer=name))) is kind


def test_only_matrices_decay(model: nn.Module) -> None:
    groups = make_optimizer(model, [], training()).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {name: decay[id(parameter)] for name, parameter in model.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.5,
    }


@pytest.mark.parametrize(("tower_rate", "expected"), [(None, 0.1), (0.02, 0.02), (0.0, 0.0)])
def test_a_pretrained_tower_has_a_learning_rate_of_its_own(
    model: nn.Sequential, tower_rate: float | None, expected: float
) -> None:
    groups = make_optimizer(model, list(model[0].parameters()), training(tower_learning_rate=tower_rate)).param_groups
    peak = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert peak[id(parameter)] == (expected if name.startswith("0.") else 0.1)


def test_the_projection_of_features_has_a_learning_rate_of_its_own() -> None:
    model = nn.ModuleList([FeatureItems(4, 3), nn.Linear(3, 3)])
    groups = make_optimizer(model, [], training(projection_learning_rate=0.01)).param_groups
    peak = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert peak[id(model[0].projection.weight)] == 0.01
    assert peak[id(model[1].weight)] == 0.1


def test_frozen_parameters_are_left_out(model: nn.Sequential) -> None:
    model[0].requires_grad_(False)
    groups = make_optimizer(model, list(model[0].parameters()), training()).param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "factor"),
    [
        ("constant", 0, 0, 1.0),
        ("constant", 4, 0, 0.25),
        ("constant", 4, 3, 1.0),
        ("constant", 4, 99, 1.0),
        ("cosine", 0, 0, 1.0),
        ("cosine", 20, 9, 0.5),
        ("cosine", 20, 20, 1.0),
        ("cosine", 20, 60, 0.5),
        ("cosine", 20, 100, 0.0),
        ("cosine", 100, 99, 1.0),
        ("cosine", 200, 99, 0.5),
    ],
)
def test_learning_rate_factor(schedule: str, warmup: int, step: int, factor: float) -> None:
    wanted = training(schedule=schedule, warmup_steps=warmup)
    assert learning_rate_factor(wanted, step) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_after_warm_up_the_learning_rate_never_rises(schedule: str) -> None:
    wanted = training(schedule=schedule, warmup_steps=10)
    factors = [learning_rate_factor(wanted, step) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert all(factor > 0 for factor in factors)
