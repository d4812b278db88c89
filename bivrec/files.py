"""Writing files and folders so that a killed process leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bivrec.errors import BivrecError


@contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block ends without error.

    Raises BivrecError if `path` exists, unless `overwrite`; then the old folder is replaced at the end.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise BivrecError(f"{path}: exists already; choose another folder or pass --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        # mkdtemp makes a private folder; the finished one has the permissions of any other new folder.
        staging.chmod(0o777 & ~_umask())
        yield staging
        if path.exists():
            retired = staging.with_name(staging.name + ".old")
            path.rename(retired)
            staging.rename(path)
            _remove(retired)
        else:
            staging.rename(path)
    finally:
        if staging.exists():
            _remove(staging)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with new_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; BivrecError names the file if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
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
    shutil.rmtree(path, ignore_errors=True)
