"""bivrec experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bivrec.cli.options import DOMAIN, Command, set_option
from bivrec.cli.studies import carry_out, open_domains, study_options

EXPERIMENTS = {
    "ablation": "Table 2: without multi-scale embedding, Gaussian attention, cluster attention, allocation loss",
    "modalities": "Fig. 3a: text, image, or both",
    "assignment": "Fig. 3b: softmax-soft, softmax-hard and gumbel-hard assignment, at three temperatures",
    "noise": "Fig. 3c: 0, 5, 10 and 20 % of the training items replaced at random",
    "cold-start": "Fig. 3d: only the last one or two items of the histories are read",
    "transfer": "Table 3: trained on the first DOMAIN, ranking the others zero-shot, and supervised rows",
    "interests": "Fig. 4: t-SNE and silhouette of the same users' interests, against ComiRec",
    "sweep": "Fig. 5: number of interests K and F, weights lambda1 and lambda2; on validation users",
}


def _list(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        for name, text in EXPERIMENTS.items():
            click.echo(f"{name:<12} {text}")
        ctx.exit()


@click.command(cls=Command)
@click.argument("name", metavar="NAME", type=click.Choice(list(EXPERIMENTS)))
@click.argument("domains", metavar="DOMAIN...", type=DOMAIN, nargs=-1, required=True)
@study_options
@set_option
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the experiments.")
def experiment(
    name: str, domains: tuple[Path | str, ...], overrides: tuple[str, ...], recipe: str, **options: Any
) -> None:
    """Repeat the experiment NAME of the paper on each DOMAIN (transfer: from the first to the others).

    NAME is one of those that --list prints. Each variant is the recipe with some settings changed, trained as by
    `bivrec compare`: an ordinary Run in FOLDER/runs/DOMAIN/VARIANT/seed-SEED. What is finished is kept, so the same
    command goes on where it stopped. Writes NAME.md, .csv, .tex and .png into FOLDER.
    """
    from bivrec.recipes import read_recipe
    from bivrec.studies.experiments import EXPERIMENTS

    chosen = EXPERIMENTS[name]
    study = chosen.study(open_domains(domains), read_recipe(recipe, "pretrain", overrides))
    carry_out(study, name, recipe=recipe, overrides=overrides, **options, finish=chosen.finish, picture=chosen.picture)
