"""A study: systems that are trained with several seeds and measured on the same users, for a table and a picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bivrec.config import Config, config_from_dict
from bivrec.data.domain import Domain
from bivrec.data.noise import noisy_copy
from bivrec.data.refit import RefitDomain
from bivrec.device import own_device
from bivrec.errors import BivrecError
from bivrec.evaluation.metrics import PerUser
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import EvaluationResult, Scorer, evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import zero_shot_model
from bivrec.hub import tower_of_run
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.pretrain import suited_to
from bivrec.scorers import named_scorers
from bivrec.studies.jobs import Job, check_kept, is_finished, run_jobs
from bivrec.training.run import Run

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


class Workshop:
    """The folder of a study: its Runs, and what is made of them.

    runs/DOMAIN/TRAINING/seed-S         an ordinary Run each
    runs/DOMAIN/TRAINING/seed-S-refit   its refit, where the study asks for it
    domains/DOMAIN/                     noisy copies of Domains
    logs/                               what each training printed
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any], seeds: Sequence[int], refit: bool = False) -> None:
        """refit: whether a training that has ended is followed by its refit, which then ranks in its stead."""
        self.path = path
        self._recipe = recipe
        self.seeds = tuple(seeds)
        self._refit = refit

    def plan(self, study: Study) -> list[tuple[Training, int, Config]]:
        """Every training with its seed and settings, those that have ended too.

        Raises BivrecError if one contradicts itself, or the folder holds Runs with other settings or Domains.
        """
        _refuse_namesakes(study.domains)
        planned = [(each, seed, self.config(each, seed)) for each in study.trainings for seed in self.seeds]
        for training, seed, config in planned:
            check_kept(self.run_path(training, seed), training.domain, config)
        return planned

    def train(self, study: Study, parallel: int, report: Callable[[str], None]) -> dict[str, str]:
        """Train what the folder lacks; returns the Runs that failed, with their complaints. Raises like `plan`."""
        planned = self.plan(study)
        jobs = [
            Job(self._domain(training, seed).path, self.run_path(training, seed), config)
            for training, seed, config in planned
            if not is_finished(self.run_path(training, seed))
        ]
        failed = run_jobs(jobs, self.path, parallel, report)
        if not self._refit:
            return failed
        refits = [
            Job(
                self._domain(training, seed).path,
                self._ranking_path(training, seed),
                config,
                refit_of=self.run_path(training, seed),
            )
            for training, seed, config in planned
            if is_finished(self.run_path(training, seed)) and not is_finished(self._ranking_path(training, seed))
        ]
        return failed | run_jobs(refits, self.path, parallel, report)

    def config(self, training: Training, seed: int) -> Config:
        """The complete configuration of a training. Raises BivrecError if it contradicts itself or the Domain."""
        values = lay_over(self._recipe, training.overrides, {"training": {"seed": seed}})
        config = config_from_dict(values, f"{training.name} on {training.domain.name}")
        if config.training.with_validation:
            raise BivrecError("training.with_validation: a study chooses by the validation users; leave it out")
        return suited_to(training.domain, config)[0]

    def run_path(self, training: Training, seed: int) -> Path:
        """Folder of the Run of a training and seed."""
        return self.path / "runs" / training.domain.name / training.name / f"seed-{seed}"

    def _ranking_path(self, training: Training, seed: int) -> Path:
        """Folder of the Run that ranks."""
        path = self.run_path(training, seed)
        return path.with_name(f"{path.name}-refit") if self._refit else path

    def finished(self, training: Training) -> list[tuple[int, Run]]:
        """Seeds of a training that have ended, and the Runs that rank."""
        paths = {seed: self._ranking_path(training, seed) for seed in self.seeds}
        return [(seed, Run.open(path)) for seed, path in paths.items() if is_finished(path)]

    def models(self, training: Training, domain: Domain) -> Iterator[tuple[int, BiVRecNetwork]]:
        """Seeds and best weights of the trainings that have ended; on another Domain their multimodal tower alone."""
        for seed, run in self.finished(training):
            at_home = domain.path == training.domain.path
            model = run.load_model(domain) if at_home else zero_shot_model(domain, tower_of_run(run))
            yield seed, model.to(own_device())

    def measure(self, study: Study, failed: dict[str, str], report: Callable[[str], None]) -> list[Measured]:
        """Rank with every entry of which a training has ended, under both protocols.

        Entries that cannot be ranked are added to `failed`, with the complaint.
        """
        users = {domain.path: EvaluationUsers.from_sequences(domain.sequences(study.split)) for domain in study.domains}
        found: dict[int, Measured] = {}
        for group in _by_model(study.entries):
            first = study.entries[group[0]]
            report(f"ranking {first.domain.name}: {', '.join(study.entries[index].label for index in group)}")
            try:
                entries = [study.entries[index] for index in group]
                measured = self._measure(entries, users[first.domain.path], study.k)
            except BivrecError as fault:
                failed |= {f"{first.domain.name}: {study.entries[index].label}": str(fault) for index in group}
                report(str(fault))
            else:
                found |= dict(zip(group, measured, strict=False))
        return [found[index] for index in sorted(found)]

    def _measure(self, entries: Sequence[Entry], users: EvaluationUsers, k: int) -> list[Measured]:
        """Entries that one floor, or one training on one Domain, ranks."""
        domain, ranked_by = entries[0].domain, entries[0].ranked_by
        if isinstance(ranked_by, str):
            # It may know what the others know.
            known = RefitDomain(domain) if self._refit else domain
            scorer = next(named_scorers(known, floors=(ranked_by,))).scorer
            return [Measured(entry, (), *_both_ways([_rank(scorer, entry, users, k)]), None, None) for entry in entries]
        ranked: list[list[tuple[EvaluationResult, EvaluationResult]]] = [[] for _ in entries]
        seeds, weights, parameters = [], [], 0
        for seed, model in self.models(ranked_by, domain):
            seeds.append(seed)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            weights += [float(model.id_weight)] if len(model.views) > 1 else []
            for results, entry in zip(ranked, entries, strict=True):
                results.append(_rank(ModelScorer(model, entry.view), entry, users, k))
        if not seeds:
            return []
        runs = [run for _, run in self.finished(ranked_by)]
        seconds = float(np.mean([run.progress("last").seconds for run in runs]))
        shares = {"id weight": np.array(weights)} if weights else {}
        return [
            Measured(
                entry,
                tuple(seeds),
                *_both_ways(results),
                seconds,
                parameters,
                shares if entry.view == "both" else {},
            )
            for entry, results in zip(entries, ranked, strict=True)
        ]

    def _domain(self, training: Training, seed: int) -> Domain:
        """The Domain that is learnt from: the training's own, or a noisy copy of it."""
        if not training.noise:
            return training.domain
        path = self.path / "domains" / training.domain.name / f"noise-{training.noise:g}-seed-{seed}"
        return Domain.open(path) if path.exists() else noisy_copy(training.domain, path, training.noise, seed)


