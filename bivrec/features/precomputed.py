"""Features computed elsewhere, read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bivrec.errors import BivrecError
from bivrec.features.pretrained import LOCAL_REVISION
from bivrec.files import sha256

POOLING = "file"
UNNAMED = "file"
AMAZON_ROW = np.dtype([("id", "S10"), ("values", "<f4", 4096)])


def read_features(path: Path, wanted: Sequence[str], ids: Path | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """Features of the items `wanted` from a file in one of three formats.

    - `.npy`: [n, d] numbers, with `ids`: a text file of n lines, the item id of each row.
    - `.safetensors`: one vector [d] per item, its key the item id.
    - `.b`: repeated 10-byte item id and 4096 little-endian float32 (image features of the Amazon 2014 data;
      McAuley et al., "Image-based Recommendations on Styles and Substitutes", 2015).

    Returns float32 [len(wanted), d] (zeros where the file has no such item), bool [len(wanted)] which it has, and the
    items in the file that are not wanted. Raises BivrecError naming the row and item of the first fault.
    """
    if not path.is_file():
        raise BivrecError(f"{path}: no such file of features")
    if path.suffix == ".npy":
        return _select(path, *_read_npy(path, ids), wanted)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, wanted)
    if path.suffix == ".b":
        return _select(path, *_read_amazon(path), wanted)
    raise BivrecError(f"{path}: unknown kind of feature file; expected .npy, .safetensors or .b")


def file_identity(path: Path, encoder: str | None) -> tuple[str, str | None]:
    """Encoder and revision of a feature file's specification.

    A file of a named encoder agrees with other files of that encoder; an unnamed one only with itself, by checksum.
    """
    return (encoder, None) if encoder else (UNNAMED, LOCAL_REVISION + sha256(path))


def _read_npy(path: Path, ids: Path | None) -> tuple[np.ndarray, list[str]]:
    if ids is None:
        raise BivrecError(f"{path}: which row is which item? give a text file of one item id per row with --ids")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as fault:
        raise BivrecError(f"{path}: not a readable .npy array of numbers ({fault})") from None
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise BivrecError(f"{path}: {values.dtype} {list(values.shape)}; expected numbers [items, dimension]")
    try:
        names = ids.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise BivrecError(f"{ids}: not a readable UTF-8 text file ({fault})") from None
    if len(names) != len(values):
        raise BivrecError(f"{path}: {len(values)} rows, but {ids} has {len(names)} ids; expected one id per row")
    return values, names


def _read_amazon(path: Path) -> tuple[np.ndarray, list[str]]:
    if (size := path.stat().st_size) % AMAZON_ROW.itemsize or not size:
        raise BivrecError(
            f"{path}: {size} bytes are no whole number of rows of {AMAZON_ROW.itemsize} bytes "
            "(10-byte id, 4096 float32); the file is truncated, download it again"
        )
    rows = np.memmap(path, AMAZON_ROW, mode="r")
    return rows["values"], [name.decode("ascii", "replace") for name in rows["id"].tolist()]


def _select(
    path: Path, values: np.ndarray, names: list[str], wanted: Sequence[str]
) -> tuple[Tensor, Tensor, list[str]]:
    rows = dict(zip(names, range(len(names)), strict=True))
    if len(rows) < len(names):
        row = next(row for row, name in enumerate(names) if rows[name] != row)
        raise BivrecError(f"{path}: rows {row} and {rows[names[row]]} are both item '{names[row]}'; expected one each")
    if not values.shape[1]:
        raise BivrecError(f"{path}: the features of an item are 0 numbers; expected one or more")
    found = np.array([rows.get(name, -1) for name in wanted], dtype=np.int64)
    present = found >= 0
    selected = np.zeros((len(wanted), values.shape[1]), dtype=np.float32)
    # What is too large for float32 becomes infinite, which is told below.
    with np.errstate(over="ignore"):
        selected[present] = values[found[present]]
    faulty = np.flatnonzero(~np.isfinite(selected).all(axis=1))
    if len(faulty):
        raise BivrecError(
            f"{path}: row {found[faulty[0]]} (item '{wanted[faulty[0]]}') holds NaN or infinity; "
            f"{len(faulty)} rows do; expected finite float32 numbers"
        )
    if present.any() and not selected.any():
        raise BivrecError(f"{path}: every number of the {present.sum()} items is 0; make the features again")
    return torch.from_numpy(selected), torch.from_numpy(present), _others(names, wanted)


def _read_safetensors(path: Path, wanted: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            there = set(names)
            found = [name for name in wanted if name in there]
            vectors = [stored.get_tensor(name).float() for name in found]
    except SafetensorError as fault:
        raise BivrecError(f"{path}: not a readable safetensors file ({fault})") from None
    for name, vector in zip(found, vectors, strict=True):
        if vector.shape != vectors[0].shape or vector.ndim != 1:
            raise BivrecError(
                f"{path}: item '{name}' has shape {list(vector.shape)}, the first {list(vectors[0].shape)}; "
                "expected one vector of the same dimension per item id"
            )
    if not vectors:
        return torch.zeros(len(wanted), 0), torch.zeros(len(wanted), dtype=torch.bool), names
    features, present, _ = _select(path, torch.stack(vectors).numpy(), found, wanted)
    return features, present, _others(names, wanted)


def _others(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    known = set(wanted)
    return [name for name in names if name not in known]
