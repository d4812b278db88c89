"""Full-catalogue ranking in bounded memory, and the evaluation of a scorer on the users of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from bivrec.device import own_device
from bivrec.errors import BivrecError
from bivrec.evaluation.metrics import find_hits, ranking_metrics
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.shortlist import BoundingScorer, is_worthwhile, shortlist
from bivrec.files import new_file

ITEMS_AT_ONCE = 4096
"""Items that are scored at once: few enough for the scores of a chunk of users to stay near the processor's cache."""
ITEMS_AT_ONCE_ON_GPU = 65536
"""The same on a GPU, where starting a small product takes longer than the product."""


class Scorer(Protocol):
    """What can be evaluated: it reads histories and scores a stretch of the catalogue at a time."""

    @property
    def num_items(self) -> int:
        """V; items are 1..V, and 0 is padding."""

    @property
    def max_history(self) -> int | None:
        """How many of the most recent items it reads; None: all."""

    def encode(self, histories: Tensor) -> Any:
        """State of B users from their histories, int64 [B, L] on the CPU, padded on the left with 0."""

    def score(self, users: Any, first: int, last: int) -> Tensor:
        """Scores of items first..last-1, floating point [B, last - first]; top-k runs on the device it lies on."""


class Scorers(Protocol):
    """Several scorers of one catalogue that share most of their work."""

    @property
    def num_items(self) -> int:
        """V; items are 1..V, and 0 is padding."""

    @property
    def max_history(self) -> int | None:
        """How many of the most recent items they read; None: all."""

    def __len__(self) -> int:
        """How many they are."""

    def encode(self, histories: Tensor) -> Any:
        """State of B users, as of a Scorer."""

    def score(self, users: Any, first: int, last: int) -> Iterator[Tensor]:
        """Scores [B, last - first] of items first..last-1, of each scorer in turn."""


class Restricted:
    """A Scorer that ranks none but some of the items."""

    def __init__(self, scorer: Scorer, allowed: Tensor) -> None:
        """allowed: bool [V + 1]."""
        self._scorer = scorer
        self._allowed = allowed
        self.num_items = scorer.num_items
        self.max_history = scorer.max_history

    def encode(self, histories: Tensor) -> Any:
        """State of users, as of the scorer."""
        return self._scorer.encode(histories)

    def score(self, users: Any, first: int, last: int) -> Tensor:
        """Scores of items first..last-1, minus infinity of those that are not allowed."""
        scores = self._scorer.score(users, first, last)
        return scores.masked_fill(~self._allowed[first:last].to(scores.device), -torch.inf)


@dataclass(frozen=True)
class EvaluationResult:
    """Means over users and the values that they are means of, as fractions of 1."""

    metrics: dict[str, float]
    """{"recall@20": mean over users, ...}."""
    per_user: dict[str, npt.NDArray[np.float64]]
    """{"recall@20": [num_users], ...} in the order of the EvaluationUsers."""
    recommended: npt.NDArray[np.int64]
    """[num_users, longest k, at most all items]: the lists that were compared, best first; 0 where a list ended."""


