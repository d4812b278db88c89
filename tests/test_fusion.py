from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import NUM_ITEMS, random_histories, tiny_model
from torch import Tensor

from bivrec.evaluation.fusion import WEIGHTS, evaluate_views
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate, top_k
from bivrec.evaluation.scorer import ModelScorer, rankable_views
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.checkpoint import Progress, load_checkpoint, save_checkpoint

HISTORIES = random_histories(12, 6)


def users_who_choose(items: Tensor) -> EvaluationUsers:
    """Users with the `HISTORIES` whose targets are these items [U, T]."""
    rows = [[*history[history > 0].tolist(), *own.tolist()] for history, own in zip(HISTORIES, items, strict=True)]
    ends = np.cumsum([len(row) for row in rows])
    return EvaluationUsers(
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        starts=np.concatenate([[0], ends[:-1]]),
        cuts=ends - items.shape[1],
        ends=ends,
        user_ids=[str(row) for row in range(len(rows))],
        skipped=0,
    )


@pytest.mark.parametrize(("view", "wide"), [("id", True), ("mm", False)])
def test_the_view_that_predicts_the_users_gets_the_greater_weight(view: str, wide: bool) -> None:
    model = tiny_model(dropout=0.0)
    last_of_twenty = top_k(ModelScorer(model, view), HISTORIES, 20)[0][:, 12:]
    evaluate_views(model, users_who_choose(last_of_twenty), (20,), fit=True)
    assert (float(model.id_weight) > 0.5) == wide


def test_no_other_weight_of_the_grid_has_a_better_recall() -> None:
    model = tiny_model()
    users = users_who_choose(torch.randint(1, NUM_ITEMS + 1, (len(HISTORIES), 3)))
    trust = torch.linspace(1, 0, NUM_ITEMS + 1)
    model.id_trust.copy_(trust)
    found = evaluate_views(model, users, (20,), fit=True)
    chosen = round(float(model.id_weight), 1)
    recalls = {}
    for weight in WEIGHTS:
        model.id_weight.fill_(weight)
        recalls[weight] = evaluate(ModelScorer(model, "both"), users, (20,)).metrics["recall@20"]
    assert found["both"].metrics["recall@20"] == recalls[chosen] == max(recalls.values())
    assert len(set(recalls.values())) > 1
    assert model.id_trust.equal(trust)


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("views", [("id",), ("mm",), ("id", "mm")])
def test_views_beside_one_another_are_evaluated_as_alone(views: tuple[str, ...], fit: bool) -> None:
    model = tiny_model(views, repeat_bias=True)
    assert model.repeat_biases is not None
    with torch.no_grad():
        model.repeat_biases.copy_(torch.tensor([2.0, -3.0][: len(views)]))
    users = users_who_choose(torch.randint(1, NUM_ITEMS + 1, (len(HISTORIES), 3)))
    results = evaluate_views(model, users, (5, 20), fit=fit)
    assert tuple(results) == rankable_views(model)
    for view, result in results.items():
        alone = evaluate(ModelScorer(model, view), users, (5, 20))
        assert result.metrics == alone.metrics
        assert len(result.per_user["recall@5"]) == len(users)


def test_views_that_agree_keep_an_even_share() -> None:
    model = tiny_model()
    twins = BiVRecNetwork({"id": model.tower("id"), "mm": model.tower("id")})
    evaluate_views(twins, users_who_choose(torch.randint(1, NUM_ITEMS + 1, (len(HISTORIES), 3))), (20,), fit=True)
    assert float(twins.id_weight) == 0.5


def test_the_weight_is_saved_with_the_model(tmp_path: Path) -> None:
    model, other = tiny_model(), tiny_model()
    model.id_weight.fill_(0.25)
    save_checkpoint(tmp_path / "best.safetensors", model, Progress())
    load_checkpoint(tmp_path / "best.safetensors", other)
    assert float(other.id_weight) == 0.25
