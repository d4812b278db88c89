"""Stage 1: train both views on a source Domain; the multimodal tower is the product."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from bivrec.baselines.towers import transferred_views
from bivrec.config import MODALITIES, Config
from bivrec.data.domain import Domain
from bivrec.data.info import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.training.fit import Origin, fit, with_steps_on
from bivrec.training.run import Run, fresh_model


def pretrain(
    domain: Domain, path: Path | str, config: Config, *, overwrite: bool = False, tracker: str | None = None
) -> Run:
    """Train fresh towers for the views of the configuration on `domain` into a new Run at `path`.

    Raises BivrecError if the configuration is for a tower that was pretrained, or the Domain lacks its features.
    """
    if config.training.frozen_tower_steps or config.training.tower_learning_rate is not None:
        raise BivrecError(
            "training.frozen_tower_steps, training.tower_learning_rate: for `bivrec finetune`, which starts from a "
            "published tower; leave them out"
        )
    config, features = suited_to(domain, config)
    return fit(
        "pretrain",
        domain,
        path,
        config,
        features,
        lambda: fresh_model(config, domain, features, reader=str(path)),
        overwrite=overwrite,
        tracker=tracker,
    )


def suited_to(domain: Domain, config: Config) -> tuple[Config, dict[str, FeatureSpec]]:
    """The configuration with what it leaves to `domain`: the steps, and the modalities that its multimodal view reads;
    and how these were made.

    Raises BivrecError if the Domain lacks features that the configuration names, or has none at all.
    """
    config = with_steps_on(domain, config)
    if "mm" not in config.training.views:
        return config, {}
    modalities = config.model.modalities or tuple(name for name in MODALITIES if name in domain.info.features)
    absent = [name for name in modalities if name not in domain.info.features] or ([] if modalities else ["item"])
    if absent:
        # Without options, encode would also make those that are there.
        options = "".join(f" --{name} ENCODER" for name in absent) if domain.info.features else ""
        raise BivrecError(
            f"{domain.location}: no {' and '.join(absent)} features for the multimodal view; run `bivrec encode "
            f"{shlex.quote(domain.location)}{options}`, or train the ID view alone with --views id"
        )
    model = dataclasses.replace(config.model, modalities=modalities)
    return dataclasses.replace(config, model=model), {name: domain.info.features[name] for name in modalities}


def resume(path: Path, tracker: str | None = None, *, domain: Domain | None = None) -> Run:
    """Go on with an interrupted Run of either stage, from its last checkpoint and with its own configuration.

    domain: that of the training, where it is not where it was. Raises BivrecError if it cannot be had, or differs.
    """
    run = Run.open(path)
    if domain is None:
        domain = run.open_domain()
    else:
        run.check_domain(domain)
    return fit(
        run.info.stage,
        domain,
        path,
        run.config,
        run.feature_specs,
        lambda: fresh_model(run.config, domain, run.feature_specs, reader=str(path)),
        origin=Origin(run.info.started_from, transferred_views(run.config)) if run.info.started_from else None,
        resume=True,
        tracker=tracker,
    )
