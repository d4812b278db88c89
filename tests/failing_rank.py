"""A command of bivrec whose last process fails in its second step; the arguments are the command's."""

import sys
from typing import Any

from bivrec.cli import main
from bivrec.data.batches import BatchSampler
from bivrec.errors import BivrecError

draw = BatchSampler.batch


def fail(self: BatchSampler, step: int, part: int, parts: int) -> Any:
    if step == 1 and part == parts - 1:
        raise BivrecError("the disk of this process is gone")
    return draw(self, step, part, parts)


if __name__ == "__main__":
    BatchSampler.batch = fail
    sys.exit(main())
