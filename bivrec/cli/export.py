"""bivrec export."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import DOMAIN, FOLDER, Command, overwrite_option


@click.command(cls=Command)
@click.argument("domain", type=DOMAIN)
@click.option("--to", required=True, type=FOLDER, metavar="FOLDER", help="Folder to write.")
@click.option("--format", "kind", type=click.Choice(["parquet", "csv"]), default="parquet", help="Of the tables.")
@overwrite_option
def export(domain: Path | str, to: Path, kind: str, overwrite: bool) -> None:
    """Write DOMAIN as tables, so that another program can be compared by the same protocol.

    Let it train on `train`, rank after `test_histories`, and write user_id, item_id and rank; then
    `bivrec evaluate DOMAIN --lists FILE`. The targets are in tables of their own.
    """
    from bivrec.data.domain import Domain
    from bivrec.export import export as write

    for name, rows in write(Domain.open(domain), to, kind, overwrite=overwrite).items():
        click.echo(f"{to / name}: {rows:,} rows")
