"""Answers of `bivrec.Recommender`, in memory: how long a request takes, for one history and for many at once.

    python -m benchmarks.serving [--items N] [--json FILE]

An untrained model of the recipe `sparse`, both views, with features of MiniLM's width; histories of 20 random items,
lists of 10, seen items removed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.memory import write
from benchmarks.report import alternate, json_option, report, small_option
from bivrec.baselines.towers import fresh_towers
from bivrec.config import config_from_dict
from bivrec.data.domain import Domain
from bivrec.data.info import SPLITS
from bivrec.evaluation.scorer import ModelScorer
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.recipes import read_recipe
from bivrec.recommender import Recommender

FEATURES, K = 384, 10
AT_ONCE = (1, 16, 256)


def measure(folder: Path, num_items: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of histories that are asked at once."""
    torch.manual_seed(0)
    write(folder / str(num_items), dict(zip(SPLITS, (max(AT_ONCE), 1, 1), strict=True)), num_items)
    domain = Domain.open(folder / str(num_items))
    config = config_from_dict(read_recipe("sparse")).model
    features = torch.randn(num_items + 1, FEATURES)
    model = BiVRecNetwork(fresh_towers(config, ("id", "mm"), num_items, [FEATURES], features))
    recommender = Recommender(domain, ModelScorer(model))
    sequences = domain.sequences("train")
    histories = [[recommender.item_ids[item - 1] for item in sequences[user]] for user in range(max(AT_ONCE))]

    def ask(count: int) -> Callable[[int], object]:
        return lambda _: recommender.recommend(histories[:count], K)

    seconds = alternate({str(count): ask(count) for count in AT_ONCE}, rounds)
    return [
        {
            "items": num_items,
            "histories": count,
            "ms": 1000 * seconds[str(count)],
            "times one by one": count * seconds["1"] / seconds[str(count)],
        }
        for count in AT_ONCE
    ]


@click.command()
@click.option("--items", "catalogues", default=[62_423, 200_000], multiple=True, show_default=True, help="Items.")
@click.option("--rounds", default=10, show_default=True, help="Timed requests of each size.")
@small_option
@json_option
def main(catalogues: tuple[int, ...], rounds: int, small: bool, json_path: Path | None) -> None:
    """Answer requests."""
    if small:
        catalogues, rounds = (5_000,), 3
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for count in catalogues for row in measure(Path(folder), count, rounds)]
    report(f"Serving: both views, {torch.get_num_threads()} threads", rows, json_path)


if __name__ == "__main__":
    main()
