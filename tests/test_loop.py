import dataclasses
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import NOISELESS, config, interrupt_at, same, settings, train_losses, untrained, weights

from bivrec.baselines.spectral import spectral_vectors
from bivrec.config import Config
from bivrec.data.domain import Domain, write_domain
from bivrec.data.info import SPLITS
from bivrec.errors import BivrecError
from bivrec.evaluation.ranking import EvaluationResult
from bivrec.locks import LOCK_FILE, locked
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.pretrain import pretrain, resume
from bivrec.training.checkpoint import Progress
from bivrec.training.fit import fit
from bivrec.training.loop import Trainer, make_accelerator
from bivrec.training.run import Run

pytest_plugins = ("stage_fixtures",)

PREFIX = {"readout": "prefix", "gaussian": "bias", "score": "cosine"}
SAMPLED = {"candidates": "popularity", "num_negatives": 20}
RESUMED: dict[str, dict[str, dict[str, Any]]] = {
    "both": {},
    "prefix": {"model": PREFIX, "training": {"targets_per_sequence": 3}},
    "sampled": {"objective": SAMPLED, "training": {"views": ["id"], "accumulate": 2}},
    "sparse table": {"objective": SAMPLED, "training": {"views": ["id"], "accumulate": 2, "weight_decay": 0.1}},
    "repeats": {"model": {"repeat_bias": True, "id_items": "ids+features"}, "training": {"id_init": "spectral"}},
    "scheduled": {"training": {"views": ["mm"], "schedule": "cosine", "warmup_steps": 4, "optimizer": "adam"}},
}


def with_steps(steps: int, evaluate_every: int, **sections: dict[str, Any]) -> Config:
    training = {"steps": steps, "evaluate_every": evaluate_every, **sections.pop("training", {})}
    return config(training=training, **sections)


def without_rates(run: Run) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in run.metrics()]


# Interrupt and resume


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_training_continues_bit_for_bit(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    if case == "sparse table":
        monkeypatch.setattr("bivrec.training.objective.SPARSE_ROWS", 0)
    wanted = with_steps(12, 4, **RESUMED[case])
    straight = pretrain(source, tmp_path / "straight", wanted)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=7)
        with pytest.raises(BivrecError, match=r"interrupted at step 8 and saved; .*--resume"):
            pretrain(source, tmp_path / "broken", wanted)
    resumed = resume(tmp_path / "broken")
    for name in ("last", "best"):
        assert same(weights(straight, name), weights(resumed, name))
    assert straight.results() == resumed.results()
    assert without_rates(straight) == without_rates(resumed)


def test_an_interrupt_between_evaluations_loses_and_doubles_no_step(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = with_steps(8, 4)
    straight = pretrain(source, tmp_path / "straight", wanted)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=5)
        with pytest.raises(BivrecError, match="step 6"):
            pretrain(source, tmp_path / "broken", wanted)
    resumed = resume(tmp_path / "broken")
    assert same(weights(straight), weights(resumed))
    assert [(line["split"], line["step"], line.get("view")) for line in resumed.metrics()] == [
        (line["split"], line["step"], line.get("view")) for line in straight.metrics()
    ]


