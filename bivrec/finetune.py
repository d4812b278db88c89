"""Stage 2: a published tower on a target Domain, with a fresh ID tower beside it, or alone (zero-shot)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bivrec.artefact import Tower
from bivrec.baselines.towers import transferred_views, with_ids
from bivrec.config import Config, config_from_dict
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.fit import Origin, fit, with_steps_on
from bivrec.training.run import Run, fresh_model

FREE_MODEL_SETTINGS = (
    "dropout",
    "assignment",
    "assignment_temperature",
    "aggregation",
    "interests_per_item",
    "id_items",
    "id_interests",
    "repeat_bias",
)
"""Settings of the architecture that the tower's weights do not depend on, which a finetuning may choose anew."""


def finetune_config(recipe: Mapping[str, Any], tower: Tower, source: str = "recipe") -> Config:
    """The configuration of a finetuning: the recipe's, with the architecture of the tower.

    source: what the recipe is called where it is wrong.
    Raises BivrecError if the recipe asks for another architecture than the tower has.
    """
    wanted = recipe.get("model") or {}
    if not isinstance(wanted, Mapping):
        return config_from_dict(recipe, source)
    architecture = dataclasses.asdict(tower.config)
    faults = [
        f"model.{key}: the tower has {architecture[key]!r}, the recipe {value!r}"
        for key, value in wanted.items()
        if key in architecture
        and key not in FREE_MODEL_SETTINGS
        and _comparable(architecture[key]) != _comparable(value)
    ]
    if faults:
        raise BivrecError(f"{tower.source['name']}: {'; '.join(faults)}; leave these keys out of the recipe")
    return config_from_dict({**recipe, "model": {**architecture, **wanted}}, source)


def finetune(
    domain: Domain,
    path: Path | str,
    config: Config,
    tower: Tower,
    *,
    from_scratch: bool = False,
    overwrite: bool = False,
    tracker: str | None = None,
) -> Run:
    """Train the views of the configuration on `domain`, the multimodal one from `tower`.

    from_scratch: all weights are fresh; `tower` gives only its features.
    Raises BivrecError if the tower is not to be trained, or the Domain has no features like those that it reads.
    """
    views = config.training.views
    if not from_scratch and "mm" not in views:
        raise BivrecError("training.views: finetuning a tower needs the multimodal view, mm")
    if config.training.frozen_tower_steps == -1 and (from_scratch or "id" not in views):
        raise BivrecError("training.frozen_tower_steps: -1 keeps the tower frozen, and leaves nothing else to train")
    features = tower.features if "mm" in views else {}
    config = with_steps_on(domain, config)

    def make_model() -> BiVRecNetwork:
        if from_scratch:
            return fresh_model(config, domain, features, reader=str(tower.source["name"]))
        adapted = tower.clone(config.model).attach(domain).train()
        return BiVRecNetwork(with_ids(adapted, domain.num_items) if "id" in views else {"mm": adapted})

    return fit(
        "finetune",
        domain,
        path,
        config,
        features,
        make_model,
        origin=None if from_scratch else _origin(tower, config),
        overwrite=overwrite,
        tracker=tracker,
    )


def zero_shot_model(domain: Domain, tower: Tower) -> BiVRecNetwork:
    """The tower alone on a Domain that it was never trained on."""
    return BiVRecNetwork({"mm": tower.attach(domain)})


def _origin(tower: Tower, config: Config) -> Origin:
    source = tower.source
    if source["revision"] is None:
        # So that `refit` finds the folder from elsewhere.
        source = {**source, "name": str(Path(source["name"]).resolve())}
    return Origin(source, transferred_views(config), tower.item_sketch)


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
