"""From a configuration and a Domain to a finished Run: what both stages share."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, set_seed
from torch import Tensor

from bivrec.baselines.spectral import spectral_vectors
from bivrec.config import EVALUATIONS, LEAST_STEPS, Config
from bivrec.data.domain import Domain
from bivrec.data.info import FeatureSpec
from bivrec.data.refit import RefitDomain
from bivrec.data.sketch import item_sketch, join_sketches
from bivrec.device import chosen_precision
from bivrec.errors import BivrecError
from bivrec.evaluation.fusion import evaluate_views
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.files import check_new_folder, remove_leftovers, write_json
from bivrec.locks import locked
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.model.items import AttachedFeatures, FeatureItems, IdItems
from bivrec.training.checkpoint import load_checkpoint
from bivrec.training.distributed import failing_alike, share_weights
from bivrec.training.loop import Trainer, make_accelerator
from bivrec.training.objective import id_tables
from bivrec.training.run import FORMAT_VERSION, RESULTS_FILE, RUN_FOLDER, TRACKED_PROJECT, Run, RunInfo, domain_record
from bivrec.version import __version__

RESULT_KS = (10, 20, 50)
HALF_TRUSTED = 2
"""Training interactions of an item for which the ID view counts half of what it counts for others."""


@dataclass(frozen=True)
class Origin:
    """The published tower that a training starts from."""

    source: dict[str, Any]
    """Its name, commit on the Hub, and checksum of its weights."""
    views: tuple[str, ...]
    """Those whose towers have its weights."""
    item_sketch: Sequence[str] = ()
    """Of the items that it was trained on (see `data.sketch`)."""


def fit(
    stage: str,
    domain: Domain,
    path: Path | str,
    config: Config,
    features: Mapping[str, FeatureSpec],
    make_model: Callable[[], BiVRecNetwork],
    *,
    origin: Origin | None = None,
    overwrite: bool = False,
    resume: bool = False,
    tracker: str | None = None,
) -> Run:
    """Train the model that `make_model` builds, evaluate its best weights on the test users, and return the Run.

    Of a training on the test users too, no results are measured.

    features: specification of what the multimodal view reads, by modality; none for the ID view alone.
    origin: None if all weights are fresh.
    Raises BivrecError if `path` exists (unless `overwrite` or `resume`), another process trains it, the Domain has no
    user to evaluate, or the training fails.
    """
    path = Path(path)
    _check_folder(path, overwrite, resume)
    _users_to_evaluate(domain, "validation")
    if config.training.with_validation:
        domain = RefitDomain(domain, with_test=config.training.with_test)
    # Read now: what lies in its folder when the training ends may have been prepared anew.
    test_users = None if config.training.with_test else _users_to_evaluate(domain, "test")
    accelerator = make_accelerator(str(path), tracker)
    there = path.exists()
    with ExitStack() as locks:
        # Neither is a Run replaced that another process trains.
        with failing_alike():
            if accelerator.is_main_process and there:
                locks.enter_context(locked(path))
                remove_leftovers(path)
        set_seed(config.training.seed)
        model = make_model().to(accelerator.device)
        counts = torch.from_numpy(domain.training_counts())
        for part in model.modules():
            if isinstance(part, IdItems):
                part.trained = counts > 0
        if not resume:
            _start_tables(model, domain, config, counts > 0)
            if origin is None and config.training.projection_init == "principal":
                _start_projections(model)
            if len(model.views) > 1:
                model.id_weight.fill_(config.training.id_weight)
                model.id_trust.copy_(counts / (counts + HALF_TRUSTED))
        trainer = Trainer(model, domain, config, accelerator, origin.views if origin else ())
        info = _run_info(stage, domain, config, features, origin, accelerator)
        # Only now: a training that cannot begin must neither leave an empty Run nor replace an old one.
        with failing_alike():
            if accelerator.is_main_process and not resume:
                if path.exists() and not there:
                    raise BivrecError(f"{path}: another process has made it meanwhile; choose another --to")
                # What is replaced is locked once more.
                locks.close()
                Run.create(path, info, domain.item_ids(), overwrite and there)
                locks.enter_context(locked(path))
        # Not opened: the file system of another machine may not see yet what is new.
        run = Run.open(path) if resume else Run(path, info)
        if tracker is not None:
            accelerator.init_trackers(TRACKED_PROJECT, config=_for_trackers(run.config))
        trainer.train(run, resume)
        _finish(run, model, test_users, accelerator)
    return run


def with_steps_on(domain: Domain, config: Config) -> Config:
    """The configuration with the steps and the evaluations that it leaves to the size of the Domain."""
    training = config.training
    steps = training.steps
    if not steps:
        sequences = int((domain.sequences("train").lengths > training.min_history).sum())
        steps = max(LEAST_STEPS, math.ceil(training.epochs * sequences / training.batch_size))
    every = training.evaluate_every or math.ceil(steps / EVALUATIONS)
    return dataclasses.replace(config, training=dataclasses.replace(training, steps=steps, evaluate_every=every))


def _check_folder(path: Path, overwrite: bool, resume: bool) -> None:
    if path.exists() and not (overwrite or resume):
        raise BivrecError(f"{path}: exists already; pass --resume to go on, --overwrite to start anew, or another --to")
    if not resume:
        check_new_folder(path, overwrite, kind=RUN_FOLDER)
    elif not Run.open(path).checkpoint("last").exists():
        raise BivrecError(f"{path}: it was ended before its first checkpoint; start anew with --overwrite")


def _finish(run: Run, model: BiVRecNetwork, test_users: EvaluationUsers | None, accelerator: Accelerator) -> None:
    """Evaluate the best weights, and record the results; none without test users, which too says that it has ended."""
    with failing_alike():
        if accelerator.is_main_process:
            load_checkpoint(run.checkpoint("best"), model)
    # Not read by each: another machine's file system may still give the checkpoint before.
    share_weights(model)
    results = {} if test_users is None else evaluate_views(model, test_users, RESULT_KS, accelerator)
    if accelerator.is_main_process:
        write_json(run.path / RESULTS_FILE, {view: result.metrics for view, result in results.items()})
    accelerator.wait_for_everyone()
    # Not `end_training`, which also takes the process group from whatever the program trains next.
    for tracker in accelerator.trackers:
        tracker.finish()


def _users_to_evaluate(domain: Domain, split: str) -> EvaluationUsers:
    users = EvaluationUsers.from_sequences(domain.sequences(split))
    if not len(users):
        raise BivrecError(
            f"{domain.location}: no {split} user has 2 interactions or more, so that the training could not be "
            "evaluated; prepare the Domain from more data, or with another split"
        )
    return users


@torch.no_grad()
def _start_tables(model: BiVRecNetwork, domain: Domain, config: Config, trained: Tensor) -> None:
    """Where the rows of the ID tables start: with no vector for items that are not trained on, like those that come to
    a catalogue later, and if it is so configured with spectral vectors, as long as random ones, for the others."""
    for table in id_tables(model):
        table.weight[~trained] = 0
        if config.training.id_init != "spectral":
            continue
        # Once: of a large catalogue they take gigabytes, and rounding, with it signs, differs between machines.
        if PartialState().is_main_process:
            vectors = spectral_vectors(domain, table.embedding_dim, config.training.seed).to(table.weight)
            known = vectors.any(1)
            table.weight[known] = vectors[known] * table.weight[trained].norm(dim=1).mean()
        # Data parallelism leaves large tables to each process.
        table.weight.copy_(broadcast(table.weight.data))


def _start_projections(model: BiVRecNetwork) -> None:
    """Along the principal axes of what they read; of features that fit, any orthogonal projection keeps all.

    Each process finds them, and data parallelism sends those of the first.
    """
    axes: dict[AttachedFeatures, Tensor] = {}
    for part in model.modules():
        if isinstance(part, FeatureItems) and part.features and part.features.shape[1] > part.hidden_size:
            if part.features not in axes:
                axes[part.features] = part.features.principal_axes()
            part.project_along(axes[part.features])


def _run_info(
    stage: str,
    domain: Domain,
    config: Config,
    features: Mapping[str, FeatureSpec],
    origin: Origin | None,
    accelerator: Accelerator,
) -> RunInfo:
    program = Path(sys.argv[0]).name
    return RunInfo(
        format_version=FORMAT_VERSION,
        stage=stage,
        config=config.to_dict(),
        domain=domain_record(domain),
        features={name: dataclasses.asdict(spec) for name, spec in features.items()},
        started_from=origin.source if origin else None,
        command=shlex.join(["bivrec" if program == "__main__.py" else program, *sys.argv[1:]]),
        # Of torch with its build, which the metadata of its wheels leave out.
        versions={"bivrec": __version__, "torch": str(torch.__version__), "accelerate": accelerate.__version__},
        hardware={
            "device": _device_name(accelerator.device),
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "precision": chosen_precision(config.training.precision, accelerator.device),
        },
        item_sketch=join_sketches(item_sketch(domain), origin.item_sketch if origin else ()),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # Of processors, Python knows the architecture everywhere and the model nowhere.
    return f"{device.type} ({platform.machine()})"


def _for_trackers(config: Config) -> dict[str, Any]:
    """Trackers take one level of plain values."""
    values = config.settings()
    return {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in values.items()}
