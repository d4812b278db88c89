"""Where a study is carried out: its trainings, one after another or at once, and its rankings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from bivrec.studies.study import Entry, Measured, Study, Training, lay_over
from bivrec.training.run import Run


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
