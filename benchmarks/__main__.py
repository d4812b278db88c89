"""All benchmarks at a small size, one after another, each in a process of its own: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("prepare", "sampling", "train_step", "ranking", "serving", "scaling", "memory", "encode")


def main() -> int:
    """Run them; 1 if any fails."""
    failed = []
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--small"], check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall ran")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
