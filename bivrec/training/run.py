"""Run: one training, a folder on disk.

run.json           RunInfo: the configuration and where everything came from
items.json         ids of the catalogue, in the order of the item indices
metrics.jsonl      one line per report: training losses, and the validation metrics of each view
best.safetensors   weights with the best validation recall; of a refit the last ones
last.safetensors   weights and optimiser state, to resume from
results.json       metrics of the best weights on the test users, written at the end; none if these were trained on
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bivrec.baselines.towers import fresh_towers
from bivrec.config import HELD_OUT, Config, config_from_dict
from bivrec.data.domain import HUB_PREFIX, Domain, sequence_file
from bivrec.data.info import FeatureSpec, feature_spec, wrong_field
from bivrec.errors import BivrecError
from bivrec.features.contract import contract_features
from bivrec.files import FolderKind, check_format, new_file, new_folder, read_json, write_json
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.results import Results, checked_results
from bivrec.training.checkpoint import Progress, checkpoint_weights, load_checkpoint, read_progress

FORMAT_VERSION = 1
ITEMS_FILE, RESULTS_FILE = "items.json", "results.json"
TRACKED_PROJECT = "bivrec"
"""What trackers call the trainings that they log, and some a folder in the Run."""
RUN_FOLDER = FolderKind(
    marks=("run.json",),
    # The last is that of a tracker.
    entries=("run.json", ITEMS_FILE, RESULTS_FILE, "metrics.jsonl", "*.safetensors", TRACKED_PROJECT),
)


@dataclass(frozen=True)
class RunInfo:
    """The content of run.json."""

    format_version: int
    stage: str
    """`pretrain` or `finetune`."""
    config: dict[str, Any]
    domain: dict[str, Any]
    """Of the Domain name, path (or `hub:ORG/NAME@commit`), what identifies it, and its counts (see `domain_record`)."""
    features: dict[str, Any]
    """Modality -> feature specification that the multimodal view reads."""
    started_from: dict[str, Any] | None
    """Provenance of the tower that was attached; None: fresh weights."""
    command: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    """Name of the device, number of processes, threads of each, and precision of the products (fp32 or bf16)."""
    item_sketch: list[str]
    """Of the items of the Domain and of the tower that was attached (see `data.sketch`)."""


class Run:
    """A training on disk; `Run.open` checks it, `Run.create` starts one."""

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self.info = info
        self.config: Config = config_from_dict(info.config, str(path / "run.json"))
        self.feature_specs = {
            name: feature_spec(spec, f"{path / 'run.json'}: features.{name}") for name, spec in info.features.items()
        }
        """Specification of the features that the multimodal view reads, by modality."""
        self.source = dict(info.domain["source"])
        """Of the data that it was trained on (see `DomainInfo`)."""
        self._catalogue = str(info.domain["catalogue"])
        self._protocol = str(info.domain["protocol"])
        self._counts = {
            name: {split: int(count) for split, count in info.domain[name].items()}
            for name in ("users", "interactions")
        }
        self._held_out = {split: str(checksum) for split, checksum in info.domain["held_out"].items()}

    @classmethod
    def create(cls, path: Path, info: RunInfo, item_ids: Sequence[str], overwrite: bool = False) -> Run:
        """Make the folder of a new Run. Raises BivrecError if it exists, unless `overwrite`.

        item_ids: of the catalogue, which say what the rows of the ID table are when the Domain has been replaced.
        """
        with new_folder(path, overwrite, kind=RUN_FOLDER) as staging:
            write_json(staging / "run.json", asdict(info))
            write_json(staging / ITEMS_FILE, list(item_ids))
        return cls(Path(path), info)

    def item_ids(self) -> list[str]:
        """Ids of the catalogue of the training; entry k is item index k + 1."""
        ids: list[str] = read_json(self.path / ITEMS_FILE)
        return ids

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a Run. Raises BivrecError if the folder is not one, or of a newer format."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise BivrecError(f"{path}: not a Run (no run.json); make one with `bivrec pretrain` or `bivrec finetune`")
        values = read_json(path / "run.json")
        check_format(values, FORMAT_VERSION, str(path / "run.json"), "train again")
        try:
            run = cls(path, RunInfo(**values))
        except (TypeError, KeyError, AttributeError, ValueError) as fault:
            raise BivrecError(f"{path / 'run.json'}: not the description of a Run ({fault})") from None
        if wrong := wrong_field(run.info):
            raise BivrecError(f"{path / 'run.json'}: {wrong}: unexpected {getattr(run.info, wrong)!r:.80}")
        return run

    def __repr__(self) -> str:
        views = " + ".join(self.config.training.views)
        return f"Run({str(self.path)!r}, {self.info.stage} of {views} on {self.info.domain['name']})"

    def checkpoint(self, name: str) -> Path:
        """Path of the `best` or `last` checkpoint."""
        return self.path / f"{name}.safetensors"

    def progress(self, checkpoint: str = "best") -> Progress:
        """How far the checkpoint's training was. Raises BivrecError if there is none yet."""
        return read_progress(self.checkpoint(checkpoint))

    def open_domain(self) -> Domain:
        """The Domain of the training. Raises BivrecError if it is not where it was, or has changed."""
        location = self.info.domain["path"]
        if not location.startswith(HUB_PREFIX) and not Path(location).exists():
            raise BivrecError(
                f"{location}: the Domain that {self.path} was trained on is not there any more; put it back, or name "
                "the folder where it is now (DOMAIN with --resume, --domain of refit)"
            )
        domain = Domain.open(location)
        self.check_domain(domain)
        return domain

    def check_domain(self, domain: Domain) -> None:
        """Raise BivrecError if a Domain differs from that of the training (see `difference`)."""
        if found := self.difference(domain):
            raise BivrecError(found)

    def difference(self, domain: Domain) -> str | None:
        """A line that says how a Domain differs from that of the training; None if it does not.

        It must have the same items in the same order, protocol and held-out sequences, and as many users and
        interactions.
        """
        record = domain_record(domain)
        reordered = record["catalogue"] != self._catalogue
        if reordered and set(domain.item_ids()) != set(self.item_ids()):
            return (
                f"{self.path} was trained on the items of {self.info.domain['name']} ({self.info.domain['path']}), "
                f"not on those of {domain.location}; `bivrec recommend` ranks a catalogue that has changed, and "
                "--zero-shot uses the tower alone"
            )
        change = self._change(record, reordered)
        return change and (
            f"{domain.location}: was prepared anew since the training of {self.path}: {change}; prepare it as it was, "
            "or train again, as `bivrec refit --domain` does"
        )

    def _change(self, record: Mapping[str, Any], reordered: bool) -> str | None:
        """What is different in the record of a Domain with the same items."""
        # Users of the training could be asked as if they were unknown.
        if record["protocol"] != self._protocol:
            return f"{record['protocol']} now, {self._protocol} then"
        for name, before in self._counts.items():
            if record[name] != before:
                return f"{_told(record[name])} {name} now, {_told(before)} then"
        if reordered:
            return "the items have another order now, as other training users give them"
        for split in HELD_OUT:
            if record["held_out"][split] != self._held_out.get(split):
                return f"as many {split} users and interactions as then, but others"
        return None

    def load_model(self, domain: Domain) -> BiVRecNetwork:
        """The trained model on the Domain of its training.

        Raises BivrecError if the Domain has another catalogue or other features, or the checkpoint is damaged.
        """
        self.check_domain(domain)
        return self._best_model(domain)

    def load_multimodal(self, domain: Domain) -> BiVRecNetwork:
        """The trained model of the multimodal view alone, on any Domain: no weight of it belongs to an item.

        Raises BivrecError if the Domain has other features, or the checkpoint is damaged.
        """
        assert self.config.training.views == ("mm",)
        return self._best_model(domain)

    def _best_model(self, domain: Domain) -> BiVRecNetwork:
        model = fresh_model(self.config, domain, self.feature_specs, reader=str(self.path))
        load_checkpoint(self.checkpoint("best"), model)
        return model

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. Raises BivrecError at the first that is damaged."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        # A kill can cut the last line short; only whole lines end in a newline.
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        return [_metrics_line(line, f"{path}: line {number}") for number, line in enumerate(whole.splitlines(), 1)]

    def has_ended(self) -> bool:
        """Whether the training came to its end."""
        return (self.path / RESULTS_FILE).exists()

    def results(self) -> Results:
        """Of the best checkpoint on the test users; empty until the training has ended, and if it was on these users
        too. BivrecError if damaged."""
        path = self.path / RESULTS_FILE
        advice = "remove the file and measure again with --resume"
        return checked_results(read_json(path), str(path), advice) if path.exists() else {}

    def unfinished(self) -> str | None:
        """A line that says how far a training is that has not ended, and what goes on; None once it has ended, and
        before its first evaluation, which no weights are the best of."""
        if self.has_ended() or not self.checkpoint("best").exists():
            return None
        return (
            f"{self.path}: not ended (step {self.progress('last').step:,} of {self.config.training.steps:,}): "
            "its weights are the best so far; "
            f"go on with `bivrec {self.info.stage} --to {shlex.quote(str(self.path))} --resume`"
        )

    def id_weight(self) -> float | None:
        """Share of the ID view where both rank together; None: one view alone."""
        weights = checkpoint_weights(self.checkpoint("best"), "id_weight")
        return round(float(weights[""]), 6) if weights else None

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed training will do again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with new_file(self.path / "metrics.jsonl") as staging:
            staging.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _metrics_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not (isinstance(record, dict) and {"split", "step"} <= record.keys()):
        raise BivrecError(f"{where}: damaged, expected metrics of a step; remove the line")
    return record


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def fresh_model(config: Config, domain: Domain, features: Mapping[str, FeatureSpec], reader: str) -> BiVRecNetwork:
    """A model with untrained towers for the views of the configuration, on a Domain with features made like these.

    `reader` names who expects them, if they differ.
    """
    views = config.training.views
    table = contract_features(features, domain, tower=reader) if "mm" in views else None
    sizes = [spec.dimension for spec in features.values()]
    return BiVRecNetwork(fresh_towers(config.model, views, domain.num_items, sizes, table))


def domain_record(domain: Domain) -> dict[str, Any]:
    """What a Run or an artefact records of a Domain.

    source: of the data, whose terms bind what was trained on it. catalogue: identifies its items and their order.
    held_out: checksums of the sequences of validation and test.
    """
    return {
        "name": domain.name,
        "source": domain.info.source,
        "path": str(domain.path.resolve()) if domain.repository is None else domain.location,
        "catalogue": domain.catalogue,
        "held_out": {split: domain.info.files[sequence_file(split)].sha256 for split in HELD_OUT},
        "num_items": domain.num_items,
        "protocol": domain.info.protocol,
        "cutoffs": domain.info.cutoffs,
        "users": domain.info.users,
        "interactions": domain.info.interactions,
    }
