"""One process at a time works in a folder: what the second is told, and what a killed one leaves behind."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bivrec.errors import BivrecError
from bivrec.locks import locked

HOLD = """
import sys, time; from pathlib import Path; from bivrec.locks import locked
with locked(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """That holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(60)


def refusal(folder: Path) -> str:
    with pytest.raises(BivrecError) as fault, locked(folder):
        pytest.fail("the work began")
    return str(fault.value)


def test_the_second_process_is_told_who_is_at_work(tmp_path: Path) -> None:
    with another_process(tmp_path) as first:
        for _ in range(2):
            assert refusal(tmp_path) == (
                f"{tmp_path}: process {first.pid} on {socket.gethostname()} is at work in this folder; "
                "wait until it has ended"
            )


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with another_process(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(60)
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in refusal(tmp_path)


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


def test_the_lock_of_a_folder_that_took_the_place_is_left_alone(tmp_path: Path) -> None:
    """As where a Run is trained anew."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with ExitStack() as first:
        first.enter_context(locked(folder))
        folder.rename(tmp_path / "old")
        folder.mkdir()
        with another_process(folder) as other:
            first.close()
            assert f"process {other.pid} on" in refusal(folder)


def test_who_waits_gets_its_turn(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with locked(tmp_path, wait=60):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 5


def test_waiting_ends(tmp_path: Path) -> None:
    with another_process(tmp_path), pytest.raises(BivrecError, match="is at work"), locked(tmp_path, wait=0.1):
        pytest.fail("the work began")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_of_the_file_system_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        done = True
    assert done
    assert not list(tmp_path.iterdir())


def test_a_lock_that_must_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OSError, match="lock"), locked(tmp_path):
        pytest.fail("the work began")
