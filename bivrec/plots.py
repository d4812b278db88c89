"""Pictures of a Run, and of systems side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bivrec.config import FLOORS
from bivrec.errors import BivrecError, not_installed
from bivrec.files import check_new_file, new_file
from bivrec.training.run import Run

GREY, BLUE = "#b0b0b0", "#3b6ea5"
SOFTWARE = {"Software": "bivrec"}
"""Told in every picture, so that no other one is ever replaced."""


def plot_comparison(path: Path, results: Mapping[str, Mapping[str, float]], metric: str, title: str) -> None:
    """A horizontal bar for each system's value of a metric, in percent, in the given order; PNG.

    Raises BivrecError like `check_picture`.
    """
    check_picture(path)
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


def plot_training(path: Path, runs: Mapping[str, Run], metric: str, title: str, view: str = "all") -> None:
    """The validation metric of Runs over optimiser steps, by name and view; of a single Run, also its best step; PNG.

    view: id, mm, both, or all that a Run has. Raises BivrecError for a Run that lacks the view or the metric, and
    like `check_picture`.
    """
    check_picture(path)
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, run in runs.items():
        for of_view, points in _validations(run, metric, view).items():
            steps, values = zip(*points, strict=True)
            label = of_view if len(runs) == 1 else f"{name}, {of_view}"
            axes.plot(steps, [100 * value for value in values], marker="o", markersize=3, label=label)
        if len(runs) == 1:
            axes.axvline(run.progress().best_step, color=GREY, linestyle="--", linewidth=1, label="best weights")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"validation {metric} (%)")
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def check_picture(path: Path) -> None:
    """Raise BivrecError if no picture can be drawn into `path`, which must end in .png, or matplotlib is absent.

    A picture that bivrec drew may be replaced, anything else not.
    """
    if path.suffix.lower() != ".png":
        raise BivrecError(f"{path}: unknown format '{path.suffix}'; pictures are .png")
    check_new_file(path)
    load_pyplot()
    if path.exists() and not _drawn_here(path):
        raise BivrecError(f"{path}: is no picture that bivrec drew, and is not replaced; choose another file")


def _drawn_here(path: Path) -> bool:
    # It comes with matplotlib.
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return bool(picture.info.get("Software") == SOFTWARE["Software"])
    except (OSError, Image.DecompressionBombError):
        return False


def _validations(run: Run, metric: str, view: str) -> dict[str, list[tuple[int, float]]]:
    """View -> steps and values of a validation metric."""
    if run.config.training.with_validation:
        raise BivrecError(f"{run.path}: was trained on the validation, and has no validation metrics to draw")
    lines = [line for line in run.metrics() if line["split"] == "validation"]
    if not lines:
        raise BivrecError(f"{run.path}: not evaluated yet; a Run has points after training.evaluate_every steps")
    metrics = [name for name in lines[0] if "@" in name]
    if metric not in metrics:
        raise BivrecError(f"{run.path}: no validation {metric}; choose one of {', '.join(metrics)}")
    views = list(dict.fromkeys(line["view"] for line in lines))
    if view not in ("all", *views):
        raise BivrecError(f"{run.path}: no view {view}; it has {', '.join(views)}")
    return {
        name: [(line["step"], line[metric]) for line in lines if line["view"] == name]
        for name in (views if view == "all" else [view])
    }


def _colours(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Floors in grey, so that what was trained stands out."""
    return [GREY if name in FLOORS else BLUE for name in names]


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of pyplot as a PNG."""
    with new_file(path) as staging:
        figure.savefig(staging, format="png", dpi=120, metadata=SOFTWARE)
    # Pyplot keeps figures until they are closed.
    load_pyplot().close(figure)


def load_pyplot() -> Any:
    """Pyplot without a display. Raises BivrecError if matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise not_installed("matplotlib", "plots") from None
    return pyplot
