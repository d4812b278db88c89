import math

import pytest
import torch
from tiny_models import NUM_ITEMS, random_histories, tiny_model
from torch import Tensor

from bivrec.errors import BivrecError
from bivrec.evaluation.scorer import ModelScorer, ModelScorers, views_of
from bivrec.model.bivrec import BiVRecNetwork

HISTORIES = random_histories(5, 7)
VARIANTS = [
    {},
    {"score": "cosine"},
    {"readout": "prefix", "num_interests": (1,)},
    {"readout": "prefix", "num_interests": (3, 2), "mm_interests": "content", "score": "cosine"},
    {"readout": "prefix", "interest_score": "logsumexp"},
    {"repeat_bias": True},
]


def scores(model: BiVRecNetwork, view: str, first: int = 1, last: int = NUM_ITEMS + 1) -> Tensor:
    scorer = ModelScorer(model, view)
    return scorer.score(scorer.encode(HISTORIES), first, last)


@torch.no_grad()
def slow_scores(model: BiVRecNetwork, view: str, had: bool = True) -> Tensor:
    """max_k v_k . x_i or log sum_k exp(v_k . x_i), one history and one item at a time.

    had: with the repeat bias of what a history has.
    """
    tower = model.tower(view)

    def pool(scores: list[float]) -> float:
        smooth = tower.config.interest_score == "logsumexp"
        return math.log(sum(math.exp(score) for score in scores)) if smooth else max(scores)

    rows = []
    for history in HISTORIES:
        read = tower.encode_histories(tower.encode_items(history[None]), history[None] > 0).vectors[0, -1]
        vectors = [tower.encode_items(torch.tensor([item]))[0] for item in range(1, NUM_ITEMS + 1)]
        rows.append([pool([float(interest @ vector) for interest in read]) for vector in vectors])
        for item in {*history.tolist()} - {0} if had else ():
            rows[-1][item - 1] += float(model.repeat_bias(view) or 0)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
@pytest.mark.parametrize("view", ["id", "mm"])
def test_the_score_follows_the_interests(view: str, changes: dict) -> None:
    model = tiny_model(**changes).eval()
    torch.testing.assert_close(scores(model, view), slow_scores(model, view))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_both_is_the_weighted_product_of_the_distributions_of_the_views(changes: dict) -> None:
    """With the weight of each item by how well the ID view knows it."""
    model = tiny_model(**changes).eval()
    model.id_weight.fill_(0.75)
    model.id_trust.copy_(torch.linspace(1, 0, NUM_ITEMS + 1))
    known = model.id_trust[1:] > 0
    levels = {view: slow_scores(model, view, had=False)[:, known].logsumexp(1) for view in ("id", "mm")}
    of_id, of_mm = (slow_scores(model, view) - levels[view][:, None] for view in ("id", "mm"))
    shares = 0.75 * model.id_trust[1:].double()
    expected = (shares * of_id + (1 - shares) * of_mm).log_softmax(1)
    torch.testing.assert_close(scores(model, "both").double().log_softmax(1), expected, rtol=1e-4, atol=1e-4)


def test_an_item_that_the_id_view_does_not_know_is_ranked_by_content() -> None:
    model = tiny_model(repeat_bias=True)
    model.id_trust.copy_((torch.arange(NUM_ITEMS + 1) < 15).float())
    untrusted = slice(14, None)
    differences = scores(model, "both")[:, untrusted] - scores(model, "mm")[:, untrusted]
    torch.testing.assert_close(differences, differences[:, :1].expand_as(differences))
    model.id_trust.zero_()
    torch.testing.assert_close(scores(model, "both"), scores(model, "mm"))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_weightings_together_are_those_alone(changes: dict) -> None:
    model = tiny_model(**changes)
    if model.repeat_biases is not None:
        with torch.no_grad():
            model.repeat_biases.copy_(torch.tensor([2.0, -3.0]))
    model.id_trust.copy_(torch.linspace(1, 0, NUM_ITEMS + 1))
    weights = [0.25, "id", "mm", 0.75, "id"]
    together = ModelScorers(model, [w if isinstance(w, str) else w * model.id_trust for w in weights])
    found = list(together.score(together.encode(HISTORIES), 3, NUM_ITEMS))
    assert len(found) == len(together) == len(weights)
    for weight, own in zip(weights, found, strict=True):
        if not isinstance(weight, str):
            model.id_weight.fill_(weight)
        assert torch.equal(own, scores(model, weight if isinstance(weight, str) else "both", 3, NUM_ITEMS))


@pytest.mark.parametrize("view", ["id", "mm"])
def test_both_of_a_single_view_is_that_view(view: str) -> None:
    model = tiny_model((view,))
    assert torch.equal(scores(model, "both"), scores(model, view))
    assert views_of(model, "both") == (view,)


def test_stretches_of_the_catalogue_are_those_of_the_whole() -> None:
    model = tiny_model()
    whole = scores(model, "both")
    assert whole.shape == (len(HISTORIES), NUM_ITEMS)
    for first, last in ((1, 2), (4, 9), (NUM_ITEMS, NUM_ITEMS + 1)):
        torch.testing.assert_close(scores(model, "both", first, last), whole[:, first - 1 : last - 1])


def test_the_catalogue_may_be_embedded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    whole = scores(model, "both")
    monkeypatch.setattr("bivrec.evaluation.scorer.ITEM_CHUNK", 5)
    torch.testing.assert_close(scores(model, "both"), whole)


def test_nothing_is_random_and_no_gradient_is_kept() -> None:
    model = tiny_model(dropout=0.5).train()
    first = scores(model, "both")
    assert torch.equal(first, scores(model, "both"))
    assert not first.requires_grad


def test_what_ranking_needs_to_know() -> None:
    scorer = ModelScorer(tiny_model(max_history=8))
    assert (scorer.num_items, scorer.max_history) == (NUM_ITEMS, 8)


@pytest.mark.parametrize(("has", "asked"), [("id", "mm"), ("mm", "id"), ("mm", "image")])
def test_a_view_that_the_model_has_not(has: str, asked: str) -> None:
    with pytest.raises(BivrecError, match=f"view '{asked}': the model has only {has}"):
        ModelScorer(tiny_model((has,)), asked)
