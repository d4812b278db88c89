"""Pictures of comparisons and experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bivrec.plots import BLUE, GREY, load_pyplot, save_figure
from bivrec.studies.study import Measured, Place, Study


def plot_study(path: Path, study: Study, measured: Sequence[Measured]) -> None:
    """Recall of every row with seen items kept, one panel for each Domain; whiskers: deviation over seeds; PNG."""
    pyplot = load_pyplot()
    rows = _by_domain(study, measured)
    height = 0.32 * max(map(len, rows.values())) + 1.2
    figure, panels = pyplot.subplots(
        1, len(rows), figsize=(6.5 * len(rows), height), layout="constrained", squeeze=False
    )
    for axes, (name, own) in zip(panels[0], rows.items(), strict=True):
        groups = list(dict.fromkeys(row.entry.group for row in own))
        own.sort(key=lambda row: groups.index(row.entry.group))
        means, spread = zip(*(_recall(row, study.tested) for row in own), strict=True)
        names = [row.entry.label for row in own]
        floors = [isinstance(row.entry.ranked_by, str) for row in own]
        bars = axes.barh(
            range(len(own)),
            means,
            xerr=spread if any(spread) else None,
            color=[GREY if floor else BLUE for floor in floors],
        )
        axes.bar_label(bars, fmt="%.2f", padding=3)
        _mark_paper(axes, [row.entry.paper.get(study.tested) for row in own])
        axes.set_yticks(range(len(own)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"{study.tested} (%)")
        axes.set_title(f"{name}, {study.split} users, seen items kept")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14)
    save_figure(figure, path)


def _mark_paper(axes: Any, figures: Sequence[float | None]) -> None:
    """A diamond where the paper has a figure."""
    points = [(value, place) for place, value in enumerate(figures) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "D", color="#d1495b", markersize=5, label="the paper")
        axes.legend(frameon=False, loc="lower right")


def plot_lines(path: Path, study: Study, measured: Sequence[Measured], *, x_label: str) -> None:
    """Recall with seen items kept, one panel for each Domain and one line for each series of the rows; PNG."""
    pyplot = load_pyplot()
    domains = _by_domain(study, measured)
    figure, panels = pyplot.subplots(
        1, len(domains), figsize=(5.5 * len(domains), 4), layout="constrained", squeeze=False
    )
    for axes, (name, rows) in zip(panels[0], domains.items(), strict=True):
        places = list(dict.fromkeys(_place(row).x for row in rows))
        for series in dict.fromkeys(_place(row).series for row in rows):
            line = [row for row in rows if _place(row).series == series]
            means, spread = zip(*(_recall(row, study.tested) for row in line), strict=True)
            xs = [places.index(_place(row).x) for row in line]
            dashed = "--" if isinstance(line[0].entry.ranked_by, str) else "-"
            axes.errorbar(xs, means, yerr=spread if any(spread) else None, fmt=f"o{dashed}", capsize=3, label=series)
        axes.set_xticks(range(len(places)), places)
        axes.set_xlabel(x_label)
        axes.set_ylabel(f"{study.tested} (%)")
        axes.set_title(f"{name}, {study.split} users, seen items kept")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    save_figure(figure, path)


def plot_heat_maps(path: Path, study: Study, measured: Sequence[Measured]) -> None:
    """Recall with seen items kept over two settings, one row for each Domain and one map for each panel; PNG."""
    pyplot = load_pyplot()
    domains = _by_domain(study, measured)
    maps = list(dict.fromkeys(_place(row).panel for row in measured))
    size = (5 * len(maps), 4 * len(domains))
    figure, panels = pyplot.subplots(len(domains), len(maps), figsize=size, layout="constrained", squeeze=False)
    for row_of_axes, (domain, rows) in zip(panels, domains.items(), strict=True):
        for axes, panel in zip(row_of_axes, maps, strict=True):
            shown = {_place(row): _recall(row, study.tested)[0] for row in rows if _place(row).panel == panel}
            cells = {(place.series, place.x): value for place, value in shown.items()}
            axes.set_visible(bool(cells))
            if not cells:
                continue
            ys, xs = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
            grid = [[cells.get((y, x), float("nan")) for x in xs] for y in ys]
            axes.imshow(grid, cmap="Blues", origin="lower", aspect="auto")
            middle = (min(cells.values()) + max(cells.values())) / 2
            for (y, x), value in cells.items():
                ink = "white" if value > middle else "black"
                axes.text(xs.index(x), ys.index(y), f"{value:.2f}", ha="center", va="center", color=ink)
            axes.set_xticks(range(len(xs)), xs)
            axes.set_yticks(range(len(ys)), ys)
            axes.set_xlabel(panel[0])
            axes.set_ylabel(panel[1])
            axes.set_title(f"{domain}, {study.split} users: {study.tested} (%)")
    save_figure(figure, path)


def plot_interests(path: Path, study: Study, measured: Sequence[Measured]) -> None:
    """Interests of users in the plane, one colour for each user; one row for each Domain, one panel a model; PNG."""
    pyplot = load_pyplot()
    domains = _by_domain(study, measured)
    columns = max(map(len, domains.values()))
    size = (4 * columns, 4.2 * len(domains))
    figure, panels = pyplot.subplots(len(domains), columns, figsize=size, layout="constrained", squeeze=False)
    for row_of_axes, (domain, rows) in zip(panels, domains.items(), strict=True):
        for axes in row_of_axes[len(rows) :]:
            axes.set_visible(False)
        for axes, row in zip(row_of_axes, rows, strict=False):
            assert row.points is not None
            for user, points in enumerate(row.points):
                axes.scatter(*points.T, s=22, color=pyplot.get_cmap("tab20")(user % 20))
            silhouette = row.more["silhouette"].mean()
            axes.set_title(f"{domain}, {row.entry.name}\nsilhouette {silhouette:.2f}")
            axes.set_xticks([])
            axes.set_yticks([])
    save_figure(figure, path)


def _by_domain(study: Study, measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Rows of each Domain that has any."""
    rows = {domain.name: [row for row in measured if row.entry.domain.path == domain.path] for domain in study.domains}
    return {name: own for name, own in rows.items() if own}


def _place(row: Measured) -> Place:
    assert row.entry.place is not None
    return row.entry.place


def _recall(row: Measured, metric: str) -> tuple[float, float]:
    """Mean over seeds and its standard deviation (0 for one seed), in percent, with seen items kept."""
    values = 100 * row.kept[metric].mean(1)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
