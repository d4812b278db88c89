"""Everything that can rank, opened by name: Runs, published towers, and the floors that need no training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bivrec.artefact import BiVRec, Tower, load
from bivrec.baselines.floors import fit_floor
from bivrec.config import held_out_known
from bivrec.data.domain import Domain
from bivrec.data.info import FeatureSpec
from bivrec.data.sketch import share_known
from bivrec.device import own_device
from bivrec.errors import BivrecError
from bivrec.evaluation.ranking import Scorer
from bivrec.evaluation.scorer import ModelScorer, rankable_views
from bivrec.features.contract import reads_zeros
from bivrec.files import distinct_names, name_of
from bivrec.finetune import zero_shot_model
from bivrec.hub import model_of_run, source_of_run, tower_of_run
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.run import Run, domain_record

UNKNOWN_ENOUGH = 0.01
"""Share of a Domain's items that a tower may know and still be called zero-shot there: some are in every catalogue."""


@dataclass(frozen=True)
class NamedScorer:
    """What ranks, and what it is."""

    name: str
    scorer: Scorer
    kind: str
    """`floor`, `model` or `run`."""
    source: dict[str, Any]
    """Of a model or Run its name, commit on the Hub (`revision`; None: a folder), and checksum of the weights."""
    id_weight: float | None = None
    """Share of the ID view where both rank together; None: one alone."""
    warnings: tuple[str, ...] = ()
    """What the reader of its lists must know."""
    known: tuple[str, ...] = ()
    """Splits of this Domain that are held out and that it was trained on nevertheless: it must not be asked of them."""
    not_zero_shot: str | None = None
    """Why the results of a tower on a Domain that is not its own are not zero-shot, and what to do; None: they are."""


def named_scorers(
    domain: Domain,
    runs: Sequence[Path] = (),
    published: Sequence[str] = (),
    floors: Sequence[str] = (),
    *,
    view: str = "all",
    zero_shot: bool = False,
) -> Iterator[NamedScorer]:
    """Scorers for `domain`, one at a time so that only one model is in memory.

    view: id, mm, both, or all that a model has. zero_shot: of Runs and joint models, use the tower alone, on a Domain
    that it was not trained on. The names of towers that were trained on items of the Domain say it.
    Raises BivrecError for what cannot be opened, or does not fit the Domain.
    """
    for floor in floors:
        yield NamedScorer(floor, fit_floor(floor, domain), "floor", {"name": floor})
    for source in published:
        yield from _published(domain, source, load(source), view, zero_shot)
    for path, name in zip(runs, distinct_names(runs, [name_of(path) for path in runs]), strict=True):
        run = Run.open(path)
        if zero_shot:
            _refuse_id(name, view)
            found = iter([_stranger(domain, tower_of_run(run), name, "run")])
        else:
            known = held_out_known(run.info.config["training"])
            own = _views(run.load_model(domain), view, name, "run", source_of_run(run))
            specs = run.feature_specs
            found = (_with_absence(replace(named, known=known), domain, specs, str(path)) for named in own)
        yield from (_of_run(named, run) for named in found)


def open_scorer(
    domain: Domain,
    run: Path | None,
    published: str | None,
    *,
    view: str,
    zero_shot: bool,
) -> NamedScorer:
    """What recommends items of `domain`: a Run, or else a published model, as of `named_scorers`.

    Catalogue and users may have changed since the training. What an ID view makes of that: see `artefact.BiVRec`.
    """
    if published is not None:
        model = load(published)
        if isinstance(model, BiVRec) and not zero_shot:
            return _on_any_catalogue(domain, model, view, published.rstrip("/"), "model")
        return next(_published(domain, published, model, view, zero_shot))
    assert run is not None
    opened = Run.open(run)
    # Nothing is held out, so that users may have changed as well.
    if zero_shot or opened.difference(domain) is None:
        return next(named_scorers(domain, [run], view=view, zero_shot=zero_shot))
    if "id" in opened.config.training.views:
        return _of_run(_on_any_catalogue(domain, model_of_run(opened), view, name_of(run), "run"), opened)
    found = next(_views(opened.load_multimodal(domain), view, name_of(run), "run", source_of_run(opened)))
    found = _with_absence(found, domain, opened.feature_specs, str(run))
    return _of_run(_with_new_items(found, len(set(domain.item_ids()) - set(opened.item_ids()))), opened)


