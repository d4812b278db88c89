"""Many systems on the same Domains for the same number of steps (Table 1 of the paper), told with their uncertainty."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence

from bivrec.config import CONTENT_FLOORS, FLOORS
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.studies.paper import name_in_paper, table1
from bivrec.studies.study import Entry, Overrides, Study, Training
from bivrec.studies.systems import SYSTEMS, System

MODELS = (*FLOORS, *SYSTEMS)
VIEWS_OF_ONE = ("bivrec-id", "bivrec-mm", "bivrec")


def comparison(
    domains: Sequence[Domain],
    models: Sequence[str] = (),
    reference: str | None = None,
    *,
    k: int = 20,
    refit: bool = False,
    tuned: Collection[tuple[str, str]] = (),
) -> Study:
    """The study of the named models (none: all that the Domain's features allow) on each Domain.

    reference: the model whose lead is tested (see `paired_tests`). k: length of the lists.
    refit: whether everything is to know the validation.
    tuned: section and key of settings that each model is going to have of its own (see `tuning`).
    Raises BivrecError if a name is unknown, the reference is not among them, or a Domain lacks the features that a
    named model reads.
    """
    unknown = [name for name in models if name not in MODELS]
    if unknown:
        raise BivrecError(f"--models {unknown[0]}: there is no such model; there are {', '.join(MODELS)}")
    entries = []
    for domain in domains:
        fitting = [name for name in MODELS if domain.info.features or not _needs_features(name)]
        for name in models or fitting:
            if name not in fitting:
                advice = f"run `bivrec encode {shlex.quote(str(domain.path))}`"
                raise BivrecError(f"--models {name}: {domain.path} has no features; {advice}")
            entries.append(_entry(domain, name, k))
    names = list(dict.fromkeys(entry.name for entry in entries))
    if reference is not None and reference not in names:
        raise BivrecError(f"--reference {reference}: not among the models, which are {', '.join(names)}")
    title = f"Comparison on {', '.join(domain.name for domain in domains)}"
    notes = tuple(_notes(entries, refit, tuned))
    return Study(title, tuple(entries), notes, k=k, refit=refit, reference=reference)


def _notes(entries: Sequence[Entry], refit: bool, tuned: Collection[tuple[str, str]]) -> Iterator[str]:
    """What the reader of these rows must know."""
    names = list(dict.fromkeys(entry.name for entry in entries))
    views = [name for name in VIEWS_OF_ONE if name in names]
    trained = [name for name in names if name not in FLOORS]
    others = [name for name in trained if name not in views]
    whole = [name for name in trained if SYSTEMS[name].overrides["model"].get("readout") == "history"]
    if floors := [name for name in names if name in FLOORS]:
        yield f"{_listed(floors)} {'needs' if len(floors) == 1 else 'need'} no training."
    if len(views) > 1:
        yield f"{_listed(views)} are one training."
    if "bivrec-id" in names:
        yield "Where the recipe has model.id_items: ids+features, bivrec-id reads features too; pure-id does not."
    if views and others:
        yield (
            "Where the recipe has model.repeat_bias, BiVRec alone learns how readily users repeat: see the tables with "
            "seen items removed for what else it knows."
        )
    of_one_budget = not (refit or {("training", "steps"), ("training", "batch_size")} & set(tuned))
    if len(others) + bool(views) > 1 and of_one_budget:
        yield "All train for as many steps of as many sequences."
    if whole:
        reads = "reads a history as a whole and learns" if len(whole) == 1 else "read a history as a whole and learn"
        rest = ", the others every position" if len(whole) < len(trained) else ""
        yield f"{_listed(whole)} {reads} one target of a sequence in a step{rest}."
    if refit:
        steps = ", each for as many steps as it had told; seconds are those of this second training" if trained else ""
        yield f"Everything knows the validation too{steps}."
    if any(entry.paper for entry in entries):
        yield "paper: Table 1 of Hu et al. 2024 (arXiv 2402.17334), of the authors' own splits, features and budget."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _entry(domain: Domain, name: str, k: int) -> Entry:
    if name in FLOORS:
        return Entry(name, domain, name)
    system = SYSTEMS[name]
    figures = table1(system.paper_row, name_in_paper(domain.info)) if system.paper_row else {}
    paper = {metric: figure for metric, figure in figures.items() if metric.endswith(f"@{k}")}
    return Entry(name, domain, _training(domain, system), system.view, paper=paper)


def _training(domain: Domain, system: System) -> Training:
    """The training of a system; rows that differ in the view that is ranked share one, selected by both views."""
    twins = [name for name, other in SYSTEMS.items() if _architecture(other) == _architecture(system)]
    overrides = system.overrides
    if len(twins) > 1:
        overrides = {**overrides, "training": {**overrides["training"], "selection_view": "both"}}
    return Training(min(twins, key=len), domain, overrides)


def _architecture(system: System) -> Overrides:
    training = {key: value for key, value in system.overrides["training"].items() if key != "selection_view"}
    return {**system.overrides, "training": training}


def _needs_features(name: str) -> bool:
    return name in CONTENT_FLOORS if name in FLOORS else SYSTEMS[name].needs_features
