"""Domain: a prepared data set, a folder on disk or a data set repository on the Hugging Face Hub.

    domain.json           DomainInfo
    sequences/            datasets.DatasetDict: one row per user, items in time order
    items/                datasets.Dataset: row k describes item index k + 1
    features.safetensors  after `bivrec encode`: frozen features of the items

Item index 0 is padding; indices 1..V go by decreasing number of interactions in the training sequences, ties by id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Mapping
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
from bivrec.data.info import (
    INFO_FILE,
    LEAVE_ONE_OUT,
    SPLITS,
    DomainInfo,
    FeatureSpec,
    FileRecord,
    read_info,
    write_info,
)
from bivrec.data.sequences import Sequences, UserIds
from bivrec.errors import BivrecError
from bivrec.files import FolderKind, new_file, sha256, write_json
from bivrec.locks import locked
from bivrec.repository import CARD_FILE, fetch

FEATURES_FILE = "features.safetensors"
PARTS_PREFIX = ".encode-"
"""Of the folders in which what was encoded of a modality lies until all of it is."""
DOMAIN_FOLDER = FolderKind(
    marks=(INFO_FILE,), entries=(INFO_FILE, FEATURES_FILE, "items", "sequences", f"{PARTS_PREFIX}*", CARD_FILE)
)
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
ITEM_COLUMNS = pa.schema(
    # The texts of a large catalogue have more bytes than a string array of Arrow can count.
    {"item_id": pa.string(), "title": pa.string(), "text": pa.large_string(), "image": pa.string()}
)


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
        domain = cls(path, read_info(path / INFO_FILE))
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
        table: pa.Table = datasets.load_from_disk(str(self.path / "sequences" / split), keep_in_memory=False).data.table
        if not table.schema.equals(SEQUENCE_COLUMNS):
            raise BivrecError(f"{self.path / sequence_file(split)}: not sequences; make the Domain again")
        items, timestamps = _one_array(table["items"]), _one_array(table["timestamps"])
        lowest, highest = (bound.as_py() for bound in pc.min_max(items.values).values())
        if lowest is not None and not 1 <= lowest <= highest <= self.num_items:
            raise BivrecError(
                f"{self.path / sequence_file(split)}: items {lowest} to {highest}, of which there are 1 to "
                f"{self.num_items}; make the Domain again"
            )
        return Sequences(
            offsets=items.offsets.to_numpy().astype(np.int64),
            items=items.values.to_numpy(zero_copy_only=True),
            timestamps=timestamps.values.to_numpy(zero_copy_only=True),
            user_ids=UserIds(table["user_id"]),
            leave_one_out=self.info.protocol == LEAVE_ONE_OUT,
            cutoff=self.info.cutoffs.get(split),
        )

    def training_counts(self) -> np.ndarray:
        """Int64 [V + 1]: interactions of each item in the training sequences."""
        return np.bincount(self.sequences("train").items, minlength=self.num_items + 1)

    def item_table(self) -> datasets.Dataset:
        """Rows of item_id, title, text, image; row k is item index k + 1."""
        table: datasets.Dataset = datasets.load_from_disk(str(self.path / "items"), keep_in_memory=False)
        if table.column_names != ITEM_COLUMNS.names or len(table) != self.num_items:
            raise BivrecError(f"{self.path / CATALOGUE_FILE}: not {self.num_items} items; make the Domain again")
        return table

    @property
    def catalogue(self) -> str:
        """SHA-256 of the item ids in their order, which is what an index means; titles and texts may change."""
        return _checksum(self.item_table().data.table["item_id"])

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
            write_info(self.path, bare)
        info = dataclasses.replace(
            bare,
            features={**self.info.features, **specs},
            missing={**self.info.missing, **missing},
            files={**files, FEATURES_FILE: record},
        )
        write_info(self.path, info)

    def _read_feature(self, modality: str, key: str) -> Tensor:
        if modality not in self.info.features:
            raise BivrecError(
                f"{self.location}: no {modality} features; "
                f"make them with `bivrec encode {shlex.quote(self.location)} --{modality} ...`"
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
    write_info(folder, dataclasses.replace(info, files=records))


def sequence_file(split: str) -> str:
    """The file of a split's sequences in the folder of a Domain."""
    return f"sequences/{split}/{ARROW_FILE}"


def _fetch(domain_class: type[Domain], location: str) -> Domain:
    source = location.removeprefix(HUB_PREFIX)
    # Before gigabytes of what cannot be read.
    fetched = fetch(source, [INFO_FILE], "dataset", local=False)
    if not (fetched.folder / INFO_FILE).is_file():
        raise BivrecError(f"{location}: not a Domain (no {INFO_FILE}); publish one with `bivrec publish-domain`")
    info = read_info(fetched.folder / INFO_FILE)
    fetch(source, PUBLISHED_FILES, "dataset", commit=fetched.commit, local=False)
    domain = domain_class(fetched.folder, info, f"{source.partition('@')[0]}@{fetched.commit}")
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


def _checksum(strings: pa.ChunkedArray) -> str:
    """SHA-256 of the lengths of strings and then of their bytes, however Arrow lays them out."""
    digest = hashlib.sha256(pc.binary_length(strings).to_numpy().astype("<i4"))
    for chunk in strings.chunks:
        _, offsets, content = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset :][: len(chunk) + 1]
        digest.update(memoryview(content)[ends[0] : ends[-1]])
    return digest.hexdigest()


def _record(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, sha256(path))


def _one_array(column: pa.ChunkedArray) -> pa.ListArray:
    # combine_chunks copies even a single chunk.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
