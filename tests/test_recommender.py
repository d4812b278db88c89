"""What a service calls: lists by item ids, for histories of item ids."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages import succeed

from bivrec import BivrecError, Domain, Recommender
from bivrec import recommender as module
from bivrec.data.histories import users_of_split
from bivrec.evaluation.scorer import ModelScorer
from bivrec.recommend import recommend
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)


@pytest.fixture(scope="module")
def recommender(source: Domain, pretrained: Run) -> Recommender:
    return Recommender.open(pretrained.path, source.path)


@pytest.fixture(scope="module")
def histories(source: Domain) -> dict[str, list[str]]:
    """Of the test users, whole."""
    ids, users = source.item_ids(), source.sequences("test")
    return {user: [ids[item - 1] for item in users[row]] for row, user in enumerate(users.user_ids)}


@pytest.mark.parametrize("remove_seen", [True, False])
def test_lists_are_those_of_the_command(
    source: Domain, pretrained: Run, recommender: Recommender, histories: dict[str, list[str]], remove_seen: bool
) -> None:
    scorer = ModelScorer(pretrained.load_model(source))
    tables = recommend(source, scorer, users_of_split(source, "test"), k=7, remove_seen=remove_seen)
    expected: dict[str, list[tuple[str, float]]] = {user: [] for user in histories}
    for table in tables:
        for row in table.to_pylist():
            expected[row["user_id"]].append((row["item_id"], pytest.approx(row["score"], abs=1e-5)))
    found = recommender.recommend(list(histories.values()), 7, remove_seen=remove_seen)
    assert [list(map(tuple, own)) for own in found] == list(expected.values())


def test_a_list_depends_on_its_history_alone(recommender: Recommender, histories: dict[str, list[str]]) -> None:
    some = list(histories.values())[:5]
    together = recommender.recommend(some, 5)
    for history, expected in zip(some, together, strict=True):
        (alone,) = recommender.recommend([history], 5)
        assert [item for item, _ in alone] == [item for item, _ in expected]


def test_threads_may_ask_at_once(recommender: Recommender, histories: dict[str, list[str]]) -> None:
    asked = list(histories.values())
    expected = [recommender.recommend([history], 5) for history in asked]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda history: recommender.recommend([history], 5), asked)) == expected


def test_many_histories_take_no_more_memory_than_some(
    recommender: Recommender, histories: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*list(histories.values())[:5], [], *list(histories.values())[5:9]]
    expected = recommender.recommend(asked, 5)
    scored: list[int] = []
    ranked = module.top_k
    monkeypatch.setattr(module, "USERS_AT_ONCE", 4)
    monkeypatch.setattr(module, "top_k", lambda *given: (scored.append(len(given[1])), ranked(*given))[1])
    found = recommender.recommend(asked, 5)
    assert [[item for item, _ in own] for own in found] == [[item for item, _ in own] for own in expected]
    assert scored == [4, 4, 1]


def test_items_that_are_not_in_the_catalogue_are_skipped(recommender: Recommender) -> None:
    known = recommender.item_ids[3]
    with_unknown, nothing, empty, clean = recommender.recommend([["?", known, "??"], ["?"], [], [known]], 4)
    assert with_unknown == clean != []
    assert nothing == empty == []
    assert recommender.recommend([[]], 4) == [[]]


def test_only_what_is_allowed_is_recommended(recommender: Recommender) -> None:
    stock = recommender.item_ids[10:16]
    (found,) = recommender.recommend([[stock[0]]], 10, only=[*stock, "?"])
    assert {item for item, _ in found} == set(stock[1:])
    (again,) = recommender.recommend([[stock[0]]], 10, only=stock, remove_seen=False)
    assert {item for item, _ in again} == set(stock)


def test_ids_may_be_integers_as_a_database_has_them(recommender: Recommender) -> None:
    numbered = Recommender.__new__(Recommender)
    numbered.__dict__.update(vars(recommender))
    numbered.item_ids = [str(index) for index in range(1, len(recommender.item_ids) + 1)]
    numbered._indices = {item: index for index, item in enumerate(numbered.item_ids, start=1)}
    expected = numbered.recommend([["3", "7"]], 5, only=["1", "2", "9"])
    assert expected != [[]]
    assert numbered.recommend([[3, np.int64(7)]], 5, only={1, 2, np.int32(9)}) == expected


@pytest.mark.parametrize("wrong", [3.0, None, True, ("a",)])
def test_ids_of_another_kind_are_refused(recommender: Recommender, wrong: Any) -> None:
    for asked in (([[wrong]], 5, None), ([[recommender.item_ids[0]]], 5, [wrong])):
        histories, k, only = asked
        with pytest.raises(BivrecError, match=re.escape(f"item {wrong!r}: expected an id, a text or an integer")):
            recommender.recommend(histories, k, only=only)


def test_a_stock_of_which_the_catalogue_has_nothing_is_refused(recommender: Recommender) -> None:
    known = recommender.item_ids[0]
    with pytest.raises(BivrecError) as caught:
        recommender.recommend([[known]], 5, only=["?"])
    assert str(caught.value) == (
        f"only: none of its 1 items, such as '?', is in the catalogue, which has items such as '{known}'"
    )
    assert recommender.recommend([[known]], 5, only=[]) == [[]]


@pytest.mark.parametrize("view", ["id", "mm", "both"])
def test_a_published_model_recommends_what_its_run_does(
    source: Domain, pretrained: Run, tmp_path: Path, view: str
) -> None:
    succeed("publish", pretrained.path, "--to", tmp_path / "model", "--model", "joint")
    history = [source.item_ids()[:3]]
    of_run, of_model = (
        Recommender.open(model, source, view=view).recommend(history) for model in (pretrained.path, tmp_path / "model")
    )
    assert of_run == of_model


def test_a_tower_recommends_in_another_catalogue(tower: Path, target: Domain) -> None:
    (found,) = Recommender.open(tower, target).recommend([target.item_ids()[:2]], 5)
    assert len(found) == 5


def test_what_is_refused(recommender: Recommender, source: Domain, tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match=r"k = 0: expected 1 to \d+"):
        recommender.recommend([["a"]], 0)
    with pytest.raises(BivrecError, match="expected a list of item ids"):
        recommender.recommend(["a"], 1)
    with pytest.raises(BivrecError, match="not a model"):
        Recommender.open(tmp_path, source)
