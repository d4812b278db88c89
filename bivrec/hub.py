"""Towers as artefacts: a folder, or a repository on the Hugging Face Hub.

config.json         architecture, feature specification, provenance
model.safetensors   weights of the tower: projection and sequence encoder
README.md           model card
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bivrec.baselines.towers import fresh_towers, tower_views
from bivrec.cards import tower_card
from bivrec.config import ModelConfig, model_config_from_dict
from bivrec.data.domain import Domain, FeatureSpec
from bivrec.errors import BivrecError
from bivrec.features.contract import contract_features
from bivrec.files import new_folder, read_json, sha256, write_json
from bivrec.model.tower import Tower
from bivrec.training.checkpoint import load_weights, read_weights
from bivrec.training.run import Run

FORMAT_VERSION = 1
MODEL_TYPE = "bivrec-tower"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"

# Without a connection the client raises its HTTP library's own errors, which HfHubHTTPError derives from.
_HUB_FAULTS: tuple[type[BaseException], ...] = (HFValidationError, OSError, *HfHubHTTPError.__bases__)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class TowerArtefact:
    """A published multimodal tower, read but not yet attached to the items of a Domain."""

    config: ModelConfig
    features: dict[str, FeatureSpec]
    """Modality -> how the features that it reads must have been made."""
    training: dict[str, Any]
    """How the tower was trained."""
    weights: dict[str, Tensor]
    source: dict[str, Any]
    """Where it came from: name, resolved revision, and checksum of the weights."""

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.weights.values())

    def attach(self, domain: Domain) -> Tower:
        """The tower on the items of a Domain.

        Raises BivrecError if the Domain's features were made in another way, or the weights do not fit.
        """
        name = str(self.source["name"])
        sizes = [spec.dimension for spec in self.features.values()]
        features = contract_features(self.features, domain, tower=name)
        tower = fresh_towers(self.config, ["mm"], domain.num_items, sizes, features)["mm"]
        load_weights(tower, self.weights, f"{name}/{WEIGHTS_FILE}")
        return tower


def load_tower(source: str) -> TowerArtefact:
    """Read a tower from a folder, or from `ORG/NAME[@revision]` on the Hub (or its local cache).

    Raises BivrecError if it cannot be had, is of another kind or a newer format, or is damaged.
    """
    folder, revision = _locate(source)
    if not (folder / CONFIG_FILE).is_file():
        raise BivrecError(f"{source}: not a tower (no {CONFIG_FILE}); make one of a Run with `bivrec publish`")
    values = read_json(folder / CONFIG_FILE)
    if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
        raise BivrecError(f"{source}/{CONFIG_FILE}: not a bivrec tower; publish one with `bivrec publish`")
    if values.get("format_version") != FORMAT_VERSION:
        raise BivrecError(
            f"{source}/{CONFIG_FILE}: format version {values.get('format_version')}, this bivrec reads "
            f"{FORMAT_VERSION}; upgrade bivrec"
        )
    try:
        features = {name: FeatureSpec(**spec) for name, spec in values["features"].items()}
        config = model_config_from_dict(values["model"], f"{source}/{CONFIG_FILE}")
        training = dict(values["training"])
    except (KeyError, TypeError, AttributeError) as fault:
        raise BivrecError(f"{source}/{CONFIG_FILE}: not the configuration of a tower ({fault})") from None
    path = folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise BivrecError(f"{source}/{WEIGHTS_FILE}: missing; publish the tower again") from None
    except SafetensorError as fault:
        raise BivrecError(f"{source}/{WEIGHTS_FILE}: damaged ({fault}); fetch or publish the tower again") from None
    origin = {"name": source, "revision": revision, "sha256": sha256(path)}
    return TowerArtefact(config, features, training, weights, origin)


def tower_of_run(run: Run) -> TowerArtefact:
    """The multimodal tower of a Run's best checkpoint, as if it had been published and read.

    Raises BivrecError if the Run has no multimodal view.
    """
    views = run.config.training.views
    if "mm" not in views:
        raise BivrecError(f"{run.path}: trained with the ID view alone, which cannot transfer to another Domain")
    if "mm" not in tower_views(run.config.model, views):
        raise BivrecError(
            f"{run.path}: {run.config.model.system} was trained with IDs and features in one model, which cannot "
            "transfer to another Domain; train it with --views mm"
        )
    weights = read_weights(run.checkpoint("best"), "towers.mm.")
    progress = run.progress()
    training = {
        "stage": run.info.stage,
        "domain": {key: value for key, value in run.info.domain.items() if key != "path"},
        "started_from": run.info.started_from,
        "config": run.info.config,
        "command": run.info.command,
        "versions": run.info.versions,
        "best_step": progress.best_step,
        "seconds": round(progress.seconds, 1),
        "results": run.results(),
    }
    origin = {"name": str(run.path), "revision": None, "sha256": sha256(run.checkpoint("best"))}
    return TowerArtefact(run.config.model, run.feature_specs, training, weights, origin)


def publish(run: Run, destination: str, *, overwrite: bool = False, private: bool = False) -> str:
    """Publish the multimodal tower of a Run's best checkpoint; returns the folder or the address of the commit.

    `destination` is a folder, or `ORG/NAME` on the Hub (see `is_repository`).
    """
    tower = tower_of_run(run)
    if not is_repository(destination):
        with new_folder(Path(destination), overwrite) as staging:
            _write_artefact(staging, tower, Path(destination).name)
        return str(Path(destination))
    try:
        huggingface_hub.create_repo(destination, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as staging:
            _write_artefact(Path(staging), tower, destination)
            commit = huggingface_hub.upload_folder(
                repo_id=destination, folder_path=staging, commit_message="Publish a bivrec tower"
            )
    except _HUB_FAULTS as fault:
        raise BivrecError(
            f"{destination}: cannot publish ({_first_line(fault)}); is HF_TOKEN set? "
            f"A folder of this name is ./{destination}"
        ) from None
    return str(commit.commit_url)


def is_repository(name: str) -> bool:
    """Whether a name means `ORG/NAME` on the Hub: it has that form, and no local folder begins like it."""
    return bool(_REPOSITORY.fullmatch(name)) and name[0] not in "./~" and not Path(name.split("/")[0]).is_dir()


def _write_artefact(folder: Path, tower: TowerArtefact, name: str) -> None:
    save_file(tower.weights, folder / WEIGHTS_FILE)
    write_json(
        folder / CONFIG_FILE,
        {
            "format_version": FORMAT_VERSION,
            "model_type": MODEL_TYPE,
            "model": dataclasses.asdict(tower.config),
            "features": {key: dataclasses.asdict(spec) for key, spec in tower.features.items()},
            "training": tower.training,
        },
    )
    card = tower_card(name, tower.config, tower.features, tower.training, tower.num_parameters)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _locate(source: str) -> tuple[Path, str | None]:
    """The folder that holds an artefact, and the commit that it was resolved to (None: a local folder)."""
    if Path(source).is_dir():
        return Path(source), None
    name, _, revision = source.partition("@")
    if not is_repository(name):
        raise BivrecError(f"{source}: no such folder, and not of the form ORG/NAME[@revision]")
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
        )
    except LocalEntryNotFoundError:
        raise BivrecError(f"{source}: not in the local cache, and the Hub cannot be reached") from None
    except _HUB_FAULTS as fault:
        raise BivrecError(f"{source}: cannot fetch it from the Hub ({_first_line(fault)})") from None
    return Path(folder), Path(folder).name


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
