"""All benchmarks at a small size, one after another, each in a process of its own: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

NAMES = ("prepare", "sampling", "train_step", "ranking", "scaling", "memory", "encode")


def names() -> list[str]:
    """The benchmarks that there are."""
    return [name for name in NAMES if find_spec(f"benchmarks.{name}")]


def main() -> int:
    """Run them; 1 if any fails."""
    failed = []
    for name in names():
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--small"], check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall ran")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
