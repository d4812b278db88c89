"""Domain: a prepared data set, a folder on disk or a data set repository on the Hugging Face Hub.

    domain.json           DomainInfo
    sequences/            datasets.DatasetDict: one row per user, items in time order
    items/                datasets.Dataset: row k describes item index k + 1
    features.safetensors  after `bivrec encode`: frozen features of the items

Item index 0 is padding; indices 1..V go by decreasing number of interactions in the training sequences, ties by id.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bivrec.data.feature_rows import FeatureRows
from bivrec.errors import BivrecError
from bivrec.files import new_file, read_json, sha256, write_json
from bivrec.locks import locked
from bivrec.repository import fetch

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
USER_SPLIT, LEAVE_ONE_OUT = "user-split", "leave-one-out"
PROTOCOLS = (USER_SPLIT, LEAVE_ONE_OUT)
INFO_FILE = "domain.json"
MARKS = (INFO_FILE,)
"""Files that every folder of a Domain holds."""
FEATURES_FILE = "features.safetensors"
ARROW_FILE = "data-00000-of-00001.arrow"
"""Of the item table, and of each split's sequences; `datasets` maps it without converting it."""
CATALOGUE_FILE = f"items/{ARROW_FILE}"
STORING_SECONDS = 600.0
"""How long others may take to store features of theirs, before one gives up."""
HUB_PREFIX = "hub:"
"""`hub:ORG/NAME[@revision]` names a Domain on the Hub wherever a folder names a local one."""

PUBLISHED_FILES = (INFO_FILE, FEATURES_FILE, "sequences/*", "items/*")
"""Patterns of the files of a Domain in a repository on the Hub."""

SEQUENCE_COLUMNS = pa.schema(
    {"user_id": pa.string(), "items": pa.list_(pa.int32()), "timestamps": pa.list_(pa.int64())}
)
ITEM_COLUMNS = pa.schema({name: pa.string() for name in ("item_id", "title", "text", "image")})


@dataclass(frozen=True)
class FeatureSpec:
    """How the features of one modality were made; towers only accept features with an equal specification."""

    encoder: str
    """Model id, or `hashing`, `descriptor`, `file`."""
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
    """

    @property
    def num_users(self) -> int:
        """Users of all splits, each counted once."""
        return self.users["train"] if self.protocol == LEAVE_ONE_OUT else sum(self.users.values())

    @property
    def num_interactions(self) -> int:
        """Interactions of all splits, each counted once."""
        if self.protocol == LEAVE_ONE_OUT:
            return self.interactions["train"] + 2 * self.users["test"]
        return sum(self.interactions.values())


class UserIds(Sequence[str]):
    """Ids that stay in a memory-mapped column, or in another sequence, until one is asked for."""

    def __init__(self, source: pa.ChunkedArray | Sequence[str], rows: np.ndarray | None = None) -> None:
        """rows: which entries of the source, in this order (default: all)."""
        self._source = source
        self._rows = range(len(source)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        found = self._source[int(self._rows[place])]
        return found if isinstance(found, str) else found.as_py()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Sequences:
    """The users of a split in CSR layout: user `u` has the items `items[offsets[u]:offsets[u + 1]]`, oldest first."""

    offsets: np.ndarray
    """int64 [U + 1]."""
    items: np.ndarray
    """int32 [interactions]: item indices, 1..V; a view of the memory-mapped file."""
    timestamps: np.ndarray
    """int64 [interactions], in the unit of the source: seconds, microseconds where any has a fraction, or a rank."""
    user_ids: Sequence[str]
    leave_one_out: bool = False
    """Whether an evaluation asks for the last item alone, instead of for the last 20 %."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U]: interactions of each user."""
        return np.diff(self.offsets)


