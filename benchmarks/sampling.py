"""Batches of training sequences: ours, and a PyTorch DataLoader over a per-item Dataset.

    python -m benchmarks.sampling [--json FILE]

Both draw users without replacement and a random stretch of each, padded on the left; the reference is the usual
`Dataset.__getitem__` for one sample, collated, without worker processes.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.report import alternate, json_option, report, small_option
from bivrec.data.batches import BatchSampler
from bivrec.data.sequences import Sequences


class Samples(Dataset[tuple[int, Tensor, Tensor]]):
    """One user at a time."""

    def __init__(self, sequences: Sequences, history: int) -> None:
        self._sequences = sequences
        self._history = history
        self._random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, user: int) -> tuple[int, Tensor, Tensor]:
        items = self._sequences[user]
        target = self._random.integers(1, len(items))
        history = np.zeros(self._history, np.int64)
        read = items[max(0, target - self._history) : target]
        history[self._history - len(read) :] = read
        return user, torch.from_numpy(history), torch.tensor(items[target], dtype=torch.int64)


def random_sequences(num_users: int, num_items: int, mean_length: int) -> Sequences:
    """Sequences of geometric lengths, at least 2, and random items."""
    random = np.random.default_rng(0)
    lengths = np.maximum(2, random.geometric(1 / mean_length, num_users))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(offsets, random.integers(1, num_items + 1, offsets[-1], dtype=np.int32), np.zeros(0, np.int64), [])


@click.command()
@click.option("--users", default=130_033, show_default=True)
@click.option("--batch-size", default=2048, show_default=True)
@click.option("--history", default=50, show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Timed batches.")
@small_option
@json_option
def main(users: int, batch_size: int, history: int, rounds: int, small: bool, json_path: Path | None) -> None:
    """Draw batches."""
    if small:
        users, rounds = 20_000, 5
    sequences = random_sequences(users, 62_423, 154)
    samplers = {
        f"bivrec, {name}": BatchSampler(
            sequences,
            batch_size=batch_size,
            max_history=history,
            min_history=1,
            targets_per_sequence=targets,
            whole_history=False,
            seed=0,
        )
        for name, targets in {"one target": 1, "20 targets": 20}.items()
    }
    loader = DataLoader(Samples(sequences, history), batch_size, shuffle=True, drop_last=True)
    batches = iter(loader)

    def next_batch(_: int) -> object:
        nonlocal batches
        try:
            return next(batches)
        except StopIteration:
            batches = iter(loader)
            return next(batches)

    seconds = alternate({"DataLoader": next_batch, **{name: s.batch for name, s in samplers.items()}}, rounds)
    rows = [
        {
            "batches": name,
            "milliseconds": 1000 * value,
            "samples/s": batch_size / value,
            "times DataLoader": seconds["DataLoader"] / value,
        }
        for name, value in seconds.items()
    ]
    report(
        f"Sampling: batches of {batch_size:,}, history {history}, {len(sequences.items):,} interactions",
        rows,
        json_path,
    )


if __name__ == "__main__":
    main()
