import os
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_repositories import OWNER
from hub_server import HubServer

# Before it is read: what the tests compare bit for bit, a GPU does not compute bit for bit.
os.environ.setdefault("ACCELERATE_USE_CPU", "1")

from bivrec.data.domain import Domain
from bivrec.data.prepare import prepare
from bivrec.data.synthetic import DomainSize, World


@pytest.fixture(scope="session")
def small_domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """200 users and 120 items with texts; neither images nor features. Shared: write nothing into it."""
    drawn = World.create(topics=6).domain("small", DomainSize(200, 120, 12))
    return prepare(drawn.raw, tmp_path_factory.mktemp("domains") / "small")


@pytest.fixture
def interactions_csv(tmp_path: Path) -> Path:
    """Ten users with the items i0 to i4 each, one a second, in the order of time."""
    rows = [f"u{user},i{item},{item}" for user in range(10) for item in range(5)]
    path = tmp_path / "interactions.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub that the client, here and in subprocesses, takes for the real one; OWNER is logged in.

    The cache is `tmp_path/hf/hub`. Set HF_TOKEN for another account; for HF_HUB_OFFLINE see `offline`.
    """
    home = tmp_path / "hf"
    with HubServer() as server:
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": OWNER,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        # The client reads its environment once, when it is imported.
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Cuts the client off when it is called."""

    def cut() -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    return cut
