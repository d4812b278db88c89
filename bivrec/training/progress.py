"""What a training shows while it runs: a bar on a terminal; in a log, which keeps every line, one for an evaluation,
and for every minute without one."""

from __future__ import annotations

import sys
import time

from tqdm.auto import tqdm

from bivrec.training.checkpoint import Progress

LONGEST_SILENCE = 60
"""Seconds after which a log gets a line without an evaluation."""


class ProgressDisplay:
    """Steps, loss and validation metric of a training, on the standard error of the process that shows them."""

    def __init__(self, steps: int, done: int, metric: str, *, may_stop: bool, shown: bool) -> None:
        """steps: at most, of which `done` were done before. metric: name of what selects the best weights.

        may_stop: whether patience may end the training before the last step.
        """
        self._steps, self._done, self._metric = steps, done, metric
        # None: unless standard error is no terminal.
        self._bar = tqdm(total=steps, initial=done, desc="training", unit="step", disable=None if shown else True)
        self._at_most = "at most " if may_stop else ""
        self._in_lines = shown and self._bar.disable
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *fault: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Count a step."""
        self._bar.update()

    def reported(self, step: int, loss: float) -> None:
        """Show the mean loss since the last report, in a log where there was no line for a while."""
        if time.monotonic() - self._spoke >= LONGEST_SILENCE:
            self._line(step, f"loss {loss:.2f}", ends=False)

    def evaluated(self, progress: Progress, loss: float, value: float | None) -> None:
        """Show the mean loss since the last report, and the metric as a fraction of 1; None: it was not evaluated."""
        best = f"(best {100 * progress.best_recall:.2f} at step {progress.best_step})"
        metric = "" if value is None else f"{self._metric} {100 * value:.2f} % {best}"
        self._bar.set_postfix_str(", ".join(filter(None, (f"loss {loss:.2f}", metric))))
        ends = progress.finished or progress.step >= self._steps
        self._line(progress.step, f"loss {loss:.2f}{metric and f'  validation {metric}'}", ends=ends)

    def _line(self, step: int, told: str, *, ends: bool) -> None:
        if not self._in_lines:
            return
        self._spoke = time.monotonic()
        rate = (step - self._done) / (self._spoke - self._started)
        left = "" if ends else f"  {self._at_most}{duration((self._steps - step) / rate)} left"
        line = f"step {step}/{self._steps}  {told}  {rate:.{1 if rate < 100 else 0}f} steps/s{left}"
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Rounded for people: `40 s`, `8 min`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