class Domain:
    """A prepared data set that has been checked; `Domain.open(path)` makes one."""

    def __init__(self, path: Path, info: DomainInfo, repository: str | None = None) -> None:
        self.path = path
        self.repository = repository
        """`ORG/NAME@commit` if the Domain is on the Hub, and `path` its place in the local cache."""
        self.info = info
        self.name = info.name
        self.num_items = info.num_items

    @classmethod
    def open(cls, path: str | Path) -> Domain:
        """Open a Domain in a folder, or `hub:ORG/NAME[@revision]` on the Hub or in its local cache.

        Only sizes are checked, `verify` reads every byte. Raises BivrecError if it is not a Domain, is of a newer
        format, a file is missing or truncated, or it cannot be had from the Hub.
        """
        if str(path).startswith(HUB_PREFIX):
            return _fetch(cls, str(path))
        path = Path(path)
        if not (path / INFO_FILE).is_file():
            raise BivrecError(f"{path}: not a Domain (no {INFO_FILE}); make one with `bivrec prepare`")
        domain = cls(path, _read_info(path / INFO_FILE))
        domain._check_files()
        return domain

    def _check_files(self) -> None:
        for name, record in self.info.files.items():
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or "\\" in name:
                raise BivrecError(f"{self.location}/{INFO_FILE}: names the file {name!r}, outside of its folder")
            path = self.path / name
            if not path.is_file():
                raise BivrecError(f"{path}: missing; the Domain is incomplete, prepare it again")
            if (size := path.stat().st_size) != record.bytes:
                raise BivrecError(
                    f"{path}: {size} bytes where {record.bytes} were written; "
                    "the file is damaged, make the Domain again"
                )

    def __repr__(self) -> str:
        facts = [f"{self.info.num_users:,} users", f"{self.num_items:,} items"]
        facts += [f"{name} {spec.dimension}-d" for name, spec in self.info.features.items()]
        return f"Domain({self.name!r}, {', '.join(facts)})"

    @property
    def location(self) -> str:
        """What opens this Domain again: its path, or `hub:ORG/NAME@commit`."""
        return str(self.path) if self.repository is None else f"{HUB_PREFIX}{self.repository}"

    def check_writable(self) -> None:
        """Raise BivrecError if the Domain must not be changed: in the cache of the Hub it stands for a commit."""
        # The cache is a folder of snapshots, whose files are links to blobs.
        if self.repository is not None or (self.path / INFO_FILE).resolve().parent.name == "blobs":
            name = self.repository.partition("@")[0] if self.repository else "ORG/NAME"
            raise BivrecError(
                f"{self.location}: a Domain of the Hub cannot be changed; take a copy with "
                f"`hf download {name} --repo-type dataset --local-dir FOLDER` and use that"
            )

    def verify(self) -> None:
        """Compare every file with its checksum; BivrecError names the first that differs."""
        for name, record in self.info.files.items():
            if sha256(self.path / name) != record.sha256:
                raise BivrecError(f"{self.path / name}: the checksum differs; the file was changed, make it again")

    @property
    def images(self) -> Path | None:
        """Folder or tar of the item images, None if the Domain has none."""
        return None if self.info.images is None else self.path / self.info.images

    def sequences(self, split: str) -> Sequences:
        """The users of `split`, ordered by user id, with what the split has of their sequences (see `DomainInfo`)."""
        if split not in SPLITS:
            raise BivrecError(f"split '{split}': expected one of {', '.join(SPLITS)}")
        table = datasets.load_from_disk(str(self.path / "sequences" / split), keep_in_memory=False).data.table
        items, timestamps = _one_array(table["items"]), _one_array(table["timestamps"])
        return Sequences(
            offsets=items.offsets.to_numpy().astype(np.int64),
            items=items.values.to_numpy(zero_copy_only=True),
            timestamps=timestamps.values.to_numpy(zero_copy_only=True),
            user_ids=UserIds(table["user_id"]),
            leave_one_out=self.info.protocol == LEAVE_ONE_OUT,
        )

    def item_table(self) -> datasets.Dataset:
        """Rows of item_id, title, text, image; row k is item index k + 1."""
        return datasets.load_from_disk(str(self.path / "items"), keep_in_memory=False)

    def item_ids(self) -> list[str]:
        """Item ids; entry k is item index k + 1."""
        ids: list[str] = self.item_table().data.table["item_id"].to_pylist()
        return ids

    def item_indices(self, item_ids: pa.StringArray) -> np.ndarray:
        """The index of every id; 0 of items that the Domain does not have."""
        catalogue = self.item_table().data.table["item_id"].combine_chunks()
        rows: np.ndarray = pc.fill_null(pc.index_in(item_ids, value_set=catalogue), -1).to_numpy()
        return rows + 1

    def original_item_ids(self) -> pa.ChunkedArray:
        """The same as strings of Arrow, without what `prepare merge` put before the ids of the Domains that it read."""
        ids = self.item_table().data.table["item_id"]
        prefix = _merged_prefix(self.info.source)
        return pc.replace_substring_regex(ids, f"^{prefix}", "") if prefix else ids

    def features(self, modalities: tuple[str, ...]) -> Tensor:
        """Float32 [V + 1, sum of dimensions]: the features of the modalities side by side, in the given order.

        Each modality's part of a row has length 1, so that none outweighs another. Row 0 (padding) and the parts of
        items without the modality are zeros.
        """
        return self.feature_rows(modalities)[torch.arange(self.num_items + 1)]

    def feature_rows(self, modalities: tuple[str, ...]) -> FeatureRows:
        """The same features, left in their file; only rows that are asked for are read."""
        return FeatureRows([self._read_feature(name, name) for name in modalities])

    def has_modality(self, modality: str) -> Tensor:
        """Bool [V + 1]: which items have features of the modality."""
        return self._read_feature(modality, f"has_{modality}").bool()

    def with_features(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor], specs: Mapping[str, FeatureSpec]
    ) -> Domain:
        """Store features [V + 1, d] and presence [V + 1] by modality, keep those of other modalities, and reopen.

        Features are stored in the type that they have; `features` widens them to float32. What others stored since
        this Domain was opened is kept as well.
        Raises BivrecError if the Domain is one of the Hub, or was prepared anew with other items since.
        """
        self.check_writable()
        with locked(self.path, wait=STORING_SECONDS):
            now = Domain.open(self.path)
            if now.info.files[CATALOGUE_FILE] != self.info.files[CATALOGUE_FILE]:
                raise BivrecError(f"{self.path}: was prepared anew meanwhile, with other items; encode it again")
            now._store_features(features, present, specs)
            return Domain.open(self.path)

    def _store_features(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor], specs: Mapping[str, FeatureSpec]
    ) -> None:
        tensors = {}
        for name in sorted({*self.info.features, *features}):
            values, has = (
                (features[name], present[name].bool())
                if name in features
                else (self._read_feature(name, name), self.has_modality(name))
            )
            tensors[name] = values.masked_fill(~has[:, None], 0).contiguous()
            tensors[f"has_{name}"] = has.contiguous()
        missing = {name: int((~present[name][1:]).sum()) for name in features}
        files = {name: record for name, record in self.info.files.items() if name != FEATURES_FILE}
        bare = dataclasses.replace(self.info, features={}, files=files)
        with new_file(self.path / FEATURES_FILE) as staging:
            save_file(tensors, staging)
            record = _record(staging)
            # Killed between the two renames, the Domain must open: as one without features.
            _write_info(self.path, bare)
        info = dataclasses.replace(
            bare,
            features={**self.info.features, **specs},
            missing={**self.info.missing, **missing},
            files={**files, FEATURES_FILE: record},
        )
        _write_info(self.path, info)

    def _read_feature(self, modality: str, key: str) -> Tensor:
        if modality not in self.info.features:
            raise BivrecError(
                f"{self.location}: no {modality} features; "
                f"make them with `bivrec encode {self.location} --{modality} ...`"
            )
        try:
            with safe_open(self.path / FEATURES_FILE, framework="pt") as stored:
                tensor: Tensor = stored.get_tensor(key)
        except SafetensorError as fault:
            raise BivrecError(f"{self.path / FEATURES_FILE}: {fault}; encode the Domain again") from None
        return tensor


