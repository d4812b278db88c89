"""Reasons for recommendations, against a ranking of every shortened history by itself."""

import numpy as np
import pytest
import torch
from stages import config, untrained

from bivrec.data.domain import Domain
from bivrec.evaluation import reasons as module
from bivrec.evaluation.ranking import top_k
from bivrec.evaluation.reasons import reasons
from bivrec.evaluation.scorer import ModelScorer

pytest_plugins = ("stage_fixtures",)

HISTORIES = torch.tensor([[0, 0, 4, 9, 4, 7], [3, 1, 2, 6, 5, 8], [0, 0, 0, 0, 0, 5], [0, 0, 0, 2, 2, 2]])


@pytest.fixture(scope="module", params=["id", "mm", "both"])
def scorer(request: pytest.FixtureRequest, source: Domain) -> ModelScorer:
    torch.manual_seed(0)
    return ModelScorer(untrained(source, config()), request.param)


def log_probability(scorer: ModelScorer, history: list[int], item: int) -> float:
    scores = scorer.score(scorer.encode(torch.tensor([history])), 1, scorer.num_items + 1)[0].double()
    return float(scores.log_softmax(0)[item - 1])


def slow_reason(scorer: ModelScorer, history: list[int], item: int, recent: int) -> int:
    falls = {}
    for other in history[-recent:]:
        rest = [kept for kept in history if kept != other]
        if not rest:
            return other
        falls[other] = log_probability(scorer, history, item) - log_probability(scorer, rest, item)
    reason, fall = max(falls.items(), key=lambda pair: pair[1])
    return reason if fall > 0 else 0


@pytest.mark.parametrize("recent", [50, 2])
def test_what_is_least_likely_without(scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch, recent: int) -> None:
    monkeypatch.setattr(module, "RECENT", recent)
    items, _ = top_k(scorer, HISTORIES, 6)
    expected = [
        [slow_reason(scorer, [own for own in history if own], item, recent) for item in row]
        for history, row in zip(HISTORIES.tolist(), items.tolist(), strict=True)
    ]
    assert reasons(scorer, HISTORIES, items).tolist() == expected
    monkeypatch.setattr("bivrec.evaluation.ranking.ITEMS_AT_ONCE", 7)
    assert reasons(scorer, HISTORIES, items).tolist() == expected
    assert np.unique(expected).size > 3


def test_what_is_not_recommended_needs_no_reason(scorer: ModelScorer) -> None:
    items = torch.tensor([[3, 0], [0, 0], [1, 0], [4, 2]])
    found = reasons(scorer, HISTORIES, items)
    assert (found[items == 0] == 0).all()
    assert found[2, 0] == 5
    assert found[3].tolist() == [2, 2]
