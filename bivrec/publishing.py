"""Publishing to a folder, or to a repository on the Hugging Face Hub: both are filled alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from bivrec.files import FolderKind, new_folder
from bivrec.repository import CARD_FILE, Pushed, is_repository

Fill = Callable[[Path, str], None]
"""Writes everything into an empty folder, with a card under a name."""


def publish(
    fill: Fill,
    destination: str,
    push: Callable[[Path, str], Pushed],
    *,
    kind: FolderKind,
    overwrite: bool = False,
) -> str:
    """Publish what `fill` writes; returns the folder, or the address of the commit or pull request.

    `destination` is a folder, which `overwrite` replaces if it is of the `kind`, or `ORG/NAME` on the Hub (see
    `is_repository`), to which `push` pushes a folder. Raises BivrecError like `new_folder` and `repository.push`.
    """
    if not is_repository(destination):
        with new_folder(Path(destination), overwrite, kind=kind) as staging:
            fill(staging, _name(destination))
        return destination
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), _name(destination))
        return push(Path(folder), destination).address


def preview(fill: Fill, destination: str) -> tuple[dict[str, int], str]:
    """What `publish` would write there: file -> bytes, and the card."""
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), _name(destination))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        return sizes, (Path(folder) / CARD_FILE).read_text(encoding="utf-8")


def _name(destination: str) -> str:
    """`ORG/NAME` on the Hub, or the last part of a folder."""
    return destination if is_repository(destination) else Path(destination).name