def write_domain(folder: Path, info: DomainInfo, sequences: Mapping[str, Sequences], items: pa.Table) -> None:
    """Fill an empty folder with a Domain; `info.files` is completed with every file that lies in the folder then.

    `items` has the columns item_id, title, text, image; row k is item index k + 1.
    """
    for split in SPLITS:
        _save_table(_sequence_table(sequences[split]), folder / "sequences" / split)
    write_json(folder / "sequences" / "dataset_dict.json", {"splits": list(SPLITS)})
    _save_table(items.select(ITEM_COLUMNS.names).cast(ITEM_COLUMNS), folder / "items")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    records = {path.relative_to(folder).as_posix(): _record(path) for path in files}
    _write_info(folder, dataclasses.replace(info, files=records))


def _fetch(domain_class: type[Domain], location: str) -> Domain:
    fetched = fetch(location.removeprefix(HUB_PREFIX), PUBLISHED_FILES, "dataset")
    if fetched.commit is None:
        raise BivrecError(f"{location}: a local folder has this name; leave {HUB_PREFIX} out to open it")
    if not (fetched.folder / INFO_FILE).is_file():
        raise BivrecError(f"{location}: not a Domain (no {INFO_FILE}); publish one with `bivrec publish-domain`")
    name = location.removeprefix(HUB_PREFIX).partition("@")[0]
    domain = domain_class(fetched.folder, _read_info(fetched.folder / INFO_FILE), f"{name}@{fetched.commit}")
    domain._check_files()
    return domain


