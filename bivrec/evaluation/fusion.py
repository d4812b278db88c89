"""The views of a model beside one another, and how much each counts where both rank together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import EvaluationResult, evaluate, evaluate_each
from bivrec.evaluation.scorer import ModelScorer, ModelScorers, rankable_views
from bivrec.model.bivrec import BiVRecNetwork

SELECTION_METRIC = "recall@20"
"""Of the validation users: what chooses checkpoints, and the shares of the views."""
WEIGHTS = tuple(step / 10 for step in range(1, 10))


def evaluate_views(
    model: BiVRecNetwork,
    users: EvaluationUsers,
    ks: Sequence[int],
    accelerator: Accelerator | None = None,
    *,
    fit: bool = False,
) -> dict[str, EvaluationResult]:
    """View -> `evaluate` of a ModelScorer of it, for every view that the model can rank with.

    fit: first set the model's `id_weight`, if it has two views, to the one of `WEIGHTS` with which both have the best
    recall@20 of these users, the validation's; of equal ones to the nearest to an even share. `ks` has to hold 20.
    """
    views = rankable_views(model)
    if len(views) == 1:
        return {views[0]: evaluate(ModelScorer(model, views[0]), users, ks, accelerator=accelerator)}
    # As the model will round them.
    weights = torch.tensor(WEIGHTS, dtype=model.id_weight.dtype).tolist() if fit else [model.id_weight]
    scorers = ModelScorers(model, ["id", "mm", *(weight * model.id_trust for weight in weights)])
    of_id, of_mm, *of_both = evaluate_each(scorers, users, ks, accelerator=accelerator)
    best = 0
    if fit:
        recalls = [result.metrics[SELECTION_METRIC] for result in of_both]
        best = max(range(len(WEIGHTS)), key=lambda place: (recalls[place], -abs(WEIGHTS[place] - 0.5)))
        model.id_weight.fill_(weights[best])
    return {"id": of_id, "mm": of_mm, "both": of_both[best]}