@torch.no_grad()
def top_k(scorer: Scorer, histories: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best of the whole catalogue for each history: items [B, k] (int64) and scores [B, k], best first.

    histories: int64 [B, L], padded on the left with 0. exclude: int64 [B, S] items never to recommend, padded with 0.
    Equal scores are ordered by item index, the lowest (most popular) first. Where fewer than k items remain the list
    ends with item 0 and score -inf. Memory is that of the scores of one of the `stretches`. Where the scorer and the
    machine can, a large catalogue is ranked by upper bounds (see `shortlist`), which gives the same list.
    Raises BivrecError if a score is not a number or the catalogue is empty.
    """
    users = scorer.encode(histories)
    if not (isinstance(scorer, BoundingScorer) and is_worthwhile(scorer, k)):
        return _scan(scorer, users, k, exclude)
    candidates, candidate_scores, limit = shortlist(scorer, users, k, exclude)
    scores, columns = _stable_top_k(candidate_scores, k)
    items = candidates.gather(1, columns)
    # Not `scores <= limit`: bounds that are not numbers prove nothing.
    unproved = ~(scores[:, -1] > limit)
    if unproved.any():
        rows = unproved.to(histories.device)
        rest = None if exclude is None else exclude[rows.to(exclude.device)]
        items[unproved], scores[unproved] = _scan(scorer, scorer.encode(histories[rows]), k, rest)
    return items, scores


@torch.no_grad()
def top_k_of_each(scorers: Scorers, histories: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
    """`top_k` of each scorer, from one pass over the catalogue.

    Every item is scored: what bounds save is less than what the scorers share, the more so the more they are.
    """
    users = scorers.encode(histories)
    best = [_BestItems(k) for _ in range(len(scorers))]
    for first, last in stretches(scorers.num_items):
        for own, scores in zip(best, scorers.score(users, first, last), strict=True):
            own.add(scores, first)
    return [own.lists() for own in best]


def _scan(scorer: Scorer, users: Any, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """`top_k` from the scores of all items."""
    best = _BestItems(k)
    for first, last in stretches(scorer.num_items):
        scores = scorer.score(users, first, last)
        best.add(scores if exclude is None else _mask(scores, exclude.to(scores.device), first), first)
    return best.lists()


def stretches(num_items: int) -> Iterator[tuple[int, int]]:
    """First item, and first after it, of each part of the catalogue that is scored at once."""
    size = ITEMS_AT_ONCE if own_device().type == "cpu" else ITEMS_AT_ONCE_ON_GPU
    for first in range(1, num_items + 1, size):
        yield first, min(first + size, num_items + 1)


class _BestItems:
    """The k best of the items whose scores were added, in the order of their index."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._found: tuple[Tensor, Tensor] | None = None

    def add(self, scores: Tensor, first: int) -> None:
        """Take scores [B, n] of items from `first` on into account."""
        best, columns = _stable_top_k(scores, self._k)
        if best.isnan().any():
            raise BivrecError(
                "the model gives scores that are not numbers: it has diverged (train at a lower learning rate) "
                "or the item features hold NaN (encode the Domain again)"
            )
        items = columns + first
        if self._found is not None:
            # What was found before has lower indices, so a stable sort keeps the order of ties.
            best, order = torch.cat([self._found[1], best], 1).sort(dim=1, descending=True, stable=True)
            items = torch.cat([self._found[0], items], 1).gather(1, order)
        self._found = items[:, : self._k], best[:, : self._k]

    def lists(self) -> tuple[Tensor, Tensor]:
        """Items and scores [B, k], best first, filled up with item 0 and score -inf."""
        if self._found is None:
            raise BivrecError("the catalogue has no items to rank")
        items, scores = self._found
        missing = (0, self._k - items.shape[1])
        items = functional.pad(items.masked_fill(scores == -torch.inf, 0), missing)
        return items, functional.pad(scores, missing, value=-torch.inf)


def recommend_users(
    scorer: Scorer,
    users: EvaluationUsers,
    k: int,
    remove_seen: bool = False,
    user_chunk: int = 256,
    accelerator: Accelerator | None = None,
) -> npt.NDArray[np.int64]:
    """The k best items of every user, [U, k], on every process.

    Processes take whole chunks of users in turn: a chunk is computed alike however many processes there are, so their
    number changes no result.
    """

    def lists(first: int, last: int) -> list[Tensor]:
        exclude = users.seen(first, last) if remove_seen else None
        histories = users.histories(first, last, scorer.max_history)
        return [top_k(scorer, histories, k, exclude)[0]]

    return _share_users(lists, (1, len(users), k), user_chunk, accelerator)[0].numpy()


def _share_users(
    lists: Callable[[int, int], list[Tensor]],
    shape: tuple[int, int, int],
    user_chunk: int,
    accelerator: Accelerator | None,
) -> Tensor:
    """Items of this shape, [R, U, k], on every process, from what `lists` finds for users first..last-1: R x [B, k]."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    recommended = torch.zeros(shape, dtype=torch.int64, device=accelerator.device if accelerator else None)
    num_users = shape[1]
    chunks = range(rank * user_chunk, num_users, world * user_chunk)
    for first in tqdm(chunks, desc="ranking", unit="chunk", leave=False, disable=True if rank else None):
        last = min(first + user_chunk, num_users)
        for own, items in zip(recommended, lists(first, last), strict=True):
            own[first:last] = items
    if accelerator and world > 1:
        # Every row is zero on all processes but one.
        recommended = accelerator.reduce(recommended, reduction="sum")
    return recommended.cpu()


def evaluate(
    scorer: Scorer,
    users: EvaluationUsers,
    ks: Sequence[int] = (10, 20, 50),
    remove_seen: bool = False,
    user_chunk: int = 256,
    accelerator: Accelerator | None = None,
) -> EvaluationResult:
    """Rank the whole catalogue for every user and compare with the targets; no candidates are sampled.

    remove_seen: never recommend an item of the user's whole history; a target that is a repeat can then not be hit.
    accelerator: share the users among its processes; every process returns the same result.
    Raises BivrecError if there is no user to evaluate or a k is below 1.
    """
    check_askable(users, ks)
    longest = min(max(ks), scorer.num_items)
    recommended = recommend_users(scorer, users, longest, remove_seen, user_chunk, accelerator)
    return compare_with_targets(recommended, users, ks)


def evaluate_each(
    scorers: Scorers,
    users: EvaluationUsers,
    ks: Sequence[int] = (10, 20, 50),
    user_chunk: int = 256,
    accelerator: Accelerator | None = None,
) -> list[EvaluationResult]:
    """`evaluate` of each scorer, with seen items kept, for little more than the cost of one."""
    check_askable(users, ks)
    longest = min(max(ks), scorers.num_items)

    def lists(first: int, last: int) -> list[Tensor]:
        histories = users.histories(first, last, scorers.max_history)
        return [items for items, _ in top_k_of_each(scorers, histories, longest)]

    recommended = _share_users(lists, (len(scorers), len(users), longest), user_chunk, accelerator)
    return [compare_with_targets(own.numpy(), users, ks) for own in recommended]


def check_askable(users: EvaluationUsers, ks: Sequence[int]) -> None:
    """Raise BivrecError if there is no user to evaluate or a k is below 1."""
    if min(ks) < 1:
        raise BivrecError(f"k = {min(ks)}: a list of recommendations has at least 1 item")
    if not len(users):
        raise BivrecError(
            f"no user to evaluate: all {users.skipped} users of the split have fewer than 2 items; prepare more data"
        )


def compare_with_targets(
    recommended: npt.NDArray[np.int64], users: EvaluationUsers, ks: Sequence[int]
) -> EvaluationResult:
    """Metrics of lists [U, L] of item indices, best first, filled up with 0; behind L nothing is found."""
    per_user = ranking_metrics(*find_hits(recommended, *users.targets()), ks)
    means = {name: float(values.mean()) for name, values in per_user.items()}
    return EvaluationResult(means, per_user, recommended)


def write_per_user(path: Path, users: EvaluationUsers, result: EvaluationResult) -> None:
    """Write Parquet with one row per evaluated user: `user_id` and one float64 column per metric."""
    table = pa.table({"user_id": pa.array(users.user_ids, pa.string()), **result.per_user})
    with new_file(path) as staging:
        pq.write_table(table, staging)


def _mask(scores: Tensor, exclude: Tensor, first: int) -> Tensor:
    """Scores with -inf for the excluded items of the chunk that begins with item `first`."""
    users, places = ((exclude >= first) & (exclude < first + scores.shape[1])).nonzero(as_tuple=True)
    return scores.index_put((users, exclude[users, places] - first), scores.new_full((), -torch.inf))


def _stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest k of each row, ties by lower column; torch.topk alone leaves the choice among ties open."""
    width = scores.shape[1]
    values, columns = scores.topk(min(k + 1, width), dim=1)
    if k < width:
        threshold = values[:, k]
        tied = ((values[:, k - 1] == threshold) & (threshold > -torch.inf)).nonzero().squeeze(1)
        columns = columns[:, :k]
        if len(tied):
            columns[tied] = _lowest_columns(scores[tied], threshold[tied, None], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _lowest_columns(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """All columns above the threshold (fewer than k) and the lowest of those equal to it, k in all."""
    preference = torch.arange(scores.shape[1], 0, -1, dtype=torch.int32, device=scores.device)
    preference = torch.where(scores == threshold, preference, 0)
    preference[scores > threshold] = scores.shape[1] + 1
    return preference.topk(k, dim=1).indices
