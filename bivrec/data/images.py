"""Which images there are, and which item each belongs to."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from bivrec.errors import BivrecError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def find_images(source: Path, item_ids: Sequence[str], names: Sequence[str | None]) -> tuple[list[str | None], int]:
    """For every item the path of its image in a folder or tar, None if it has none; and how many names are not there.

    An item's image is the file that `names` names (with or without its folder), or else the file named after its id.
    Raises BivrecError if there is no image, or none of an item.
    """
    files = _image_files(source)
    if not files:
        raise BivrecError(f"{source}: no images ({', '.join(SUFFIXES)}) in it; check --images")
    by_name = {PurePosixPath(file).name: file for file in reversed(files)} | {file: file for file in files}
    by_stem = {PurePosixPath(file).stem: file for file in reversed(files)}
    found = [
        (name is not None and _named(by_name, name)) or by_stem.get(item)
        for item, name in zip(item_ids, names, strict=True)
    ]
    if item_ids and not any(found):
        named = next((f"'{name}', as an item names it, or " for name in names if name is not None), "")
        raise BivrecError(
            f"{source}: none of its {len(files)} images, such as '{files[0]}', is of an item; expected names such as "
            f"{named}'{item_ids[0]}{PurePosixPath(files[0]).suffix}', by an item's id"
        )
    unfound = sum(name is not None and file is None for name, file in zip(names, found, strict=True))
    return found, unfound


def _named(files: Mapping[str, str], name: str) -> str | None:
    return files.get(name.removeprefix("./")) or files.get(PurePosixPath(name).name)


def _image_files(source: Path) -> list[str]:
    """Sorted paths, relative to the folder or as in the tar (without a leading ./)."""
    if source.is_dir():
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    else:
        archive, members = open_tar(source)
        archive.close()
        files = list(members)
    return sorted(file for file in files if PurePosixPath(file).suffix.lower() in SUFFIXES)


def open_tar(source: Path) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
    """An uncompressed tar and its files by their names. Raises BivrecError if it is none."""
    try:
        archive = tarfile.open(source, "r:")  # noqa: SIM115 - for the caller to close
        return archive, {member.name.removeprefix("./"): member for member in archive if member.isfile()}
    except FileNotFoundError:
        raise BivrecError(f"{source}: no such folder or tar of images; give the right one with --images") from None
    except (tarfile.TarError, OSError) as fault:
        raise BivrecError(f"{source}: not an uncompressed tar ({fault}); give a folder or a .tar of images") from None
