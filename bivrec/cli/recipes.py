"""bivrec recipes."""

from __future__ import annotations

import click

from bivrec.cli.options import set_option
from bivrec.errors import BivrecError


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that ship with bivrec; `show NAME` prints one."""
    from bivrec.recipes import read_recipe, recipe_names

    if ctx.invoked_subcommand is None:
        for name in recipe_names():
            click.echo(f"{name:<24} {read_recipe(name).get('description', '')}")


@recipes.command()
@click.argument("name")
@set_option
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print the recipe NAME with every setting and its description.

    NAME is one of those that `bivrec recipes` lists, without its stage if no other stage has it, or a YAML file.
    """
    from bivrec.config import config_from_dict, describe
    from bivrec.recipes import full_name, read_recipe

    values = read_recipe(name, None, overrides)
    finetunes = not name.endswith((".yaml", ".yml")) and full_name(name).startswith("finetune/")
    config = config_from_dict(values, f"recipe {name}")
    click.echo(describe(config, beside_tower=values.get("model") or {} if finetunes else None), nl=False)


@recipes.command()
@click.argument("name", required=False)
def launch(name: str | None) -> None:
    """Print the path of the launch configuration NAME, or list all: `accelerate launch --config_file PATH ...`."""
    from bivrec.recipes import launch_configs, launch_summary

    files = launch_configs()
    if name is None:
        for listed, path in files.items():
            click.echo(f"{listed:<12} {launch_summary(path)}")
    elif name in files:
        click.echo(files[name])
    else:
        raise BivrecError(f"{name}: no such launch configuration; there are {', '.join(files)}")
