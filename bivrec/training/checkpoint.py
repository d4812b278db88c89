"""Checkpoints: one safetensors file each, replaced in one rename, so that a killed run always has a whole one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bivrec.errors import BivrecError
from bivrec.files import new_file
from bivrec.weights import check_weights, described

_MODEL = "model."
_OPTIMIZER = "optimizer."


@dataclass
class Progress:
    """How far a training is; with the weights and the optimiser state, all that resuming needs."""

    step: int = 0
    best_step: int = 0
    best_recall: float = -1.0
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    finished: bool = False


def save_checkpoint(path: Path, model: nn.Module, progress: Progress, optimizer: Optimizer | None = None) -> None:
    """Write the weights and, for resuming, the optimiser's state."""
    tensors = {_MODEL + name: value.contiguous() for name, value in model.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"{_OPTIMIZER}{index}.{name}"] = torch.as_tensor(value).contiguous()
    with new_file(path) as staging:
        save_file(tensors, staging, metadata={"progress": json.dumps(asdict(progress))})


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer | None = None) -> Progress:
    """Load weights (strictly) and, if an optimiser is given, its state.

    Raises BivrecError if the file is missing, damaged, or of another model.
    """
    progress = read_progress(path)
    load_weights(model, checkpoint_weights(path), str(path))
    if optimizer is not None:
        state = optimizer.state_dict()
        state["state"] = {}
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if name.startswith(_OPTIMIZER):
                    index, key = name.removeprefix(_OPTIMIZER).split(".", 1)
                    state["state"].setdefault(int(index), {})[key] = stored.get_tensor(name)
        optimizer.load_state_dict(state)
    return progress


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights strictly: BivrecError names those that are missing, unknown, or of another shape or type."""
    check_weights({name: described(value) for name, value in weights.items()}, model.state_dict(), source)
    model.load_state_dict(weights)


def read_progress(path: Path) -> Progress:
    """How far the training of a checkpoint was, without reading its weights."""
    try:
        with safe_open(path, framework="pt") as stored:
            return Progress(**json.loads(stored.metadata()["progress"]))
    except FileNotFoundError:
        raise BivrecError(
            f"{path}: no such checkpoint; a training has its best one after training.evaluate_every steps"
        ) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as fault:
        raise BivrecError(f"{path}: not a checkpoint of bivrec, or damaged ({fault})") from None


def checkpoint_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The weights of a checkpoint's model whose names begin with `prefix`, without it.

    Raises BivrecError if the file is missing or damaged.
    """
    read_progress(path)
    with safe_open(path, framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith(_MODEL + prefix)]  # noqa: SIM118
        return {name.removeprefix(_MODEL + prefix): stored.get_tensor(name) for name in names}
