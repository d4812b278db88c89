"""bivrec publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bivrec.cli.options import FOLDER, Command, check_destination, echo_preview, hub_options, overwrite_option, warn
from bivrec.errors import BivrecError


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@click.option("--to", "destination", required=True, metavar="FOLDER|ORG/NAME", help="Where to publish the model.")
@click.option("--model", "kind", type=click.Choice(["tower", "joint"]),
              help="The multimodal tower, which transfers, or the joint model of both views.  "
              "[default: joint of a finetuning of both, else tower]")  # fmt: skip
@hub_options
@click.option("--dry-run", is_flag=True, help="Only list the files and print the card.")
@overwrite_option
def publish(run: Path, destination: str, kind: str | None, dry_run: bool, overwrite: bool, **pushing: Any) -> None:
    """Publish the best weights of RUN as a model with a card, its results, and nothing that holds code.

    ORG/NAME is a repository on the Hugging Face Hub, unless ORG is a local folder; write ./ORG/NAME for a new folder.
    """
    from bivrec import hub
    from bivrec.training.run import Run

    check_destination(destination, overwrite, pushing)
    opened = Run.open(run)
    if line := opened.unfinished():
        warn(line)
    try:
        opened.open_domain()
    except BivrecError as fault:
        warn(f"the card has no floors, and of a tower no results, to compare with: {fault}")
    if dry_run:
        echo_preview(*hub.preview(opened, destination, kind))
        return
    address = hub.publish(opened, destination, kind, overwrite=overwrite, **pushing)
    click.echo(f"published {run} to {address}")
