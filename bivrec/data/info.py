"""What domain.json says of a Domain."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivrec.errors import BivrecError
from bivrec.files import check_format, read_json, write_json

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
ALL = "all"
"""In the place of a split: every user of the Domain."""
USER_SPLIT, LEAVE_ONE_OUT, TEMPORAL = "user-split", "leave-one-out", "temporal"
PROTOCOLS = (USER_SPLIT, LEAVE_ONE_OUT, TEMPORAL)
INFO_FILE = "domain.json"
REQUIRED_KEYS = {
    "source": ("reader",),
    "users": SPLITS,
    "interactions": SPLITS,
    "missing": ("text", "image"),
    "dropped": (
        "duplicate_interactions",
        "k_core_users",
        "k_core_items",
        "k_core_interactions",
        "items_without_interactions",
        "images_not_found",
    ),
}
"""Field of every DomainInfo -> keys that it has."""


@dataclass(frozen=True)
class FeatureSpec:
    """How the features of one modality were made; towers only accept features with an equal specification."""

    encoder: str
    """Model id, name of a local folder, or `hashing`, `descriptor`, `file`."""
    revision: str | None
    dimension: int
    pooling: str
    whitening: float | None
    """Shrinkage of the whitening; None of features as the encoder gives them."""
    max_tokens: int | None = None
    """Where texts were cut; None of what has no tokens."""
    weights: str | None = None
    """`sha256:...` of the weights of an encoder of the Hub, which a local copy of it has too."""


@dataclass(frozen=True)
class FileRecord:
    """What a file of the Domain must look like."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class DomainInfo:
    """The content of domain.json."""

    format_version: int
    name: str
    source: dict[str, Any]
    """Reader, names of the raw files, and the reader's options."""
    images: str | None
    """Folder or tar of the images: absolute, or relative to the Domain."""
    seed: int
    k_core: int
    num_items: int
    users: dict[str, int]
    """Split -> number of users."""
    interactions: dict[str, int]
    """Split -> number of interactions."""
    num_users: int
    """Users of all splits, each counted once."""
    num_interactions: int
    """Interactions of all splits, each counted once."""
    dropped: dict[str, int]
    """Reason -> number of users, items, interactions or images of the source that it removed."""
    items_not_listed: int
    """Items with interactions of which the source has no description; they are kept, without text and image."""
    missing: dict[str, int]
    """Modality -> number of items without it."""
    features: dict[str, FeatureSpec]
    files: dict[str, FileRecord]
    """Path in the Domain -> size and checksum."""
    protocol: str
    """What an evaluation holds out, one of PROTOCOLS.

    user-split: every user is in one split, with the whole sequence; of those in validation and test the last 20 %.
    leave-one-out: every user with 3 interactions or more is in all splits, in test with the whole sequence, in
    validation without the last interaction, in train without the last two; the others are in train alone, with all.
    temporal: train has what was before the validation's cutoff, validation what was before that of the test, of users
    who have something both before its own cutoff and since, and test the whole sequences of such users.
    """
    cutoffs: dict[str, int]
    """Of a temporal split: validation and test -> the time from which on interactions are targets."""
    items_without_interactions: int = 0
    """Items that the source lists and no sequence of the Domain holds: kept on request, to be ranked by content."""


def check_name(name: str, source: str) -> None:
    """Raise BivrecError, which begins with `source`, unless a folder of a study can have the name of a Domain."""
    if name in (".", "..") or "/" in name or not name.strip():
        raise BivrecError(f"{source} {name!r}: expected a name without '/', as of a folder")


def read_info(path: Path) -> DomainInfo:
    """Read domain.json. Raises BivrecError if it is of a newer format or damaged."""
    values = read_json(path)
    check_format(values, FORMAT_VERSION, str(path), "prepare the Domain again")
    try:
        values["features"] = {name: feature_spec(spec, f"{path}: {name}") for name, spec in values["features"].items()}
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        info = DomainInfo(**values)
    except (KeyError, TypeError, AttributeError) as fault:
        raise BivrecError(f"{path}: fields missing or unknown ({fault}); the file is damaged, prepare again") from None
    _check(info, str(path))
    return info


def feature_spec(values: Any, source: str) -> FeatureSpec:
    """The specification that a JSON object holds. Raises BivrecError, which begins with `source`, for anything else."""
    try:
        spec = FeatureSpec(**values)
    except TypeError as fault:
        raise BivrecError(f"{source}: not a feature specification ({str(fault)[:200]})") from None
    if wrong := wrong_field(spec):
        raise BivrecError(f"{source}.{wrong}: unexpected {getattr(spec, wrong)!r:.80}")
    return spec


def _check(info: DomainInfo, source: str) -> None:
    """Raise BivrecError unless the fields are what commands expect of them: others may have written the file."""
    if wrong := wrong_field(info):
        raise BivrecError(f"{source}: {wrong}: unexpected {getattr(info, wrong)!r:.80}; prepare again")
    if info.protocol not in PROTOCOLS:
        raise BivrecError(
            f"{source}: protocol '{info.protocol}': expected one of {', '.join(PROTOCOLS)}; upgrade bivrec or prepare "
            "again"
        )
    check_name(info.name, f"{source}: name")
    cutoffs = SPLITS[1:] if info.protocol == TEMPORAL else ()
    for name, keys in {**REQUIRED_KEYS, "cutoffs": cutoffs}.items():
        if absent := [key for key in keys if key not in getattr(info, name)]:
            raise BivrecError(f"{source}: {name}: no {absent[0]}; the file is damaged, prepare again")


def wrong_field(record: Any) -> str | None:
    """Name of the first field of a dataclass whose value is not of its type."""
    kinds = typing.get_type_hints(type(record))
    return next((name for name, kind in kinds.items() if not _is_of(getattr(record, name), kind)), None)


def _is_of(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_is_of(value, part) for part in parts)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(part, parts[1]) for part in value.values())
    if origin is list:
        return isinstance(value, list) and all(_is_of(part, parts[0]) for part in value)
    return isinstance(value, kind) and not isinstance(value, bool)


def write_info(folder: Path, info: DomainInfo) -> None:
    """Write domain.json into the folder of a Domain."""
    write_json(folder / INFO_FILE, dataclasses.asdict(info))
