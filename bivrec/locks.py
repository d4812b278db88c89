"""One process at a time works in a folder; a killed one leaves no lock behind."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bivrec.errors import BivrecError

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems answer that have no locks."""


@contextmanager
def locked(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of an existing folder, which nobody else can hold meanwhile, in this process or another.

    wait: seconds in which another's work may end. Where the file system has no locks, the block runs without one.
    Raises BivrecError if there is no such folder, or, naming the other process, if that is still at work then.
    """
    if not folder.is_dir():
        raise BivrecError(f"{folder}: no such folder")
    file = folder / LOCK_FILE
    # A soft lock would outlive a killed process.
    lock = FileLock(file, timeout=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BivrecError(f"{folder}: {_holder(file)} is at work in this folder; wait until it has ended") from None
    except OSError as fault:
        if fault.errno not in NO_LOCKS:
            raise
    made = _inode(file)
    try:
        with suppress(OSError):
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        # While it is held, or it might be another's; so it might if the folder was replaced.
        if _inode(file) == made:
            with suppress(OSError):
                file.unlink()
        lock.release()


def _holder(file: Path) -> str:
    """Who holds the lock, in its own words."""
    try:
        return file.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None
