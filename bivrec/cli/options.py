"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. model.hidden_size=128."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
track_option = click.option("--track", metavar="NAME", help="Also log to a tracker, e.g. tensorboard or wandb.")


def results_table(results: dict[str, dict[str, float]], label: str = "view") -> str:
    """Rows of metrics, in percent, aligned for a terminal."""
    metrics = list(next(iter(results.values())))
    width = max(len(label), *(len(name) for name in results))
    lines = [f"{label:<{width}}  " + "  ".join(f"{metric:>12}" for metric in metrics)]
    for name, values in results.items():
        lines.append(f"{name:<{width}}  " + "  ".join(f"{100 * values[metric]:>12.2f}" for metric in metrics))
    return "\n".join(lines) + "\n(all in %)"
