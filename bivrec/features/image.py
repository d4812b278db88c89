"""Frozen image encoders, and reading images from a folder or a tar."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bivrec.data.images import open_tar
from bivrec.errors import BivrecError, not_installed
from bivrec.features.pretrained import default_device, is_dual, load_pretrained, projected, trial

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageFiles:
    """Images by file name, in a folder or an uncompressed tar."""

    def __init__(self, source: Path) -> None:
        """Raises BivrecError if `source` is neither, or if Pillow is not installed."""
        self._pil = _pillow()
        self._folder = source if source.is_dir() else None
        if self._folder is None:
            self._tar, self._members = open_tar(source)

        # Pillow reports damaged files by several exceptions, SyntaxError for PNG among them.
        self._faults = (OSError, KeyError, ValueError, SyntaxError, self._pil.DecompressionBombError)

    def read(self, name: str) -> Image | None:
        """The RGB image, or None if there is no such file or it cannot be decoded."""
        try:
            return self._decoded(name)
        except self._faults:
            return None

    def fault(self, name: str) -> str:
        """Why an image cannot be read, in a line."""
        try:
            self._decoded(name)
        except KeyError:
            return "it is not in the tar"
        except self._faults as fault:
            return " ".join((getattr(fault, "strerror", None) or str(fault)).split())
        return "it can be read now"

    def _decoded(self, name: str) -> Image:
        content = (self._folder / name).read_bytes() if self._folder else self._read_member(name)
        image: Image = self._pil.open(io.BytesIO(content)).convert("RGB")
        return image

    def _read_member(self, name: str) -> bytes:
        stream = self._tar.extractfile(self._members[name])
        return b"" if stream is None else stream.read()


class TransformersImageEncoder:
    """A network of the Hub or a local folder.

    Of a network of vision (ResNet, ConvNeXt, DINOv2, ...) the pooled output, or the first token where the checkpoint
    has no pooling head, as that of a ViT that classifies; of CLIP, SigLIP and their like the vectors of images in the
    space that they share with texts.
    """

    def __init__(self, source: str, *, name: str | None = None, device: str | None = None) -> None:
        """name: of a local folder, for people; its own if None."""
        pillow = _pillow()
        self.device = device or default_device()
        pretrained = load_pretrained(source, "AutoImageProcessor", self.device, name)
        self.name, self.revision, self.weights = pretrained.name, pretrained.revision, pretrained.weights
        self._model, self._processor = pretrained.model, pretrained.preprocessor
        self.pooling = "projection" if is_dual(self._model) else "pooler" if pretrained.has_pooler else "cls"
        self.dimension = trial(source, self, pillow.new("RGB", (64, 64)))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Float32 [len(images), dimension] on the CPU."""
        pixels = self._processor(images=list(images), return_tensors="pt").to(self.device)
        if self.pooling == "projection":
            return projected(self._model.get_image_features(**pixels)).float().cpu()
        output = self._model(**pixels)
        pooled = output.last_hidden_state[:, 0] if self.pooling == "cls" else getattr(output, "pooler_output", None)
        if pooled is None:
            raise BivrecError(f"{self.name}: the network has no pooled output; choose an image classifier's network")
        result: Tensor = pooled.flatten(1).float().cpu()
        return result


class DescriptorImageEncoder:
    """Colour histogram, grid of mean colours, grid of gradient orientations; needs no download.

    Each of the three parts has unit length: 64 + 48 + 128 dimensions. After Swain & Ballard (1991) and
    Dalal & Triggs (2005).
    """

    name = "descriptor"
    revision = "1"
    pooling = "histogram"
    dimension = 240

    SIDE, GRID, BINS = 64, 4, 8

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Float32 [len(images), 240]."""
        return torch.stack([torch.from_numpy(self._encode(image)) for image in images])

    def _encode(self, image: Image) -> np.ndarray:
        pixels = np.asarray(image.resize((self.SIDE, self.SIDE)), dtype=np.float32) / 255
        levels = np.minimum((pixels * 4).astype(np.int64), 3)
        colours = np.bincount((levels @ np.array([16, 4, 1])).ravel(), minlength=64)
        means = self._cells(pixels).mean(axis=(1, 3))
        down, right = np.gradient(pixels.mean(axis=2))
        orientation = np.arctan2(down, right) % np.pi / np.pi * self.BINS
        one_hot = np.eye(self.BINS)[np.minimum(orientation.astype(np.int64), self.BINS - 1)]
        gradients = self._cells(one_hot * np.hypot(down, right)[:, :, None]).sum(axis=(1, 3))
        parts = [part.ravel() / max(float(np.linalg.norm(part)), 1e-12) for part in (colours, means, gradients)]
        return np.concatenate(parts).astype(np.float32)

    def _cells(self, grid: np.ndarray) -> np.ndarray:
        cell = self.SIDE // self.GRID
        return grid.reshape(self.GRID, cell, self.GRID, cell, -1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise not_installed("pillow", "images") from None
    return Image