def _of_run(named: NamedScorer, run: Run) -> NamedScorer:
    """With what a Run tells of its training."""
    line = run.unfinished()
    return replace(named, warnings=(line, *named.warnings)) if line else named


def _on_any_catalogue(domain: Domain, model: BiVRec, view: str, name: str, kind: str) -> NamedScorer:
    found = next(_views(model.attach(domain), view, name, kind, model.source))
    return _with_new_items(_with_absence(found, domain, model.features, name), model.num_new_items)


def _with_new_items(named: NamedScorer, count: int) -> NamedScorer:
    """With the number of items that the model was not trained on in its name."""
    return replace(named, name=f"{named.name}, {count:,} new item{'s' if count > 1 else ''}") if count else named


def _published(domain: Domain, source: str, model: Tower | BiVRec, view: str, zero_shot: bool) -> Iterator[NamedScorer]:
    name = source.rstrip("/")
    known = held_out_known(model.training["config"]["training"])
    if isinstance(model, BiVRec):
        if not zero_shot:
            network = model.attach(domain)
            if not _is_own(domain, model):
                raise BivrecError(
                    f"{source}: trained on another preparation of these items, and perhaps on these users; "
                    "`bivrec recommend` ranks a catalogue that has changed, and --zero-shot uses the tower alone"
                )
            for named in _views(network, view, name, "model", model.source):
                yield _with_absence(replace(named, known=known), domain, model.features, source)
            return
        model = model.tower
    _refuse_id(source, view)
    if _is_own(domain, model) and not zero_shot:
        scorer = _scorer(zero_shot_model(domain, model), "mm")
        yield NamedScorer(f"{name} mm", scorer, "model", model.source, known=known)
    else:
        yield _stranger(domain, model, name, "model")


def _is_own(domain: Domain, model: Tower | BiVRec) -> bool:
    """Whether a Domain is that of a model's training: with these items in this order, and these held-out users."""
    record = domain_record(domain)
    own = model.training["domain"]
    return (model.catalogue, own.get("held_out")) == (record["catalogue"], record["held_out"])


def _stranger(domain: Domain, tower: Tower, name: str, kind: str) -> NamedScorer:
    """The tower on a Domain that is not its own: it is `zero-shot`, unless it was trained on some of the items."""
    scorer = _scorer(zero_shot_model(domain, tower), "mm")
    named = NamedScorer(f"{name} zero-shot", scorer, kind, tower.source)
    named = _with_absence(named, domain, tower.features, str(tower.source["name"]))
    share = share_known(domain, tower.item_sketch)
    if share <= UNKNOWN_ENOUGH:
        return named
    known = f"trained on {100 * share:.0f} % of these items"
    advice = (
        f"{tower.source['name']}: {known}, and perhaps with these users, so that its results are not zero-shot; "
        "leave the items out with `bivrec prepare ... --without DOMAIN`, the Domain of its training"
    )
    return replace(named, name=f"{name} {known}", not_zero_shot=advice)


def _with_absence(named: NamedScorer, domain: Domain, features: Mapping[str, FeatureSpec], reader: str) -> NamedScorer:
    """With a warning if no item of the Domain has a modality that the model reads."""
    line = reads_zeros(features, domain, reader)
    return replace(named, warnings=(*named.warnings, line)) if line else named


def _refuse_id(name: str, view: str) -> None:
    """Raise BivrecError if the view of a tower alone is to be the ID view."""
    if view == "id":
        raise BivrecError(f"{name}: a tower has only the multimodal view, mm; leave out --view id")


def _views(model: BiVRecNetwork, view: str, name: str, kind: str, source: dict[str, Any]) -> Iterator[NamedScorer]:
    if view == "both" and len(model.views) == 1:
        # By its name.
        view = model.views[0]
    for ranked in rankable_views(model) if view == "all" else (view,):
        # To the digits that it was fit with.
        weight = round(float(model.id_weight), 6) if ranked == "both" and len(model.views) > 1 else None
        yield NamedScorer(f"{name} {ranked}", _scorer(model, ranked), kind, source, weight)


def _scorer(model: BiVRecNetwork, view: str) -> ModelScorer:
    """Where this process computes: on its GPU, if it has one."""
    return ModelScorer(model.to(own_device()), view)
