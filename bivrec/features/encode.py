"""Adding frozen features to a Domain; an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from bivrec.data.domain import PARTS_PREFIX, Domain
from bivrec.data.info import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.features import precomputed
from bivrec.features.contract import describe
from bivrec.features.image import ImageFiles
from bivrec.features.whitening import whiten
from bivrec.files import new_file, read_json, write_json
from bivrec.locks import LOCK_FILE, locked

BATCHES_PER_PART = 16
WORK_FILE = "work.json"


class Encoder(Protocol):
    """A frozen encoder of texts (str) or RGB images (PIL.Image.Image)."""

    name: str
    revision: str
    dimension: int
    pooling: str

    def __call__(self, inputs: Sequence[Any], /) -> Tensor:
        """Float32 [len(inputs), dimension] on the CPU."""


@dataclass(frozen=True)
class Encoded:
    """The features of one modality, to be stored with `store`."""

    modality: str
    spec: FeatureSpec
    features: Tensor
    """[V + 1, d]; row 0 is padding."""
    present: Tensor
    """Bool [V + 1]: which items have the modality."""
    unreadable: tuple[str, ...] = ()
    """Names of the images that are listed but missing or damaged."""
    fault: str | None = None
    """Why the first of them cannot be read."""
    unused: tuple[str, ...] = ()
    """Ids of the items of the feature file that the Domain does not have."""

    @property
    def encoded(self) -> int:
        """Number of items that have the modality."""
        return int(self.present.sum())


def encode_texts(
    domain: Domain, encoder: Encoder, *, whitening: float | None = None, half: bool = False, batch_size: int = 64
) -> Encoded:
    """The text features of every item with a text (or else a title).

    `whitening`: the shrinkage of `whitening.whiten`, fit on the items that have a text; None does not whiten. `half`:
    store float16.
    Raises BivrecError if no item has one, or another process encodes them.
    """
    table = domain.item_table()
    texts = [text if (text or "").strip() else title for text, title in zip(table["text"], table["title"], strict=True)]
    inputs = {row: text for row, text in enumerate(texts) if (text or "").strip()}
    if not inputs:
        raise BivrecError(f"{domain.path}: no item has a text or title; prepare the Domain from items with texts")
    # Batches of like lengths need little padding; the longest first, so that memory runs out at once or never.
    order = sorted(inputs, key=lambda row: (-len(inputs[row]), row))
    rows = [(row, inputs[row]) for row in order]
    spec = _specification(encoder)
    features, present = _encode(domain, "text", encoder, spec, rows, lambda text: text, batch_size)
    return _finish(domain, "text", features, present, spec, whitening, half)


def encode_images(
    domain: Domain,
    encoder: Encoder,
    images: Path | None = None,
    *,
    whitening: float | None = None,
    half: bool = False,
    batch_size: int = 64,
) -> Encoded:
    """The image features of every item whose image can be read from `images` (default: the Domain's own source).

    `images` is a folder or an uncompressed tar. Raises BivrecError if there is none, if no image can be read,
    or another process encodes them.
    """
    rows, source = images_of(domain, images)
    files = ImageFiles(source)
    spec = _specification(encoder)
    features, present = _encode(domain, "image", encoder, spec, rows, files.read, batch_size, source)
    unreadable = tuple(name for row, name in rows if not present[row])
    fault = files.fault(unreadable[0]) if unreadable else None
    if len(unreadable) == len(rows):
        raise BivrecError(
            f"{source}: none of the {len(rows)} images can be read, first {unreadable[0]} ({fault}); check --images"
        )
    encoded = _finish(domain, "image", features, present, spec, whitening, half)
    return replace(encoded, unreadable=unreadable, fault=fault)


def images_of(domain: Domain, images: Path | None = None) -> tuple[list[tuple[int, str]], Path]:
    """Row and image of every item that has one, and the folder or tar of the images. Raises BivrecError if there is
    none."""
    rows = [(row, name) for row, name in enumerate(domain.item_table()["image"]) if name]
    if not rows:
        raise BivrecError(
            f"{domain.path}: no item names an image; prepare the Domain again with `bivrec prepare ... --images FOLDER`"
        )
    source = images or domain.images
    if source is None:
        raise BivrecError(f"{domain.path}: the folder or tar of the images is not recorded; give it with --images")
    return rows, source


def features_of_file(
    domain: Domain,
    modality: str,
    path: Path,
    *,
    ids: Path | None = None,
    encoder: str | None = None,
    whitening: float | None = None,
    half: bool = False,
) -> Encoded:
    """Features computed elsewhere (formats: `precomputed.read_features`); `encoder` names what made them."""
    features, present, unused = precomputed.read_features(path, domain.item_ids(), ids)
    if not present.any():
        raise BivrecError(
            f"{path}: none of its {len(unused)} items is in {domain.path}; expected the Domain's item ids"
        )
    name, revision = precomputed.file_identity(path, encoder)
    spec = FeatureSpec(name, revision, features.shape[1], precomputed.POOLING, whitening=None)
    return replace(_finish(domain, modality, features, present, spec, whitening, half), unused=tuple(unused))


def store(domain: Domain, *encoded: Encoded) -> Domain:
    """Store the features of one or more modalities at once, in place of older ones of these; reopens the Domain.

    What is encoded in one command is stored together, so that an interrupted one leaves its parts and nothing else.
    """
    reopened = domain.with_features(
        {one.modality: one.features for one in encoded},
        {one.modality: one.present for one in encoded},
        {one.modality: one.spec for one in encoded},
    )
    for one in encoded:
        folder = _parts_folder(domain, one.modality)
        # Whoever is at work there needs the parts; of a feature file there are none.
        with suppress(BivrecError), locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return reopened


def check_absent(domain: Domain, modalities: Iterable[str]) -> None:
    """Raise BivrecError if a Domain has features of one of the modalities."""
    there = {name: domain.info.features[name] for name in modalities if name in domain.info.features}
    if there:
        told = ", and ".join(f"{name} features already ({describe(spec)})" for name, spec in there.items())
        raise BivrecError(f"{domain.location} has {told}; pass --overwrite")


def _specification(encoder: Encoder) -> FeatureSpec:
    """Of its features as it gives them."""
    return FeatureSpec(
        encoder=encoder.name,
        revision=encoder.revision,
        dimension=encoder.dimension,
        pooling=encoder.pooling,
        whitening=None,
        # Of pretrained networks alone.
        max_tokens=getattr(encoder, "max_tokens", None),
        weights=getattr(encoder, "weights", None),
    )


def _encode(
    domain: Domain,
    modality: str,
    encoder: Encoder,
    spec: FeatureSpec,
    rows: Sequence[tuple[int, str]],
    read: Callable[[str], Any],
    batch_size: int,
    source: Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Features [V, d] and presence [V] of the rows (position in the item table, input); `read` may return None.

    Finished parts lie in a hidden folder of the Domain until the features are stored; they count only for a run with
    the same specification, inputs and `source` of the images.
    """
    work = {
        "features": asdict(spec),
        "batch_size": batch_size,
        "inputs": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "source": None if source is None else _identity(source, [name for _, name in rows]),
    }
    features = torch.zeros(domain.num_items, encoder.dimension)
    present = torch.zeros(domain.num_items, dtype=torch.bool)
    size = batch_size * BATCHES_PER_PART
    with (
        _open_parts(domain, modality, work) as folder,
        tqdm(total=len(rows), unit="item", desc=f"{modality} ({encoder.name})", disable=None) as progress,
    ):
        for start in range(0, len(rows), size):
            part = folder / f"{start:09d}.safetensors"
            if not part.exists():
                made = _encode_part(encoder, rows[start : start + size], read, batch_size)
                # A part of these items must not lie among those of the Domain that took the place.
                if not _is_of(folder, work):
                    raise BivrecError(f"{domain.path}: was prepared anew meanwhile; encode it again")
                with new_file(part) as staging:
                    save_file(made, staging)
            stored = load_file(part)
            features[stored["rows"]] = stored["features"]
            present[stored["rows"]] = True
            progress.update(len(rows[start : start + size]))
    return features, present


def _identity(source: Path, names: Sequence[str]) -> str:
    """Checksum of where images lie, and of the sizes and times of their files."""
    files = [source / name for name in names] if source.is_dir() else [source]
    found = [(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files if file.is_file())]
    return hashlib.sha256(json.dumps([str(source.resolve()), found]).encode()).hexdigest()


def _encode_part(
    encoder: Encoder, rows: Sequence[tuple[int, str]], read: Callable[[str], Any], batch_size: int
) -> dict[str, Tensor]:
    done, features = [], [torch.zeros(0, encoder.dimension)]
    for start in range(0, len(rows), batch_size):
        batch = [(row, read(name)) for row, name in rows[start : start + batch_size]]
        batch = [(row, value) for row, value in batch if value is not None]
        if batch:
            features.append(encoder([value for _, value in batch]))
            done += [row for row, _ in batch]
    return {"rows": torch.tensor(done, dtype=torch.int64), "features": torch.cat(features)}


@contextmanager
def _open_parts(domain: Domain, modality: str, work: dict[str, object]) -> Iterator[Path]:
    """Raises BivrecError if another process encodes the same modality."""
    domain.check_writable()
    folder = _parts_folder(domain, modality)
    folder.mkdir(exist_ok=True)
    with locked(folder):
        if not _is_of(folder, work):
            for file in folder.iterdir():
                if file.name != LOCK_FILE:
                    file.unlink()
            write_json(folder / WORK_FILE, work)
        yield folder


def _is_of(folder: Path, work: dict[str, object]) -> bool:
    """Whether the parts in a folder are those of this work."""
    return (folder / WORK_FILE).is_file() and read_json(folder / WORK_FILE) == work


def _parts_folder(domain: Domain, modality: str) -> Path:
    return domain.path / f"{PARTS_PREFIX}{modality}"


def _finish(
    domain: Domain,
    modality: str,
    features: Tensor,
    present: Tensor,
    spec: FeatureSpec,
    whitening: float | None,
    half: bool,
) -> Encoded:
    """Features [V, d], not yet whitened, as they will be stored.

    Raises BivrecError if they are not finite then, or if whitening would leave nothing of them.
    """
    if whitening is not None:
        if _are_alike(features[present]):
            raise BivrecError(
                f"{domain.path}: the {modality} features of all {int(present.sum())} items that have any are alike, so "
                "that whitening leaves nothing of them; leave --whiten out"
            )
        features[present] = whiten(features[present], whitening)
    table = torch.nn.functional.pad(features.half() if half else features, (0, 0, 1, 0))
    if not table.isfinite().all():
        row = int((~table.isfinite().all(dim=1)).nonzero()[0])
        hint = "; leave out --half" if half and features.isfinite().all() else "; the encoder's weights may be damaged"
        raise BivrecError(f"{domain.path}: {modality} features of item index {row} are not finite{hint}")
    spec = replace(spec, whitening=None if whitening is None else float(whitening))
    return Encoded(modality, spec, table, torch.nn.functional.pad(present, (1, 0)))


def _are_alike(features: Tensor) -> bool:
    """Whether vectors [n, d] are one, but for the rounding of encoders, whose batches differ."""
    return bool(((features - features[:1]).abs().amax() <= 1e-5 * features.abs().amax()).item())
