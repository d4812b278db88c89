"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.training.run import Run

FOLDER = click.Path(path_type=Path)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. model.hidden_size=128."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
track_option = click.option("--track", metavar="NAME", help="Also log to a tracker, e.g. tensorboard or wandb.")


def allow_only(ctx: click.Context, *allowed: str) -> None:
    """Raise BivrecError if any other parameter than these was given: it would be ignored."""
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in allowed
        and ctx.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE
    ]
    if given:
        raise BivrecError(f"--resume goes on with the Run's own Domain and settings; leave {', '.join(given)} out")


def echo_results(run: Run) -> None:
    """Print what a training came to, once however many processes trained."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        click.echo(f"{run.path}: best weights of step {run.progress().best_step}; on the test users:")
        click.echo(results_table(run.results()))


def results_table(results: dict[str, dict[str, float]], label: str = "view") -> str:
    """Rows of metrics, in percent, aligned for a terminal."""
    metrics = list(next(iter(results.values())))
    width = max(len(label), *(len(name) for name in results))
    lines = [f"{label:<{width}}  " + "  ".join(f"{metric:>12}" for metric in metrics)]
    for name, values in results.items():
        lines.append(f"{name:<{width}}  " + "  ".join(f"{100 * values[metric]:>12.2f}" for metric in metrics))
    return "\n".join(lines) + "\n(all in %)"
