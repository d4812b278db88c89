"""bivrec finetune."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import DOMAIN, Command, allow_only, need_domain, run_options, training_options, warn
from bivrec.cli.reports import echo_results
from bivrec.errors import BivrecError


@click.command(cls=Command)
@click.argument("domain", type=DOMAIN, required=False)
@click.option("--from-hub", "source", metavar="MODEL",
              help="Published tower, or joint model (its tower): ORG/NAME[@revision], or a folder.")  # fmt: skip
@click.option("--from-scratch", is_flag=True, help="Fresh weights in the tower's architecture, for comparison.")
@run_options
@click.option("--freeze-tower", is_flag=True, help="Keep the tower frozen throughout.")
@click.option("--freeze-steps", type=click.IntRange(min=1), help="Keep the tower frozen for the first steps.")
@click.option("--tower-learning-rate", type=float, help="Learning rate of the tower.  [default: the recipe's]")
@training_options
@click.pass_context
def finetune(
    ctx: click.Context,
    domain: Path | str | None,
    source: str | None,
    from_scratch: bool,
    path: Path,
    recipe: str,
    views: tuple[str, ...],
    freeze_tower: bool,
    freeze_steps: int | None,
    tower_learning_rate: float | None,
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    track: str | None,
) -> None:
    """Attach a fresh ID tower to a published tower and train both views on the target DOMAIN (stage 2)."""
    from bivrec import finetune as stage
    from bivrec.artefact import Tower
    from bivrec.data.domain import Domain
    from bivrec.features.contract import reads_zeros
    from bivrec.pretrain import resume as resume_run
    from bivrec.recipes import read_recipe

    if resume:
        allow_only(ctx, "domain", "path", "resume", "track")
        run = resume_run(path, track, domain=None if domain is None else Domain.open(domain))
    else:
        location = need_domain(domain)
        if source is None:
            raise BivrecError("--from-hub: expected a published tower, ORG/NAME or a folder; or use `bivrec pretrain`")
        if freeze_tower and freeze_steps:
            raise BivrecError("--freeze-tower freezes it throughout, --freeze-steps for a while; give one of them")
        if freeze_tower and tower_learning_rate is not None:
            raise BivrecError("--freeze-tower leaves nothing to learn at --tower-learning-rate; leave one of them out")
        if from_scratch and (freeze_tower or freeze_steps or tower_learning_rate is not None):
            raise BivrecError("--from-scratch attaches no tower to freeze or to give a learning rate of its own")
        if freeze_tower or freeze_steps:
            overrides = (*overrides, f"training.frozen_tower_steps={-1 if freeze_tower else freeze_steps}")
        if tower_learning_rate is not None:
            overrides = (*overrides, f"training.tower_learning_rate={tower_learning_rate}")
        opened = Domain.open(location)
        tower = Tower.from_pretrained(source)
        if line := reads_zeros(tower.features, opened, source):
            warn(line)
        values = read_recipe(recipe, "finetune", (*overrides, *views))
        config = stage.finetune_config(values, tower, f"recipe {recipe}")
        run = stage.finetune(opened, path, config, tower, from_scratch=from_scratch, overwrite=overwrite, tracker=track)
    echo_results(run)
