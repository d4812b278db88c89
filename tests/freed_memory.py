"""Trains by the library, and then in another way, and looks whether malloc maps large blocks, as it does by default.

The arguments are the way and a Run.
"""

import ctypes
import multiprocessing
import sys
from pathlib import Path

from bivrec.cli import main
from bivrec.config import Config
from bivrec.pretrain import resume
from bivrec.studies.jobs import Job, _work

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def maps_large_blocks() -> bool:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = libc.mallinfo2().hblks
    # Above any threshold that glibc may have set itself meanwhile.
    block = libc.malloc(2**27)
    mapped = libc.mallinfo2().hblks > before
    libc.free(block)
    return bool(mapped)


def train_as_a_job(run: Path) -> None:
    _work(Job(run, run, Config()), run.with_suffix(".log"), None, 1)
    assert not maps_large_blocks()


def train(way: str, run: Path) -> None:
    resume(run)
    assert maps_large_blocks(), "a call of the library changes malloc"
    if way == "job":
        process = multiprocessing.get_context("fork").Process(target=train_as_a_job, args=(run,))
        process.start()
        process.join()
        assert process.exitcode == 0, run.with_suffix(".log").read_text()
        assert maps_large_blocks(), "a job changes malloc of the process that started it"
    else:
        main([way, "--to", str(run), "--resume"], standalone_mode=False)
        assert not maps_large_blocks()


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]))
