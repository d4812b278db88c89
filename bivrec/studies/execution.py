"""Carrying out a study in a folder: what it lacks is trained, everything is ranked, and the tables are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bivrec.artefact_files import MODEL_FOLDER
from bivrec.data.domain import DOMAIN_FOLDER
from bivrec.errors import BivrecError
from bivrec.files import check_parent
from bivrec.locks import locked
from bivrec.studies.plots import plot_study
from bivrec.studies.significance import check_libraries
from bivrec.studies.study import Measured, Study
from bivrec.studies.tables import tables_of, write_tables
from bivrec.studies.tuning import Grid, study_of, trials, tune
from bivrec.studies.workshop import Workshop
from bivrec.training.run import RUN_FOLDER

LIBRARIES = ("matplotlib", "scipy", "tabulate", "sklearn")

Finish = Callable[[Workshop, Sequence[Measured]], list[Measured]]
Picture = Callable[[Path, Study, Sequence[Measured]], None]


def carry_out(
    study: Study,
    name: str,
    path: Path,
    recipe: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    grid: Grid | None = None,
    parallel: int = 1,
    report: Callable[[str], None] = lambda line: None,
    finish: Finish | None = None,
    picture: Picture = plot_study,
) -> dict[str, str]:
    """Train what `path` lacks, rank with everything, and write NAME.md, .csv, .tex and .png there.

    grid: settings of which each model takes what is best on the validation users with the first seed.
    finish: adds columns to what was measured. Returns what failed, with the complaints; the tables hold the rest.
    Started again with the same arguments it goes on where it stopped; more models, Domains and seeds may be asked then.
    Raises BivrecError if `path` holds Runs with other settings, another process carries out a study there, it is a
    file, or in the folder of something else, or a library for the tables is not installed.
    """
    check_libraries(LIBRARIES)
    _check_place(path)
    workshop = Workshop(path, recipe, seeds, study.refit)
    tuning = Workshop(path, recipe, seeds[:1])
    # What cannot be carried out leaves no folder.
    workshop.plan(study_of(trials(study, grid), study) if grid else study)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        failed: dict[str, str] = {}
        if grid:
            study, failed = tune(study, grid, tuning, parallel, report)
        failed |= workshop.train(study, parallel, report)
        measured = workshop.measure(study, failed, report)
        if finish is not None:
            measured = finish(workshop, measured)
        if measured:
            write_tables(path, name, study, tables_of(study, measured))
            picture(path / f"{name}.png", study, measured)
    return failed


def _check_place(path: Path) -> None:
    """Raise BivrecError if a study cannot lie at `path`, or would be lost when what it lies in is replaced."""
    if not path.exists():
        check_parent(path)
    elif not path.is_dir():
        raise BivrecError(f"{path}: is a file; choose another --to")
    for name, kind in (("Domain", DOMAIN_FOLDER), ("Run", RUN_FOLDER), ("published model", MODEL_FOLDER)):
        for folder in (path, *path.absolute().parents):
            if kind.is_at(folder):
                where = "is" if folder == path else f"lies in {folder},"
                raise BivrecError(f"{path}: {where} the folder of a {name}; choose another --to")
