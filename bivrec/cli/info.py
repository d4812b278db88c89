"""bivrec info."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bivrec.cli.options import Command
from bivrec.cli.reports import echo_domain, echo_features, echo_views
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.artefact import BiVRec, Tower
    from bivrec.config import ModelConfig
    from bivrec.training.run import Run


@click.command(cls=Command)
@click.argument("what", metavar="FOLDER|ORG/NAME|hub:ORG/NAME")
@click.option("--verify", is_flag=True, help="Compare every file of a Domain with its checksum.")
def info(what: str, verify: bool) -> None:
    """Tell what a folder holds: a Domain, a Run, or a published model.

    ORG/NAME[@REVISION] is a model on the Hugging Face Hub, hub:ORG/NAME[@REVISION] a Domain.
    """
    from bivrec.artefact import load
    from bivrec.artefact_files import MODEL_FOLDER
    from bivrec.data.domain import HUB_PREFIX, Domain
    from bivrec.data.info import INFO_FILE
    from bivrec.training.run import RUN_FOLDER, Run

    folder = Path(what)
    if what.startswith(HUB_PREFIX) or (folder / INFO_FILE).is_file():
        domain = Domain.open(what)
        if verify:
            domain.verify()
        echo_domain(domain)
        if verify:
            click.echo("  every file is as its checksum says")
    elif verify:
        raise BivrecError(f"{what}: not a Domain, whose files alone --verify compares; leave it out")
    elif RUN_FOLDER.is_at(folder):
        _echo_run(Run.open(folder))
    elif folder.exists() and not MODEL_FOLDER.is_at(folder):
        raise BivrecError(f"{what}: neither a Domain nor a Run nor a published model; give the folder of one")
    else:
        _echo_model(load(what))


def _echo_run(run: Run) -> None:
    from bivrec.config import held_out_known

    record, training = run.info, run.config.training
    # Before anything is printed.
    results = run.results()
    click.echo(f"{run.path}: {record.stage} of {' + '.join(training.views)} on {record.domain['name']}")
    click.echo(f"  Domain: {record.domain['path']}")
    if record.started_from:
        click.echo(f"  tower: {record.started_from['name']}")
    _echo_architecture(run.config.model)
    echo_features(run.feature_specs)
    click.echo(f"  command: {record.command}")
    click.echo(f"  {', '.join(f'{name} {version}' for name, version in record.versions.items())}")
    if not run.checkpoint("last").exists():
        click.echo("  no checkpoint yet")
        return
    last = run.progress("last")
    go_on = f"bivrec {record.stage} --to {shlex.quote(str(run.path))} --resume"
    state = "" if run.has_ended() else f": not ended; go on with `{go_on}`"
    click.echo(f"  step {last.step:,} of {training.steps:,}, {last.seconds:.0f} s{state}")
    if known := held_out_known(record.config["training"]):
        click.echo(f"  trained on the {' and the '.join(known)} too")
    elif last.best_step:
        click.echo(f"  best weights of step {last.best_step:,}: validation recall@20 {100 * last.best_recall:.2f} %")
    if results:
        click.echo("on the test users:")
        echo_views(results, run.id_weight())


def _echo_model(model: Tower | BiVRec) -> None:
    from bivrec.artefact import Tower

    training, domain = model.training, model.training["domain"]
    kind = "tower" if isinstance(model, Tower) else "joint model"
    click.echo(f"{model.source['name']}: {kind}, {model.num_parameters:,} parameters")
    if model.source["revision"]:
        click.echo(f"  commit: {model.source['revision']}")
    click.echo(f"  trained on {domain['name']}: {domain['num_items']:,} items, {domain['users']['train']:,} users")
    _echo_architecture(model.config)
    echo_features(model.features)
    click.echo(f"  command: {training['command']}")
    if training["results"]:
        click.echo("on the test users:")
        echo_views(training["results"], training["id_weight"] if "both" in training["results"] else None)


def _echo_architecture(config: ModelConfig) -> None:
    layers = f"{config.num_layers} layer{'s' if config.num_layers > 1 else ''}"
    click.echo(
        f"  {config.system}: width {config.hidden_size}, {layers}, the last {config.max_history} items of a history"
    )
