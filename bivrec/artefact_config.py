"""The JSON files of a published model, read as what they are: input that nobody vouches for."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivrec.config import MODALITIES, VIEWS, ModelConfig, model_config_from_dict
from bivrec.data.info import PROTOCOLS, FeatureSpec, feature_spec
from bivrec.data.sketch import SKETCH_SIZE
from bivrec.errors import BivrecError
from bivrec.files import check_format, read_json
from bivrec.results import Results, checked_results

FORMAT_VERSION = 1
TOWER_TYPE, JOINT_TYPE = "bivrec-tower", "bivrec"
MAX_JSON_BYTES = 1 << 22
MAX_ITEM_BYTES = 1 << 10
"""Bytes of items.json for each item of the catalogue."""
MAX_FEATURES = 1 << 17
MAX_ITEMS = (1 << 31) - 1
"""Item indices are int32."""


@dataclass(frozen=True)
class ArtefactConfig:
    """The content of config.json."""

    model_type: str
    """`bivrec-tower`: the multimodal tower alone; `bivrec`: the joint model of a catalogue."""
    model: ModelConfig
    features: dict[str, FeatureSpec]
    """Modality -> how the features that the multimodal tower reads must have been made."""
    training: dict[str, Any]
    """How the model was trained, for people and for provenance: nothing is built from it."""
    views: tuple[str, ...]
    num_items: int
    """V of the ID table; 0 without one."""
    catalogue: str
    """Checksum that identifies the items of the Domain of the training and their order."""

    @property
    def feature_size(self) -> int:
        """F, the width of the features of all modalities side by side."""
        return sum(spec.dimension for spec in self.features.values())

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return {**values, "views": list(self.views)}


def read_config(path: Path, source: str) -> ArtefactConfig:
    """Read config.json; `source` names the file. Raises BivrecError for another kind, format, or impossible value."""
    values = _read(path, source)
    if not isinstance(values, dict) or values.get("model_type") not in (TOWER_TYPE, JOINT_TYPE):
        raise BivrecError(f"{source}: not a model of bivrec; publish one with `bivrec publish`")
    check_format(values, FORMAT_VERSION, source, "publish the model again")
    names = {field.name for field in dataclasses.fields(ArtefactConfig)}
    if values.keys() - {"format_version"} != names:
        differing = sorted((values.keys() - {"format_version"}) ^ names)
        raise BivrecError(f"{source}: keys missing or unknown: {', '.join(differing)[:200]}; publish the model again")
    views = _views(values["views"], values["model_type"], source)
    features = _features(values["features"], source)
    if ("mm" in views) != bool(features):
        raise BivrecError(f"{source}: features: expected for a model with the view mm, and for no other")
    for name, kind in (("training", dict), ("catalogue", str)):
        if not isinstance(values[name], kind):
            raise BivrecError(f"{source}: {name}: unexpected {_short(values[name])}; publish the model again")
    _check_training(values["training"], source)
    _check_sketch(values["training"].get("item_sketch"), source)
    return ArtefactConfig(
        model_type=values["model_type"],
        model=model_config_from_dict(values["model"], source),
        features=features,
        training=values["training"],
        views=views,
        num_items=_count(values["num_items"], "num_items", int("id" in views), MAX_ITEMS, source),
        catalogue=values["catalogue"],
    )


def read_results(path: Path, source: str) -> Results:
    """Read results.json. Raises BivrecError if it holds anything else."""
    return checked_results(_read(path, source), source, "publish the model again")


def read_item_ids(path: Path, num_items: int, source: str) -> list[str]:
    """Read items.json: the ids of the catalogue in the order of the ID table. Raises BivrecError otherwise."""
    values = _read(path, source)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BivrecError(f"{source}: expected a list of item ids; publish the model again")
    if len(values) != num_items:
        raise BivrecError(f"{source}: {len(values)} item ids, where the configuration has {num_items}; publish again")
    return values


def _read(path: Path, source: str) -> Any:
    try:
        return read_json(path)
    except BivrecError as fault:
        raise BivrecError(str(fault).replace(str(path), source, 1)) from None


def _views(values: Any, model_type: str, source: str) -> tuple[str, ...]:
    allowed = [["mm"]] if model_type == TOWER_TYPE else [["id"], list(VIEWS)]
    if values not in allowed:
        raise BivrecError(f"{source}: views: {_short(values)} is not one of {', '.join(map(str, allowed))}")
    return tuple(values)


def _features(values: Any, source: str) -> dict[str, FeatureSpec]:
    if not isinstance(values, Mapping) or not set(values) <= set(MODALITIES):
        raise BivrecError(f"{source}: features: expected some of {', '.join(MODALITIES)}, found {_short(values)}")
    return {modality: _feature_spec(spec, f"{source}: features.{modality}") for modality, spec in values.items()}


def _feature_spec(values: Any, source: str) -> FeatureSpec:
    spec = feature_spec(values, source)
    _count(spec.dimension, "dimension", 1, MAX_FEATURES, source)
    return spec


def _check_training(values: dict[str, Any], source: str) -> None:
    """Of what is told of the training, what commands print."""
    expected: dict[str, Any] = {"command": str, "id_weight": float | None, "domain.name": str, "domain.num_items": int}
    expected |= {"domain.protocol": str, "domain.users.train": int, "config.training": dict}
    for name, kind in expected.items():
        found: Any = values
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, kind) or not _is_possible(name, found):
            raise BivrecError(f"{source}: training.{name}: unexpected {_short(found)}; publish the model again")


def _is_possible(name: str, value: Any) -> bool:
    if name == "domain.protocol":
        return value in PROTOCOLS
    if name == "command":
        try:
            shlex.split(value)
        except ValueError:
            return False
    return True


def _check_sketch(values: Any, source: str) -> None:
    if not isinstance(values, list) or len(values) > SKETCH_SIZE or not all(map(_is_hash, values)):
        raise BivrecError(
            f"{source}: training.item_sketch: expected up to {SKETCH_SIZE} hashes of 16 hexadecimal digits, "
            f"found {_short(values)}; publish the model again"
        )


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def _count(value: Any, name: str, low: int, high: int, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BivrecError(f"{source}: {name}: expected {low} to {high}, found {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
