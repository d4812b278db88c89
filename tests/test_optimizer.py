from typing import Any

import pytest
import torch
from stages import config
from tiny_models import tiny_model
from torch import nn

from bivrec.config import TrainingConfig
from bivrec.model.items import FeatureItems
from bivrec.training.optimizer import clip_gradients, learning_rate_factor, make_optimizer


def training(**changes: Any) -> TrainingConfig:
    return config(training={"learning_rate": 0.1, "weight_decay": 0.5, "steps": 100, **changes}).training


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_kinds(model: nn.Module, name: str, kind: type) -> None:
    assert isinstance(make_optimizer(model, [], training(optimizer=name)), kind)


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


def test_repeat_biases_learn_a_hundred_times_as_fast() -> None:
    model = tiny_model(repeat_bias=True)
    groups = make_optimizer(model, [], training()).param_groups
    peak = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert {name for name, parameter in model.named_parameters() if peak[id(parameter)] == 10} == {"repeat_biases"}


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


# Tables of which a step reads few rows


def tables(sparse: bool) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 2)])


def read(model: nn.ModuleList, rows: list[int]) -> None:
    """Gradients of a loss that reads these rows."""
    model.zero_grad()
    model[1](model[0](torch.tensor(rows))).square().sum().backward()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_sparse_gradient_of_all_rows_is_a_dense_one(name: str) -> None:
    weights = []
    for sparse in (False, True):
        model = tables(sparse)
        optimizer = make_optimizer(model, [], training(optimizer=name))
        for _ in range(4):
            read(model, [0, 4, 1, 3, 3, 2, 5, 8, 7, 6])
            optimizer.step()
        weights.append(list(model.parameters()))
    torch.testing.assert_close(weights[1], weights[0])


def test_rows_that_are_not_read_stay_and_the_others_follow_sparse_adam() -> None:
    model, other = tables(True), tables(True)
    before = model[0].weight.detach().clone()
    optimizer = make_optimizer(model, [], training(optimizer="adam", weight_decay=0.0))
    oracle = torch.optim.SparseAdam(list(other[0].parameters()), lr=0.1)
    for rows in ([1, 4], [4, 4, 7], [1]):
        read(model, rows)
        other[1].load_state_dict(model[1].state_dict())
        read(other, rows)
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(model[0].weight, other[0].weight)
    untouched = [0, 2, 3, 5, 6, 8]
    assert torch.equal(model[0].weight[untouched], before[untouched])
    assert not (model[0].weight[[1, 4, 7]] == before[[1, 4, 7]]).any()


@pytest.mark.parametrize("largest", [0.01, 1e6])
def test_clipping_counts_dense_and_sparse_gradients_together(largest: float) -> None:
    gradients = []
    for sparse in (False, True):
        model = tables(sparse)
        read(model, [2, 5, 5])
        clip_gradients(model.parameters(), largest)
        gradients.append([p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    norm = sum(gradient.square().sum() for gradient in gradients[1]).sqrt()
    assert norm <= largest * 1.001
