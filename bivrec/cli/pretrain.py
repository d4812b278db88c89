"""bivrec pretrain."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import DOMAIN, Command, allow_only, need_domain, run_options, training_options
from bivrec.cli.reports import echo_results


@click.command(cls=Command)
@click.argument("domain", type=DOMAIN, required=False)
@run_options
@training_options
@click.pass_context
def pretrain(
    ctx: click.Context,
    domain: Path | str | None,
    path: Path,
    recipe: str,
    views: tuple[str, ...],
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    track: str | None,
) -> None:
    """Train both views on the source DOMAIN (stage 1).

    Under `accelerate launch` it uses all processes; the batch size is the global one.
    """
    from bivrec import pretrain as stage
    from bivrec.config import config_from_dict
    from bivrec.data.domain import Domain
    from bivrec.recipes import read_recipe

    if resume:
        allow_only(ctx, "domain", "path", "resume", "track")
        run = stage.resume(path, track, domain=None if domain is None else Domain.open(domain))
    else:
        location = need_domain(domain)
        config = config_from_dict(read_recipe(recipe, "pretrain", (*overrides, *views)), f"recipe {recipe}")
        run = stage.pretrain(Domain.open(location), path, config, overwrite=overwrite, tracker=track)
    echo_results(run)
