"""Noisy copies of a Domain, to see how a model bears wrong items in what it learns from (Fig. 3c)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bivrec.data.domain import FEATURES_FILE, Domain, write_domain
from bivrec.data.info import SPLITS
from bivrec.errors import BivrecError
from bivrec.files import new_folder


def noisy_items(items: npt.NDArray[np.int32], num_items: int, fraction: float, seed: int) -> npt.NDArray[np.int32]:
    """A copy of `items` (indices 1..num_items) in which each is replaced with probability `fraction`.

    The replacement is any other item, all alike likely. A function of the seed; what a smaller fraction replaces, a
    larger one replaces by the same items.
    """
    generator = np.random.default_rng(seed)
    replaced = generator.random(len(items)) < fraction
    shift = generator.integers(1, num_items, size=len(items)) if num_items > 1 else np.zeros(len(items), np.int64)
    return np.where(replaced, (items - 1 + shift) % num_items + 1, items).astype(np.int32)


def noisy_copy(domain: Domain, path: Path, fraction: float, seed: int) -> Domain:
    """A Domain whose training sequences are noisy and whose other sequences, items and features are those of `domain`.

    Raises BivrecError if `path` exists, or `fraction` is not in 0..1.
    """
    if not 0 <= fraction <= 1:
        raise BivrecError(f"noise {fraction}: expected a share of the interactions, 0 to 1")
    sequences = {split: domain.sequences(split) for split in SPLITS}
    train = sequences["train"]
    sequences["train"] = dataclasses.replace(train, items=noisy_items(train.items, domain.num_items, fraction, seed))
    info = dataclasses.replace(
        domain.info,
        source={**domain.info.source, "noise": {"fraction": fraction, "seed": seed}},
        images=None if domain.images is None else str(domain.images.resolve()),
    )
    with new_folder(path) as staging:
        if domain.info.features:
            shutil.copyfile(domain.path / FEATURES_FILE, staging / FEATURES_FILE)
        write_domain(staging, info, sequences, domain.item_table().data.table)
    return Domain.open(path)
