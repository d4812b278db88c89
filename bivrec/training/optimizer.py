"""Optimiser and learning rate schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from bivrec.config import TrainingConfig
from bivrec.model.tower import FeatureItems


def make_optimizer(model: nn.Module, pretrained: list[nn.Parameter], config: TrainingConfig) -> Optimizer:
    """Adam or AdamW; each group's `peak` is its learning rate after warm-up.

    Pretrained parameters and the projection of features may have learning rates of their own. Only matrices decay:
    scales, biases and temperatures have no reason to be small.
    """
    peaks = {id(parameter): config.learning_rate for parameter in model.parameters()}
    if config.tower_learning_rate is not None:
        peaks |= {id(parameter): config.tower_learning_rate for parameter in pretrained}
    if config.projection_learning_rate is not None:
        projections = [part.projection.weight for part in model.modules() if isinstance(part, FeatureItems)]
        peaks |= {id(parameter): config.projection_learning_rate for parameter in projections}
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members.setdefault((peaks[id(parameter)], parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": part, "peak": peak, "lr": peak, "weight_decay": config.weight_decay if is_matrix else 0.0}
        for (peak, is_matrix), part in members.items()
    ]
    kind: type[Adam] | type[AdamW] = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(groups, lr=config.learning_rate, fused=True)


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then constant or half a cosine."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warm
    done = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
