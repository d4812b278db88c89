"""Everything that can rank, opened by name: Runs, published towers, and the floors that need no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState

from bivrec.artefact import BiVRec as PublishedBiVRec
from bivrec.artefact import load
from bivrec.baselines.floors import fit_floor
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.ranking import Scorer
from bivrec.evaluation.scorer import ModelScorer, rankable_views
from bivrec.finetune import zero_shot_model
from bivrec.hub import tower_of_run
from bivrec.model.bivrec import BiVRec
from bivrec.training.run import Run, domain_record


def named_scorers(
    domain: Domain,
    runs: Sequence[Path] = (),
    published: Sequence[str] = (),
    floors: Sequence[str] = (),
    *,
    view: str = "all",
    zero_shot: bool = False,
) -> Iterator[tuple[str, Scorer]]:
    """Names and scorers for `domain`, one at a time so that only one model is in memory.

    view: id, mm, both, or all that a model has. zero_shot: of Runs and joint models, use the tower alone, on a Domain
    that it was not trained on. Raises BivrecError for what cannot be opened, or does not fit the Domain.
    """
    for floor in floors:
        yield floor, fit_floor(floor, domain)
    for source in published:
        for name, scorer in _published(domain, source, view, zero_shot):
            yield f"{source.rstrip('/')} {name}", scorer
    names = [path.name for path in runs]
    for path in runs:
        run = Run.open(path)
        name_of_run = path.name if names.count(path.name) == 1 else str(path)
        if zero_shot:
            _refuse_id(name_of_run, view)
            yield f"{name_of_run} zero-shot", _scorer(zero_shot_model(domain, tower_of_run(run)), "mm")
        else:
            for name, scorer in _views(run.load_model(domain), view):
                yield f"{name_of_run} {name}", scorer


def _published(domain: Domain, source: str, view: str, zero_shot: bool) -> Iterator[tuple[str, Scorer]]:
    model = load(source)
    if isinstance(model, PublishedBiVRec):
        if not zero_shot:
            yield from _views(model.attach(domain), view)
            return
        model = model.tower
    _refuse_id(source, view)
    own = model.catalogue == domain_record(domain)["catalogue"] and not zero_shot
    yield "mm" if own else "zero-shot", _scorer(zero_shot_model(domain, model), "mm")


def _refuse_id(name: str, view: str) -> None:
    """Raise BivrecError if the view of a tower alone is to be the ID view."""
    if view == "id":
        raise BivrecError(f"{name}: a tower has only the multimodal view, mm; leave out --view id")


def _views(model: BiVRec, view: str) -> Iterator[tuple[str, Scorer]]:
    for name in rankable_views(model) if view == "all" else (view,):
        yield name, _scorer(model, name)


def _scorer(model: BiVRec, view: str) -> ModelScorer:
    """Where this process computes: on its GPU, if it has one."""
    return ModelScorer(model.to(PartialState().device), view)