def test_a_domain_that_is_prepared_anew_meanwhile_changes_nothing(
    source: Domain, target: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a nightly `prepare --overwrite` may: what is asked in the end are the users of the Domain that was opened."""
    wanted = with_steps(4, 4)
    undisturbed = pretrain(source, tmp_path / "undisturbed", wanted)
    shutil.copytree(source.path, tmp_path / "domain")
    train = Trainer.train

    def replaced(trainer: Trainer, *arguments: Any) -> None:
        train(trainer, *arguments)
        (tmp_path / "domain").rename(tmp_path / "old")
        shutil.rmtree(tmp_path / "old")
        shutil.copytree(target.path, tmp_path / "domain")

    monkeypatch.setattr(Trainer, "train", replaced)
    assert pretrain(Domain.open(tmp_path / "domain"), tmp_path / "run", wanted).results() == undisturbed.results()


def test_what_a_kill_left_of_a_checkpoint_is_removed(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=1)
        with pytest.raises(BivrecError, match="interrupted"):
            pretrain(source, tmp_path / "run", with_steps(4, 2))
    (tmp_path / "run" / ".last.safetensors.77.tmp").touch()
    resume(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


def test_a_killed_training_does_again_what_was_not_saved(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = with_steps(8, 4)
    straight = pretrain(source, tmp_path / "straight", wanted)
    calls = iter(range(8))

    def killed(*arguments: object) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bivrec.training.loop._Report.add", lambda *_: killed())
        patch.setattr("bivrec.training.loop._Report.means", lambda self, step: {"step": step, "loss": 0.0})
        with pytest.raises(KeyboardInterrupt):
            pretrain(source, tmp_path / "broken", wanted)
    # What a report after the last checkpoint left behind.
    Run.open(tmp_path / "broken").append_metrics({"split": "train", "step": 5, "loss": 0.0})
    resumed = resume(tmp_path / "broken")
    assert same(weights(straight), weights(resumed))
    assert [line["step"] for line in resumed.metrics() if line["split"] == "train"] == [4, 8]


def test_a_line_that_a_kill_cut_short_does_not_hinder_resuming(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", with_steps(2, 2))
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"split": "tr')
    assert [line["step"] for line in resume(run.path).metrics()] == [2, 2, 2, 2]


def test_a_finished_training_stays_as_it_is(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", with_steps(2, 2))
    before, results = weights(run), run.results()
    again = resume(run.path)
    assert same(before, weights(again))
    assert again.results() == results


def test_ctrl_c_of_a_command(source: Domain, tmp_path: Path) -> None:
    options = settings(training={"steps": 200, "evaluate_every": 10})
    command = ["pretrain", str(source.path), "--to", str(tmp_path / "broken"), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "bivrec", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "broken" / "best.safetensors").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        printed, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert printed == ""
    *steps, last = complaint.splitlines()
    assert all(line.startswith("step ") for line in steps)
    assert last.startswith("Error: interrupted at step ")
    assert complaint.endswith(f"go on with `bivrec pretrain --to {tmp_path / 'broken'} --resume`\n")
    broken = Run.open(tmp_path / "broken")
    assert broken.info.command == shlex.join(["bivrec", *command])
    assert 10 <= broken.progress("last").step < 200
    straight = pretrain(source, tmp_path / "straight", broken.config)
    assert same(weights(straight), weights(resume(tmp_path / "broken")))


def test_signal_handlers_are_given_back(source: Domain, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    pretrain(source, tmp_path / "run", with_steps(1, 1))
    assert signal.getsignal(signal.SIGINT) is before


# One process at a time


def test_a_run_is_trained_by_one_process_at_a_time(source: Domain, tmp_path: Path) -> None:
    path = tmp_path / "run"
    options = settings(training={"steps": 100_000, "evaluate_every": 10})
    command = [sys.executable, "-m", "bivrec", "pretrain", str(source.path), "--to", str(path), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not (path / "best.safetensors").exists():
                assert process.poll() is None
                time.sleep(0.01)
            complaint = f"{path}: process {process.pid} on .* is at work in this folder; wait until it has ended"
            with pytest.raises(BivrecError, match=complaint):
                resume(path)
            with pytest.raises(BivrecError, match=complaint):
                pretrain(source, path, with_steps(1, 1), overwrite=True)
        finally:
            process.kill()
    steps = [line["step"] for line in Run.open(path).metrics() if line["split"] == "train"]
    assert steps == list(range(10, 10 * len(steps) + 1, 10))
    # What was killed holds no lock.
    run = pretrain(source, path, with_steps(1, 1), overwrite=True)
    assert sorted(file.name for file in resume(run.path).path.iterdir()) == [
        "best.safetensors",
        "items.json",
        "last.safetensors",
        "metrics.jsonl",
        "results.json",
        "run.json",
    ]


def test_a_new_run_is_locked_as_well(source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it took the place of another, or of an empty folder."""
    (tmp_path / "run").mkdir()
    train, refused = Trainer.train, []

    def tried(self: Trainer, run: Run, *arguments: bool) -> Progress:
        with pytest.raises(BivrecError, match="is at work") as fault, locked(run.path):
            pytest.fail("the work began")
        refused.append(fault.value)
        return train(self, run, *arguments)

    monkeypatch.setattr(Trainer, "train", tried)
    for _ in range(2):
        pretrain(source, tmp_path / "run", with_steps(1, 1), overwrite=True)
    resume(tmp_path / "run")
    assert len(refused) == 3


@pytest.mark.parametrize("empty", [False, True])
def test_what_another_began_meanwhile_is_not_replaced(source: Domain, tmp_path: Path, empty: bool) -> None:
    """Of two commands to one folder that there was not yet, or that was empty, one trains, whatever both say."""
    path, wanted = tmp_path / "run", with_steps(1, 1)
    if empty:
        path.mkdir()
    told = []

    def slow_model() -> BiVRecNetwork:
        try:
            pretrain(source, path, wanted, overwrite=True)
        except BivrecError as fault:
            told.append(str(fault))
        return untrained(source, wanted)

    try:
        fit("pretrain", source, path, wanted, source.info.features, slow_model, overwrite=True)
    except BivrecError as fault:
        told.append(str(fault))
    assert len(told) == 1
    assert ("is at work in this folder" if empty else f"{path}: another process has made it meanwhile") in told[0]
    assert len([line for line in Run.open(path).metrics() if line["split"] == "train"]) == 1
    assert not (path / LOCK_FILE).exists()


# Which weights are kept


def scripted_recall(monkeypatch: pytest.MonkeyPatch, recalls: Sequence[float]) -> None:
    """Validation recalls of a training with one view, in order."""
    script: Iterator[float] = iter(recalls)

    def evaluate_views(*arguments: Any, **options: Any) -> dict[str, EvaluationResult]:
        result = EvaluationResult({"recall@20": next(script)}, {"recall@20": np.zeros(1)}, np.zeros((1, 20), np.int64))
        return {"id": result}

    monkeypatch.setattr("bivrec.training.loop.evaluate_views", evaluate_views)


def test_patience_stops_and_the_best_weights_are_kept(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = {"views": ["id"]}
    two_steps = pretrain(source, tmp_path / "two", with_steps(2, 2, training=views))
    scripted_recall(monkeypatch, [0.1, 0.5, 0.3, 0.5, 0.9])
    run = pretrain(source, tmp_path / "run", with_steps(9, 1, training={**views, "patience": 2}))
    last = run.progress("last")
    assert (last.step, last.best_step, last.best_recall, last.finished) == (4, 2, 0.5, True)
    assert run.progress("best").step == 2
    assert same(weights(run, "best"), weights(two_steps))
    assert not same(weights(run, "last"), weights(two_steps))


def test_patience_that_is_lost_stays_lost(source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_recall(monkeypatch, [0.2, 0.1])
    run = pretrain(source, tmp_path / "run", with_steps(9, 1, training={"views": ["id"], "patience": 1}))
    assert resume(run.path).progress("last").step == 2


def test_no_patience_means_all_steps(source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_recall(monkeypatch, [0.2, 0.1, 0.1, 0.1])
    run = pretrain(source, tmp_path / "run", with_steps(4, 1, training={"views": ["id"], "patience": 0}))
    assert run.progress("last").step == 4


@pytest.mark.parametrize("view", ["id", "mm", "both"])
def test_the_selection_view_decides(source: Domain, tmp_path: Path, view: str) -> None:
    run = pretrain(source, tmp_path / "run", with_steps(4, 1, training={"selection_view": view}))
    recalls = {line["step"]: line["recall@20"] for line in run.metrics() if line.get("view") == view}
    assert list(recalls) == [1, 2, 3, 4]
    assert run.progress().best_step == max(recalls, key=lambda step: recalls[step])
    assert run.progress().best_recall == max(recalls.values())


# A step


@pytest.mark.parametrize("readout", ["history", "prefix"])
@pytest.mark.parametrize("view", ["id", "mm"])
def test_accumulation_changes_nothing_but_memory(source: Domain, tmp_path: Path, view: str, readout: str) -> None:
    losses = []
    for parts in (1, 2, 4):
        training = {"views": [view], "accumulate": parts}
        wanted = with_steps(5, 1, model={**NOISELESS, "readout": readout}, training=training)
        losses.append(train_losses(pretrain(source, tmp_path / f"{parts}", wanted)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_the_loss_falls(source: Domain, tmp_path: Path) -> None:
    losses = train_losses(pretrain(source, tmp_path / "run", with_steps(40, 10)))
    assert losses[-1] < losses[0]


def test_the_repeat_bias_follows_the_domain(source: Domain, tmp_path: Path) -> None:
    """Users of the synthetic source never take an item twice."""
    assert all(len(set(items)) == len(items) for items in source.sequences("train"))
    for candidates in ("full", "uniform"):
        run = pretrain(
            source,
            tmp_path / candidates,
            with_steps(30, 30, model={"repeat_bias": True}, objective={"candidates": candidates}),
        )
        assert (weights(run)["repeat_biases"] < -5).all()


def test_a_spectral_id_table_begins_with_the_neighbours(source: Domain, tmp_path: Path) -> None:
    """And its rows are as long as random ones, on average."""
    random, spectral = (
        weights(
            pretrain(
                source,
                tmp_path / init,
                with_steps(1, 1, training={"id_init": init, "learning_rate": 0.0, "views": ["id"]}),
            )
        )["towers.id.items.table.weight"][1:]
        for init in ("random", "spectral")
    )
    had = spectral_vectors(source, random.shape[1])[1:]
    known = had.any(1)
    torch.testing.assert_close(spectral[known] @ had[known].T / random.norm(dim=1).mean(), had[known] @ had[known].T)
    assert spectral[~known].equal(random[~known])


def untouched_projections(domain: Domain, path: Path, **model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """That of the multimodal tower [D, F] before any step: by `projection_init` random, and principal."""
    random, principal = (
        weights(
            pretrain(
                domain,
                path / init,
                with_steps(
                    1, 1, model=model, training={"projection_init": init, "learning_rate": 0.0, "views": ["mm"]}
                ),
            )
        )["towers.mm.items.projection.weight"]
        for init in ("random", "principal")
    )
    return random, principal


def test_a_principal_projection_keeps_the_most_of_the_features(source: Domain, tmp_path: Path) -> None:
    """What no projection to as few directions keeps of them is told by the smaller singular values (Eckart-Young)."""
    features = source.features(("text", "image"))
    random, principal = untouched_projections(source, tmp_path)
    width = len(principal)
    assert width < features.shape[1]
    torch.testing.assert_close(principal @ principal.T, torch.eye(width), atol=1e-5, rtol=0)
    best = np.square(np.linalg.svd(features.numpy(), compute_uv=False)[:width]).sum()
    assert (features @ principal.T).square().sum().item() == pytest.approx(best, rel=1e-4)
    assert (features @ random.T).square().sum() < 0.9 * best


def test_a_projection_that_loses_nothing_starts_as_it_did(source: Domain, tmp_path: Path) -> None:
    width = source.features(("text", "image")).shape[1]
    random, principal = untouched_projections(source, tmp_path, hidden_size=width + width % 2, num_heads=2)
    assert random.equal(principal)


def test_the_seed_decides_everything(source: Domain, tmp_path: Path) -> None:
    runs = [
        pretrain(source, tmp_path / str(number), with_steps(2, 2, training={"seed": seed}))
        for number, seed in enumerate((1, 1, 2))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


@pytest.mark.usefixtures("pretrained")
def test_bf16_after_a_training_in_fp32(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", with_steps(4, 2, training={"precision": "bf16"}))
    assert all(value.dtype == torch.float32 for value in weights(run).values())
    assert all(np.isfinite(train_losses(run)))
    assert set(run.results()) == {"id", "mm", "both"}


def test_no_clipping(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", with_steps(2, 1, training={"clip_norm": 0}))
    assert all(np.isfinite(train_losses(run)))


# Faults


def test_a_loss_that_is_not_finite_is_an_error(source: Domain, tmp_path: Path) -> None:
    wanted = with_steps(6, 6, training={"learning_rate": 1e30})
    with pytest.raises(BivrecError, match=r"the loss is not finite at step 6.*learning_rate"):
        pretrain(source, tmp_path / "run", wanted)
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_an_interrupt_does_not_save_what_is_not_finite(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two reports, where nothing else looks at the losses."""
    path = tmp_path / "run"
    step = Trainer._step

    def spoilt(self: Trainer, number: int) -> dict[str, torch.Tensor]:
        if number == 5:
            for parameter in self._model.parameters():
                parameter.data.fill_(torch.nan)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", spoilt)
        interrupt_at(patch, step=6)
        with pytest.raises(BivrecError, match=r"the loss is not finite at step 7: .*learning_rate"):
            pretrain(source, path, with_steps(8, 4))
    assert Run.open(path).progress("last").step == 4
    assert same(weights(resume(path)), weights(pretrain(source, tmp_path / "straight", with_steps(8, 4))))


def test_a_tracker_that_is_not_installed_is_an_error(source: Domain, tmp_path: Path) -> None:
    for name, told in (("nosuchtracker", "no tracker; expected one of .*tensorboard"), ("aim", "it is not installed")):
        with pytest.raises(BivrecError, match=f"--track {name}: {told}"):
            pretrain(source, tmp_path / "run", config(), tracker=name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launcher_that_would_shard_the_model_is_an_error(
    source: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(BivrecError, match=f"asks for {name}, .* `bivrec recipes launch`"):
        pretrain(source, tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_the_step_is_not_compiled_whatever_the_launcher_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    accelerator = make_accelerator(str(tmp_path), None)
    assert accelerator.prepare(torch.nn.Linear(2, 2)).__class__ is torch.nn.Linear


def test_an_existing_folder_is_not_touched(source: Domain, pretrained: Run) -> None:
    before = weights(pretrained)
    with pytest.raises(BivrecError, match="exists already; pass --resume to go on, --overwrite to start anew"):
        pretrain(source, pretrained.path, config())
    assert same(before, weights(pretrained))


def test_overwrite_starts_anew(source: Domain, tmp_path: Path) -> None:
    pretrain(source, tmp_path / "run", with_steps(2, 1))
    run = pretrain(source, tmp_path / "run", with_steps(1, 1), overwrite=True)
    assert run.progress("last").step == 1
    assert {line["step"] for line in run.metrics()} == {1}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_users_that_cannot_be_evaluated_are_an_error_at_once(small_domain: Domain, tmp_path: Path, split: str) -> None:
    sequences = {name: small_domain.sequences(name) for name in SPLITS}
    users = sequences[split]
    firsts = users.offsets[:-1]
    sequences[split] = dataclasses.replace(
        users, offsets=np.arange(len(users) + 1), items=users.items[firsts], timestamps=users.timestamps[firsts]
    )
    (tmp_path / "short").mkdir()
    write_domain(tmp_path / "short", small_domain.info, sequences, small_domain.item_table().data.table)
    with pytest.raises(BivrecError, match=f"short: no {split} user has 2 interactions or more"):
        pretrain(Domain.open(tmp_path / "short"), tmp_path / "run", config(training={"views": ["id"]}))
    assert not (tmp_path / "run").exists()


def test_a_domain_without_features_leaves_nothing_behind(small_domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match=r"no text and image features.*bivrec encode"):
        pretrain(small_domain, tmp_path / "run", config())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_begin_does_not_replace_the_old_one(source: Domain, tmp_path: Path) -> None:
    run = pretrain(source, tmp_path / "run", with_steps(1, 1))
    with pytest.raises(BivrecError, match="no training user has more than 1000 items"):
        pretrain(source, run.path, with_steps(1, 1, training={"min_history": 1000}), overwrite=True)
    assert Run.open(run.path).results() == run.results() != {}
