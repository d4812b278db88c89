"""Data parallelism: two processes on one CPU must do what one does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from stages import (
    NOISELESS,
    bivrec,
    config,
    in_subprocess,
    interrupt_at,
    new_run,
    same,
    settings,
    train_losses,
    untrained,
    weights,
)

from bivrec.config import Config
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.locks import locked
from bivrec.pretrain import pretrain, resume
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

STEPS = {"steps": 20, "evaluate_every": 5}
CONFIGS: dict[str, Config] = {
    "paper": config(model=NOISELESS, training=STEPS),
    "prefix": config(
        model={**NOISELESS, "readout": "prefix", "score": "cosine", "repeat_bias": True, "id_items": "ids+features"},
        objective={"candidates": "popularity", "num_negatives": 30},
        training={**STEPS, "targets_per_sequence": 3},
    ),
    "accumulated": config(model=NOISELESS, training={**STEPS, "views": ["id"], "accumulate": 2}),
    "baseline": config(model={**NOISELESS, "system": "dif-sr", "readout": "prefix"}, training=STEPS),
    "in-batch": config(model=NOISELESS, objective={"candidates": "in-batch"}, training=STEPS),
}


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    return in_subprocess(*LAUNCHER, *arguments, env=environment())


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same configuration: `whole` and `broken` of two processes, `alone` of one, `continued` of both.

    `broken` is interrupted at step 2, and so was `continued` before two processes took it over.
    """
    wanted = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("whole", "broken"):
        new_run(folder / name, source, wanted)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step=1)
        with pytest.raises(BivrecError, match="interrupted at step 2"):
            pretrain(source, folder / "continued", wanted)
    result = torchrun(Path(__file__).with_name("two_processes.py"), source.path, folder)
    assert result.returncode == 0, result.stderr
    pretrain(source, folder / "alone", wanted)
    return folder


