"""What the benchmarks share: alternating measurement, the table that is printed, and its JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

json_option = click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the rows as JSON.")
small_option = click.option("--small", is_flag=True, help="A size for a look, some ten seconds.")


def alternate(systems: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each system over `rounds` calls, after one that does not count.

    Processor time (of all threads), and the systems take turns: so what else the machine does changes little.
    """
    times: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(-1, rounds):
        for name, run in systems.items():
            started = time.process_time()
            run(max(turn, 0))
            if turn >= 0:
                times[name].append(time.process_time() - started)
    return {name: float(np.median(values)) for name, values in times.items()}


def report(title: str, rows: Sequence[Mapping[str, Any]], json_path: Path | None) -> None:
    """Print rows with the same keys as a Markdown table, and write them to `json_path`."""
    columns = list(rows[0])
    click.echo(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        click.echo(f"| {' | '.join(_text(row[column]) for column in columns)} |")
    if json_path:
        content = {"title": title, "rows": list(rows)}
        json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
