import io
import re
import sys
from pathlib import Path

import pytest
from stages import config, interrupt_at

from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.pretrain import pretrain, resume
from bivrec.training import loop, progress
from bivrec.training.checkpoint import Progress
from bivrec.training.progress import ProgressDisplay, duration
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

LINE = re.compile(
    r"step (\d+)/6  loss ([\d.]+)  validation recall@20 ([\d.]+) % \(best ([\d.]+) at step (\d+)\)  "
    r"[\d.]+ steps/s(  (\d+ s|\d+ min) left)?"
)


def recalls(run: Run) -> dict[int, float]:
    lines = [line for line in run.metrics() if line.get("view") == "both"]
    return {line["step"]: round(100 * line["recall@20"], 2) for line in lines}


def check(lines: list[str], run: Run, steps: list[int]) -> None:
    """Whether the lines tell these evaluations as metrics.jsonl does."""
    found = [LINE.fullmatch(line) for line in lines]
    losses = {line["step"]: line["loss"] for line in run.metrics() if line["split"] == "train"}
    assert [int(line[1]) for line in found if line] == steps
    assert len(lines) == len(steps)
    for line, step in zip(found, steps, strict=True):
        assert line is not None
        before = {earlier: recall for earlier, recall in recalls(run).items() if earlier <= step}
        assert float(line[2]) == pytest.approx(losses[step], abs=0.005)
        assert float(line[3]) == before[step]
        assert float(line[4]) == max(before.values()) == before[int(line[5])]
        assert (line[6] is None) == (step == 6)


def test_without_a_terminal_every_evaluation_is_a_line(
    source: Domain, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(training={"steps": 6, "evaluate_every": 2})
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=4)
        with pytest.raises(BivrecError, match="interrupted"):
            pretrain(source, tmp_path / "run", wanted)
    first = capfd.readouterr()
    run = resume(tmp_path / "run")
    then = capfd.readouterr()
    check(first.err.splitlines(), run, [2, 4])
    check(then.err.splitlines(), run, [6])
    assert first.out == then.out == ""


def test_without_a_terminal_no_minute_is_silent(
    source: Domain, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"steps": 6, "evaluate_every": 3}
    monkeypatch.setattr(loop, "REPORT_EVERY", 2)
    pretrain(source, tmp_path / "in time", config(training=wanted))
    assert [line.split()[1] for line in capfd.readouterr().err.splitlines()] == ["3/6", "6/6"]
    monkeypatch.setattr(progress, "LONGEST_SILENCE", 0)
    for patience, at_most in ((0, ""), (5, "at most ")):
        pretrain(source, tmp_path / f"patience {patience}", config(training={**wanted, "patience": patience}))
        lines = capfd.readouterr().err.splitlines()
        assert [line.split()[1] for line in lines] == ["2/6", "3/6", "4/6", "6/6"]
        assert re.fullmatch(rf"step 2/6  loss [\d.]+  [\d.]+ steps/s  {at_most}\d+ s left", lines[0])


def test_on_a_terminal_there_is_a_bar(source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    run = pretrain(source, tmp_path / "run", config(training={"steps": 6, "evaluate_every": 2}))
    assert re.search(rf"loss [\d.]+, recall@20 {recalls(run)[6]:.2f} % \(best ", terminal.getvalue())
    assert not [line for line in terminal.getvalue().splitlines() if line.startswith("step ")]


def test_of_several_processes_one_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with ProgressDisplay(4, 0, "recall@20", may_stop=False, shown=shown) as display:
            display.advance()
            display.evaluated(Progress(step=1, best_step=1, best_recall=0.125), 5.25, 0.125)
        line = capfd.readouterr().err
        expected = "step 1/4  loss 5.25  validation recall@20 12.50 % (best 12.50 at step 1)  "
        assert line.startswith(expected) if shown else line == ""


def test_durations() -> None:
    told = [duration(seconds) for seconds in (0.2, 59.4, 60, 3500, 3580, 7500, 360_000)]
    assert told == ["0 s", "59 s", "1 min", "58 min", "1 h 00 min", "2 h 05 min", "100 h 00 min"]
