"""Recommendations by the ids of items, of a model that stays in memory: what a service calls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.ranking import Restricted, Scorer, top_k
from bivrec.scorers import open_scorer
from bivrec.training.run import RUN_FOLDER

USERS_AT_ONCE = 256
"""Each takes a score for every item."""


class Recommended(NamedTuple):
    """An item of a list."""

    item_id: str
    score: float
    """It compares the items of one list, not those of two."""


class Recommender:
    """A model on the catalogue of a Domain; `Recommender.open` makes one."""

    def __init__(self, domain: Domain, scorer: Scorer) -> None:
        self.item_ids = domain.item_ids()
        """By popularity, the most popular item first: what may be shown to a user of whom nothing is known."""
        self._scorer = scorer
        self._indices = {item: index for index, item in enumerate(self.item_ids, start=1)}

    @classmethod
    def open(
        cls, model: str | Path, domain: Domain | str | Path, *, view: str = "both", zero_shot: bool = False
    ) -> Recommender:
        """Of a Run, or of a published model (`ORG/NAME[@revision]` or a folder), on a Domain with its features.

        The catalogue may have changed since the training. view: id, mm or both; zero_shot: the tower alone. Raises
        BivrecError for what cannot be opened, or does not fit the Domain.
        """
        domain = domain if isinstance(domain, Domain) else Domain.open(domain)
        is_run = RUN_FOLDER.is_at(Path(model))
        run, published = (Path(model), None) if is_run else (None, str(model))
        return cls(domain, open_scorer(domain, run, published, view=view, zero_shot=zero_shot).scorer)

    def recommend(
        self,
        histories: Sequence[Sequence[str | int]],
        k: int = 20,
        *,
        remove_seen: bool = True,
        only: Collection[str | int] | None = None,
    ) -> list[list[Recommended]]:
        """Up to k items for each history of item ids, oldest first; the best item comes first.

        Integers are taken for their digits, as `prepare` takes them. Items that the catalogue does not have are
        skipped, in histories and in `only`, which are the items that may be recommended; a history of which nothing is
        left has an empty list. remove_seen: recommend no item of the history.
        Raises BivrecError if k is not in 1..V, an id is neither a text nor an integer, a history is a text instead of a
        list of them, or all of `only` is unknown.
        """
        if not 1 <= k <= len(self.item_ids):
            raise BivrecError(f"k = {k}: expected 1 to {len(self.item_ids)}, the number of items")
        known = [self._known(history) for history in histories]
        asked = [torch.tensor(items) for items in known if items]
        scorer = self._scorer if only is None else Restricted(self._scorer, self._allowed(only))
        lists: list[list[Recommended]] = []
        for first in range(0, len(asked), USERS_AT_ONCE):
            seen = pad_sequence(asked[first : first + USERS_AT_ONCE], batch_first=True, padding_side="left")
            recent = seen if scorer.max_history is None else seen[:, -scorer.max_history :]
            found = (part.tolist() for part in top_k(scorer, recent, k, seen if remove_seen else None))
            lists += [self._described(*row) for row in zip(*found, strict=True)]
        rows = iter(lists)
        return [next(rows) if items else [] for items in known]

    def _known(self, items: Iterable[str | int]) -> list[int]:
        if isinstance(items, str):
            raise BivrecError(f"'{items}': expected a list of item ids, such as ['{items}']")
        return [self._indices[item] for item in map(_text, items) if item in self._indices]

    def _allowed(self, items: Collection[str | int]) -> torch.Tensor:
        known = self._known(items)
        if items and not known:
            raise BivrecError(
                f"only: none of its {len(items)} items, such as '{next(iter(items))}', is in the catalogue, which has "
                f"items such as '{self.item_ids[0]}'"
            )
        allowed = torch.zeros(len(self.item_ids) + 1, dtype=torch.bool)
        allowed[known] = True
        return allowed

    def _described(self, items: Sequence[int], scores: Sequence[float]) -> list[Recommended]:
        return [
            Recommended(self.item_ids[item - 1], score) for item, score in zip(items, scores, strict=True) if item > 0
        ]


def _text(item: object) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, bool) or not isinstance(item, Integral):
        raise BivrecError(f"item {item!r}: expected an id, a text or an integer")
    return str(item)
