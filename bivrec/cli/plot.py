"""bivrec plot."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import FOLDER, Command


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--to", "destination", required=True, type=FOLDER, help="The picture (PNG).")
@click.option("--metric", default="recall@20", help="A metric of the validation users, as in metrics.jsonl.")
@click.option("--view", type=click.Choice(["id", "mm", "both", "all"]), default="all", help="View of the models.")
def plot(runs: tuple[Path, ...], destination: Path, metric: str, view: str) -> None:
    """Draw the validation curves of RUNS, of one or side by side, also while they train."""
    from bivrec.files import distinct_names, name_of
    from bivrec.plots import plot_training
    from bivrec.training.run import Run

    names = distinct_names(runs, [name_of(path) for path in runs])
    named = dict(zip(names, map(Run.open, runs), strict=True))
    domains = dict.fromkeys(run.info.domain["name"] for run in named.values())
    plot_training(destination, named, metric, f"validation users of {', '.join(domains)}", view)
    click.echo(f"wrote {destination}")
