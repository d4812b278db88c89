"""bivrec info."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bivrec.cli.reports import echo_domain, feature_lines, mixture, results_table
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.artefact import BiVRec, Tower
    from bivrec.config import ModelConfig
    from bivrec.training.run import Run


@click.command()
@click.argument("what", metavar="FOLDER|ORG/NAME|hub:ORG/NAME")
def info(what: str) -> None:
    """Tell what a folder holds: a Domain, a Run, or a published model.

    ORG/NAME[@REVISION] is a model on the Hugging Face Hub, hub:ORG/NAME[@REVISION] a Domain.
    """
    from bivrec.artefact import MARKS as MODEL_MARKS
    from bivrec.artefact import load
    from bivrec.data.domain import HUB_PREFIX, INFO_FILE, Domain
    from bivrec.training.run import MARKS as RUN_MARKS
    from bivrec.training.run import Run

    folder = Path(what)
    if what.startswith(HUB_PREFIX) or (folder / INFO_FILE).is_file():
        echo_domain(Domain.open(what))
    elif _holds(folder, RUN_MARKS):
        _echo(_lines_of_run(Run.open(folder)))
    elif folder.exists() and not _holds(folder, MODEL_MARKS):
        raise BivrecError(f"{what}: neither a Domain nor a Run nor a published model; give the folder of one")
    else:
        _echo(_lines_of_model(load(what)))


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)


def _echo(lines: Iterator[str]) -> None:
    for line in lines:
        click.echo(line)


def _lines_of_run(run: Run) -> Iterator[str]:
    record, training = run.info, run.config.training
    yield f"{run.path}: {record.stage} of {' + '.join(training.views)} on {record.domain['name']}"
    yield f"  Domain: {record.domain['path']}"
    if record.started_from:
        yield f"  tower: {record.started_from['name']}"
    yield from _architecture(run.config.model)
    yield from feature_lines(run.feature_specs)
    yield f"  command: {record.command}"
    yield f"  bivrec {record.versions['bivrec']}, torch {record.versions['torch']}"
    if not run.checkpoint("last").exists():
        yield "  no checkpoint yet"
        return
    last = run.progress("last")
    results = run.results()
    state = "" if results else f": not ended; go on with `bivrec {record.stage} --to {run.path} --resume`"
    yield f"  step {last.step:,} of {training.steps:,}, {last.seconds:.0f} s{state}"
    if last.best_step:
        yield f"  best weights of step {last.best_step:,}: validation recall@20 {100 * last.best_recall:.2f} %"
    yield from _results(results, run.id_weight() if results else None)


def _lines_of_model(model: Tower | BiVRec) -> Iterator[str]:
    from bivrec.artefact import Tower

    training, domain = model.training, model.training["domain"]
    kind = "tower" if isinstance(model, Tower) else "joint model"
    yield f"{model.source['name']}: {kind}, {model.num_parameters:,} parameters"
    if model.source["revision"]:
        yield f"  commit: {model.source['revision']}"
    yield f"  trained on {domain['name']}: {domain['num_items']:,} items, {domain['users']['train']:,} users"
    yield from _architecture(model.config)
    yield from feature_lines(model.features)
    yield f"  command: {training['command']}"
    yield from _results(training["results"], training.get("id_weight"))


def _architecture(config: ModelConfig) -> Iterator[str]:
    layers = f"{config.num_layers} layer{'s' if config.num_layers > 1 else ''}"
    yield f"  {config.system}: width {config.hidden_size}, {layers}, the last {config.max_history} items of a history"


def _results(results: Mapping[str, Any], id_weight: float | None) -> Iterator[str]:
    """Of the test users, if there are results yet."""
    if results:
        yield "on the test users:"
        yield results_table(dict(results))
    if id_weight is not None:
        yield f"both = {mixture(id_weight)}"
