"""Memory of a process that trains on Domains with more and more users.

    python -m benchmarks.memory [--json FILE]

For each number of users a Domain of random sequences is written, and a new process opens it and draws batches as a
training does. `open` is the time by the clock until its training users can be drawn. `own` is memory that the kernel
cannot take back (RssAnon) beyond that of the process before it opened the Domain; `mapped` are pages of files
(RssFile), which it can.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from benchmarks.report import json_option, report, small_option
from bivrec.data.batches import BatchSampler
from bivrec.data.domain import Domain, write_domain
from bivrec.data.info import REQUIRED_KEYS, SPLITS, USER_SPLIT, DomainInfo
from bivrec.data.sequences import Sequences
from bivrec.evaluation.protocol import EvaluationUsers

NUM_ITEMS, LENGTH, STEPS = 50_000, 20, 100


def write(folder: Path, users: dict[str, int], num_items: int = NUM_ITEMS) -> None:
    """A Domain with this many users of each split, all with LENGTH interactions."""
    random = np.random.default_rng(0)
    sequences = {}
    for split, count in users.items():
        items = random.integers(1, num_items + 1, count * LENGTH, dtype=np.int32)
        ids = [f"{split}-user-{row}" for row in range(count)]
        sequences[split] = Sequences(np.arange(count + 1) * LENGTH, items, np.arange(len(items)), ids)
    info = DomainInfo(
        format_version=1,
        name="memory",
        source={"reader": "benchmark"},
        images=None,
        seed=0,
        k_core=0,
        num_items=num_items,
        users=users,
        interactions={split: count * LENGTH for split, count in users.items()},
        num_users=sum(users.values()),
        num_interactions=sum(users.values()) * LENGTH,
        dropped=dict.fromkeys(REQUIRED_KEYS["dropped"], 0),
        items_not_listed=0,
        missing=dict.fromkeys(REQUIRED_KEYS["missing"], num_items),
        features={},
        files={},
        protocol=USER_SPLIT,
        cutoffs={},
    )
    names = pa.array([f"item-{row}" for row in range(num_items)])
    nothing = pa.nulls(num_items, pa.string())
    folder.mkdir()
    write_domain(
        folder, info, sequences, pa.table([names, nothing, nothing, nothing], ["item_id", "title", "text", "image"])
    )


def resident() -> dict[str, float]:
    """MiB of this process by kind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}


def draw(path: Path, answers: Any) -> None:
    """Open the Domain, draw batches, and answer the memory that this took."""
    before = resident()
    started = time.monotonic()
    domain = Domain.open(path)
    train = domain.sequences("train")
    opened = time.monotonic() - started
    sampler = BatchSampler(
        train,
        batch_size=128,
        max_history=50,
        min_history=1,
        targets_per_sequence=20,
        whole_history=False,
        seed=0,
    )
    users = EvaluationUsers.from_sequences(domain.sequences("validation"))
    for step in range(STEPS):
        sampler.batch(step)
    after = resident()
    answers.put({key: after[key] - before[key] for key in after} | {"evaluated": len(users), "opened": opened})


def measure(users: int, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    path = folder / str(users)
    write(path, dict(zip(SPLITS, (users, users // 8, users // 8), strict=True)))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=draw, args=(path, answers))
    process.start()
    taken = answers.get()
    process.join()
    size = sum(record.bytes for record in Domain.open(path).info.files.values()) / 2**20
    return {
        "training users": users,
        "Domain, MiB": size,
        "open, s": taken["opened"],
        "own, MiB": taken["RssAnon"],
        "own, bytes a user": taken["RssAnon"] * 2**20 / users,
        "mapped, MiB": taken["RssFile"],
    }


@click.command()
@click.option("--users", default=(100_000, 1_000_000), show_default=True, multiple=True)
@small_option
@json_option
def main(users: tuple[int, ...], small: bool, json_path: Path | None) -> None:
    """Measure the memory of drawing batches."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(count, Path(folder)) for count in ((1000, 10_000) if small else users)]
    report(f"Memory of a process that draws batches, {LENGTH} interactions a user", rows, json_path)


if __name__ == "__main__":
    main()
