"""A training step of the ID view: its share of the processor's peak, and its time beside other steps.

    python -m benchmarks.train_step [--json FILE]
    python -m benchmarks.train_step --recbole --comirec FOLDER
    python -m benchmarks.train_step --items 50000 --items 200000 --items 1700000

The first prints, for each shape, our step in fp32 beside `benchmarks/plain.py`, which has the same loss; in bf16 too
where a processor is good at it, as `training.precision: auto` has it.
The second prints our step of two baselines beside those of `benchmarks/peers.py`. Every step lives in a process of its
own, since how freed memory is kept is a property of a process, and they take turns. Times are processor time of all
threads. The FLOP are those of the matrix products, counted by torch; the peak is that of a product of two float32
matrices in the same run.

The third prints the step and the memory of catalogues of several sizes, with sampled candidates.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import comirec_step, recbole_step
from benchmarks.plain import PlainModel
from benchmarks.report import json_option, report, small_option
from benchmarks.sampling import random_sequences
from bivrec.baselines.towers import fresh_towers
from bivrec.config import Config, config_from_dict
from bivrec.data.batches import BatchSampler
from bivrec.device import bfloat16_is_fast
from bivrec.memory import keep_freed_memory
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.training.candidates import CandidateSampler
from bivrec.training.objective import Objective
from bivrec.training.optimizer import clip_gradients, make_optimizer

NUM_USERS, NUM_ITEMS = 4832, 3706
LONG, SHORT = 165, 9
"""Mean length of the sequences of MovieLens-1M, and about that of the Amazon sets."""
HISTORY_SIZES, PREFIX_SIZES = ((64, 512), (256, 128)), ((64, 128), (256, 64))
"""Widths and batches."""
PEAK_SIZE = 1536


@dataclass(frozen=True)
class Shape:
    """What a step computes."""

    name: str
    changes: Mapping[str, Mapping[str, Any]]
    sizes: tuple[tuple[int, int], ...]
    mean_length: int = LONG


def shape(name: str, sizes: tuple[tuple[int, int], ...], mean_length: int = LONG, **model: Any) -> Shape:
    """A shape with a full softmax, in which each item is scored as in ranking."""
    changes = {"model": model, "objective": {"negatives_scored_by": "best-interest"}}
    return Shape(name, changes, sizes, mean_length)


SAMPLED = Shape(
    "prefix readout, 20 targets, 512 negatives",
    {
        "model": {"readout": "prefix"},
        "objective": {"candidates": "uniform", "num_negatives": 512, "negatives_scored_by": "best-interest"},
        "training": {"targets_per_sequence": 20},
    },
    PREFIX_SIZES,
)
SHAPES = (
    shape("history readout, K 4", HISTORY_SIZES),
    shape("history readout, K 2, logsumexp", HISTORY_SIZES, num_interests=[2], interest_score="logsumexp"),
    shape("history readout, K 1", HISTORY_SIZES, num_interests=[1]),
    shape("history readout, K 4, short sequences", HISTORY_SIZES, SHORT),
    shape("prefix readout, 50 targets, K 4", PREFIX_SIZES, readout="prefix"),
    shape(
        "prefix readout, 50 targets, K 2, logsumexp",
        PREFIX_SIZES,
        readout="prefix",
        num_interests=[2],
        interest_score="logsumexp",
    ),
    SAMPLED,
)


class Input:
    """Batches of random sequences, with the time that they take counted apart."""

    def __init__(self, config: Config, num_items: int, mean_length: int) -> None:
        self._sampler = BatchSampler(
            random_sequences(NUM_USERS, num_items, mean_length),
            batch_size=config.training.batch_size,
            max_history=config.model.max_history,
            whole_history=False,
            min_history=1,
            targets_per_sequence=1 if config.model.readout == "history" else config.training.targets_per_sequence,
            seed=0,
        )
        self.candidates = CandidateSampler(config.objective, num_items, 0)
        self.seconds = 0.0

    def batch(self, step: int) -> Any:
        """The batch of a step."""
        started = time.process_time()
        batch = self._sampler.batch(step)
        self.seconds += time.process_time() - started
        return batch


def our_step(config: Config, data: Input, num_items: int) -> Callable[[int], None]:
    """A step as the training loop does it."""
    keep_freed_memory()
    model = BiVRecNetwork(fresh_towers(config.model, config.training.views, num_items, ()))
    objective = Objective(model, config.objective)
    optimizer = make_optimizer(model, [], config.training)

    def step(number: int) -> None:
        batch = data.batch(number)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.precision == "bf16"):
            loss = objective(batch, data.candidates.draw(number, batch.targets))["loss"]
        loss.backward()
        clip_gradients(model.parameters(), config.training.clip_norm)
        optimizer.step()

    return step


def plain_step(config: Config, data: Input, num_items: int) -> Callable[[int], None]:
    """The reference."""
    model = PlainModel(config.model, num_items)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(number: int) -> None:
        batch = data.batch(number)
        optimizer.zero_grad()
        model(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


STEPS: dict[str, Callable[[Config, Any, int], Callable[[int], None]]] = {
    "ours": our_step,
    "plain": plain_step,
    "recbole": recbole_step,
    "comirec": comirec_step,
}


def serve(pipe: Connection, kind: str, config: Config, num_items: int, mean_length: int, threads: int) -> None:
    """In a process of its own: for each number that comes through the pipe, do that step and answer what it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = Input(config, num_items, mean_length)
    step = STEPS[kind](config, data, num_items)
    while (number := pipe.recv()) is not None:
        data.seconds = 0.0
        if number == 0:
            with FlopCounterMode(display=False) as counter:
                step(0)
            pipe.send({"flop": counter.get_total_flops()})
            continue
        started = time.process_time()
        step(number)
        seconds = time.process_time() - started
        # Linux counts in KiB.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        pipe.send({"seconds": seconds, "input": data.seconds, "gib": memory})


