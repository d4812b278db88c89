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
) -> dict[tuple[float, bool], float]:
    """Set the model's `id_weight` to the one of `WEIGHTS` with the best recall@20 of these users, the validation's.

    Of equal ones the nearest to an even share. Its `id_trust` becomes 1 for all items if the best recall with that is
    better by more than a standard error: items to come are rarer than those of the validation. Returns the recall with
    each weight, with trust as it is or in all.
    """
    # As the model will round them.
    weights = torch.tensor(WEIGHTS, dtype=model.id_weight.dtype).tolist()
    trusts = {False: model.id_trust.clone(), True: torch.ones_like(model.id_trust)}
    choices = [(place, in_all) for in_all in trusts for place in range(len(WEIGHTS))]
    scorers = ModelScorers(model, [weights[place] * trusts[in_all] for place, in_all in choices])
    results = evaluate_each(scorers, users, (METRIC_K,), accelerator=accelerator)
    recalls = {
        (WEIGHTS[place], in_all): result.per_user[f"recall@{METRIC_K}"]
        for (place, in_all), result in zip(choices, results, strict=True)
    }
    means = {choice: float(recall.mean()) for choice, recall in recalls.items()}
    as_is, of_all = (
        max(((weight, in_all) for weight in WEIGHTS), key=lambda choice: (means[choice], -abs(choice[0] - 0.5)))
        for in_all in (False, True)
    )
    gain = recalls[of_all] - recalls[as_is]
    weight, in_all = of_all if gain.mean() > gain.std() / len(gain) ** 0.5 else as_is
    model.id_weight.fill_(weight)
    model.id_trust.copy_(trusts[in_all])
    return means
