"""bivrec refit."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import DOMAIN, FOLDER, Command, overwrite_option, track_option, warn
from bivrec.cli.reports import echo_results

LEAST_KEPT = 0.5
"""Share of a Run's items that a Domain has which was prepared anew; with less it may be a mistake."""


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@click.option("--to", "path", type=FOLDER, required=True, help="Folder of the new Run.")
@click.option(
    "--domain", type=DOMAIN, help="Domain to train on instead, such as RUN's prepared anew with what came since."
)
@click.option("--with-test", is_flag=True, help="Train on the test's interactions as well: no results are measured.")
@overwrite_option
@track_option
def refit(
    run: Path, path: Path, domain: Path | str | None, with_test: bool, overwrite: bool, track: str | None
) -> None:
    """Train as RUN was, on the validation's interactions too: what to deploy when nothing is left to choose.

    RUN tells the settings, the steps and the share of each view. The users or interactions of the test stay unknown, so
    the results compare with those of RUN, unless --with-test. An interrupted refit goes on like any other Run, with
    `bivrec pretrain` or `bivrec finetune` and --resume.
    """
    from bivrec.data.domain import Domain
    from bivrec.features.contract import reads_zeros
    from bivrec.refit import refit as train_again
    from bivrec.training.run import Run

    trained = Run.open(run)
    opened = None if domain is None else Domain.open(domain)
    if opened is not None:
        items = set(trained.item_ids())
        kept = len(items.intersection(opened.item_ids()))
        if kept < LEAST_KEPT * len(items):
            warn(f"{opened.location} has {kept:,} of the {len(items):,} items that {run} was trained on: another shop?")
        if line := reads_zeros(trained.feature_specs, opened, str(run)):
            warn(line)
    echo_results(train_again(trained, path, opened, with_test=with_test, overwrite=overwrite, tracker=track))
