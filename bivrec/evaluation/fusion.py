"""How much each view counts where both rank together."""

from __future__ import annotations

from accelerate import Accelerator

from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.model.bivrec import BiVRec

METRIC_K = 20
WEIGHTS = tuple(step / 10 for step in range(1, 10))


def fit_id_weight(model: BiVRec, users: EvaluationUsers, accelerator: Accelerator | None = None) -> dict[float, float]:
    """Set the model's `id_weight` to the one of `WEIGHTS` with the best recall@20 of these users, the validation's.

    Of equal ones the nearest to an even share. Returns the recall with each weight.
    """
    recalls = {}
    for weight in WEIGHTS:
        model.id_weight.fill_(weight)
        result = evaluate(ModelScorer(model, "both"), users, (METRIC_K,), accelerator=accelerator)
        recalls[weight] = result.metrics[f"recall@{METRIC_K}"]
    model.id_weight.fill_(max(WEIGHTS, key=lambda weight: (recalls[weight], -abs(weight - 0.5))))
    return recalls
