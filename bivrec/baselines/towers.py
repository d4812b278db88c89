"""Towers of every system, by its name and by what its items are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from bivrec.baselines.base import BaselineTower
from bivrec.baselines.comirec import DynamicRouting, SelfAttentive
from bivrec.baselines.fdsa import FDSA
from bivrec.baselines.items import JointItems, ModalityItems
from bivrec.baselines.mmmlp import MMMLP
from bivrec.baselines.mmsrec import MMSRec, MMSRecTower
from bivrec.baselines.re4 import Re4
from bivrec.baselines.sasrec import SASRec
from bivrec.baselines.side_information import DIFSR, NOVA
from bivrec.baselines.unisrec import AdaptorItems, UniSRec
from bivrec.config import Config, ModelConfig
from bivrec.model.bivrec import id_tower, mm_tower
from bivrec.model.tower import FeatureItems, IdItems, Items, Rows, Tower

JOINT = "both"
"""Name of the one tower of a baseline that reads IDs and features together."""

ONE_VECTOR: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "comirec-sa": SelfAttentive,
    "comirec-dr": DynamicRouting,
    "sasrec": SASRec,
    "re4": Re4,
    "unisrec": UniSRec,
}
"""Systems with one vector for each item, whatever it is made of -> what reads their histories."""

PARTS_APART: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "fdsa": FDSA,
    "mmsrec": MMSRec,
    "mmmlp": MMMLP,
    "nova": NOVA,
    "dif-sr": DIFSR,
}
"""Systems that see an item's ID and each of its modalities apart -> what reads their histories."""


def fresh_towers(
    config: ModelConfig, views: Sequence[str], num_items: int, features: Rows | None, sizes: Sequence[int]
) -> dict[str, Tower]:
    """Untrained towers by view: those of the views, or for a baseline that is given both, one named `both`.

    features: [V + 1, F] for the view `mm`, modalities of the given sizes side by side.
    """
    if tower_views(config, views) == (JOINT,):
        assert features is not None
        return {JOINT: _joint_tower(config, num_items, features, sizes)}
    towers = {}
    if "id" in views:
        towers["id"] = _id_tower(config, num_items)
    if "mm" in views:
        assert features is not None
        towers["mm"] = feature_tower(config, features, sizes)
    return towers


def tower_views(config: ModelConfig, views: Sequence[str]) -> tuple[str, ...]:
    """The views that have a tower of their own in a model that is trained with these views."""
    return tuple(views) if config.system == "bivrec" or len(views) == 1 else (JOINT,)


def transferred_views(config: Config) -> tuple[str, ...]:
    """The views whose whole tower comes from elsewhere in a finetuning."""
    return tuple(view for view in tower_views(config.model, config.training.views) if view == "mm")


def with_ids(tower: Tower, num_items: int) -> dict[str, Tower]:
    """Towers of both views: `tower` reads the features, and what reads IDs is untrained."""
    config = tower.config
    if config.system == "bivrec":
        return {"id": id_tower(config, num_items), "mm": tower}
    assert isinstance(tower.items, FeatureItems)
    joint = BaselineTower(config, JointItems(IdItems(num_items, config.hidden_size), tower.items), tower.sequence)
    if config.score == "cosine":
        joint.log_scale = tower.log_scale
    return {JOINT: joint}


def feature_tower(config: ModelConfig, features: Rows, sizes: Sequence[int]) -> Tower:
    """An untrained tower that reads features [V + 1, F] alone, modalities of these sizes side by side."""
    if config.system == "bivrec":
        return mm_tower(config, features)
    if config.system in PARTS_APART:
        return _parts_tower(config, None, features, sizes)
    return _tower(config, _content(config, features))


def _id_tower(config: ModelConfig, num_items: int) -> Tower:
    if config.system == "bivrec":
        return id_tower(config, num_items)
    return _tower(config, IdItems(num_items, config.hidden_size))


def _joint_tower(config: ModelConfig, num_items: int, features: Rows, sizes: Sequence[int]) -> Tower:
    identity = IdItems(num_items, config.hidden_size)
    if config.system in PARTS_APART:
        return _parts_tower(config, identity, features, sizes)
    return _tower(config, JointItems(identity, _content(config, features)))


def _content(config: ModelConfig, features: Rows) -> FeatureItems:
    kind = AdaptorItems if config.system == "unisrec" else FeatureItems
    items = kind(features.shape[1], config.hidden_size)
    items.attach(features)
    return items


def _tower(config: ModelConfig, items: Items) -> Tower:
    return BaselineTower(config, items, ONE_VECTOR[config.system](config))


def _parts_tower(config: ModelConfig, identity: IdItems | None, features: Rows, sizes: Sequence[int]) -> Tower:
    items = ModalityItems(identity, features, sizes, config.hidden_size)
    kind = MMSRecTower if config.system == "mmsrec" else BaselineTower
    return kind(config, items, PARTS_APART[config.system](config, len(sizes)))
