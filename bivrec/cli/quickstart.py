"""bivrec quickstart."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click

from bivrec.cli.options import FOLDER, Command, overwrite_option
from bivrec.files import FolderKind, check_new_folder

COMMANDS = """
prepare synthetic --to {0}/world --users 1200 --items 400 --mean-length 40
    --target-users 1000 --target-items 300 --target-mean-length 15
encode {0}/world/source --text hashing --image descriptor --whiten
encode {0}/world/target --text hashing --image descriptor --whiten
pretrain {0}/world/source --recipe quickstart --to {0}/pretrained
publish {0}/pretrained --to {0}/tower
finetune {0}/world/target --from-hub {0}/tower --recipe quickstart --to {0}/finetuned
finetune {0}/world/target --from-hub {0}/tower --from-scratch --recipe quickstart --to {0}/scratch
evaluate {0}/world/target --floor popularity --floor item-knn --floor spectral-knn --floor content-knn
    --floor recent-content-knn --from-hub {0}/tower --run {0}/scratch --run {0}/finetuned --plot {0}/comparison.png
"""
QUICKSTART_FOLDER = FolderKind(
    marks=("world/source/domain.json", "world/target/domain.json"),
    entries=("world", "pretrained", "tower", "finetuned", "scratch", "comparison.png"),
)


def commands(folder: Path) -> list[list[str]]:
    """The arguments of each `bivrec` command of the quickstart, in order."""
    lines = COMMANDS.strip().replace("\n    ", " ").splitlines()
    return [[word.format(folder) for word in line.split()] for line in lines]


@click.command(cls=Command)
@click.option("--to", "folder", type=FOLDER, default=Path("quickstart"), help="Folder for everything that is made.")
@overwrite_option
@click.pass_context
def quickstart(ctx: click.Context, folder: Path, overwrite: bool) -> None:
    """Run the whole chain on two small synthetic domains.

    Prints and runs the commands that a user would type: prepare, encode, pretrain, publish, finetune, evaluate.
    """
    check_new_folder(folder, overwrite, kind=QUICKSTART_FOLDER)
    if folder.exists():
        shutil.rmtree(folder)
    group = ctx.find_root().command
    for arguments in commands(folder):
        click.secho(f"\n$ bivrec {shlex.join(arguments)}", bold=True)
        group.main(arguments, prog_name="bivrec", standalone_mode=False)
    click.echo(f"\npicture: {folder / 'comparison.png'}; model card: {folder / 'tower' / 'README.md'}")
