"""Noisy copies of a Domain."""

from pathlib import Path

import numpy as np
import pytest

from bivrec.data.domain import Domain
from bivrec.data.noise import noisy_copy, noisy_items
from bivrec.errors import BivrecError
from bivrec.training.run import domain_record

pytest_plugins = ("stage_fixtures",)

ITEMS = np.random.default_rng(0).integers(1, 51, size=20_000).astype(np.int32)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 1.0])
def test_the_share_that_is_replaced(fraction: float) -> None:
    noisy = noisy_items(ITEMS, 50, fraction, seed=3)
    assert (noisy != ITEMS).mean() == pytest.approx(fraction, abs=0.01)
    assert noisy.min() >= 1
    assert noisy.max() <= 50
    assert noisy.dtype == ITEMS.dtype


def test_replacements_are_uniform_over_the_other_items() -> None:
    noisy = noisy_items(np.full(49_000, 7, np.int32), 50, 1.0, seed=0)
    counts = np.bincount(noisy, minlength=51)
    assert counts[7] == counts[0] == 0
    assert np.delete(counts, [0, 7]) == pytest.approx(1000, abs=150)


def test_more_noise_keeps_the_noise_of_less() -> None:
    less, more = (noisy_items(ITEMS, 50, fraction, seed=5) for fraction in (0.05, 0.2))
    changed = less != ITEMS
    assert (more[changed] == less[changed]).all()


def test_a_function_of_the_seed() -> None:
    one, again, other = (noisy_items(ITEMS, 50, 0.1, seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_only_training_sequences_differ(source: Domain, tmp_path: Path) -> None:
    copy = noisy_copy(source, tmp_path / "noisy", 0.3, seed=1)
    copy.verify()
    for split in ("train", "validation", "test"):
        before, after = source.sequences(split), copy.sequences(split)
        assert after.user_ids == before.user_ids
        assert (after.offsets == before.offsets).all()
        assert (after.items == before.items).all() == (split != "train")
    assert domain_record(copy)["catalogue"] == domain_record(source)["catalogue"]
    assert copy.info.features == source.info.features
    assert (copy.features(("text", "image")) == source.features(("text", "image"))).all()


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_an_impossible_share(source: Domain, tmp_path: Path, fraction: float) -> None:
    with pytest.raises(BivrecError, match="expected a share"):
        noisy_copy(source, tmp_path / "noisy", fraction, seed=0)
    assert not (tmp_path / "noisy").exists()
