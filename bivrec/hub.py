"""Publishing a Run: its best checkpoint becomes a model in a folder or on the Hugging Face Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from bivrec import publishing
from bivrec.artefact import (
    TOWER_PREFIX,
    BiVRec,
    Tower,
    check_transferable,
    push_files,
    tower_config,
)
from bivrec.artefact_config import JOINT_TYPE, ArtefactConfig
from bivrec.artefact_files import MODEL_FOLDER, empty_network
from bivrec.card_facts import card_facts, draw_training_curve
from bivrec.cards import neutral_command, neutral_origin
from bivrec.errors import BivrecError
from bivrec.files import sha256
from bivrec.repository import PushOptions
from bivrec.training.checkpoint import checkpoint_weights
from bivrec.training.run import Run
from bivrec.weights import check_weights, described


def tower_of_run(run: Run) -> Tower:
    """The multimodal tower of a Run's best checkpoint, as if it had been published and read.

    Raises BivrecError if the Run has no multimodal view.
    """
    check_transferable(str(run.path), run.config.model, run.config.training.views)
    config = tower_config(_config(run))
    return Tower(config, _weights(run, empty_network(config).tower("mm"), TOWER_PREFIX), source_of_run(run))


def model_of_run(run: Run) -> BiVRec:
    """The joint model of a Run's best checkpoint, as if it had been published and read.

    Raises BivrecError if the Run has no ID view.
    """
    if "id" not in run.config.training.views:
        raise BivrecError(f"{run.path}: trained with the multimodal view alone; publish its tower with --model tower")
    config = _config(run)
    return BiVRec(config, _weights(run, empty_network(config)), source_of_run(run), run.item_ids())


def artefact_of_run(run: Run, kind: str | None = None) -> Tower | BiVRec:
    """The `tower` or the `joint` model of a Run; by default the joint model of a finetuning that has one."""
    if kind is None:
        kind = "joint" if run.info.stage == "finetune" and "id" in run.config.training.views else "tower"
    return tower_of_run(run) if kind == "tower" else model_of_run(run)


def publish(
    run: Run,
    destination: str,
    kind: str | None = None,
    *,
    overwrite: bool = False,
    message: str | None = None,
    **options: Unpack[PushOptions],
) -> str:
    """Publish a Run's best checkpoint as its `tower` or its `joint` model (see `artefact_of_run`).

    `destination` is a folder (which `overwrite` replaces), or `ORG/NAME` on the Hub (see `is_repository`), for which
    the other options are as of `push_to_hub`. Returns the folder, or the address of the commit or pull request.
    """
    push = partial(push_files, message=message, **options)
    return publishing.publish(partial(_fill, run, kind), destination, push, kind=MODEL_FOLDER, overwrite=overwrite)


def preview(run: Run, destination: str, kind: str | None = None) -> tuple[dict[str, int], str]:
    """What `publish` would write there: file -> bytes, and the card."""
    return publishing.preview(partial(_fill, run, kind), destination)


def _fill(run: Run, kind: str | None, folder: Path, name: str) -> None:
    model = artefact_of_run(run, kind)
    model.training.update(card_facts(run, model))
    model.write(folder, name, picture=draw_training_curve(run, folder))


def _weights(run: Run, network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Of the best checkpoint those whose names begin with `prefix`; BivrecError unless they are those of a network."""
    path = run.checkpoint("best")
    weights = checkpoint_weights(path, prefix)
    check_weights({name: described(value) for name, value in weights.items()}, network.state_dict(), str(path))
    return weights


def _config(run: Run) -> ArtefactConfig:
    views = run.config.training.views
    return ArtefactConfig(
        model_type=JOINT_TYPE,
        model=run.config.model,
        features=run.feature_specs,
        training=_training(run),
        views=views,
        num_items=int(run.info.domain["num_items"]) if "id" in views else 0,
        catalogue=str(run.info.domain["catalogue"]),
    )


def _training(run: Run) -> dict[str, Any]:
    progress = run.progress()
    return {
        "stage": run.info.stage,
        # Paths stay here; the source is told without them (see `card_facts`).
        "domain": {key: value for key, value in run.info.domain.items() if key not in ("path", "source")},
        "started_from": neutral_origin(run.info.started_from),
        "config": run.config.to_dict(),
        "command": neutral_command(run.info.command),
        "versions": run.info.versions,
        "hardware": run.info.hardware,
        "best_step": progress.best_step,
        "id_weight": run.id_weight(),
        "seconds": round(progress.seconds, 1),
        "item_sketch": run.info.item_sketch,
        "results": run.results(),
    }


def source_of_run(run: Run) -> dict[str, Any]:
    """Where the best weights of a Run are, and their checksum: what an artefact made of them records as its source."""
    return {"name": str(run.path), "revision": None, "sha256": sha256(run.checkpoint("best"))}