@contextmanager
def server(
    kind: str, config: Config, num_items: int = NUM_ITEMS, mean_length: int = LONG
) -> Iterator[Callable[[int], dict[str, float]]]:
    """A function that has a step done by a new process; step 0 answers the FLOP of its matrix products."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    arguments = (there, kind, config, num_items, mean_length, torch.get_num_threads())
    process = context.Process(target=serve, args=arguments)
    process.start()
    # Otherwise a process that has died would leave its answer awaited for ever.
    there.close()

    def ask(number: int) -> dict[str, float]:
        here.send(number)
        answer: dict[str, float] = here.recv()
        return answer

    try:
        yield ask
    finally:
        here.send(None)
        process.join()


def peak() -> float:
    """FLOP a second of a large float32 product, the best of five."""
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE)
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        matrix @ matrix
        best = min(best, time.process_time() - started)
    return 2 * PEAK_SIZE**3 / best


def configuration(
    changes: Mapping[str, Mapping[str, Any]], hidden_size: int, batch_size: int, precision: str = "fp32"
) -> Config:
    """A shape as a configuration of the ID view."""
    base: dict[str, dict[str, Any]] = {
        "model": {"hidden_size": hidden_size, "num_heads": 2, "gaussian": "bias", "assignment": "softmax-soft"},
        "objective": {},
        "training": {"views": ["id"], "selection_view": "id", "batch_size": batch_size, "precision": precision},
    }
    return config_from_dict({section: {**values, **changes.get(section, {})} for section, values in base.items()})


def compare(
    title: str, systems: Mapping[str, tuple[str, Config]], mean_length: int, steps: int
) -> list[dict[str, Any]]:
    """A row for each way to do the step, name -> kind and configuration; the first is what the others are held to."""
    with ExitStack() as stack:
        asked = {
            name: stack.enter_context(server(kind, config, mean_length=mean_length))
            for name, (kind, config) in systems.items()
        }
        flop = {name: ask(0)["flop"] for name, ask in asked.items()}
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
        peaks = []
        for number in range(1, steps + 3):
            peaks.append(peak())
            for name, ask in asked.items():
                answer = ask(number)
                # In its first steps a process still gets memory from the kernel.
                if number > 2:
                    answers[name].append(answer)
    rows = []
    reference = None
    for name, taken in answers.items():
        seconds = float(np.median([answer["seconds"] for answer in taken]))
        reference = reference or seconds
        config = systems[name][1]
        rows.append(
            {
                "step": title,
                "D": config.model.hidden_size,
                "batch": config.training.batch_size,
                "how": name,
                "ms": 1000 * seconds,
                "speed-up": reference / seconds,
                "GFLOP": flop[name] / 1e9,
                "% of fp32 peak": 100 * flop[name] / seconds / float(np.median(peaks)),
                "input %": 100 * sum(answer["input"] for answer in taken) / sum(answer["seconds"] for answer in taken),
            }
        )
    return rows


def beside_plain(shape: Shape, size: tuple[int, int], steps: int) -> list[dict[str, Any]]:
    """Our step of a shape, and the plain one."""
    single = configuration(shape.changes, *size)
    systems = {"plain PyTorch": ("plain", single), "bivrec fp32": ("ours", single)}
    if bfloat16_is_fast(torch.device("cpu")):
        systems["bivrec bf16"] = "ours", configuration(shape.changes, *size, "bf16")
    return compare(shape.name, systems, shape.mean_length, steps)


def beside_peer(kind: str, steps: int) -> list[dict[str, Any]]:
    """Our step of a baseline, and a peer's."""
    peer, system, model = {
        "recbole": ("RecBole SASRec", "sasrec", {"num_interests": [1]}),
        "comirec": ("pytorch_ComiRec", "comirec-sa", {}),
    }[kind]
    rows = []
    for size in HISTORY_SIZES:
        config = configuration({"model": {"system": system, "scales": [], **model}}, *size)
        systems = {peer: (kind, config), "bivrec fp32": ("ours", config)}
        rows += compare(f"{system}, history readout, full softmax", systems, LONG, steps)
    return rows


