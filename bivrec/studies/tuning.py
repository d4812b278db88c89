"""Settings that each model of a study has of its own: those with which it is best on the validation users."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bivrec.config import read_override
from bivrec.errors import BivrecError
from bivrec.evaluation.fusion import SELECTION_METRIC
from bivrec.files import new_file
from bivrec.studies.study import Entry, Study, Training, lay_over
from bivrec.studies.workshop import Workshop

Grid = Mapping[tuple[str, str], Sequence[Any]]
"""(section, key) -> the values to try."""


def read_grid(options: Sequence[str]) -> Grid:
    """The grid of options such as `training.learning_rate=[0.0005,0.0015]`.

    Raises BivrecError if one is of another form, or names a setting again, or the seed.
    """
    grid: dict[tuple[str, str], Sequence[Any]] = {}
    for option in options:
        section, key, values = read_override(option, "--tune")
        distinct = {_text(value): value for value in values} if isinstance(values, list) else {}
        if len(distinct) < 2:
            raise BivrecError(f"--tune {option}: expected two values or more, as in {section}.{key}=[0.1,0.2]")
        if (section, key) in grid:
            raise BivrecError(f"--tune {option}: {section}.{key} is given twice; put all its values into one list")
        if (section, key) == ("training", "seed"):
            raise BivrecError(f"--tune {option}: the best seed is no property of a model; give them with --seeds")
        grid[section, key] = list(distinct.values())
    return grid


@dataclass(frozen=True)
class Trial:
    """One combination of the values, for one training of a study."""

    original: Training
    values: Mapping[str, str]
    """Key -> the value that is tried, as it is told."""
    training: Training
    """The original with these values."""

    @property
    def told(self) -> str:
        """The values."""
        return ", ".join(f"{key} {value}" for key, value in self.values.items())


def trials(study: Study, grid: Grid) -> list[Trial]:
    """Every combination, for every training. Raises BivrecError if nothing is trained."""
    if not study.trainings:
        raise BivrecError("--tune: none of the models is trained; leave it out")
    return [trial for training in study.trainings for trial in _trials(training, grid)]


def study_of(tried: Sequence[Trial], study: Study) -> Study:
    """A study of the trials alone."""
    entries = tuple(Entry(trial.training.name, trial.training.domain, trial.training) for trial in tried)
    return dataclasses.replace(study, entries=entries)


def tune(
    study: Study, grid: Grid, workshop: Workshop, parallel: int, report: Callable[[str], None]
) -> tuple[Study, dict[str, str]]:
    """The study with, for each training, the trial that is best on the validation users.

    Trains what the folder of `workshop` lacks, with its seeds, of which the mean counts, and writes tuning.csv there.
    A training none of whose trials has ended is left out. Beside the study: the Runs that failed, with the complaints.
    """
    planned = trials(study, grid)
    failed = workshop.train(study_of(planned, study), parallel, report)
    measured = ((index, _validation_recall(workshop, trial.training)) for index, trial in enumerate(planned))
    recalls = {index: recall for index, recall in measured if recall is not None}
    best: dict[tuple[Path, str], int] = {}
    # Of equals the first, in the order of the grid.
    for index in sorted(recalls, key=lambda index: -recalls[index]):
        best.setdefault(_place(planned[index].original), index)
    lines = [
        {"domain": trial.original.domain.name, "model": trial.original.name, **trial.values}
        | {f"validation {SELECTION_METRIC}": 100 * recalls[index], "chosen": index in best.values()}
        for index, trial in enumerate(planned)
        if index in recalls
    ]
    with new_file(workshop.path / "tuning.csv") as staging:
        pd.DataFrame(lines).to_csv(staging, index=False)
    entries = []
    for entry in study.entries:
        if not isinstance(entry.ranked_by, Training):
            entries.append(entry)
        elif (found := best.get(_place(entry.ranked_by))) is not None:
            entries.append(dataclasses.replace(entry, ranked_by=planned[found].training, chosen=planned[found].told))
    notes = (*study.notes, _note(grid, workshop.seeds))
    return dataclasses.replace(study, entries=tuple(entries), notes=notes), failed


def _validation_recall(workshop: Workshop, training: Training) -> float | None:
    """Mean of the best over the seeds that have ended; None: none has."""
    recalls = [run.progress().best_recall for _, run in workshop.finished(training)]
    return sum(recalls) / len(recalls) if recalls else None


def _trials(training: Training, grid: Grid) -> list[Trial]:
    """Those of one training; of settings that the system itself fixes there are none to choose from."""
    free = {
        (section, key): values
        for (section, key), values in grid.items()
        if key not in training.overrides.get(section, {})
    }
    found = []
    for combination in itertools.product(*free.values()):
        changes = [{section: {key: value}} for (section, key), value in zip(free, combination, strict=True)]
        values = {key: _text(value) for (_, key), value in zip(free, combination, strict=True)}
        name = "-".join((training.name, *(f"{key}={value}" for key, value in values.items())))
        changed = dataclasses.replace(training, name=name, overrides=lay_over(training.overrides, *changes))
        found.append(Trial(training, values, changed))
    return found


def _place(training: Training) -> tuple[Path, str]:
    return training.domain.path, training.name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _note(grid: Grid, seeds: Sequence[int]) -> str:
    tried = "; ".join(f"{section}.{key} {', '.join(map(_text, values))}" for (section, key), values in grid.items())
    return (
        f"chosen: for each trained model the best by {SELECTION_METRIC} of the validation users, seed "
        f"{', '.join(map(str, seeds))}, of every combination of {tried}, but for settings that make the model what it "
        "is; tuning.csv has them all."
    )
