"""Every stage on an accelerator, which is the stand-in of stand_in_device.py, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stages import NOISELESS, in_subprocess, settings, succeed, train_losses
from torch.utils import backend_registration

from bivrec.recipes import recipe_names
from bivrec.studies.systems import SYSTEMS
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)
pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends in Python, of which the stand-in is one",
)

SCRIPT = Path(__file__).parent / "stand_in_device.py"
EQUAL = {
    "history": {"model": NOISELESS},
    "prefix": {
        "model": {
            **NOISELESS,
            "readout": "prefix",
            "gaussian": "bias",
            "repeat_bias": True,
            "id_items": "ids+features",
        },
        "objective": {"contrastive_weight": 0.3, "allocation_weight": 0.3},
    },
    "sampled": {
        "model": {**NOISELESS, "score": "cosine", "interest_score": "logsumexp"},
        "objective": {"candidates": "popularity", "num_negatives": 30},
    },
}

QUESTIONS = {"sasrec": 1, "amazon": 2, "default": 3, "ml-25m": 6, "in-batch": 7}
"""How many targets a batch has; the lengths of its histories, for each view of BiVRec; the different items that a step
with sampled candidates reads, and two of torch's own where gradients are sparse; the different targets."""


def short(overrides: dict[str, Any]) -> list[str]:
    training = {**overrides.get("training", {}), "steps": 2, "precision": "bf16"}
    return settings(**{**overrides, "training": training})


def single(name: str) -> list[str]:
    return settings(**EQUAL[name], training={"precision": "fp32"})


def commands(world: Path, tower: Path, folder: Path) -> dict[str, list[str]]:
    def train(name: str, *arguments: str) -> list[str]:
        return ["pretrain", str(world / "source"), "--to", str(folder / name), *arguments]

    def tune(*arguments: str) -> list[str]:
        return [*arguments, "--to", str(folder / "finetuned")]

    target, run = str(world / "target"), str(folder / "finetuned")
    small = ["model.hidden_size=24", "training.batch_size=16", "training.steps=2", "training.evaluate_every=2"]
    recipes = [name.removeprefix("pretrain/") for name in recipe_names() if name.startswith("pretrain/")]
    # The last of each kind is the one that reads IDs and features.
    baselines = {
        name: system.overrides for system in SYSTEMS.values() if (name := system.overrides["model"].get("system"))
    }
    return {
        **{f"equal-{name}": train(f"equal-{name}", *single(name)) for name in EQUAL},
        **{name: train(name, "--recipe", name, *(f"--set={setting}" for setting in small)) for name in recipes},
        **{name: train(name, *short(overrides)) for name, overrides in baselines.items()},
        "in-batch": train("in-batch", *short({"objective": {"candidates": "in-batch"}})),
        "zero-shot": ["evaluate", target, "--from-hub", str(tower), "--floor", "item-knn", "--remove-seen"],
        "finetune": tune("finetune", target, "--from-hub", str(tower), "--set=training.steps=2"),
        "resume": tune("finetune", "--resume"),
        "evaluate": ["evaluate", target, "--run", run],
        "recommend": ["recommend", target, "--run", run, "--to", str(folder / "lists.parquet"), "--because"],
    }


NAMES = list(commands(Path(), Path(), Path()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accelerator")


@pytest.fixture(scope="module")
def outcomes(world: Path, tower: Path, folder: Path) -> dict[str, dict[str, Any]]:
    given = json.dumps(commands(world, tower, folder))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "0"}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        input=given,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_on_the_processor(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    assert outcomes[name]["exit_code"] == 0, outcomes[name]["output"]
    assert outcomes[name]["kernels"] > 100


@pytest.mark.parametrize("name", EQUAL)
def test_training_learns_what_it_learns_on_a_processor(
    outcomes: dict[str, dict[str, Any]],
    folder: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    there = Run.open(folder / f"equal-{name}")
    assert there.info.hardware["device"].startswith("gpu")
    monkeypatch.setattr("bivrec.training.objective.SPARSE_ROWS", 0)
    succeed("pretrain", world / "source", "--to", tmp_path / "run", *single(name))
    here = Run.open(tmp_path / "run")
    assert train_losses(there) == pytest.approx(train_losses(here), rel=1e-5)
    assert there.metrics()[-1]["recall@20"] == pytest.approx(here.metrics()[-1]["recall@20"], abs=1e-6)


@pytest.mark.parametrize(("name", "most"), QUESTIONS.items())
def test_a_training_step_asks_the_device_little(outcomes: dict[str, dict[str, Any]], name: str, most: int) -> None:
    """Each question makes the host wait until the device has done all it was given."""
    assert 0 < sum(outcomes[name]["questions"].values()) <= most, outcomes[name]["questions"]


def test_the_stand_in_refuses_what_a_device_refuses() -> None:
    script = """
import torch
from stand_in_device import questions, stand_in_device
with stand_in_device():
    there, here = torch.ones(3, 3, device="gpu"), torch.ones(3, 3)
    for mix in (lambda: there + here, lambda: here[there.long()], lambda: torch.where(there > 0, there, here)):
        try:
            mix()
        except RuntimeError as fault:
            print("refused", fault)
    print((there + 1).device, (there + torch.tensor(1.0)).device, there[torch.tensor([0])].device)
    questions.clear()
    there.sum().item(), there[there > 0], there.cpu(), there.tolist(), there[0] + 1
    print(sum(questions.values()))
    with torch.autocast("gpu", torch.bfloat16):
        print((there @ there).dtype, (there @ there).exp().dtype, torch.cat([there, there @ there]).dtype)
"""
    done = in_subprocess("-c", script, env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)})
    assert done.stdout.count("refused") == 3, done.stderr
    assert done.stdout.splitlines()[3:] == [
        "gpu:0 gpu:0 gpu:0",
        "4",
        "torch.bfloat16 torch.float32 torch.float32",
    ]
