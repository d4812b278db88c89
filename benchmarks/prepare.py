"""Preparing a set in the shape of MovieLens-25M or Taobao: seconds, memory, and the bare read and sort of the file.

    python -m benchmarks.prepare [--rows 1000000 --rows 5000000 --rows 25000000] [--json FILE]
    python -m benchmarks.prepare --source taobao --rows 100150807

The reference reads the columns that are used with pyarrow and sorts the rows by user and time (of Taobao, the rows of
one behaviour); it checks nothing and writes nothing. Each measurement is a process of its own; seconds are processor
seconds, memory is the peak.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from benchmarks.report import json_option, report, small_option
from bivrec.data.movielens import read_movielens
from bivrec.data.prepare import prepare
from bivrec.data.taobao import COLUMNS, FILE, PERIOD_END, PERIOD_START, read_taobao

MEAN_LENGTH, ITEMS_PER_ROW = 154, 62_423 / 25_000_095
TAOBAO_ROWS, TAOBAO_USERS, TAOBAO_ITEMS, TAOBAO_CATEGORIES = 100_150_807, 987_994, 4_162_024, 9_439
BEHAVIOUR_SHARES = {"pv": 0.8958, "cart": 0.0552, "fav": 0.0289, "buy": 0.0201}
OUTSIDE_PERIOD = 0.0005
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


def write_behaviours(folder: Path, num_rows: int, seed: int = 0) -> None:
    """Write UserBehavior.csv: long-tailed users and items, rows by user, and a few impossible times, as in the set.

    The popularity of items is such that some 1.7 of the 4.2 million have five clicks, as in the set.
    """
    random = np.random.default_rng(seed)
    num_users, num_items = (max(1000, total * num_rows // TAOBAO_ROWS) for total in (TAOBAO_USERS, TAOBAO_ITEMS))
    ends = np.cumsum(random.lognormal(0, 1, num_users))
    popularity = np.cumsum(1 / np.arange(10, num_items + 10))
    ids = random.permutation(num_items) + 1
    names = pa.array(BEHAVIOUR_SHARES)
    shares = np.cumsum(list(BEHAVIOUR_SHARES.values()))
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    with (folder / FILE).open("wb") as sink:
        for first in range(0, num_rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, num_rows - first)
            users = np.searchsorted(ends, np.arange(first, first + count) * ends[-1] / num_rows, side="right") + 1
            items = ids[np.searchsorted(popularity, random.random(count) * popularity[-1])]
            behaviours = np.searchsorted(shares, random.random(count) * shares[-1])
            times = random.integers(PERIOD_START, PERIOD_END, count)
            wrong = random.random(count) < OUTSIDE_PERIOD
            times[wrong] = random.integers(-(2**31), PERIOD_START, wrong.sum())
            columns = [users, items, items % TAOBAO_CATEGORIES, names.take(pa.array(behaviours)), times]
            pa_csv.write_csv(pa.table(columns, names=COLUMNS), sink, options)


def bare_ratings(folder: Path) -> None:
    """Read and sort, nothing else."""
    types = {"userId": pa.int32(), "movieId": pa.int32(), "timestamp": pa.int64()}
    convert = pa_csv.ConvertOptions(include_columns=list(types), column_types=types)
    table = pa_csv.read_csv(folder / "ratings.csv", convert_options=convert)
    _sort(*(table[name].to_numpy() for name in types))


def bare_behaviours(folder: Path) -> None:
    """Read, keep the clicks, and sort, nothing else."""
    types = {"user": pa.int32(), "item": pa.int32(), "timestamp": pa.int64(), "behaviour": pa.string()}
    read = pa_csv.ReadOptions(column_names=COLUMNS)
    convert = pa_csv.ConvertOptions(include_columns=list(types), column_types=types)
    table = pa_csv.read_csv(folder / FILE, read_options=read, convert_options=convert)
    table = table.filter(pc.equal(table["behaviour"], "pv"))
    _sort(*(table[name].to_numpy() for name in list(types)[:3]))


def _sort(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> None:
    order = np.argsort(users.astype(np.int64) << 32 | times)
    users[order], items[order], times[order]


def ours_ratings(folder: Path) -> None:
    """What `bivrec prepare movielens` does, 5-core and all."""
    prepare(read_movielens(folder), folder / "domain", overwrite=True)


def ours_behaviours(folder: Path) -> None:
    """What `bivrec prepare taobao` does, 5-core and all."""
    prepare(read_taobao(folder), folder / "domain", overwrite=True)


@dataclass(frozen=True)
class Source:
    """A set of which files can be made and prepared."""

    file: str
    write: Callable[[Path, int], None]
    bare: Callable[[Path], None]
    ours: Callable[[Path], None]
    rows: tuple[int, ...]


SOURCES = {
    "movielens": Source("ratings.csv", write_ratings, bare_ratings, ours_ratings, (1_000_000, 5_000_000, 25_000_000)),
    "taobao": Source(FILE, write_behaviours, bare_behaviours, ours_behaviours, (5_000_000, 25_000_000, TAOBAO_ROWS)),
}


def measured(run: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Processor seconds and peak gigabytes of a call."""
    started = time.process_time()
    run(folder)
    # Linux counts in KiB.
    return time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_own_process(run: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """`measured` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, run, folder).result()


@click.command()
@click.option("--source", "name", type=click.Choice(list(SOURCES)), default="movielens", show_default=True)
@click.option("--rows", type=int, multiple=True, help="Rows of the file; repeatable (default: three sizes).")
@small_option
@json_option
def main(name: str, rows: tuple[int, ...], small: bool, json_path: Path | None) -> None:
    """Prepare files of growing size."""
    source = SOURCES[name]
    results = []
    for num_rows in (200_000, 1_000_000) if small else rows or source.rows:
        with tempfile.TemporaryDirectory() as folder:
            source.write(Path(folder), num_rows)
            reference, reference_memory = in_own_process(source.bare, Path(folder))
            seconds, memory = in_own_process(source.ours, Path(folder))
            megabytes = (Path(folder) / source.file).stat().st_size / 1e6
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
    report(f"Preparation of {source.file}", results, json_path)


if __name__ == "__main__":
    main()
