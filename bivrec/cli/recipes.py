"""bivrec recipes."""

from __future__ import annotations

import click

from bivrec.cli.options import set_option
from bivrec.errors import BivrecError


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that ship with bivrec; `show NAME` prints one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_recipes)


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes."""
    from bivrec.recipes import read_recipe, recipe_names

    for name in recipe_names():
        click.echo(f"{name:<24} {read_recipe(name).get('description', '')}")


@recipes.command()
@click.argument("name")
@set_option
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print the recipe NAME with every setting and its description."""
    from bivrec.config import config_from_dict, describe
    from bivrec.recipes import read_recipe

    click.echo(describe(config_from_dict(read_recipe(name, None, overrides), f"recipe {name}")), nl=False)


@recipes.command()
@click.argument("name", required=False)
def launch(name: str | None) -> None:
    """Print the file of the launch configuration NAME, or list all: `accelerate launch --config_file FILE ...`."""
    from bivrec.recipes import launch_configs

    files = launch_configs()
    if name is None:
        for listed, path in files.items():
            click.echo(f"{listed:<12} {path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")
    elif name in files:
        click.echo(files[name])
    else:
        raise BivrecError(f"{name}: no such launch configuration; there are {', '.join(files)}")
