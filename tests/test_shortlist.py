from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_models import id_tower, mm_tower, random_histories
from torch import Tensor, nn
from torch.nn import functional

from bivrec.config import ModelConfig
from bivrec.errors import BivrecError
from bivrec.evaluation import ranking
from bivrec.evaluation.ranking import top_k
from bivrec.evaluation.scorer import EncodedUsers, ModelScorer
from bivrec.evaluation.shortlist import BLOCK, is_worthwhile, shortlist
from bivrec.model.bivrec import BiVRecNetwork

NUM_ITEMS, NUM_USERS, K, SIZE = 4502, 24, 10, 16
CONFIG = ModelConfig(hidden_size=SIZE, num_heads=2, max_history=7, num_interests=(3,), scales=())
HISTORIES = random_histories(NUM_USERS, 7)


def make_model(views: tuple[str, ...] = ("id",), seed: int = 0, repeat_bias: float = 0.0) -> BiVRecNetwork:
    torch.manual_seed(seed)
    config = replace(CONFIG, repeat_bias=True)
    towers = {
        "id": lambda: id_tower(config, NUM_ITEMS),
        "mm": lambda: mm_tower(config, torch.randn(NUM_ITEMS + 1, 5)),
    }
    model = BiVRecNetwork({name: towers[name]() for name in views})
    assert model.repeat_biases is not None
    nn.init.constant_(model.repeat_biases, repeat_bias)
    if len(views) > 1:
        nn.init.uniform_(model.id_trust)
    return model


class Bounding(ModelScorer):
    """Bounds on any processor, and may have its vectors replaced."""

    def __init__(self, model: BiVRecNetwork, view: str = "both", interests: Tensor | None = None) -> None:
        super().__init__(model, view)
        self.bounds_pay = True
        self.interests = interests

    def encode(self, histories: Tensor) -> EncodedUsers:
        if self.interests is None:
            return super().encode(histories)
        return EncodedUsers([self.interests[histories[:, 0]]], histories[:, :0], torch.zeros(len(histories)))


class NoBounds(Bounding):
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.bounds_pay = False


def whole_catalogue(scorer: ModelScorer, users: object) -> Tensor:
    return scorer.score(users, 1, NUM_ITEMS + 1)  # type: ignore[arg-type]


def given_vectors(items: Tensor, interests: Tensor) -> tuple[BiVRecNetwork, Tensor, Tensor]:
    """A model with these item vectors [V, D], the interests, and the histories that stand for their users."""
    model = make_model()
    with torch.no_grad():
        model.tower("id").items.table.weight[1:] = items
    return model, interests, torch.arange(len(interests))[:, None]


def scaled_vectors() -> tuple[BiVRecNetwork, Tensor, Tensor]:
    """Lengths that differ by a factor of a million."""
    torch.manual_seed(1)
    items = torch.randn(NUM_ITEMS, SIZE) * 10 ** torch.empty(NUM_ITEMS, 1).uniform_(-3, 3)
    return given_vectors(items, torch.randn(NUM_USERS, 3, SIZE) * 10 ** torch.empty(NUM_USERS, 3, 1).uniform_(-3, 3))


def tied_vectors() -> tuple[BiVRecNetwork, Tensor, Tensor]:
    """Products of small integers, exact in any order of summation: many items score the same."""
    torch.manual_seed(2)
    return given_vectors(
        torch.randint(-1, 2, (NUM_ITEMS, SIZE)).float(), torch.randint(-1, 2, (NUM_USERS, 3, SIZE)).float()
    )


def nearly_equal_vectors() -> tuple[BiVRecNetwork, Tensor, Tensor]:
    """Items that bfloat16 cannot tell apart, and float32 can."""
    torch.manual_seed(3)
    items = torch.ones(NUM_ITEMS, SIZE)
    items[:, 0] += torch.randperm(NUM_ITEMS) * 2**-17
    return given_vectors(items, torch.eye(SIZE)[:1].repeat(NUM_USERS, 3, 1))


VECTORS = {"scaled": scaled_vectors, "tied": tied_vectors, "nearly equal": nearly_equal_vectors}


@pytest.mark.parametrize("repeat_bias", [-5.0, 0.0, 0.3])
@pytest.mark.parametrize("views", [("id",), ("mm",), ("id", "mm")])
def test_no_score_exceeds_its_bound(views: tuple[str, ...], repeat_bias: float) -> None:
    scorer = Bounding(make_model(views, repeat_bias=repeat_bias))
    users = scorer.encode(HISTORIES)
    bounds = torch.cat([stretch.amax(1) for stretch in scorer.upper_bounds(users)]).T
    scores = whole_catalogue(scorer, users)
    assert bounds.shape == scores.shape == (NUM_USERS, NUM_ITEMS)
    assert (bounds.float() >= scores).all()
    # And they are of use: a few per cent of the largest scores.
    assert (bounds.float() - scores).max() < 0.05 * scores.abs().max()


