"""All benchmarks at a small size, one after another, each in a process of its own: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys

import click

NAMES = ("prepare", "sampling", "train_step", "ranking", "serving", "scaling", "memory", "encode")


@click.command()
def main() -> None:
    """Run all benchmarks at a small size, each in a process of its own; fails if any does."""
    failed = []
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--small"], check=False).returncode:
            failed.append(name)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")
    print("\nall ran")


if __name__ == "__main__":
    main()
