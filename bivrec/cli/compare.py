"""bivrec compare."""

from __future__ import annotations

from pathlib import Path

import click

from bivrec.cli.options import DOMAIN, Command, set_option
from bivrec.cli.studies import carry_out, comma_list, open_domains, study_options
from bivrec.config import FLOORS
from bivrec.studies.systems import SYSTEMS

MODELS_HELP = (
    f"Models, with commas or the option again: {', '.join((*FLOORS, *SYSTEMS))}.  "
    "[default: all that the features of the Domains allow]"
)


@click.command(cls=Command)
@click.argument("domains", metavar="DOMAIN...", type=DOMAIN, nargs=-1, required=True)
@click.option("--models", multiple=True, callback=comma_list, metavar="NAME,...", help=MODELS_HELP)
@click.option("--reference", metavar="NAME",
              help="The model whose lead is tested, if it was named in advance.  [default: the best]")  # fmt: skip
@click.option("--k", type=click.IntRange(1, 1 << 31), default=20, help="Length of the lists.")
@click.option("--refit", is_flag=True, help="Rank with a second training of each, on the validation too.")
@click.option("--tune", "grid", multiple=True, metavar="KEY=[VALUE,...]",
              help="Try these values of a setting for every model with the first seed, and let each keep its best on "
                   "the validation users; given again, every combination.")  # fmt: skip
@study_options
@set_option
def compare(
    domains: tuple[Path | str, ...],
    models: tuple[str, ...],
    reference: str | None,
    k: int,
    refit: bool,
    grid: tuple[str, ...],
    seeds: tuple[int, ...],
    recipe: str,
    path: Path,
    jobs: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train and evaluate many systems on the same Domains, for as many steps of as many sequences.

    Every training is an ordinary Run in FOLDER/runs/DOMAIN/MODEL/seed-SEED. What is finished is kept: the same command
    goes on where it stopped, and may ask for more models, Domains and seeds; the tables are of what it asks for. A
    model that fails does not stop the others. Writes comparison.md, .csv, .tex and .png into FOLDER: metrics on the
    test users with seen items kept and removed, the significance of one model's lead, training time, and the paper's
    figures. With --tune, tuning.csv has the validation recall of everything that was tried.
    """
    from bivrec.studies.compare import comparison
    from bivrec.studies.tuning import read_grid

    tuned = read_grid(grid)
    study = comparison(open_domains(domains), models, reference, k=k, refit=refit, tuned=tuned)
    carry_out(study, "comparison", path, recipe, overrides, seeds, jobs, grid=tuned)