@pytest.mark.parametrize("vectors", VECTORS)
def test_no_score_of_awkward_vectors_exceeds_its_bound(vectors: str) -> None:
    model, interests, _ = VECTORS[vectors]()
    scorer = Bounding(model, "id", interests)
    bounds = torch.cat(
        [stretch.amax(1) for stretch in scorer.upper_bounds(scorer.encode(torch.arange(len(interests))[:, None]))]
    ).T
    truth = (interests.double() @ model.tower("id").items.table.weight[1:].double().T).amax(1)
    assert (bounds.double() >= truth).all()


@pytest.mark.parametrize("repeat_bias", [-5.0, 0.0, 0.3])
@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("views", [("id",), ("mm",), ("id", "mm")])
def test_lists_are_those_of_all_scores(views: tuple[str, ...], excluding: bool, repeat_bias: float) -> None:
    model = make_model(views, repeat_bias=repeat_bias)
    # What is recommended otherwise, so that something is left out.
    seen = torch.cat([HISTORIES, top_k(NoBounds(model), HISTORIES, 7)[0]], dim=1) if excluding else None
    items, scores = top_k(Bounding(model), HISTORIES, K, seen)
    expected_items, expected_scores = top_k(NoBounds(model), HISTORIES, K, seen)
    assert items.equal(expected_items)
    torch.testing.assert_close(scores, expected_scores)


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("vectors", VECTORS)
def test_lists_of_awkward_vectors_are_those_of_all_scores(vectors: str, excluding: bool) -> None:
    model, interests, histories = VECTORS[vectors]()
    seen = torch.randint(0, NUM_ITEMS + 1, (NUM_USERS, 400)) if excluding else None
    items, _ = top_k(Bounding(model, "id", interests), histories, K, seen)
    assert items.equal(top_k(NoBounds(model, "id", interests), histories, K, seen)[0])


def test_items_outside_the_shortlist_score_at_most_its_limit() -> None:
    scorer = Bounding(make_model())
    users = scorer.encode(HISTORIES)
    items, scores, limit = shortlist(scorer, users, K, None)
    # The last block ends beyond the catalogue.
    everything = functional.pad(whole_catalogue(scorer, users), (0, -NUM_ITEMS % BLOCK), value=-torch.inf)
    torch.testing.assert_close(scores, everything.gather(1, items - 1))
    everything.scatter_(1, items - 1, -torch.inf)
    assert (everything.amax(1) <= limit).all()
    assert items.shape[1] < NUM_ITEMS / 4


def test_only_users_without_a_proof_are_scored_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, hard, _ = nearly_equal_vectors()
    easy = torch.eye(SIZE)[1:2].repeat(NUM_USERS // 2, 3, 1)
    model, interests, histories = given_vectors(torch.ones(NUM_ITEMS, SIZE), torch.cat([hard[: NUM_USERS // 2], easy]))
    with torch.no_grad():
        weight = model.tower("id").items.table.weight
        weight[1:, 1] = 1000.0 / torch.arange(1, NUM_ITEMS + 1)
    scanned: list[int] = []
    scan = ranking._scan

    def counted(scorer: ranking.Scorer, users: EncodedUsers, *arguments: object) -> tuple[Tensor, Tensor]:
        scanned.append(len(users.had))
        return scan(scorer, users, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ranking, "_scan", counted)
    items, _ = top_k(Bounding(model, "id", interests), histories, K)
    assert scanned == [NUM_USERS // 2]
    assert items.tolist() == [list(range(1, K + 1))] * NUM_USERS


@pytest.mark.parametrize("broken", ["items", "interests"])
def test_scores_that_are_not_numbers_are_refused(broken: str) -> None:
    model, interests, histories = scaled_vectors()
    with torch.no_grad():
        (model.tower("id").items.table.weight if broken == "items" else interests)[5] = torch.nan
    with pytest.raises(BivrecError, match="not numbers"):
        top_k(Bounding(model, "id", interests), histories, K)


def test_small_catalogues_are_scored_in_full() -> None:
    scorer = Bounding(make_model())
    assert is_worthwhile(scorer, K)
    assert not is_worthwhile(scorer, NUM_ITEMS // BLOCK)
    assert not is_worthwhile(NoBounds(make_model()), K)


def test_stretches_cover_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    expected = top_k(Bounding(model), HISTORIES, K)[0]
    monkeypatch.setattr("bivrec.evaluation.shortlist.STRETCH", 5 * BLOCK)
    scorer = Bounding(model)
    stretches: Iterator[Tensor] = scorer.upper_bounds(scorer.encode(HISTORIES))
    assert sum(len(stretch) for stretch in stretches) == NUM_ITEMS
    assert top_k(scorer, HISTORIES, K)[0].equal(expected)
