"""Optimiser and learning rate schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from bivrec.config import TrainingConfig


def make_optimizer(model: nn.Module, pretrained: list[nn.Parameter], config: TrainingConfig) -> Optimizer:
    """Adam or AdamW; each group's `peak` is its learning rate after warm-up.

    Pretrained parameters have a learning rate of their own, and only matrices decay: scales, biases, positions of
    the norm layers and temperatures have no reason to be small.
    """
    of_tower = {id(parameter) for parameter in pretrained}
    tower_rate = config.learning_rate if config.tower_learning_rate is None else config.tower_learning_rate
    groups = []
    for is_tower, peak in ((False, config.learning_rate), (True, tower_rate)):
        for is_matrix in (True, False):
            members = [
                parameter
                for parameter in model.parameters()
                if parameter.requires_grad
                and (id(parameter) in of_tower) == is_tower
                and (parameter.ndim > 1) == is_matrix
            ]
            if members:
                decay = config.weight_decay if is_matrix else 0.0
                groups.append({"params": members, "peak": peak, "lr": peak, "weight_decay": decay})
    kind: type[Adam] | type[AdamW] = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(groups, lr=config.learning_rate, fused=True)


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then constant or half a cosine."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warm
    done = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
