import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bivrec.errors import BivrecError
from bivrec.training.checkpoint import (
    Progress,
    checkpoint_weights,
    load_checkpoint,
    load_weights,
    read_progress,
    save_checkpoint,
)

PROGRESS = Progress(step=3, best_step=2, best_recall=0.25, evaluations_without_gain=1, seconds=1.5, finished=True)


def make_model(outputs: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, outputs))
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model after one step, with its optimiser."""
    model, optimizer = make_model()
    step(model, optimizer)
    save_checkpoint(tmp_path / "last.safetensors", model, PROGRESS, optimizer)
    return tmp_path / "last.safetensors"


def fault(path: Path) -> str:
    """The message of reading a bad checkpoint, the same in every way of reading it."""
    messages = set()
    for read in (read_progress, checkpoint_weights, lambda bad: load_checkpoint(bad, *make_model())):
        with pytest.raises(BivrecError) as caught:
            read(path)
        messages.add(str(caught.value))
    assert len(messages) == 1
    message = messages.pop()
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_weights_optimiser_and_progress_come_back(checkpoint: Path) -> None:
    model, optimizer = make_model()
    assert load_checkpoint(checkpoint, model, optimizer) == PROGRESS
    again = checkpoint.with_name("again.safetensors")
    save_checkpoint(again, model, PROGRESS, optimizer)
    assert again.read_bytes() == checkpoint.read_bytes()


def test_the_next_step_is_the_same(checkpoint: Path) -> None:
    models = []
    for _ in range(2):
        model, optimizer = make_model()
        load_checkpoint(checkpoint, model, optimizer)
        step(model, optimizer)
        models.append(model)
    forgetful, optimizer = make_model()
    load_checkpoint(checkpoint, forgetful)
    step(forgetful, optimizer)
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert not torch.equal(models[0][0].weight, forgetful[0].weight)


def test_progress_and_part_of_the_weights_can_be_read_alone(checkpoint: Path) -> None:
    assert read_progress(checkpoint) == PROGRESS
    assert set(checkpoint_weights(checkpoint)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(checkpoint_weights(checkpoint, "1.")) == {"weight", "bias"}


def test_a_checkpoint_is_safetensors_and_written_whole(checkpoint: Path) -> None:
    with safe_open(checkpoint, framework="pt") as stored:
        assert json.loads(stored.metadata()["progress"])["step"] == 3
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_others_may_read_a_checkpoint_as_any_new_file(checkpoint: Path) -> None:
    other = checkpoint.with_name("other")
    other.touch()
    assert checkpoint.stat().st_mode == other.stat().st_mode


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(model.weight.detach().T)
    save_checkpoint(tmp_path / "c.safetensors", model, Progress())
    assert torch.equal(checkpoint_weights(tmp_path / "c.safetensors")["weight"], model.weight)


def test_missing(tmp_path: Path) -> None:
    assert "no such checkpoint" in fault(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "header", "half", "almost"])
def test_truncated(checkpoint: Path, keep: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    assert "not a checkpoint of bivrec, or damaged" in fault(checkpoint)


def test_text(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_text("no tensors at all, only words " * 20)
    assert "not a checkpoint of bivrec, or damaged" in fault(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, {"progress": "{"}, {"progress": '{"epoch": 3}'}, {"progress": "[1]"}],
    ids=["none", "foreign", "broken", "unknown", "list"],
)
def test_safetensors_of_others(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "c.safetensors", metadata=metadata)
    assert "not a checkpoint of bivrec, or damaged" in fault(tmp_path / "c.safetensors")


def test_another_model(checkpoint: Path) -> None:
    model, optimizer = make_model(outputs=5)
    with pytest.raises(BivrecError, match=r"another model: .*1\.weight is .* \[2, 4\], expected .* \[5, 4\]"):
        load_checkpoint(checkpoint, model, optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("bias"), "bias is missing"),
        (lambda weights: weights.update(scale=torch.ones(1)), "'scale' is unknown"),
        (lambda weights: weights.update(bias=torch.zeros(3)), r"bias is float32 \[3\], expected float32 \[2\]"),
        (lambda weights: weights.update(bias=torch.zeros(2).half()), r"bias is float16 \[2\], expected"),
    ],
)
def test_weights_are_loaded_strictly(change, message: str) -> None:
    model = nn.Linear(4, 2)
    weights = dict(model.state_dict())
    change(weights)
    with pytest.raises(BivrecError, match=f"here: the weights are of another model: {message}"):
        load_weights(model, weights, "here")
