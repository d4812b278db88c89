"""A study: systems that are trained with several seeds and measured on the same users, for a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bivrec.data.domain import Domain
from bivrec.evaluation.metrics import PerUser

PerSeed = npt.NDArray[np.float64]
Overrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Training:
    """What is trained on one Domain, once for each seed: a recipe with some settings changed."""

    name: str
    """Also its folder."""
    domain: Domain
    overrides: Overrides = field(default_factory=dict)
    """Section -> key -> value, laid over the recipe of the study."""
    noise: float = 0.0
    """Share of the items of the training sequences that are replaced at random."""


@dataclass(frozen=True)
class Place:
    """Of a row, in a picture of lines or a heat map."""

    series: str
    """The line, or the row of the map."""
    x: str
    """Along the line or row."""
    panel: tuple[str, str] = ("", "")
    """Labels of the axes of the map: across, and up."""


@dataclass(frozen=True)
class Entry:
    """A row of a table: something that ranks the catalogue of a Domain for its users."""

    name: str
    domain: Domain
    ranked_by: Training | str
    """A training (of another Domain: its multimodal tower, zero-shot), or the name of a floor that needs none."""
    view: str = "both"
    last: int | None = None
    """How many of the most recent items of a history may be read; None: all."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Metric -> the paper's figure in percent, where it has one."""
    group: str = ""
    """What it is compared within: rows of one Domain and group make a table. Its name is unique there."""
    place: Place | None = None
    """Where it stands in a picture of lines or a heat map."""
    chosen: str = ""
    """Settings that it has of its own, chosen on the validation users."""

    @property
    def label(self) -> str:
        """Its name where other groups stand beside it."""
        return f"{self.group}: {self.name}" if self.group else self.name


@dataclass(frozen=True)
class Study:
    """What is to be trained and measured, and how it is told."""

    title: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know, and what was left out and why."""
    split: str = "test"
    """Whose users are asked."""
    k: int = 20
    """Length of the lists."""
    refit: bool = False
    """Whether what is ranked was trained on the validation too, by what a training without that had told."""
    reference: str | None = None
    """The entry that is tested against the others, named in advance; None: the one that turns out best."""
    settings: str = ""
    """How everything was trained, in a sentence."""
    command: str = ""
    """What was typed."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns of its tables."""
        return tuple(f"{name}@{self.k}" for name in ("recall", "ndcg", "ndcg_hits", "hr"))

    @property
    def tested(self) -> str:
        """The metric whose differences are tested, and that pictures show."""
        return self.metrics[0]

    @property
    def trainings(self) -> list[Training]:
        """Every training that an entry needs, once, in the order of the entries."""
        found = [entry.ranked_by for entry in self.entries if isinstance(entry.ranked_by, Training)]
        return list({(training.domain.path, training.name): training for training in found}.values())

    @property
    def domains(self) -> list[Domain]:
        """The Domains whose users are asked, in the order of the entries."""
        return list({entry.domain.path: entry.domain for entry in self.entries}.values())


@dataclass(frozen=True)
class Measured:
    """An entry and how it ranked."""

    entry: Entry
    seeds: tuple[int, ...]
    """Seeds whose trainings have ended; empty for a floor."""
    kept: dict[str, PerUser]
    """Metric -> [max(1, seeds), users], as fractions of 1; items that were seen stay in the list."""
    removed: dict[str, PerUser]
    """The same with seen items removed from the list."""
    seconds: float | None
    """Mean time of a training."""
    parameters: int | None
    """Trained weights."""
    more: Mapping[str, PerSeed] = field(default_factory=dict)
    """Name of a further column -> a value for each seed."""
    points: npt.NDArray[np.float64] | None = None
    """Interests of some users in the plane [users, interests, 2], of the first seed, for a picture of them."""

    def per_user(self, remove_seen: bool) -> dict[str, PerUser]:
        """Metric -> [max(1, seeds), users] under one of the two protocols."""
        return self.removed if remove_seen else self.kept


def lay_over(values: Mapping[str, Any], *changes: Overrides) -> dict[str, Any]:
    """A recipe with the settings of each of the changes in turn."""
    result = dict(values)
    for overrides in changes:
        for section, settings in overrides.items():
            result[section] = {**(result.get(section) or {}), **settings}
    return result
