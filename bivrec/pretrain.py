"""Stage 1: train both views on a source Domain; the multimodal tower is the product."""

from __future__ import annotations

from pathlib import Path

from bivrec.config import Config
from bivrec.data.domain import Domain
from bivrec.training.fit import fit
from bivrec.training.run import Run, fresh_model


def pretrain(domain: Domain, path: Path, config: Config, *, overwrite: bool = False, tracker: str | None = None) -> Run:
    """Train fresh towers for the views of the configuration on `domain` into a new Run at `path`."""
    return fit(
        "pretrain", domain, path, config, lambda: fresh_model(config, domain), overwrite=overwrite, tracker=tracker
    )


def resume(path: Path, tracker: str | None = None) -> Run:
    """Go on with an interrupted Run of either stage, from its last checkpoint and with its own configuration."""
    run = Run.open(path)
    domain = run.open_domain()
    return fit(
        run.info.stage,
        domain,
        path,
        run.config,
        lambda: fresh_model(run.config, domain),
        # Only a tower that came from elsewhere has a learning rate of its own.
        pretrained=("mm",) if run.info.started_from else (),
        resume=True,
        tracker=tracker,
    )
