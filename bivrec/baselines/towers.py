"""Towers of every system, by its name and by what its items are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from bivrec.baselines.base import BaselineTower
from bivrec.baselines.comirec import DynamicRouting, SelfAttentive
from bivrec.baselines.fdsa import FDSA
from bivrec.baselines.items import ModalityItems
from bivrec.baselines.mmmlp import MMMLP
from bivrec.baselines.mmsrec import MMSRec, MMSRecTower
from bivrec.baselines.re4 import Re4
from bivrec.baselines.sasrec import SASRec
from bivrec.baselines.side_information import DIFSR, NOVA
from bivrec.baselines.unisrec import AdaptorItems, UniSRec
from bivrec.config import Config, ModelConfig
from bivrec.model.items import AttachedFeatures, FeatureItems, IdItems, Items, JointItems, Rows
from bivrec.model.tower import TowerNetwork

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
    config: ModelConfig, views: Sequence[str], num_items: int, sizes: Sequence[int], features: Rows | None = None
) -> dict[str, TowerNetwork]:
    """Untrained towers by view: those of the views, or for a baseline that is given both, one named `both`.

    sizes: dimensions of the modalities, for the view `mm`; features [V + 1, F]: of a Domain to attach, modalities side
    by side.
    """
    towers = {}
    for view in tower_views(config, views):
        identity = None if view == "mm" else IdItems(num_items, config.hidden_size)
        ids_alone = view == "id" and not ("mm" in views and config.id_items == "ids+features")
        towers[view] = _tower(config, _items(config, identity, [] if ids_alone else sizes))
    if features is not None:
        attach_features(towers, features)
    return towers


def attach_features(towers: Mapping[str, TowerNetwork], features: Rows) -> None:
    """Let the towers read the features [V + 1, F] of a Domain."""
    attached = AttachedFeatures(features)
    for tower in towers.values():
        tower.items.attach(attached)


def tower_views(config: ModelConfig, views: Sequence[str]) -> tuple[str, ...]:
    """The views that have a tower of their own in a model that is trained with these views."""
    return tuple(views) if config.system == "bivrec" or len(views) == 1 else (JOINT,)


def transferred_views(config: Config) -> tuple[str, ...]:
    """The views whose whole tower comes from elsewhere in a finetuning."""
    return tuple(view for view in tower_views(config.model, config.training.views) if view == "mm")


def with_ids(tower: TowerNetwork, num_items: int) -> dict[str, TowerNetwork]:
    """Towers of both views: `tower` reads the features, and what reads IDs is untrained."""
    config = tower.config
    assert isinstance(tower.items, FeatureItems)
    identity = IdItems(num_items, config.hidden_size)
    if config.system == "bivrec":
        items = JointItems(identity, tower.items.copy()) if config.id_items == "ids+features" else identity
        return {"id": TowerNetwork(config, items), "mm": tower}
    joint = BaselineTower(config, JointItems(identity, tower.items), tower.sequence)
    if config.score == "cosine":
        joint.log_scale = tower.log_scale
    return {JOINT: joint}


def _items(config: ModelConfig, identity: IdItems | None, sizes: Sequence[int]) -> Items:
    """Items of an ID table, of features whose modalities have these sizes, or of both."""
    if identity is not None and not sizes:
        return identity
    if config.system in PARTS_APART:
        return ModalityItems(identity, sizes, config.hidden_size)
    content = (AdaptorItems if config.system == "unisrec" else FeatureItems)(sum(sizes), config.hidden_size)
    return content if identity is None else JointItems(identity, content)


def _tower(config: ModelConfig, items: Items) -> TowerNetwork:
    if config.system == "bivrec":
        return TowerNetwork(config, items)
    if isinstance(items, ModalityItems):
        kind = MMSRecTower if config.system == "mmsrec" else BaselineTower
        return kind(config, items, PARTS_APART[config.system](config, len(items.modalities)))
    return BaselineTower(config, items, ONE_VECTOR[config.system](config))
