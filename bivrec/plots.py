"""Pictures of a Run, and of systems side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bivrec.baselines.floors import FLOORS
from bivrec.errors import BivrecError
from bivrec.files import new_file
from bivrec.training.run import Run

GREY, BLUE = "#b0b0b0", "#3b6ea5"


def plot_comparison(path: Path, results: Mapping[str, Mapping[str, float]], metric: str, title: str) -> None:
    """A horizontal bar for each system's value of a metric, in percent, in the given order; PNG."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 0.45 * len(results) + 1.2), layout="constrained")
    values = [100 * metrics[metric] for metrics in results.values()]
    bars = axes.barh(range(len(values)), values, color=_colours(results))
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(range(len(values)), list(results))
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric} (%)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    save_figure(figure, path)


def plot_training(path: Path, run: Run, metric: str, title: str) -> None:
    """The validation metric of a Run's views over optimiser steps, and the step of the best weights; PNG."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    lines = [line for line in run.metrics() if line["split"] == "validation"]
    for view in dict.fromkeys(line["view"] for line in lines):
        points = [line for line in lines if line["view"] == view]
        axes.plot([p["step"] for p in points], [100 * p[metric] for p in points], marker="o", markersize=3, label=view)
    axes.axvline(run.progress().best_step, color="#b0b0b0", linestyle="--", linewidth=1, label="best weights")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"validation {metric} (%)")
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _colours(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Floors in grey, so that what was trained stands out."""
    return [GREY if name in FLOORS else BLUE for name in names]


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of pyplot as a PNG."""
    with new_file(path) as staging:
        # The software and date that matplotlib would record change the bytes from run to run.
        figure.savefig(staging, format="png", dpi=120, metadata={"Software": None})
    # Pyplot keeps figures until they are closed.
    load_pyplot().close(figure)


def load_pyplot() -> Any:
    """Pyplot without a display. Raises BivrecError if matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise BivrecError('matplotlib is not installed; run `pip install "bivrec[plots]"`') from None
    return pyplot
