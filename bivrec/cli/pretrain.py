"""bivrec pretrain."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import DOMAIN, FOLDER, allow_only, overwrite_option, set_option, track_option
from bivrec.cli.reports import echo_results
from bivrec.errors import BivrecError
from bivrec.memory import keep_freed_memory


@click.command()
@click.argument("domain", type=DOMAIN, required=False)
@click.option("--to", "path", type=FOLDER, required=True, help="Folder of the new Run.")
@click.option("--recipe", default="default", help="A recipe of `bivrec recipes`, or a YAML file.")
@click.option("--views", type=click.Choice(["both", "mm", "id"]), help="Views to train.  [default: the recipe's]")
@set_option
@overwrite_option
@click.option("--resume", is_flag=True, help="Go on with the interrupted Run, with its own Domain and settings.")
@track_option
@click.pass_context
def pretrain(
    ctx: click.Context,
    domain: Path | str | None,
    path: Path,
    recipe: str,
    views: str | None,
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

    keep_freed_memory()
    if resume:
        allow_only(ctx, "path", "resume", "track")
        run = stage.resume(path, track)
    else:
        if domain is None:
            raise BivrecError(
                "DOMAIN: expected the folder of a prepared Domain or hub:ORG/NAME[@revision], or --resume"
            )
        if views:
            trained = "[id, mm]" if views == "both" else f"[{views}]"
            overrides = (*overrides, f"training.views={trained}", f"training.selection_view={views}")
        config = config_from_dict(read_recipe(recipe, "pretrain", overrides), f"recipe {recipe}")
        run = stage.pretrain(Domain.open(domain), path, config, overwrite=overwrite, tracker=track)
    echo_results(run)
