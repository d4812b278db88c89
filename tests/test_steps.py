"""How long a training is that leaves it to the size of its Domain."""

import math
from pathlib import Path

import pytest
from stages import bivrec, config, interrupt_at, settings

from bivrec.artefact import Tower
from bivrec.config import EVALUATIONS, LEAST_STEPS, Config, TrainingConfig
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.finetune import finetune
from bivrec.pretrain import pretrain, resume
from bivrec.refit import refit
from bivrec.training import fit
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

BATCH_SIZE = 16


def sized(**training: float) -> Config:
    return config(training={"steps": 0, "evaluate_every": 0, "batch_size": BATCH_SIZE, **training})


def on(domain: Domain, **training: float) -> TrainingConfig:
    return fit.with_steps_on(domain, sized(**training)).training


def steps_of(domain: Domain, epochs: float, min_history: int = 1) -> int:
    train = domain.sequences("train")
    learnt_from = sum(len(train[user]) > min_history for user in range(len(train)))
    return math.ceil(epochs * learnt_from / BATCH_SIZE)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a few steps."""
    monkeypatch.setattr(fit, "LEAST_STEPS", 1)


def test_epochs_are_passes_over_the_sequences_that_can_be_learnt_from(source: Domain) -> None:
    for epochs in (200, 300.5):
        assert on(source, epochs=epochs).steps == steps_of(source, epochs) > LEAST_STEPS
    longer = on(source, epochs=300, min_history=12).steps
    assert LEAST_STEPS < longer == steps_of(source, 300, min_history=12) < steps_of(source, 300)


def test_few_users_take_no_fewer_steps_than_others(source: Domain) -> None:
    assert steps_of(source, 4) < LEAST_STEPS
    assert on(source, epochs=4).steps == on(source, epochs=0).steps == LEAST_STEPS


def test_it_is_evaluated_a_few_times_however_long_it_is(source: Domain) -> None:
    for training in ({"epochs": 0}, {"epochs": 250}, {"steps": 7}):
        found = on(source, **training)
        assert math.ceil(found.steps / found.evaluate_every) in (EVALUATIONS - 2, EVALUATIONS - 1, EVALUATIONS)


def test_what_is_said_is_kept(source: Domain) -> None:
    assert on(source, steps=5, evaluate_every=3, epochs=400) == sized(steps=5, evaluate_every=3, epochs=400).training
    assert on(source, epochs=0, evaluate_every=50).evaluate_every == 50


@pytest.mark.usefixtures("short")
def test_a_run_says_how_long_it_was_and_is_resumed_and_refit_so(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of(source, 1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=2)
        with pytest.raises(BivrecError, match="interrupted"):
            pretrain(source, tmp_path / "run", sized(epochs=1))
    run = resume(tmp_path / "run")
    assert run.config.training.steps == run.progress("last").step == steps
    assert f"step {steps:,} of {steps:,}" in bivrec("info", run.path).stdout
    final = refit(run, tmp_path / "refit")
    assert final.config.training.steps == final.progress("last").step == run.progress().best_step


@pytest.mark.usefixtures("short")
def test_a_finetuning_is_as_long_as_its_own_domain_asks_for(target: Domain, tower: Path, tmp_path: Path) -> None:
    run = finetune(target, tmp_path / "run", sized(epochs=1), Tower.from_pretrained(str(tower)))
    assert run.config.training.steps == run.progress("last").step == steps_of(target, 1)


def test_a_study_trains_all_alike_and_finds_it_done(source: Domain, tmp_path: Path) -> None:
    arguments = ["--models", "pure-id,popularity", "--to", tmp_path / "study"]
    length = {"steps": 0, "epochs": 1, "evaluate_every": 0}
    asked = ["compare", source.path, *arguments, *settings(training=length)]
    assert bivrec(*asked).exit_code == 0
    run = Run.open(tmp_path / "study" / "runs" / "source" / "pure-id" / "seed-0")
    assert run.config.training.steps == LEAST_STEPS
    assert "1 epochs, 300 steps or more, of 16 sequences" in (tmp_path / "study" / "comparison.md").read_text()
    ended = run.checkpoint("last").stat().st_mtime_ns
    assert bivrec(*asked).exit_code == 0
    assert run.checkpoint("last").stat().st_mtime_ns == ended
