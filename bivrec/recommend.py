"""Recommendations for users: the whole catalogue ranked after the whole history, in parts of bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from torch import Tensor
from tqdm.auto import tqdm

from bivrec.data.domain import Domain
from bivrec.data.sequences import Sequences
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import Restricted, Scorer, top_k
from bivrec.evaluation.reasons import reasons
from bivrec.files import check_new_file, new_file

ROWS_AT_ONCE = 100_000
"""Fewest rows that are written together, such as a row group of Parquet."""


def recommend(
    domain: Domain,
    scorer: Scorer,
    users: Sequences,
    k: int = 20,
    *,
    remove_seen: bool = True,
    allowed: Tensor | None = None,
    titles: bool = False,
    because: bool = False,
    user_chunk: int = 256,
) -> Iterator[pa.Table]:
    """Tables of user_id, rank (from 1), item_id, score and, if asked for, title: up to k rows a user, best first.

    allowed: bool [V + 1], of the items that may be recommended, such as those in stock (None: all); histories are read
    whole all the same.
    because: also because_item_id and, with titles, because_title, of the item of the history that speaks most for this
    one (see `reasons`); null if none does. It costs a ranking for each of a user's recent items.

    Users keep their order, and a table holds `user_chunk` of them. A user's whole sequence is the history, nothing is
    held out. remove_seen: recommend no item of the history, so that a list may be shorter than k. The scores of one
    user can be compared with one another, not with those of another user.
    Raises BivrecError if there are no users, no item is allowed, or k is not in 1..V.
    """
    if not len(users):
        raise BivrecError(f"{domain.name}: no users to recommend to; name another split")
    if not 1 <= k <= scorer.num_items:
        raise BivrecError(f"k = {k}: expected 1 to {scorer.num_items}, the number of items of {domain.name}")
    if allowed is not None and not allowed[1:].any():
        raise BivrecError(f"{domain.name}: no item may be recommended; allow one at least")
    catalogue = domain.item_table().data.table.select(["item_id", "title"] if titles else ["item_id"])
    starts, ends = users.offsets[:-1], users.offsets[1:]
    # Everything is history, and nothing a target.
    asked = EvaluationUsers(users.items, starts, ends, ends, users.user_ids, skipped=0)
    return _tables(catalogue, scorer, asked, k, remove_seen, allowed, because, user_chunk)


def _tables(
    catalogue: pa.Table,
    scorer: Scorer,
    users: EvaluationUsers,
    k: int,
    remove_seen: bool,
    allowed: Tensor | None,
    because: bool,
    user_chunk: int,
) -> Iterator[pa.Table]:
    ranked = scorer if allowed is None else Restricted(scorer, allowed)
    for first in tqdm(range(0, len(users), user_chunk), desc="recommending", unit="chunk", leave=False, disable=None):
        last = min(first + user_chunk, len(users))
        seen = users.seen(first, last) if remove_seen else None
        histories = users.histories(first, last, scorer.max_history)
        items, scores = top_k(ranked, histories, k, seen)
        found = items > 0
        rows, places = (indices.cpu().numpy() for indices in found.nonzero(as_tuple=True))
        described = _described(catalogue, items[found])
        columns = {
            "user_id": pa.array(users.user_ids[first:last], pa.string()).take(pa.array(rows)),
            "rank": pa.array(places + 1, pa.int32()),
            "item_id": described["item_id"],
            "score": pa.array(scores[found].float().cpu().numpy()),
        }
        columns |= {name: described[name] for name in described.column_names[1:]}
        if because:
            reason = _described(catalogue, reasons(scorer, histories, items)[found])
            columns |= {f"because_{name}": reason[name] for name in reason.column_names}
        yield pa.table(columns)


def _described(catalogue: pa.Table, items: Tensor) -> pa.Table:
    """The rows of items [N]; nulls for item 0."""
    indices = items.cpu().numpy()
    return catalogue.take(pa.array(indices - 1, mask=indices == 0))


class _JsonLines:
    """A writer of tables like those of Arrow."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._stream = path.open("w", encoding="utf-8")

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def write_table(self, table: pa.Table) -> None:
        self._stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


WRITERS: dict[str, Any] = {".parquet": pq.ParquetWriter, ".csv": pa_csv.CSVWriter, ".jsonl": _JsonLines}


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Raise BivrecError if recommendations cannot be written to `path`: before a model is loaded for nothing."""
    if path.suffix not in WRITERS:
        raise BivrecError(f"{path}: unknown format '{path.suffix}'; expected {', '.join(WRITERS)}")
    check_new_file(path)
    if path.exists() and not overwrite:
        raise BivrecError(f"{path}: exists already; choose another file or pass --overwrite")


def write_recommendations(path: Path, tables: Iterator[pa.Table], *, overwrite: bool = False) -> int:
    """Write what `recommend` gives as .parquet, .csv or .jsonl, by the suffix; the file appears when it is whole.

    Returns the number of rows. Raises BivrecError for another suffix, and if the file exists, unless `overwrite`.
    """
    check_output(path, overwrite=overwrite)
    parts = _stacked(tables)
    first = next(parts)
    written = 0
    with new_file(path) as staging, WRITERS[path.suffix](staging, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part)
            written += len(part)
    return written


def _stacked(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS_AT_ONCE or more, but for the last."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
