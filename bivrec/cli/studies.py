"""What `compare` and `experiment` share: options, and how a study is carried out and told."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bivrec.cli.options import FOLDER, together
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.data.domain import Domain
    from bivrec.studies.study import Study


def comma_list(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of a repeatable option whose values may hold several words with commas between them; none twice.

    Raises BivrecError if they hold none, as a variable of the shell that is not set: that must not mean the default.
    """
    words = tuple(dict.fromkeys(word.strip() for value in values for word in value.split(",") if word.strip()))
    if values and not words:
        raise BivrecError(f"{parameter.opts[0]}: expected at least one")
    return words


def _seeds(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    kind: click.ParamType[Any] = click.IntRange(min=0)
    return tuple(dict.fromkeys(kind.convert(word, parameter, ctx) for word in comma_list(ctx, parameter, values)))


study_options = together(
    click.option("--seeds", multiple=True, callback=_seeds, default=("0",), metavar="SEED,...",
                 help="Seeds, with commas or the option again: each model is trained once with each."),
    click.option("--recipe", default="default", help="A recipe of stage pretrain (`bivrec recipes`), or a YAML file."),
    click.option("--to", "path", type=FOLDER, required=True, help="Folder of the study."),
    click.option("--jobs", type=click.IntRange(min=1),
                 help="Trainings at once, on a GPU each or sharing the processor.  [default: number of GPUs, or 1]"),
)  # fmt: skip


def open_domains(domains: Sequence[Path | str]) -> list[Domain]:
    """The Domains of a study. Raises BivrecError like `Domain.open`, for seeds that were taken for Domains, and for a
    Domain that is given twice."""
    from bivrec.data.domain import Domain

    for word in map(str, domains):
        if word.isdecimal() and not Path(word).exists():
            raise BivrecError(f"{word}: not a Domain; several seeds are given with commas, as in --seeds 0,1,2")
    opened: dict[Path, Domain] = {}
    for domain in domains:
        found = Domain.open(domain)
        if opened.setdefault(found.path.resolve(), found) is not found:
            raise BivrecError(f"{domain}: given twice; name every Domain once")
    return list(opened.values())


def carry_out(
    study: Study,
    name: str,
    path: Path,
    recipe: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    jobs: int | None,
    **more: Any,
) -> None:
    """Carry a study out, and say what came of it. Raises BivrecError at the end if trainings failed."""
    import torch

    from bivrec.recipes import read_recipe
    from bivrec.studies import execution

    values = read_recipe(recipe, "pretrain", overrides)
    failed = execution.carry_out(
        dataclasses.replace(study, settings=_settings(study, recipe, overrides, values), command=_command()),
        name,
        path,
        values,
        seeds,
        parallel=jobs or max(1, torch.cuda.device_count()),
        report=lambda line: click.echo(line, err=True),
        **more,
    )
    if (path / f"{name}.md").exists():
        click.echo((path / f"{name}.md").read_text(encoding="utf-8"), nl=False)
    if failed:
        raise BivrecError(f"{len(failed)} failed and are not in the tables: {', '.join(failed)}")


def _settings(study: Study, recipe: str, overrides: Sequence[str], values: Mapping[str, Any]) -> str:
    """The sentence under the title of a study. Raises BivrecError if the recipe is impossible."""
    from bivrec.config import LEAST_STEPS, config_from_dict
    from bivrec.version import __version__

    if not study.trainings:
        return f"bivrec {__version__}."
    training = config_from_dict(values, f"recipe {recipe}").training
    changed = f" with {', '.join(f'`{override}`' for override in overrides)}" if overrides else ""
    until = "" if training.patience == 0 else "at most "
    epochs = f"{training.epochs:g} epochs, {LEAST_STEPS} steps or more,"
    length = f"{training.steps} steps" if training.steps else epochs
    return f"Recipe {recipe}{changed}; {until}{length} of {training.batch_size} sequences; bivrec {__version__}."


def _command() -> str:
    return shlex.join(["bivrec", *sys.argv[1:]])
