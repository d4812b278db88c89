"""Steps per second of `bivrec pretrain` with one and with two processes on the same global batch, a thread each.

    python -m benchmarks.scaling [--json FILE]

Efficiency is the rate of two processes over twice the rate of one. Rates are by the clock on the wall, as the training
itself reports them, so nothing else should run on the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.report import json_option, report, small_option
from bivrec.data.prepare import prepare
from bivrec.data.synthetic import DomainSize, World

SETTINGS = {
    "model.readout": "prefix",
    "model.gaussian": "bias",
    "model.assignment": "softmax-soft",
    "objective.candidates": "uniform",
    "objective.num_negatives": 512,
    "training.views": '["id"]',
    "training.selection_view": "id",
    "training.targets_per_sequence": 20,
}
"""About the last shape of `train_step`."""


def steps_per_second(domain: Path, run: Path, processes: int, settings: dict[str, Any]) -> float:
    """The median rate that a training reports, without its first report."""
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, "-m", "bivrec", "pretrain", str(domain), "--to", str(run), *options]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise click.ClickException(f"{processes} processes: {finished.stderr.strip()[-2000:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return float(np.median([line["steps_per_second"] for line in lines if line["split"] == "train"][1:]))


@click.command()
@click.option("--steps", default=200, show_default=True, help="Steps of each training; it reports every 50.")
@click.option("--hidden-size", default=256, show_default=True)
@click.option("--batch-size", default=128, show_default=True, help="Global batch.")
@small_option
@json_option
def main(steps: int, hidden_size: int, batch_size: int, small: bool, json_path: Path | None) -> None:
    """Time a training with one and with two processes."""
    if small:
        steps, hidden_size, batch_size = 100, 32, 32
    settings = {
        **SETTINGS,
        "model.hidden_size": hidden_size,
        "training.batch_size": batch_size,
        "training.steps": steps,
        "training.evaluate_every": steps,
    }
    with tempfile.TemporaryDirectory() as folder:
        drawn = World.create(topics=6).domain("scaling", DomainSize(1000, 2000, 80))
        domain = prepare(drawn.raw, Path(folder) / "domain").path
        rates = {count: steps_per_second(domain, Path(folder) / f"run{count}", count, settings) for count in (1, 2)}
    rows = [
        {"processes": count, "steps/s": rate, "efficiency": rate / (count * rates[1])} for count, rate in rates.items()
    ]
    report(f"Scaling, ID view, D {hidden_size}, global batch {batch_size}, one thread a process", rows, json_path)


if __name__ == "__main__":
    main()
