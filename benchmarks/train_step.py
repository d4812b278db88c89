"""One training step of a single view in the shape of MovieLens-1M, and where its time goes.

    python -m benchmarks.train_step [--json FILE]

The first row is a straightforward step in the same run: the same tower, but the loss materialises all logits in
autograd, and freed memory goes back to the kernel after each step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bivrec.config import Config, config_from_dict
from bivrec.data.batches import BatchSampler
from bivrec.data.domain import Sequences
from bivrec.memory import keep_freed_memory
from bivrec.model.bivrec import BiVRec, id_tower
from bivrec.training import objective as objective_module
from bivrec.training.candidates import CandidateSampler
from bivrec.training.objective import Objective
from bivrec.training.optimizer import make_optimizer

NUM_USERS, NUM_ITEMS, MEAN_LENGTH = 4832, 3706, 165
SHAPES = {
    "history readout, full softmax": {},
    "prefix readout, all 50 targets, full softmax": {"model": {"readout": "prefix"}},
    "prefix readout, 20 targets, 512 negatives": {
        "model": {"readout": "prefix"},
        "objective": {"candidates": "uniform", "num_negatives": 512, "negatives_scored_by": "best-interest"},
        "training": {"targets_per_sequence": 20},
    },
}


class Step:
    """Training steps of a configuration on random sequences, with the time spent on input counted apart."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        lengths = np.maximum(2, random.geometric(1 / MEAN_LENGTH, NUM_USERS))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        items = random.integers(1, NUM_ITEMS + 1, offsets[-1], dtype=np.int32)
        sequences = Sequences(offsets, items, np.zeros(0, np.int64), [])
        self.model = BiVRec({"id": id_tower(config.model, NUM_ITEMS)})
        self.objective = Objective(self.model, config.objective)
        self.optimizer = make_optimizer(self.model, [], config.training)
        self.sampler = BatchSampler(
            sequences,
            batch_size=config.training.batch_size,
            max_history=config.model.max_history,
            min_history=1,
            targets_per_sequence=1 if config.model.readout == "history" else config.training.targets_per_sequence,
            seed=0,
        )
        self.candidates = CandidateSampler(config.objective, np.ones(NUM_ITEMS + 1), 0)
        self.input_seconds = 0.0

    def __call__(self, step: int) -> None:
        """Do one step."""
        started = time.perf_counter()
        batch = self.sampler.batch(step)
        self.input_seconds += time.perf_counter() - started
        loss = self.objective(batch, self.candidates.draw(step, batch.targets))["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def measure(run: Step, steps: int) -> dict[str, float]:
    """Milliseconds per step (the median), and the share of the time that batches take."""
    run(0)
    run.input_seconds = 0.0
    times = []
    for step in range(1, steps + 1):
        started = time.perf_counter()
        run(step)
        times.append(time.perf_counter() - started)
    return {"milliseconds": 1000 * float(np.median(times)), "input_percent": 100 * run.input_seconds / sum(times)}


def straightforward_loss(
    interests: Tensor, targets: Tensor, catalogue: Tensor, best_interest: bool, left_out: Tensor | None = None
) -> Tensor:
    """Full softmax with every logit held for the backward pass."""
    nearest = (interests @ functional.embedding(targets, catalogue).unsqueeze(-1)).squeeze(-1).argmax(1)
    logits = interests[torch.arange(len(targets)), nearest] @ catalogue.T
    return functional.cross_entropy(logits, targets, reduction="sum")


def _configuration(shape: dict[str, dict[str, object]], batch_size: int) -> Config:
    base = {
        "model": {"hidden_size": 64, "max_history": 50, "num_interests": [4], "gaussian": "bias"},
        "training": {"views": ["id"], "selection_view": "id", "batch_size": batch_size},
    }
    sections = {*base, *shape}
    return config_from_dict({section: {**base.get(section, {}), **shape.get(section, {})} for section in sections})


def _with_straightforward_loss(run: Callable[[], dict[str, float]]) -> dict[str, float]:
    original = objective_module.full_softmax_loss
    objective_module.full_softmax_loss = straightforward_loss
    try:
        return run()
    finally:
        objective_module.full_softmax_loss = original


@click.command()
@click.option("--steps", default=10, show_default=True, help="Timed steps per row.")
@click.option("--batch-size", default=512, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the rows as JSON.")
def main(steps: int, batch_size: int, json_path: Path | None) -> None:
    """Time a training step."""
    rows = {}
    for name, shape in list(SHAPES.items())[:2]:
        config = _configuration(shape, batch_size)
        rows[f"straightforward: {name}"] = _with_straightforward_loss(lambda c=config: measure(Step(c), steps))  # type: ignore[misc]
    # It cannot be undone in a process, so it comes after the reference.
    keep_freed_memory()
    for name, shape in SHAPES.items():
        rows[name] = measure(Step(_configuration(shape, batch_size)), steps)
    click.echo(
        f"D 64, batch {batch_size}, history 50, K 4, {NUM_ITEMS} items, {torch.get_num_threads()} threads, fp32\n"
        f"{'step':<62}{'ms':>8}{'steps/s':>9}{'input %':>9}{'speed-up':>10}"
    )
    for name, row in rows.items():
        reference = rows.get(f"straightforward: {name}")
        ratio = f"{reference['milliseconds'] / row['milliseconds']:.2f}" if reference else ""
        speed = 1000 / row["milliseconds"]
        click.echo(f"{name:<62}{row['milliseconds']:>8.0f}{speed:>9.2f}{row['input_percent']:>9.2f}{ratio:>10}")
    if json_path:
        json_path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
