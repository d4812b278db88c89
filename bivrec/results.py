"""What results.json says of a Run or a published model: its metrics on the test users."""

from __future__ import annotations

import math
from typing import Any

from bivrec.errors import BivrecError

Results = dict[str, dict[str, float]]
"""View -> metric -> value, with the same metrics of each view."""


def checked_results(values: Any, source: str, advice: str) -> Results:
    """The content of results.json; `source` names the file. Raises BivrecError if it is anything else than Results."""
    if not isinstance(values, dict) or not all(isinstance(metrics, dict) for metrics in values.values()):
        raise BivrecError(f"{source}: expected metrics by view; {advice}")
    for view, metrics in values.items():
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                where = f"{source}: {view!r:.80}: {name!r:.80}"
                raise BivrecError(f"{where}: expected a number, found {value!r:.80}; {advice}")
        if metrics.keys() != next(iter(values.values())).keys():
            raise BivrecError(f"{source}: {view!r:.80}: has other metrics than the views before it; {advice}")
    return values
