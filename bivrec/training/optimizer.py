"""Optimiser and learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from bivrec.config import TrainingConfig
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.items import FeatureItems

REPEAT_RATE = 100.0
"""Of the repeat biases, times the learning rate: Adam moves a parameter by its rate, and such a bias may be -10."""


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
    biases = [part.repeat_biases for part in model.modules() if isinstance(part, BiVRecNetwork)]
    peaks |= {id(bias): REPEAT_RATE * config.learning_rate for bias in biases if bias is not None}
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members.setdefault((peaks[id(parameter)], parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": part, "peak": peak, "lr": peak, "weight_decay": config.weight_decay if is_matrix else 0.0}
        for (peak, is_matrix), part in members.items()
    ]
    kind: type[Adam] | type[AdamW] = {"adam": RowwiseAdam, "adamw": RowwiseAdamW}[config.optimizer]
    return kind(groups, lr=config.learning_rate, fused=True)


class _Rowwise(Optimizer):
    """Of parameters with sparse gradients, updates only the rows that have one; the others are left to Adam.

    The moments of a row, its momentum and its weight decay stand still while it has no gradient ("lazy" Adam, as in
    torch.optim.SparseAdam); the state is that of Adam.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Sparse gradients are consumed."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, parameter.grad.coalesce(), group)
                    parameter.grad = None
        return super().step(closure)

    def _step_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        rows, values = gradient.indices()[0], gradient.values()
        first, second = group["betas"]
        step = state["step"]
        weights = parameter[rows]
        if isinstance(self, AdamW):
            weights *= 1 - group["lr"] * group["weight_decay"]
        else:
            values = values.add(weights, alpha=group["weight_decay"])
        mean = state["exp_avg"][rows].lerp_(values, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(values, values, value=1 - second)
        # The count stays on the device: to read it would wait for all that is under way there.
        spread = square.sqrt().div_((1 - second**step).sqrt()).add_(group["eps"])
        weights.sub_((mean / spread).mul_(group["lr"] / (1 - first**step)))
        for whole, part in ((state["exp_avg"], mean), (state["exp_avg_sq"], square), (parameter, weights)):
            whole.index_copy_(0, rows, part)


class RowwiseAdam(_Rowwise, Adam):
    """Adam that can update the rows of a table alone."""


class RowwiseAdamW(_Rowwise, AdamW):
    """AdamW that can update the rows of a table alone."""


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale all gradients, dense and sparse, so that their norm together is at most `largest`."""
    held = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            parameter.grad = gradient.coalesce()
            # torch clips dense gradients only: it is given the rows of the sparse one, which share its memory.
            rows = parameter.grad.values()
            stand_in = torch.empty_like(rows)
            stand_in.grad = rows
            held.append(stand_in)
        elif gradient is not None:
            held.append(parameter)
    nn.utils.clip_grad_norm_(held, largest)


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then constant or half a cosine."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warm
    done = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
