"""Helpers for the tests of the stages: recipes of seconds, commands, and comparisons of Runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from bivrec.cli import main
from bivrec.config import Config, config_from_dict
from bivrec.data.batches import BatchSampler
from bivrec.data.domain import Domain
from bivrec.data.raw import RawData
from bivrec.data.sketch import item_sketch
from bivrec.features.encode import encode_images, encode_texts, store
from bivrec.features.image import DescriptorImageEncoder
from bivrec.features.text import HashingTextEncoder
from bivrec.features.whitening import SHRINKAGE
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.checkpoint import checkpoint_weights
from bivrec.training.run import FORMAT_VERSION, Run, RunInfo, domain_record, fresh_model

TINY: dict[str, dict[str, Any]] = {
    "model": {
        "hidden_size": 8,
        "num_layers": 1,
        "max_history": 8,
        "num_interests": [2],
        "modalities": ["text", "image"],
    },
    "training": {
        "steps": 4,
        "batch_size": 16,
        "evaluate_every": 2,
        "warmup_steps": 0,
        "patience": 0,
        "learning_rate": 0.01,
    },
}
NOISELESS = {"dropout": 0.0, "assignment": "softmax-hard"}


def values(**sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe of seconds: TINY with changes, such as `training={"steps": 8}`."""
    return {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {**TINY, **sections}}


def config(**sections: dict[str, Any]) -> Config:
    return config_from_dict(values(**sections))


def settings(**sections: dict[str, Any]) -> list[str]:
    """The same as arguments of a command."""
    return [
        argument
        for section, keys in values(**sections).items()
        for key, value in keys.items()
        for argument in ("--set", f"{section}.{key}={value}")
    ]


def bivrec(*arguments: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def in_subprocess(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` and capture what it prints."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def new_run(path: Path, domain: Domain, config: Config) -> Run:
    """A Run in which nothing was trained yet."""
    info = RunInfo(
        format_version=FORMAT_VERSION,
        stage="pretrain",
        config=config.to_dict(),
        domain=domain_record(domain),
        features={name: asdict(domain.info.features[name]) for name in config.model.modalities},
        started_from=None,
        command="bivrec pretrain",
        versions={},
        hardware={"device": "cpu", "processes": 1, "threads": 1, "precision": "fp32"},
        item_sketch=item_sketch(domain),
    )
    return Run.create(path, info, domain.item_ids())


def untrained(domain: Domain, config: Config) -> BiVRecNetwork:
    features = {name: domain.info.features[name] for name in config.model.modalities}
    return fresh_model(config, domain, features, "the test")


def weights(run: Run, checkpoint: str = "last", prefix: str = "") -> dict[str, torch.Tensor]:
    return checkpoint_weights(run.checkpoint(checkpoint), prefix)


def tower_weights(run: Run) -> dict[str, torch.Tensor]:
    """The multimodal tower after the last step."""
    return weights(run, "last", "towers.mm.")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train_losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics() if line["split"] == "train"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the middle of a training step, counted from 0."""
    batch = BatchSampler.batch

    def interrupted(self: BatchSampler, number: int, *part: int) -> Any:
        # Once: of a second Ctrl-C the loop thinks that the user has no patience.
        if number == step and part[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return batch(self, number, *part)

    monkeypatch.setattr(BatchSampler, "batch", interrupted)


def encode(domain: Domain, *, whitening: float | None = SHRINKAGE) -> Domain:
    """Both modalities with the built-in encoders."""
    texts = encode_texts(domain, HashingTextEncoder(), whitening=whitening)
    return store(domain, texts, encode_images(domain, DescriptorImageEncoder(), whitening=whitening))


def succeed(*arguments: object) -> str:
    """What a command that must not fail prints."""
    result = bivrec(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_rows(raw: RawData) -> list[tuple[str, str, int]]:
    """Interactions as users, items and times."""
    users, items = raw.user_ids.to_pylist(), raw.item_ids.to_pylist()
    return [(users[u], items[i], int(t)) for u, i, t in zip(raw.users, raw.items, raw.timestamps, strict=True)]


def write_shop(folder: Path, interactions: Sequence[tuple[str, str, int]], titles: Sequence[tuple[str, str]]) -> None:
    """Write the tables of a shop, for `prepare_shop`: users, items and times, and the titles of items."""
    columns = {"interactions": ["user_id", "item_id", "timestamp"], "items": ["item_id", "title"]}
    for name, rows in (("interactions", interactions), ("items", titles)):
        pd.DataFrame(rows, columns=columns[name]).to_csv(folder / f"{name}.csv", index=False)


def prepare_shop(shop: Path, path: Path, *options: object) -> str:
    """Prepare the tables in the folder of a shop, without a k-core; returns what was printed."""
    tables = ("--interactions", shop / "interactions.csv", "--items", shop / "items.csv")
    return succeed("prepare", "tables", *tables, "--k-core", 0, "--to", path, *options)


def items_of_split(domain: Domain, split: str) -> dict[str, list[str]]:
    """User -> ids of the items that the split has, in their order."""
    ids, part = domain.item_ids(), domain.sequences(split)
    return {user: [ids[item - 1] for item in part[place]] for place, user in enumerate(part.user_ids)}
