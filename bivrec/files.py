"""Writing files and folders so that a killed process leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bivrec.errors import FULL_DISK, BivrecError
from bivrec.locks import LOCK_FILE, locked

UNFINISHED = ".*.tmp"
"""Pattern of the names of files that `new_file` is making."""
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*")
"""What desktops and network file systems leave in folders."""
REPLACING_SECONDS = 600.0
"""How long others may be at work in a folder, before one gives up replacing it."""


@dataclass(frozen=True)
class FolderKind:
    """What folders of one kind hold, as bivrec makes them: whatever else lies in one is the user's."""

    marks: tuple[str, ...]
    """Files that every folder of the kind holds."""
    entries: tuple[str, ...]
    """Patterns of the names of all that bivrec puts into one."""

    def is_at(self, folder: Path) -> bool:
        """Whether a folder holds all marks."""
        return all((folder / mark).is_file() for mark in self.marks)

    def foreign_entries(self, folder: Path) -> list[str]:
        """Names of what is not of the kind."""
        ours = (*self.entries, LOCK_FILE, UNFINISHED, *LITTER)
        names = sorted(entry.name for entry in folder.iterdir())
        return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in ours)]


@contextmanager
def new_folder(path: Path, overwrite: bool = False, *, kind: FolderKind | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block ends without error.

    `overwrite` replaces the old folder at the end. Raises BivrecError like `check_new_folder`; at the end as well, if
    another process has made `path` meanwhile, whose work is left alone, or holds the lock of the old folder.
    """
    path = Path(path)
    check_new_folder(path, overwrite, kind=kind)
    with _full_disk_told(path), _new_folder(path, overwrite, kind) as staging:
        yield staging


@contextmanager
def _new_folder(path: Path, overwrite: bool, kind: FolderKind | None) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as fault:
        # Of the folder that the user named, not of the hidden one.
        raise BivrecError(f"{path}: cannot be made ({fault.strerror}); choose another place") from None
    try:
        # mkdtemp makes a private folder; the finished one has the permissions of any other new folder.
        staging.chmod(0o777 & ~_umask())
        yield staging
        check_new_folder(path, overwrite, kind=kind)
        if overwrite and path.exists():
            retired = staging.with_name(staging.name + ".old")
            # Whoever is at work in the old folder would go on in the new one. Of a link, that is where it leads.
            with locked(path.resolve(), wait=REPLACING_SECONDS):
                path.rename(retired)
                try:
                    staging.rename(path)
                except BaseException:
                    # Whatever interrupts it, one of both folders is there.
                    if not path.exists():
                        retired.rename(path)
                    raise
            _remove(retired)
        else:
            _rename(staging, path, kind)
    finally:
        if staging.exists():
            _remove(staging)


def check_new_folder(path: Path, overwrite: bool = False, *, kind: FolderKind | None = None) -> None:
    """Raise BivrecError if `new_folder` may not make `path`.

    `overwrite` replaces a folder of the same kind with nothing else in it, or an empty one: whatever bivrec did not
    make is the user's. Without a kind nothing is replaced.
    """
    check_parent(path)
    if not (path.exists() or path.is_symlink()):
        return
    if not path.is_dir():
        raise BivrecError(f"{path}: is a file; choose another folder, or remove it by hand")
    if not (overwrite and kind):
        advice = " or pass --overwrite" if kind else ""
        raise BivrecError(f"{path}: exists already; choose another folder{advice}")
    absent = [mark for mark in kind.marks if not (path / mark).is_file()]
    if absent and (held := sorted(entry.name for entry in path.iterdir() if entry.name != LOCK_FILE)):
        raise BivrecError(
            f"{path}: holds {shortened(held)}, but no {absent[0]}, so that --overwrite does not replace it; "
            "choose another folder, or remove it by hand"
        )
    if foreign := kind.foreign_entries(path):
        raise BivrecError(
            f"{path}: holds {shortened(foreign)}, which bivrec did not make there and --overwrite would delete; "
            "move it elsewhere, or choose another folder"
        )
    if Path.cwd().is_relative_to(path.resolve()):
        raise BivrecError(f"{path}: is where you are, or above it, and is not replaced; start from elsewhere")


def _rename(staging: Path, path: Path, kind: FolderKind | None) -> None:
    try:
        staging.rename(path)
    except OSError:
        # It has been made since it was checked: a rename replaces empty folders alone.
        check_new_folder(path, kind=kind)
        raise


def check_new_file(path: Path) -> None:
    """Raise BivrecError if `new_file` cannot make `path`; a file that is there may be replaced."""
    check_parent(path)
    if path.is_dir():
        raise BivrecError(f"{path}: is a folder; choose another file")


def check_parent(path: Path) -> None:
    """Raise BivrecError if nothing can be made at `path`, since what is above it is a file or must not be changed."""
    # The root has no parents.
    parent = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not parent.is_dir():
        raise BivrecError(f"{path}: {parent} is a file, not a folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BivrecError(f"{path}: no right to write in {parent}; choose another place")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block ends without error.

    The file has the permissions of any other new one, even if what writes it puts a private file in its place, as
    safetensors does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _full_disk_told(path):
        try:
            staging.touch()
            mode = staging.stat().st_mode
            yield staging
            staging.chmod(mode)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)


class _NoRoomError(BivrecError):
    """A full disk."""


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    """Names the path in the fault of a full disk, which else names no file, or a hidden one."""
    try:
        yield
    except Exception as fault:
        # Libraries that write by themselves, such as safetensors, tell the code in their message alone.
        in_words = any(f"(os error {code})" in str(fault) for code in FULL_DISK)
        if in_words or isinstance(fault, _NoRoomError) or getattr(fault, "errno", None) in FULL_DISK:
            raise _NoRoomError(f"{path}: no room for it; make room on its disk, or choose another place") from fault
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files that `new_file` was making; for who holds the lock of the folder."""
    for leftover in folder.glob(UNFINISHED):
        leftover.unlink(missing_ok=True)


def name_of(path: Path) -> str:
    """The name of a file or folder, of `.` and `..` too; that of a link is its own."""
    return os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def distinct_names(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """The names of files or folders, but the whole path of those whose name another has too."""
    return [name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)]


def check_format(values: object, version: int, source: str, remedy: str) -> None:
    """Raise BivrecError unless the content of a JSON file, `source`, is an object of this format version."""
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != version:
        advice = "upgrade bivrec" if isinstance(found, int) and found > version else remedy
        raise BivrecError(f"{source}: format version {found}, this bivrec reads {version}; {advice}")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with new_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; BivrecError names the file if it is missing or broken."""
    try:
        # -sig: without the mark that programs of Windows put first.
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BivrecError(f"{path}: no such file") from None
    # Nesting too deep, and integers too long, are faults of the file as well.
    except (ValueError, RecursionError) as fault:
        raise BivrecError(f"{path}: not valid JSON ({fault}); the file is damaged, make it again") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