def _merged_prefix(source: Mapping[str, Any]) -> str:
    """A pattern of what a merge put before ids; empty if the source is no merge."""
    if source.get("reader") != "merge":
        return ""
    parts = [re.escape(f"{name}:") + _merged_prefix(own) for name, own in source["domains"].items()]
    return f"(?:{'|'.join(parts)})"


def _sequence_table(sequences: Sequences) -> pa.Table:
    offsets = pa.array(sequences.offsets, pa.int32())
    columns = [
        pa.array(sequences.user_ids, pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(sequences.items, pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(sequences.timestamps, pa.int64())),
    ]
    return pa.Table.from_arrays(columns, schema=SEQUENCE_COLUMNS)


def _save_table(table: pa.Table, folder: Path) -> None:
    """Write what `Dataset.save_to_disk` writes, with two differences.

    The table is one Arrow record batch, so that a reader can map a column as one array, where `datasets` makes
    batches of 1,000 rows; and the fingerprint is that of the content, so that the same input gives the same bytes.
    """
    folder.mkdir(parents=True)
    data = folder / ARROW_FILE
    with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    state: dict[str, Any] = {
        "_data_files": [{"filename": data.name}],
        "_fingerprint": sha256(data)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name if folder.name in SPLITS else None,
    }
    write_json(folder / "state.json", state)
    write_json(folder / "dataset_info.json", {"features": datasets.Features.from_arrow_schema(table.schema).to_dict()})


def _read_info(path: Path) -> DomainInfo:
    values = read_json(path)
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise BivrecError(f"{path}: no format_version; the file does not describe a Domain, prepare it again")
    if version > FORMAT_VERSION:
        raise BivrecError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest that this bivrec reads; "
            "upgrade bivrec or prepare the Domain again"
        )
    try:
        values["features"] = {name: FeatureSpec(**spec) for name, spec in values["features"].items()}
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        info = DomainInfo(**values)
    except (KeyError, TypeError, AttributeError) as fault:
        raise BivrecError(f"{path}: fields missing or unknown ({fault}); the file is damaged, prepare again") from None
    if info.protocol not in PROTOCOLS:
        raise BivrecError(
            f"{path}: protocol '{info.protocol}': expected {' or '.join(PROTOCOLS)}; upgrade bivrec or prepare again"
        )
    return info


def _write_info(folder: Path, info: DomainInfo) -> None:
    write_json(folder / INFO_FILE, dataclasses.asdict(info))


def _record(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, sha256(path))


def _one_array(column: pa.ChunkedArray) -> pa.ListArray:
    # combine_chunks copies even a single chunk.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
