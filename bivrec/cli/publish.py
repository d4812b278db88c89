"""bivrec publish."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import FOLDER, overwrite_option


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--to", "destination", required=True, metavar="FOLDER|ORG/NAME", help="Where to publish the tower.")
@click.option("--private", is_flag=True, help="Make a new repository on the Hub private.")
@overwrite_option
def publish(run: Path, destination: str, private: bool, overwrite: bool) -> None:
    """Publish the multimodal tower of RUN's best weights, with a model card.

    ORG/NAME is a repository on the Hugging Face Hub, unless ORG is a local folder; write ./ORG/NAME for a new folder.
    """
    from bivrec import hub
    from bivrec.training.run import Run

    address = hub.publish(Run.open(run), destination, overwrite=overwrite, private=private)
    click.echo(f"published {run} to {address}")
