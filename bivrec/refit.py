"""A finished training once more, on all that is not asked for in the test, or on all that there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bivrec.artefact import Tower
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.finetune import finetune
from bivrec.training.fit import fit
from bivrec.training.run import Run, fresh_model


def refit(
    run: Run,
    path: Path | str,
    domain: Domain | None = None,
    *,
    with_test: bool = False,
    overwrite: bool = False,
    tracker: str | None = None,
) -> Run:
    """Train a new Run at `path` as `run` was, on the validation's interactions too.

    What those had told is kept: it takes as many steps as the best weights of `run` have, over which a learning rate
    that falls does so anew, and its views rank together in the same shares. What the test asks for stays unknown, so
    its results compare with those of `run`.

    domain: what to train on instead of the Domain of `run`, such as one of the same shop with what came since.
    with_test: train on the test's interactions as well, so that no results can be measured, and any split will do.
    Raises BivrecError if `run` has not ended, its Domain or the tower that it started from is not what it was, or
    `domain` lacks its features or is split in another way.
    """
    path = Path(path)
    if path.resolve() == run.path.resolve():
        raise BivrecError(f"{path}: is what is to be trained again; choose another --to")
    if path.exists() and not overwrite:
        raise BivrecError(
            f"{path}: exists already; go on with `bivrec {run.info.stage} --to {path} --resume`, pass --overwrite to "
            "start anew, or another --to"
        )
    if domain and not with_test and domain.info.protocol != run.info.domain["protocol"]:
        raise BivrecError(
            f"{domain.location}: split by {domain.info.protocol}, {run.path} was trained on one split by "
            f"{run.info.domain['protocol']}; prepare the Domain in the same way, or train on all of it with --with-test"
        )
    if run.config.training.with_validation:
        raise BivrecError(f"{run.path}: was trained on the validation already; refit the Run before it")
    if not run.has_ended():
        raise BivrecError(run.unfinished() or f"{run.path}: not evaluated yet, so that no number of steps was the best")
    training = dataclasses.replace(
        run.config.training, with_validation=True, with_test=with_test, steps=run.progress().best_step
    )
    if (weight := run.id_weight()) is not None:
        training = dataclasses.replace(training, id_weight=weight)
    config = dataclasses.replace(run.config, training=training)
    domain = domain or run.open_domain()
    if run.info.started_from:
        return finetune(domain, path, config, _tower_of(run), overwrite=overwrite, tracker=tracker)
    return fit(
        run.info.stage,
        domain,
        path,
        config,
        run.feature_specs,
        lambda: fresh_model(config, domain, run.feature_specs, reader=str(run.path)),
        overwrite=overwrite,
        tracker=tracker,
    )


def _tower_of(run: Run) -> Tower:
    """The tower that a finetuning started from. Raises BivrecError if it cannot be had any more."""
    origin = run.info.started_from or {}
    name, commit = str(origin["name"]), origin["revision"]
    tower = Tower.from_pretrained(name.partition("@")[0], commit) if commit else Tower.from_pretrained(name)
    if tower.source["sha256"] != origin["sha256"]:
        raise BivrecError(
            f"{name}: has other weights than {run.path} started from; put those back, or run `bivrec finetune` again"
        )
    return tower