def grow(num_items: int, hidden_size: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Time and memory of a step with sampled candidates on a catalogue."""
    with server("ours", configuration(SAMPLED.changes, hidden_size, batch_size), num_items) as ask:
        ask(0)
        answers = [ask(number) for number in range(1, steps + 3)][2:]
    return {
        "items": num_items,
        "D": hidden_size,
        "batch": batch_size,
        "ms": 1000 * float(np.median([answer["seconds"] for answer in answers])),
        "peak memory, GiB": answers[-1]["gib"],
        "table and moments, GiB": 3 * 4 * num_items * hidden_size / 2**30,
    }


@click.command()
@click.option("--steps", default=8, show_default=True, help="Timed steps per row.")
@click.option("--items", multiple=True, type=int, help="Time catalogues of these sizes instead.")
@click.option("--recbole", is_flag=True, help="Time SASRec beside RecBole's instead (pip install recbole).")
@click.option(
    "--comirec",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Time ComiRec beside that of this checkout of github.com/ShiningCosmos/pytorch_ComiRec instead.",
)
@small_option
@json_option
def main(
    steps: int, items: tuple[int, ...], recbole: bool, comirec: Path | None, small: bool, json_path: Path | None
) -> None:
    """Time a training step."""
    threads, steps = torch.get_num_threads(), 2 if small else steps
    if items:
        rows = [grow(count, 256, 32, steps) for count in items]
        report(f"Training step with 512 sampled negatives, {threads} threads", rows, json_path)
        return
    rows = []
    if comirec is not None:
        # Processes that are started later find modules where this one does.
        sys.path.append(str(comirec.resolve()))
        rows += beside_peer("comirec", steps)
    if recbole:
        rows += beside_peer("recbole", steps)
    if not rows:
        cases = ((SAMPLED, (64, 64)),) if small else tuple((shape, size) for shape in SHAPES for size in shape.sizes)
        rows = [row for shape, size in cases for row in beside_plain(shape, size, steps)]
    report(f"Training step, history 50, {NUM_ITEMS:,} items, {threads} threads", rows, json_path)


if __name__ == "__main__":
    main()
