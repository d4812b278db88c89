"""Two tiny encoded Domains, and one pretrained Run and tower on the first, for the tests of the stages.

A test module gets them by `pytest_plugins = ("stage_fixtures",)`. All are shared: write nothing into them.
"""

import os
from pathlib import Path

import pytest
import torch
from stages import config, encode

from bivrec.data.domain import Domain
from bivrec.data.synthetic import DomainSize, write_world
from bivrec.hub import publish
from bivrec.pretrain import pretrain
from bivrec.training.run import Run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads of tiny models only wait for each other, on busy cores twenty times as long as they work."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the encoded Domains `source` and `target`, which share topics but no items."""
    folder = tmp_path_factory.mktemp("stages") / "world"
    sizes = {"source": DomainSize(150, 60, 12), "target": DomainSize(100, 44, 9)}
    for domain in write_world(folder, **sizes, topics=6, k_core=2):
        encode(domain)
    return folder


@pytest.fixture(scope="session")
def source(world: Path) -> Domain:
    return Domain.open(world / "source")


@pytest.fixture(scope="session")
def target(world: Path) -> Domain:
    return Domain.open(world / "target")


@pytest.fixture(scope="session")
def pretrained(source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both views after a few steps on the source."""
    return pretrain(source, tmp_path_factory.mktemp("runs") / "pretrained", config())


@pytest.fixture(scope="session")
def tower(pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published tower of `pretrained`."""
    return Path(publish(pretrained, str(tmp_path_factory.mktemp("towers") / "tower")))


@pytest.fixture(scope="session")
def id_only(source: Domain, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Run without the multimodal view."""
    training = {"steps": 1, "views": ["id"]}
    return pretrain(source, str(tmp_path_factory.mktemp("runs") / "id-only"), config(training=training))
