"""The `bivrec` command line. Commands are imported when called, so that `bivrec --help` is instant."""

from __future__ import annotations

import importlib
import io
import signal
import sys
import threading

import click

from bivrec.errors import FULL_DISK, BivrecError
from bivrec.memory import keep_freed_memory
from bivrec.version import __version__

# command -> (module of bivrec.cli, line of help): the help must not import the command.
COMMANDS = {
    "prepare": ("prepare", "Turn raw data into a Domain."),
    "encode": ("encode", "Add frozen text and image features to a Domain."),
    "pretrain": ("pretrain", "Train both views on a source Domain (stage 1)."),
    "publish": ("publish", "Publish a Run's model to a folder or the Hugging Face Hub."),
    "publish-domain": ("publish_domain", "Publish a Domain as a data set, to a folder or the Hugging Face Hub."),
    "finetune": ("finetune", "Attach a fresh ID tower to a published tower and train both views (stage 2)."),
    "refit": ("refit", "Train as a Run was, on the validation's interactions too."),
    "evaluate": ("evaluate", "Rank the whole catalogue for the users of a split and print the metrics."),
    "recommend": ("recommend", "Recommend items to the users of a Domain, or to others."),
    "export": ("export", "Write a Domain as plain tables, for other programs."),
    "compare": ("compare", "Train and evaluate many systems on the same Domains, with significance."),
    "experiment": ("experiment", "Repeat an experiment of the paper: ablation, noise, transfer and others."),
    "info": ("info", "Tell what a folder or a repository on the Hub holds."),
    "plot": ("plot", "Draw the validation curves of Runs."),
    "recipes": ("recipes", "List and show the recipes that ship with bivrec."),
    "quickstart": ("quickstart", "Run the whole chain on two small synthetic domains."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = COMMANDS[name][0]
        command: click.Command = getattr(importlib.import_module(f"bivrec.cli.{module}"), module)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
        except BivrecError as fault:
            raise click.ClickException(str(fault)) from fault
        except OSError as fault:
            # Of a rename, the second name is the one that the user gave.
            path = fault.filename2 or fault.filename
            advice = "; make room on the disk" if fault.errno in FULL_DISK else ""
            where = path or ("cannot write" if advice else None)
            what = fault.strerror or fault
            raise click.ClickException(f"{where}: {what}{advice}" if where else f"{what}") from fault
        except Exception as fault:
            safetensors = sys.modules.get("safetensors")
            # Those of reading are BivrecErrors by now, these are of writing, to a disk that is broken.
            if safetensors and isinstance(fault, safetensors.SafetensorError):
                raise click.ClickException(str(fault)) from fault
            raise
        distributed = sys.modules.get("torch.distributed")
        if distributed and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        return result


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="bivrec")
def main() -> None:
    """Transferable multimodal sequential recommendation (BiVRec, arXiv 2402.17334).

    Raw data -> prepare -> encode -> pretrain -> publish -> finetune --from-hub -> evaluate, recommend.

    DOMAIN is a folder that `prepare` made, or hub:ORG/NAME[@REVISION] on the Hugging Face Hub.
    """
    keep_freed_memory()
    # A terminal may lack a letter of a title.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Only the main thread may set handlers.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: object) -> None:
    """End as an error does, so that what is half-written is removed; a training saves instead."""
    sys.exit(128 + number)