def lay_over(values: Mapping[str, Any], *changes: Overrides) -> dict[str, Any]:
    """A recipe with the settings of each of the changes in turn."""
    result = dict(values)
    for overrides in changes:
        for section, settings in overrides.items():
            result[section] = {**(result.get(section) or {}), **settings}
    return result


def _by_model(entries: Sequence[Entry]) -> list[list[int]]:
    """Places of the entries that the same model ranks on the same Domain, so that it is loaded once."""
    groups: dict[tuple[Path, Path | None, str], list[int]] = {}
    for index, entry in enumerate(entries):
        ranked_by = entry.ranked_by
        home, name = (ranked_by.domain.path, ranked_by.name) if isinstance(ranked_by, Training) else (None, ranked_by)
        groups.setdefault((entry.domain.path, home, name), []).append(index)
    return list(groups.values())


def _rank(scorer: Scorer, entry: Entry, users: EvaluationUsers, k: int) -> tuple[EvaluationResult, EvaluationResult]:
    """With seen items kept, and removed."""
    asked = users if entry.last is None else users.cold_start(entry.last)
    return evaluate(scorer, asked, (k,)), evaluate(scorer, asked, (k,), remove_seen=True)


def _both_ways(
    results: Sequence[tuple[EvaluationResult, EvaluationResult]],
) -> tuple[dict[str, PerUser], dict[str, PerUser]]:
    kept, removed = (
        {metric: np.stack([pair[way].per_user[metric] for pair in results]) for metric in results[0][way].per_user}
        for way in (0, 1)
    )
    return kept, removed


def _refuse_namesakes(domains: Sequence[Domain]) -> None:
    """Names are folders and headings."""
    for one, other in itertools.combinations(domains, 2):
        if one.name == other.name:
            raise BivrecError(f"{one.path} and {other.path}: both are named {one.name}; give one another name")
