"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from bivrec.errors import BivrecError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)
ON_THE_HUB = re.compile(r"hub:[\w.-]+/[\w.-]+(@[^@\s]+)?")


class _DomainType(click.ParamType[Path | str]):
    """What `Domain.open` takes: a folder, or a Domain on the Hub."""

    name = "domain"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        if not str(value).startswith("hub:"):
            return Path(value)
        if not ON_THE_HUB.fullmatch(value):
            self.fail(f"{value}: expected a folder or hub:ORG/NAME[@REVISION]", param, ctx)
        return str(value)


DOMAIN = _DomainType()


class Command(click.Command):
    """A command that refuses a second value of an option that takes one: click would keep the last in silence."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As of click. Raises UsageError for such an option."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            if isinstance(option, click.Option) and not (option.multiple or option.is_flag) and given.count(option) > 1:
                raise click.UsageError(f"{option.opts[0]} was given twice, and takes one value; give it once", ctx)
        return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def together(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """One decorator of several options, in their order."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _views(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Callback of --views: the settings that it overrides."""
    if value is None:
        return ()
    trained = "[id, mm]" if value == "both" else f"[{value}]"
    return f"training.views={trained}", f"training.selection_view={value}"


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. model.hidden_size=128."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what such a command made there before.")
hub_options = together(
    click.option("--private", is_flag=True, help="Make a new repository on the Hub private."),
    click.option("--revision", metavar="BRANCH", help="Branch on the Hub; made if there is none.  [default: main]"),
    click.option("--message", help="Message of the commit on the Hub."),
    click.option("--create-pr", is_flag=True, help="Propose it as a pull request on the Hub."),
    click.option("--tag", help="Tag the commit on the Hub, e.g. v1."),
    click.option("--overwrite-card", is_flag=True, help="Replace a card on the Hub that a person edited."),
)
"""Of publishing to the Hub."""
run_options = together(
    click.option("--to", "path", type=FOLDER, required=True, help="Folder of the new Run."),
    click.option("--recipe", default="default",
                 help="A recipe of `bivrec recipes`, or a YAML file such as `bivrec recipes show` prints; what it "
                 "leaves out is not that of another recipe."),
    click.option("--views", type=click.Choice(["both", "mm", "id"]), callback=_views,
                 help="Views to train.  [default: the recipe's]"),
)  # fmt: skip
track_option = click.option("--track", metavar="NAME", help="Also log to a tracker, e.g. tensorboard or wandb.")
training_options = together(
    set_option,
    overwrite_option,
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with the interrupted Run, with its own settings; DOMAIN only where its Domain has been moved.",
    ),
    track_option,
)


def warn(line: str) -> None:
    """Print a warning, beside what the command prints."""
    click.echo(f"Warning: {line}", err=True)


def check_destination(destination: str, overwrite: bool, pushing: Mapping[str, Any]) -> None:
    """Raise BivrecError if an option of the Hub (`pushing`) was given for a folder, or one of a folder for the Hub, or
    if the destination is neither, but what other commands take or a browser shows."""
    from bivrec.repository import is_repository

    name, _, revision = destination.partition("@")
    if destination.startswith("hub:") or "://" in destination:
        raise BivrecError(f"--to {destination}: expected ORG/NAME on the Hub, or a folder")
    if revision and is_repository(name):
        raise BivrecError(f"--to {destination}: expected ORG/NAME; name a branch with --revision, a version with --tag")
    given = [f"--{name.replace('_', '-')}" for name, value in pushing.items() if value]
    if given and not is_repository(destination):
        raise BivrecError(f"{destination}: a folder, and {', '.join(given)} is for a repository ORG/NAME on the Hub")
    if overwrite and is_repository(destination):
        raise BivrecError(f"{destination}: a repository on the Hub, whose history stays; leave --overwrite out")


def echo_preview(files: Mapping[str, int], card: str) -> None:
    """Print what would be published: files with their bytes, and the card."""
    for name, size in files.items():
        click.echo(f"{size:>14,}  {name}")
    click.echo(f"\n{card}", nl=False)


def need_domain(domain: Path | str | None) -> Path | str:
    """The DOMAIN of a training that is not resumed. Raises BivrecError if it was not given."""
    if domain is None:
        raise BivrecError("DOMAIN: expected the folder of a prepared Domain or hub:ORG/NAME[@revision], or --resume")
    return domain


def allow_only(ctx: click.Context, *allowed: str) -> None:
    """Raise BivrecError if any other parameter than these was given: it would be ignored."""
    if given := _given(ctx, {parameter.name or "" for parameter in ctx.command.params} - set(allowed)):
        raise BivrecError(f"--resume goes on with the Run's own settings; leave {', '.join(given)} out")


def refuse_unused(names: Collection[str], purpose: str, used: object) -> None:
    """Raise BivrecError if one of these parameters was given, unless what they are for is `used`."""
    if not used and (given := _given(click.get_current_context(), names)):
        raise BivrecError(f"leave {', '.join(given)} out: of no use without {purpose}")


def _given(ctx: click.Context, names: Collection[str]) -> list[str]:
    """The options of the command line that belong to parameters of these names."""
    return [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name in names and ctx.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE
    ]
