"""Reading the files of a published model, from a folder or from the Hub: for whose content nobody vouches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bivrec import repository
from bivrec.artefact_config import (
    MAX_ITEM_BYTES,
    MAX_JSON_BYTES,
    TOWER_TYPE,
    ArtefactConfig,
    read_config,
    read_item_ids,
    read_results,
)
from bivrec.baselines.towers import fresh_towers
from bivrec.errors import BivrecError
from bivrec.files import FolderKind, sha256
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.repository import CARD_FILE
from bivrec.weights import read_weights, size_of

CONFIG_FILE, WEIGHTS_FILE, RESULTS_FILE = "config.json", "model.safetensors", "results.json"
ITEMS_FILE, CURVE_FILE = "items.json", "training_curve.png"
MODEL_FOLDER = FolderKind(
    # Both together are in no folder of another library's model.
    marks=(CONFIG_FILE, RESULTS_FILE),
    entries=(CONFIG_FILE, RESULTS_FILE, WEIGHTS_FILE, ITEMS_FILE, CURVE_FILE, CARD_FILE),
)
HEADER_ALLOWANCE = 1 << 20
"""Bytes that the file of the weights may have beside them."""


class ArtefactFiles:
    """A published model of which only the configuration was read: nothing large is fetched before it was checked."""

    def __init__(self, source: str, revision: str | None = None) -> None:
        """source: a folder, or `ORG/NAME[@revision]`. Raises BivrecError if it cannot be had, or is no model."""
        self.name = source if revision is None else f"{source}@{revision}"
        self._commit = repository.resolve(self.name)
        self._sizes = repository.file_sizes(self.name, commit=self._commit) if self._commit else None
        if self._size(CONFIG_FILE) is None:
            raise BivrecError(f"{self.name}: not a model (no {CONFIG_FILE}); make one of a Run with `bivrec publish`")
        self.config = read_config(self._fetch(CONFIG_FILE, MAX_JSON_BYTES), f"{self.name}/{CONFIG_FILE}")
        results = read_results(self._fetch(RESULTS_FILE, MAX_JSON_BYTES), f"{self.name}/{RESULTS_FILE}")
        self.config.training["results"] = results

    def item_ids(self) -> list[str]:
        """Of a joint model, the item ids in the order of its ID table."""
        path = self._fetch(ITEMS_FILE, MAX_ITEM_BYTES * (self.config.num_items + 1))
        return read_item_ids(path, self.config.num_items, f"{self.name}/{ITEMS_FILE}")

    def weights(self, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights whose names begin with `prefix`, and where they came from."""
        network = empty_network(self.config)
        expected = (network.tower("mm") if self.config.model_type == TOWER_TYPE else network).state_dict()
        path = self._fetch(WEIGHTS_FILE, size_of(expected) + HEADER_ALLOWANCE)
        weights = read_weights(path, expected, f"{self.name}/{WEIGHTS_FILE}", prefix)
        return weights, {"name": self.name, "revision": self._commit, "sha256": sha256(path)}

    def _size(self, name: str) -> int | None:
        if self._sizes is not None:
            return self._sizes.get(name)
        path = Path(self.name) / name
        return path.stat().st_size if path.is_file() else None

    def _fetch(self, name: str, limit: int) -> Path:
        """Path of a file that is there and has at most `limit` bytes."""
        if (size := self._size(name)) is None:
            raise BivrecError(f"{self.name}/{name}: missing; publish the model again")
        if size > limit:
            raise BivrecError(
                f"{self.name}/{name}: {size:,} bytes, expected at most {limit:,}; not a file of the model"
            )
        return repository.fetch(self.name, [name], commit=self._commit).folder / name


def empty_network(config: ArtefactConfig) -> BiVRecNetwork:
    """The network of a configuration without memory for its weights."""
    with torch.device("meta"):
        sizes = [spec.dimension for spec in config.features.values()]
        return BiVRecNetwork(fresh_towers(config.model, config.views, config.num_items, sizes))
