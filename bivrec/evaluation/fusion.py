"""The views of a model beside one another, and how much each counts where both rank together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import EvaluationResult, evaluate, evaluate_each
from bivrec.evaluation.scorer import ModelScorer, ModelScorers, rankable_views
from bivrec.model.bivrec import BiVRecNetwork

METRIC_K = 20
WEIGHTS = tuple(step / 10 for step in range(1, 10))


def evaluate_views(
    model: BiVRecNetwork, users: EvaluationUsers, ks: Sequence[int], accelerator: Accelerator | None = None
) -> dict[str, EvaluationResult]:
    """View -> `evaluate` of a ModelScorer of it, for every view that the model can rank with."""
    views = rankable_views(model)
    if len(views) == 1:
        return {views[0]: evaluate(ModelScorer(model, views[0]), users, ks, accelerator=accelerator)}
    shares: dict[str, Tensor | str] = {"id": "id", "mm": "mm", "both": model.id_weight * model.id_trust}
    scorers = ModelScorers(model, [shares[view] for view in views])
    return dict(zip(views, evaluate_each(scorers, users, ks, accelerator=accelerator), strict=True))


def fit_id_weight(
    model: BiVRecNetwork, users: EvaluationUsers, accelerator: Accelerator | None = None
) -> dict[float, float]:
    """Set the model's `id_weight` to the one of `WEIGHTS` with the best recall@20 of these users, the validation's.

    Of equal ones the nearest to an even share. Returns the recall with each weight.
    """
    # As the model will round them.
    weights = torch.tensor(WEIGHTS, dtype=model.id_weight.dtype).tolist()
    scorers = ModelScorers(model, [weight * model.id_trust for weight in weights])
    results = evaluate_each(scorers, users, (METRIC_K,), accelerator=accelerator)
    recalls = {weight: result.metrics[f"recall@{METRIC_K}"] for weight, result in zip(WEIGHTS, results, strict=True)}
    model.id_weight.fill_(max(WEIGHTS, key=lambda weight: (recalls[weight], -abs(weight - 0.5))))
    return recalls
