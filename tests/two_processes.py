"""What each process of tests/test_two_processes.py does; its arguments are a Domain and the folder of the Runs."""

import json
import signal
import sys
from pathlib import Path

from accelerate.utils import set_seed
from safetensors.torch import save_file
from stages import untrained

from bivrec.data.batches import BatchSampler
from bivrec.data.domain import Domain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.pretrain import pretrain
from bivrec.training.distributed import rank, world_size
from bivrec.training.loop import Trainer, make_accelerator
from bivrec.training.run import Run


def main(domain: Domain, folder: Path) -> None:
    train(domain, Run.open(folder / "whole"))
    train(domain, Run.open(folder / "continued"), resume=True)
    # A program may train more than once.
    for name in ("first", "second"):
        pretrain(domain, folder / name, Run.open(folder / "whole").config)
    # Only one process hears Ctrl-C; both must stop, at the same step.
    batch = BatchSampler.batch

    def interrupted(self: BatchSampler, step: int, part: int, parts: int) -> object:
        if step == 1 and part == parts - 1:
            signal.raise_signal(signal.SIGINT)
        return batch(self, step, part, parts)

    BatchSampler.batch = interrupted
    try:
        train(domain, Run.open(folder / "broken"))
    except BivrecError as fault:
        (folder / f"fault-{rank()}").write_text(str(fault))


def train(domain: Domain, run: Run, resume: bool = False) -> None:
    accelerator = make_accelerator(str(run.path), None)
    set_seed(run.config.training.seed)
    model = untrained(domain, run.config)
    Trainer(model, domain, run.config, accelerator).train(run, resume)
    save_file(dict(model.state_dict()), run.path / f"rank-{rank()}.safetensors")
    users = EvaluationUsers.from_sequences(domain.sequences("test"))
    metrics = evaluate(ModelScorer(model, "both"), users, user_chunk=4, accelerator=accelerator).metrics
    facts = {"processes": accelerator.num_processes, "world_size": world_size(), "metrics": metrics}
    (run.path / f"rank-{rank()}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Domain.open(sys.argv[1]), Path(sys.argv[2]))
