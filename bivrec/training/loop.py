"""The training loop, the one that every stage uses."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bivrec.config import Config
from bivrec.data.batches import BatchSampler
from bivrec.data.domain import Domain
from bivrec.device import chosen_precision
from bivrec.errors import BivrecError
from bivrec.evaluation.fusion import SELECTION_METRIC, evaluate_views
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.candidates import CandidateSampler
from bivrec.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from bivrec.training.distributed import mean_over_processes, mean_sparse_over_processes
from bivrec.training.objective import Objective, id_tables
from bivrec.training.optimizer import clip_gradients, learning_rate_factor, make_optimizer
from bivrec.training.progress import ProgressDisplay
from bivrec.training.run import Run

EVALUATION_KS = (20, 50)
REPORT_EVERY = 50
PATIENCE = timedelta(hours=1)
"""For which a process waits for the others."""
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways to share one model out among processes, as Accelerate's launcher names them in the environment."""
ASK_EVERY = 10
"""Steps between two questions to the other processes: each makes all of them wait for the slowest, and its device."""


def make_accelerator(run_path: str, tracker: str | None) -> Accelerator:
    """The Accelerator of a training.

    Raises BivrecError if there is no such tracker, or it is not installed, or if the launcher would shard the model.
    """
    if asked := [name for name in SHARDING if parse_flag_from_env(f"ACCELERATE_USE_{name}")]:
        raise BivrecError(
            f"accelerate launch: the configuration asks for {asked[0]}, and every process trains the whole model; pass "
            "--config_file with one of `bivrec recipes launch`"
        )
    if tracker is not None and tracker not in LOGGER_TYPE_TO_CLASS:
        raise BivrecError(f"--track {tracker}: no tracker; expected one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    if tracker is not None and tracker not in [str(name) for name in get_available_trackers()]:
        raise BivrecError(f"--track {tracker}: it is not installed; run `pip install {tracker}`")
    return Accelerator(
        # The step has its own autocast: the Accelerator's is fixed for the whole process by the first training in it.
        mixed_precision="no",
        # Whatever the launcher says: shapes change from step to step, and each would be compiled anew.
        dynamo_backend="no",
        # NCCL's ten minutes are too few for the spectral vectors of a large catalogue, which one process makes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        log_with=tracker,
        project_dir=run_path,
    )


class Trainer:
    """Trains a model on a Domain."""

    _run: Run

    def __init__(
        self,
        model: BiVRecNetwork,
        domain: Domain,
        config: Config,
        accelerator: Accelerator,
        pretrained: tuple[str, ...] = (),
    ) -> None:
        """`pretrained` names the views whose towers start from published weights (see `tower_learning_rate`).

        Raises BivrecError if the Domain or the processes do not suit the configuration.
        """
        self._config: Config = config
        self._accelerator = accelerator
        self._half = chosen_precision(config.training.precision, accelerator.device) == "bf16"
        self._model = model
        self._pretrained = [p for view in pretrained for p in model.tower(view).parameters()]
        if config.training.frozen_tower_steps == -1:
            for parameter in self._pretrained:
                parameter.requires_grad_(False)
        train = domain.sequences("train")
        self._sampler = BatchSampler(
            train,
            batch_size=config.training.batch_size,
            max_history=config.model.max_history,
            min_history=config.training.min_history,
            targets_per_sequence=1 if config.model.readout == "history" else config.training.targets_per_sequence,
            whole_history=model.repeat_biases is not None,
            seed=config.training.seed,
        )
        in_batch = config.objective.candidates == "in-batch"
        shares = self._sampler.last_target_shares(domain.num_items) if in_batch else None
        self._candidates = CandidateSampler(config.objective, domain.num_items, config.training.seed, shares)
        self._validation = (
            None if config.training.with_validation else EvaluationUsers.from_sequences(domain.sequences("validation"))
        )
        self._optimizer = make_optimizer(model, self._pretrained, config.training)
        self._objective: nn.Module = accelerator.prepare(self._make_objective())
        self._progress = Progress()
        if config.training.batch_size % (accelerator.num_processes * config.training.accumulate):
            raise BivrecError(
                f"training.batch_size: {config.training.batch_size} sequences do not divide into "
                f"{accelerator.num_processes} processes x {config.training.accumulate} micro-batches"
            )

    def _make_objective(self) -> Objective:
        objective = Objective(self._model, self._config.objective)
        self._sparse_tables = [table for table in id_tables(self._model) if table.sparse]
        weights = [table.weight for table in self._sparse_tables]
        names = [name for name, parameter in objective.named_parameters() if any(parameter is w for w in weights)]
        # Not every backend can average sparse gradients, the loop does it; and buffers, which have a value for each
        # item, are alike everywhere and never change.
        names += [name for name, _ in objective.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, names)  # type: ignore[no-untyped-call]
        return objective

    def train(self, run: Run, resume: bool = False) -> None:
        """Train into `run` until the last step, until patience is lost, or until an interrupt.

        With `resume`, go on from the last checkpoint as if there had been no interruption: on a processor bit for
        bit, while some sums on a GPU have no fixed order.
        Raises BivrecError if the loss is not finite.
        """
        self._run = run
        if resume:
            self._progress = load_checkpoint(self._run.checkpoint("last"), self._model, self._optimizer)
        if self._accelerator.is_main_process:
            self._run.forget_metrics_after(self._progress.step)
        settings = self._config.training
        started = time.monotonic() - self._progress.seconds
        display = ProgressDisplay(
            settings.steps,
            self._progress.step,
            SELECTION_METRIC,
            may_stop=settings.patience > 0,
            shown=self._accelerator.is_main_process,
        )
        report = _Report()
        with _interrupt_flag() as interrupted, display:
            if not resume:
                # Published weights and a spectral table are here, and are not made again when a Run is resumed.
                self._save("last", self._optimizer)
            while self._progress.step < settings.steps and not self._progress.finished:
                parts = self._step(self._progress.step)
                self._progress.step += 1
                report.add(parts)
                display.advance()
                step = self._progress.step
                at_evaluation = step % settings.evaluate_every == 0 or step == settings.steps
                at_report = at_evaluation or step % REPORT_EVERY == 0
                if at_report:
                    means = report.means(step)
                    report = _Report()
                    self._log({"split": "train", **means})
                    if not at_evaluation:
                        display.reported(step, means["loss"])
                stop = (at_evaluation or self._asks_after(step)) and self._any_process(interrupted())
                if stop and not at_report:
                    # Not for the log: weights that are not finite must not replace those that are.
                    report.means(step)
                if at_evaluation:
                    self._progress.seconds = time.monotonic() - started
                    recall = self._validate(self._validation) if self._validation else None
                    display.evaluated(self._progress, means["loss"], recall)
                if at_evaluation or stop:
                    self._progress.seconds = time.monotonic() - started
                    self._save("last", self._optimizer)
                if stop:
                    raise BivrecError(
                        f"interrupted at step {self._progress.step} and saved; go on with "
                        f"`bivrec {run.info.stage} --to {run.path} --resume`"
                    )
            if self._validation is None:
                self._progress.best_step = self._progress.step
                self._save("best")

    def _step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step; returns the parts of the loss, without waiting for the device."""
        settings, accelerator = self._config.training, self._accelerator
        self._objective.train()
        # A function of the step, so a resumed run draws the noise that the uninterrupted one would have drawn.
        torch.manual_seed(((settings.seed * 1_000_003 + step) * 4096 + accelerator.process_index) % 2**63)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(settings, step)
        self._optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for micro in range(settings.accumulate):
            part = accelerator.process_index * settings.accumulate + micro
            batch = self._sampler.batch(step, part, accelerator.num_processes * settings.accumulate)
            batch = batch.to(accelerator.device)
            last = micro == settings.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self._objective):
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=self._half):
                    parts = self._objective(batch, self._candidates.draw(step, batch.targets))
                # Outside: a gradient has the precision of what it is the gradient of.
                (parts["loss"] / settings.accumulate).backward()
            for name, value in parts.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / settings.accumulate
        if step < settings.frozen_tower_steps:
            for parameter in self._pretrained:
                parameter.grad = None
        for table in self._sparse_tables:
            if table.weight.grad is not None:
                table.weight.grad = mean_sparse_over_processes(table.weight.grad)
        if settings.clip_norm:
            clip_gradients(self._model.parameters(), settings.clip_norm)
        self._optimizer.step()
        return totals

    def _validate(self, users: EvaluationUsers) -> float:
        """Evaluate every view, and both by the shares that suit these users best; keep the best checkpoint, and count
        the evaluations without a gain."""
        settings = self._config.training
        recalls = {}
        results = evaluate_views(self._model, users, EVALUATION_KS, self._accelerator, fit=True)
        for view, result in results.items():
            recalls[view] = result.metrics[SELECTION_METRIC]
            self._log({"split": "validation", "step": self._progress.step, "view": view, **result.metrics})
        recall = recalls.get(settings.selection_view, recalls[self._model.views[-1]])
        if recall > self._progress.best_recall:
            self._progress.best_recall = recall
            self._progress.best_step = self._progress.step
            self._progress.evaluations_without_gain = 0
            self._save("best")
        else:
            self._progress.evaluations_without_gain += 1
            self._progress.finished = 0 < settings.patience <= self._progress.evaluations_without_gain
        return recall

    def _save(self, name: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        if self._accelerator.is_main_process:
            save_checkpoint(self._run.checkpoint(name), self._model, self._progress, optimizer)
        self._accelerator.wait_for_everyone()

    def _log(self, record: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            self._run.append_metrics(record)
        prefix = "/".join(str(record[key]) for key in ("split", "view") if key in record)
        values = {f"{prefix}/{key}": value for key, value in record.items() if isinstance(value, float)}
        self._accelerator.log(values, step=record["step"])

    def _asks_after(self, step: int) -> bool:
        """Whether the processes ask each other after a step if one was interrupted; all ask after the same steps."""
        return self._accelerator.num_processes == 1 or step % ASK_EVERY == 0

    def _any_process(self, flag: bool) -> bool:
        if self._accelerator.num_processes == 1:
            return flag
        # All processes must leave the loop at the same step, or those that go on wait for the others forever.
        return mean_over_processes(torch.tensor(float(flag), device=self._accelerator.device)).item() > 0


class _Report:
    """Means of the loss parts since the last report; sums stay on the device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._since = time.monotonic()

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._steps += 1

    def means(self, step: int) -> dict[str, Any]:
        """The report of the steps so far. Raises BivrecError if the loss is not finite."""
        means = {name: mean_over_processes(value).item() / self._steps for name, value in self._sums.items()}
        if not all(abs(value) < float("inf") for value in means.values()):
            raise BivrecError(f"the loss is not finite at step {step}: {means}; lower training.learning_rate")
        rate = self._steps / (time.monotonic() - self._since)
        return {"step": step, **means, "steps_per_second": rate}


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """While open, Ctrl-C and SIGTERM only set a flag that the loop reads between steps; a second Ctrl-C kills."""
    raised = False

    def note(number: int, frame: object) -> None:
        nonlocal raised
        # A scheduler sends SIGTERM to every process, and the launcher passes its own on.
        if raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        raised = True

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Only the main thread may set handlers; elsewhere, as in a notebook's worker, interrupts stay as they are.
        previous = {}
    try:
        yield lambda: raised
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