@pytest.fixture
def facts(folder: Path) -> list[dict[str, Any]]:
    """What each process found at the end of `whole`."""
    return [json.loads((folder / "whole" / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_there_are_two_processes(facts: list[dict[str, Any]]) -> None:
    assert [(fact["processes"], fact["world_size"]) for fact in facts] == [(2, 2), (2, 2)]


def test_both_hold_the_same_weights(folder: Path) -> None:
    first, second = (load_file(folder / "whole" / f"rank-{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    assert same(first, weights(Run.open(folder / "whole")))


def test_the_losses_are_those_of_one_process(folder: Path) -> None:
    together, alone = (train_losses(Run.open(folder / name)) for name in ("whole", "alone"))
    assert len(together) == STEPS["steps"] / STEPS["evaluate_every"]
    assert together == pytest.approx(alone, rel=1e-3)


def test_every_line_is_written_once(folder: Path) -> None:
    together, alone = (Run.open(folder / name).metrics() for name in ("whole", "alone"))
    where = [(line["split"], line["step"], line.get("view")) for line in alone]
    assert [(line["split"], line["step"], line.get("view")) for line in together] == where


def test_metrics_are_those_of_one_process(folder: Path, source: Domain, facts: list[dict[str, Any]]) -> None:
    run = Run.open(folder / "whole")
    users = EvaluationUsers.from_sequences(source.sequences("test"))
    model = untrained(source, run.config)
    model.load_state_dict(weights(run))
    alone = evaluate(ModelScorer(model, "both"), users, user_chunk=4).metrics
    assert facts[0]["metrics"] == facts[1]["metrics"] == alone


def test_a_program_may_train_more_than_once(folder: Path) -> None:
    runs = [Run.open(folder / name) for name in ("first", "second")]
    assert [run.info.hardware["processes"] for run in runs] == [2, 2]
    assert same(*(weights(run, "best") for run in runs))
    assert runs[0].results() == runs[1].results() != {}


def test_both_stop_when_one_is_interrupted(folder: Path) -> None:
    faults = {(folder / f"fault-{rank}").read_text() for rank in range(2)}
    assert len(faults) == 1
    # Processes ask one another only now and then, and at evaluations.
    step = Run.open(folder / "broken").progress("last").step
    assert f"interrupted at step {step} and saved" in faults.pop()
    assert 2 <= step <= STEPS["steps"]


def test_one_process_goes_on_where_two_stopped(folder: Path) -> None:
    run = Run.open(folder / "broken")
    if run.progress("last").step < STEPS["steps"]:
        resume(run.path)
    whole = Run.open(folder / "whole")
    # The first line is the mean of the steps since the interrupt.
    assert train_losses(run)[1:] == pytest.approx(train_losses(whole)[1:], rel=1e-3)
    assert torch.isfinite(torch.tensor(train_losses(run))).all()


def test_two_processes_go_on_where_one_stopped(folder: Path) -> None:
    run = Run.open(folder / "continued")
    assert run.progress("last").step == STEPS["steps"]
    assert train_losses(run)[1:] == pytest.approx(train_losses(Run.open(folder / "whole"))[1:], rel=1e-3)
    first, second = (load_file(run.path / f"rank-{rank}.safetensors") for rank in range(2))
    assert same(first, second)


def test_a_process_that_fails_ends_all_with_its_message(source: Domain, tmp_path: Path) -> None:
    options = settings(training={"steps": 100_000})
    failing = Path(__file__).with_name("failing_rank.py")
    # The other process waits for the failed one's gradients; the time limit of `torchrun` tells whether for ever.
    result = torchrun(failing, "pretrain", source.path, "--to", tmp_path / "run", *options)
    assert result.returncode != 0
    assert "Error: the disk of this process is gone" in result.stderr


def test_a_run_that_another_process_trains_ends_both_with_its_message(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", config(training={"steps": 2}))
    with locked(run.path):
        result = torchrun("-m", "bivrec", "pretrain", "--to", run.path, "--resume")
    assert result.returncode != 0
    errors = {line for line in result.stderr.splitlines() if "Error: " in line}
    assert len([line for line in errors if line.startswith("Error: ")]) == 1
    assert f"{run.path}: process {os.getpid()} on" in result.stderr
    assert "RuntimeError" not in result.stderr
    assert not (run.path / ".lock").exists()


def test_a_command_of_two_processes_prints_once(source: Domain, tmp_path: Path) -> None:
    starts = {"id_init": "spectral", "projection_init": "principal"}
    options = settings(model=NOISELESS, training={**STEPS, "precision": "fp32", **starts})
    result = torchrun("-m", "bivrec", "pretrain", source.path, "--to", tmp_path / "run", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best weights, of step") == 1
    alone = bivrec("pretrain", source.path, "--to", tmp_path / "alone", *options)
    assert alone.exit_code == 0, alone.output
    run, other = (Run.open(tmp_path / name) for name in ("run", "alone"))
    assert run.results().keys() == other.results().keys()
    assert train_losses(run) == pytest.approx(train_losses(other), rel=1e-3)
    published = bivrec("publish", run.path, "--to", tmp_path / "tower")
    assert published.exit_code == 0, published.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launcher_saves(source: Domain, tmp_path: Path, number: signal.Signals) -> None:
    """A scheduler's SIGTERM reaches every process, and once more by way of the launcher."""
    options = settings(model=NOISELESS, training={"steps": 3000, "evaluate_every": 20})
    command = ["-m", "bivrec", "pretrain", str(source.path), "--to", str(tmp_path / "run"), *options]
    process = subprocess.Popen(
        [sys.executable, *LAUNCHER, *command], env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "best.safetensors").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        if number == signal.SIGTERM:
            for worker in psutil.Process(process.pid).children():
                worker.send_signal(number)
        process.send_signal(number)
        complaint = process.communicate(timeout=60)[1]
    finally:
        # Gently: only a launcher that is alive ends its processes.
        process.terminate()
        process.wait(60)
    assert process.returncode != 0
    saved = re.search(r"Error: interrupted at step (\d+) and saved", complaint)
    assert saved, complaint
    assert Run.open(tmp_path / "run").progress("last").step == int(saved[1]) > 20


def test_a_batch_that_cannot_be_shared_is_one_line_per_process(source: Domain, tmp_path: Path) -> None:
    options = settings(training={"batch_size": 15})
    result = torchrun("-m", "bivrec", "pretrain", source.path, "--to", tmp_path / "run", *options)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert errors
    assert all("15 sequences do not divide into 2 processes" in line for line in errors)
    assert not (tmp_path / "run").exists()
