from pathlib import Path

import pytest

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
