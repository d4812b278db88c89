"""Trainings in processes of their own: several at once, resumed where they stopped, and none stops the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from bivrec.config import Config
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.memory import keep_freed_memory
from bivrec.pretrain import pretrain, resume
from bivrec.refit import refit
from bivrec.training.run import RESULTS_FILE, Run

_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Job:
    """A training that has not ended."""

    domain: Path
    path: Path
    """Folder of its Run."""
    config: Config
    refit_of: Path | None = None
    """The Run that it is to refit, which tells the settings; None: it is none."""


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    log: Path
    slot: int
    started: float


def is_finished(path: Path) -> bool:
    """Whether the Run at `path` was trained to its end."""
    return (path / RESULTS_FILE).exists()


def check_kept(path: Path, domain: Domain, config: Config) -> None:
    """Raise BivrecError if `path` holds a Run that was trained otherwise than now asked."""
    if not path.exists():
        return
    run = Run.open(path)
    run.check_domain(domain)
    before, now = run.config.settings(), config.settings()
    faults = [f"{key} is {before[key]!r} there, now {now[key]!r}" for key in now if before[key] != now[key]]
    if faults:
        raise BivrecError(f"{path}: trained with other settings ({'; '.join(faults[:3])}); choose another --to")


def run_jobs(jobs: Sequence[Job], folder: Path, parallel: int, report: Callable[[str], None]) -> dict[str, str]:
    """Train all, `parallel` at a time; returns the Runs that failed, with their complaints.

    A job that has begun before goes on from its last checkpoint. Each takes one of the GPUs in turn; without GPUs the
    jobs share torch's threads. What a job prints goes to logs/ in `folder`; `report` gets a line for each that ends.
    Raises BivrecError on Ctrl-C or SIGTERM, when the trainings have saved their state.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BivrecError("this command starts its own processes; run it without `accelerate launch`, with --jobs")
    context = _context()
    threads = max(1, torch.get_num_threads() // parallel)
    waiting, running, failed = list(jobs), list[_Running](), dict[str, str]()
    # Only the main thread may set handlers; elsewhere, as in a notebook's worker, SIGTERM stays as it is.
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                slot = min(set(range(parallel)) - {busy.slot for busy in running})
                running.append(_start(context, waiting.pop(0), folder, slot, threads))
            ended = connection.wait([busy.process.sentinel for busy in running])
            for done in [busy for busy in running if busy.process.sentinel in ended]:
                running.remove(done)
                complaint = _complaint(done)
                if complaint:
                    failed[str(done.job.path)] = complaint
                left = f"{len(waiting) + len(running)} to go"
                report(f"{done.job.path}: {complaint or f'{time.monotonic() - done.started:.0f} s'}; {left}")
    except KeyboardInterrupt:
        for busy in running:
            busy.process.terminate()
        for busy in running:
            busy.process.join()
        raise BivrecError("interrupted; the same command goes on where it stopped") from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)
    return failed


def _context() -> Any:
    """New processes are forks of one that has imported everything, and has not touched a device."""
    context = multiprocessing.get_context("forkserver")
    # The first optimiser of a process imports the second, which takes longer than a small training.
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    return context


def _start(context: Any, job: Job, folder: Path, slot: int, threads: int) -> _Running:
    log = (folder / "logs" / job.path.relative_to(folder / "runs")).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    visible = [device for device in os.environ.get(_DEVICES, "").split(",") if device]
    devices = visible or [str(device) for device in range(torch.cuda.device_count())]
    device = devices[slot % len(devices)] if devices else None
    process = context.Process(target=_work, args=(job, log, device, threads))
    process.start()
    return _Running(job, process, log, slot, time.monotonic())


def _work(job: Job, log: Path, device: str | None, threads: int) -> None:
    """The life of a process: one training."""
    # In a session of its own, it hears of Ctrl-C from the parent alone: a second signal would kill it unsaved.
    os.setsid()
    # Line by line, so that the log of a killed process is whole; and what libraries print goes there too.
    stream = log.open("a", buffering=1, encoding="utf-8")
    sys.stdout = sys.stderr = stream
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    _die_with_parent()
    keep_freed_memory()
    if device is not None:
        os.environ[_DEVICES] = device
    torch.set_num_threads(threads)
    try:
        if job.path.exists() and Run.open(job.path).checkpoint("last").exists():
            resume(job.path)
            return
        # A Run without a checkpoint was killed before it began.
        overwrite = job.path.exists()
        if job.refit_of is None:
            pretrain(Domain.open(job.domain), job.path, job.config, overwrite=overwrite)
        else:
            refit(Run.open(job.refit_of), job.path, overwrite=overwrite)
    except BivrecError as fault:
        print(fault, flush=True)
        sys.exit(1)


def _die_with_parent() -> None:
    """Stop as on Ctrl-C, state saved, when the process that started this one is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _complaint(done: _Running) -> str | None:
    """Why a process ended badly, in one line; None if it did not."""
    done.process.join()
    code = done.process.exitcode
    if code == 0:
        return None
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name} (out of memory?); see {done.log}"
    lines = done.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it failed'} (see {done.log})"
