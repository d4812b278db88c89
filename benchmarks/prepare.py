"""Preparing a ratings.csv in the shape of MovieLens-25M: seconds, memory, and the bare read and sort of the same file.

    python -m benchmarks.prepare [--rows 1000000 --rows 5000000 --rows 25000000] [--json FILE]

The reference reads the three columns that are used with pyarrow and sorts the rows by user and time; it checks nothing
and writes nothing. Each measurement is a process of its own; seconds are processor seconds, memory is the peak.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from benchmarks.report import json_option, report, small_option
from bivrec.data.movielens import read_movielens
from bivrec.data.prepare import prepare

MEAN_LENGTH, ITEMS_PER_ROW = 154, 62_423 / 25_000_095
ROWS_AT_ONCE = 1_000_000


def write_ratings(folder: Path, num_rows: int, seed: int = 0) -> None:
    """Write ratings.csv and movies.csv: long-tailed items, rows by user and item as in the set."""
    random = np.random.default_rng(seed)
    num_items = max(1000, int(num_rows * ITEMS_PER_ROW))
    # Every item occurs, so that the number of items is that of the catalogue.
    popularity = np.cumsum(1 / np.arange(10, num_items + 10))
    with pa_csv.CSVWriter(folder / "ratings.csv", _ratings(np.zeros((4, 0))).schema) as sink:
        for first in range(0, num_rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, num_rows - first)
            users = np.sort(random.integers(first // MEAN_LENGTH, (first + count) // MEAN_LENGTH, count))
            items = np.searchsorted(popularity, random.random(count) * popularity[-1])
            order = np.lexsort((items, users))
            times = random.integers(789_652_009, 1_574_327_703, count)
            ratings = random.integers(1, 11, count) / 2
            sink.write_table(_ratings([users + 1, items[order] + 1, ratings, times]))
    ids = np.arange(1, num_items + 1)
    titles = pa.array([f"Movie {item} (2000)" for item in ids])
    movies = pa.table({"movieId": ids, "title": titles, "genres": pa.array(["Drama|War"] * num_items)})
    pa_csv.write_csv(movies, folder / "movies.csv")


def _ratings(columns: list[np.ndarray] | np.ndarray) -> pa.Table:
    users, items, ratings, times = columns
    return pa.table(
        {
            "userId": users.astype(np.int32),
            "movieId": items.astype(np.int32),
            "rating": ratings.astype(np.float64),
            "timestamp": times.astype(np.int64),
        }
    )


def bare(folder: Path) -> None:
    """Read and sort, nothing else."""
    types = {"userId": pa.int32(), "movieId": pa.int32(), "timestamp": pa.int64()}
    convert = pa_csv.ConvertOptions(include_columns=list(types), column_types=types)
    table = pa_csv.read_csv(folder / "ratings.csv", convert_options=convert)
    users, items, times = (table[name].to_numpy() for name in types)
    order = np.argsort(users.astype(np.int64) << 32 | times)
    users[order], items[order], times[order]


def ours(folder: Path) -> None:
    """What `bivrec prepare movielens` does, 5-core and all."""
    prepare(read_movielens(folder), folder / "domain", overwrite=True)


def measured(run: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Processor seconds and peak gigabytes of a call."""
    started = time.process_time()
    run(folder)
    return time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_own_process(run: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """`measured` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, run, folder).result()


@click.command()
@click.option("--rows", default=(1_000_000, 5_000_000, 25_000_000), show_default=True, multiple=True)
@small_option
@json_option
def main(rows: tuple[int, ...], small: bool, json_path: Path | None) -> None:
    """Prepare ratings of growing size."""
    results = []
    for num_rows in (200_000, 1_000_000) if small else rows:
        with tempfile.TemporaryDirectory() as folder:
            write_ratings(Path(folder), num_rows)
            reference, reference_memory = in_own_process(bare, Path(folder))
            seconds, memory = in_own_process(ours, Path(folder))
            megabytes = (Path(folder) / "ratings.csv").stat().st_size / 1e6
        results.append(
            {
                "rows": num_rows,
                "file, MB": megabytes,
                "prepare, s": seconds,
                "microseconds a row": 1e6 * seconds / num_rows,
                "peak, GB": memory,
                "read and sort, s": reference,
                "its peak, GB": reference_memory,
                "times read and sort": seconds / reference,
            }
        )
    report("Preparation of ratings.csv", results, json_path)


if __name__ == "__main__":
    main()
