"""A Domain as plain tables, so that any other toolkit can train on it and rank for its users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bivrec.data.domain import Domain
from bivrec.data.sequences import Sequences
from bivrec.data.stretches import Integers, places_of
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.files import FolderKind, new_folder

WRITERS = {"parquet": pq.write_table, "csv": pa_csv.write_csv}


def export(domain: Domain, folder: Path, kind: str = "parquet", *, overwrite: bool = False) -> dict[str, int]:
    """Write a new folder of tables, `parquet` or `csv`; returns each file's number of rows.

    train, and of validation and test the _histories and _targets: user_id, item_id and timestamp of interactions, those
    of a user together, oldest first. items: item_id, title, text and image.
    What is history and what target is said by the Domain's protocol (see `EvaluationUsers`).
    Raises BivrecError if the folder exists, unless `overwrite`; then it is replaced at the end.
    """
    items = domain.item_table().data.table
    item_ids = items["item_id"].combine_chunks()
    rows = {}
    there = next((each for each in WRITERS if (folder / f"train.{each}").is_file()), kind)
    with new_folder(folder, overwrite, kind=_export_folder(there)) as staging:

        def write(name: str, table: pa.Table) -> None:
            WRITERS[kind](table, staging / f"{name}.{kind}")
            rows[f"{name}.{kind}"] = len(table)

        train = domain.sequences("train")
        write("train", _interactions(train, item_ids, train.user_ids, train.offsets[:-1], train.lengths))
        for split in ("validation", "test"):
            sequences = domain.sequences(split)
            users = EvaluationUsers.from_sequences(sequences)
            for part, starts, lengths in (
                ("histories", users.starts, users.cuts - users.starts),
                ("targets", users.cuts, users.ends - users.cuts),
            ):
                write(f"{split}_{part}", _interactions(sequences, item_ids, users.user_ids, starts, lengths))
        write("items", items)
    return rows


def _export_folder(kind: str) -> FolderKind:
    held_out = (f"{split}_{part}" for split in ("validation", "test") for part in ("histories", "targets"))
    tables = tuple(f"{name}.{kind}" for name in ("train", *held_out, "items"))
    return FolderKind(marks=tables, entries=tables)


def _interactions(
    sequences: Sequences, item_ids: pa.StringArray, user_ids: Sequence[str], starts: Integers, lengths: Integers
) -> pa.Table:
    """Of each user u the interactions starts[u]..starts[u] + lengths[u] - 1; ids as codes, since they repeat."""
    _, places = places_of(starts, lengths)
    users = pa.array(np.repeat(np.arange(len(starts)), lengths), pa.int32())
    items = pa.array(sequences.items[places] - 1, pa.int32())
    return pa.table(
        {
            "user_id": pa.DictionaryArray.from_arrays(users, pa.array(user_ids, pa.string())),
            "item_id": pa.DictionaryArray.from_arrays(items, item_ids),
            "timestamp": sequences.timestamps[places],
        }
    )
