"""bivrec publish."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import FOLDER, overwrite_option
from bivrec.errors import BivrecError

HUB_ONLY = ("private", "revision", "message", "create_pr", "tag", "overwrite_card")


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--to", "destination", required=True, metavar="FOLDER|ORG/NAME", help="Where to publish the model.")
@click.option("--model", "kind", type=click.Choice(["tower", "joint"]),
              help="The multimodal tower, which transfers, or the joint model of both views.  "
              "[default: joint of a finetuning of both, else tower]")  # fmt: skip
@click.option("--private", is_flag=True, help="Make a new repository on the Hub private.")
@click.option("--revision", metavar="BRANCH", help="Branch on the Hub; made if it does not exist.  [default: main]")
@click.option("--message", help="Message of the commit on the Hub.")
@click.option("--create-pr", is_flag=True, help="Propose the model as a pull request on the Hub.")
@click.option("--tag", help="Tag the commit on the Hub, e.g. v1.")
@click.option("--overwrite-card", is_flag=True, help="Replace a card on the Hub that a person edited.")
@click.option("--dry-run", is_flag=True, help="Only list the files and print the card.")
@overwrite_option
@click.pass_context
def publish(
    ctx: click.Context,
    run: Path,
    destination: str,
    kind: str | None,
    dry_run: bool,
    overwrite: bool,
    private: bool,
    revision: str | None,
    message: str | None,
    create_pr: bool,
    tag: str | None,
    overwrite_card: bool,
) -> None:
    """Publish the best weights of RUN as a model with a card, its results, and nothing that holds code.

    ORG/NAME is a repository on the Hugging Face Hub, unless ORG is a local folder; write ./ORG/NAME for a new folder.
    """
    from bivrec import hub
    from bivrec.repository import is_repository
    from bivrec.training.run import Run

    given = [f"--{name.replace('_', '-')}" for name in HUB_ONLY if ctx.params[name]]
    if given and not is_repository(destination):
        raise BivrecError(f"{destination}: a folder, and {', '.join(given)} is for a repository ORG/NAME on the Hub")
    if overwrite and is_repository(destination):
        raise BivrecError(f"{destination}: a repository on the Hub, whose history stays; leave --overwrite out")
    opened = Run.open(run)
    if dry_run:
        files, card = hub.preview(opened, destination, kind)
        for name, size in files.items():
            click.echo(f"{size:>14,}  {name}")
        click.echo(f"\n{card}", nl=False)
        return
    address = hub.publish(
        opened,
        destination,
        kind,
        overwrite=overwrite,
        private=private,
        revision=revision,
        message=message,
        create_pr=create_pr,
        tag=tag,
        overwrite_card=overwrite_card,
    )
    click.echo(f"published {run} to {address}")
