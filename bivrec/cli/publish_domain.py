"""bivrec publish-domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bivrec.cli.options import DOMAIN, Command, check_destination, echo_preview, hub_options, overwrite_option, warn


@click.command("publish-domain", cls=Command)
@click.argument("domain", type=DOMAIN)
@click.option("--to", "destination", required=True, metavar="FOLDER|ORG/NAME", help="Where to publish the Domain.")
@hub_options
@click.option("--dry-run", is_flag=True, help="Only list the files and print the card.")
@overwrite_option
def publish_domain(domain: Path | str, destination: str, dry_run: bool, overwrite: bool, **pushing: Any) -> None:
    """Publish DOMAIN as a data set with a card, which `datasets.load_dataset` and `hub:ORG/NAME` open.

    ORG/NAME is a data set repository on the Hugging Face Hub, unless ORG is a local folder; write ./ORG/NAME for a new
    folder. Images are not published. Mind the terms of the source: what is published is its interactions and texts.
    """
    from bivrec import domain_hub
    from bivrec.data.domain import Domain
    from bivrec.repository import is_repository
    from bivrec.terms import terms_of

    check_destination(destination, overwrite, pushing)
    opened = Domain.open(domain)
    restricted = terms_of(opened.info.source, opened.name).restricted
    if restricted and is_repository(destination):
        advice = "be sure that you may" if pushing["private"] else "be sure that you may, or keep it --private"
        warn(f"{restricted}; {advice}")
    if dry_run:
        echo_preview(*domain_hub.preview(opened, destination))
        return
    address = domain_hub.publish_domain(opened, destination, overwrite=overwrite, **pushing)
    click.echo(f"published {opened.location} to {address}")
