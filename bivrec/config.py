"""Configuration: frozen dataclasses, built from YAML recipes and `--set section.key=value` overrides.

Every fault of a configuration (unknown keys, wrong types, impossible values) is reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from bivrec.errors import BivrecError

MODALITIES = ("text", "image")
VIEWS = ("id", "mm")
HELD_OUT = ("validation", "test")
"""The splits of a Domain that are not trained on."""
INTERESTS = ("free", "content", "free+content")
CONTENT_FLOORS = ("content-knn", "recent-content-knn")
"""Those that read features."""
FLOORS = ("popularity", "item-knn", "recent-item-knn", "spectral-knn", "recent-spectral-knn", *CONTENT_FLOORS)
"""What ranks without training, which a trained model has to beat."""
MOST_STAGES = 64
"""Scales, or clustering stages, of a model. Like the greatest values below, far beyond any use: a configuration
that was taken from anywhere must not ask for more modules than fit into memory."""
LEAST_STEPS = 300
"""Of a training that takes as many steps as its epochs come to: few users need many epochs."""
EVALUATIONS = 6
"""Of a training that does not say how often it is evaluated."""
SYSTEM_LIMITS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "comirec-sa": ((("id",), ("mm",), ("id", "mm")), ("history", "prefix")),
    "comirec-dr": ((("id",), ("mm",), ("id", "mm")), ("history", "prefix")),
    "sasrec": ((("id",), ("mm",), ("id", "mm")), ("history", "prefix")),
    "fdsa": ((("id", "mm"),), ("history", "prefix")),
    "mmsrec": ((("mm",),), ("history",)),
    "mmmlp": ((("id", "mm"),), ("history",)),
    "nova": ((("id", "mm"),), ("history", "prefix")),
    "dif-sr": ((("id", "mm"),), ("history", "prefix")),
    "re4": ((("id",), ("mm",), ("id", "mm")), ("history",)),
    "unisrec": ((("mm",), ("id", "mm")), ("history", "prefix")),
}
"""Baseline -> the views that it can be trained with, and its readouts. BiVRec has all."""

T = TypeVar("T")


def _setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A configuration field: its default, its one-line description, and the values it admits (bounds inclusive)."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a tower (both views share it) and of the two views together."""

    system: str = _setting(
        "bivrec",
        "bivrec, or a baseline, which reads [id, mm] in one model; of this section, baselines read hidden_size, "
        "dropout, max_history, score, modalities and readout; comirec and re4 also the last of num_interests and "
        "interest_score, the others num_layers and, but for mmmlp, num_heads; what else is set is ignored",
        choices=("bivrec", *SYSTEM_LIMITS),
    )
    hidden_size: int = _setting(64, "width D of items, tokens and interests", low=2, high=1 << 14)
    num_layers: int = _setting(2, "transformer layers with Gaussian attention", low=0, high=256)
    num_heads: int = _setting(2, "attention heads; must divide hidden_size", low=1, high=1 << 14)
    dropout: float = _setting(0.2, "dropout of embeddings, attention and MLP", low=0.0, high=0.95)
    max_history: int = _setting(50, "most recent items of a history that are read (N)", low=1, high=1 << 16)
    scales: tuple[int, ...] = _setting(
        (4,), "window sizes of the coarser scales beside scale 1 (Eq. 1-3)", low=2, high=1 << 16
    )
    positions: str = _setting(
        "age",
        "age: an embedding for each number of items that followed (the paper); "
        "none: order is known by the distances of Gaussian attention and, with the readout prefix, by what the "
        "interests forget; a history that is read backwards then has the same interests with the readout history",
        choices=("age", "none"),
    )
    gaussian: str = _setting(
        "product",
        "Gaussian attention: product (Eq. 6), bias (log-prior added to the logits) or none",
        choices=("product", "bias", "none"),
    )
    num_interests: tuple[int, ...] = _setting(
        (4,), "interests after each clustering stage; the last is K", low=1, high=1 << 12
    )
    interests_per_item: int = _setting(
        1, "interests F that an item may belong to (Eq. 8), unless the assignment is soft", low=1, high=1 << 12
    )
    assignment: str = _setting(
        "gumbel-hard",
        "how items choose interests (Eq. 8-10)",
        choices=("gumbel-hard", "softmax-hard", "softmax-soft"),
    )
    assignment_temperature: float = _setting(1.0, "temperature tau of the assignment (Eq. 9)", low=1e-3)
    aggregation: str = _setting(
        "mean", "how an interest gathers its items: mean, or sum (the literal Eq. 12)", choices=("mean", "sum")
    )
    readout: str = _setting(
        "history",
        "history: interests of the whole history, one target (the paper); "
        "prefix: causal, interests after every position, every position a target",
        choices=("history", "prefix"),
    )
    score: str = _setting(
        "dot", "item score: dot product (the paper) or cosine with a learned scale", choices=("dot", "cosine")
    )
    interest_score: str = _setting(
        "max",
        "how the interests score an item: max, the nearest one (Eq. 19), or logsumexp, all of them softly",
        choices=("max", "logsumexp"),
    )
    mm_interests: str = _setting(
        "free",
        "interests of the multimodal view: free (Eq. 12); content: aggregates of item vectors themselves, which stay "
        "where similar items are near in a Domain that was never seen; free+content: their sum",
        choices=INTERESTS,
    )
    id_interests: str = _setting(
        "free",
        "interests of the ID view, as above; free+content learns faster where items are many and histories short",
        choices=INTERESTS,
    )
    repeat_bias: bool = _setting(
        False,
        "whether a view adds a learned constant to the scores of items that the user has had before; how readily "
        "users repeat belongs to a Domain, like its IDs, and does not transfer",
    )
    id_items: str = _setting(
        "ids",
        "what items of the ID view are: ids (the paper), or ids+features, to whose vectors their projected features "
        "are added where the multimodal view is trained too",
        choices=("ids", "ids+features"),
    )
    modalities: tuple[str, ...] = _setting(
        (), "features that the multimodal view reads (none named: all that the Domain has)", choices=MODALITIES
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss (Eq. 13-22)."""

    candidates: str = _setting(
        "full",
        "softmax candidates: full catalogue, negatives drawn uniform or by popularity, or in-batch targets",
        choices=("full", "uniform", "popularity", "in-batch"),
    )
    num_negatives: int = _setting(
        1024,
        "draws of negatives a step (uniform, popularity), shared by the batch; what is drawn twice counts once",
        low=1,
        high=1 << 24,
    )
    negatives_scored_by: str = _setting(
        "target-interest",
        "target-interest: the interest nearest to the target scores all candidates (Eq. 19-21); "
        "best-interest: each candidate is scored by its own nearest interest, as in ranking; of no effect where "
        "interest_score is logsumexp",
        choices=("target-interest", "best-interest"),
    )
    contrastive_weight: float = _setting(0.5, "lambda1 of the coarse cross-view loss (Eq. 22)", low=0.0)
    allocation_weight: float = _setting(0.3, "lambda2 of the fine cross-view loss (Eq. 22)", low=0.0)


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    views: tuple[str, ...] = _setting(("id", "mm"), "views that are trained", choices=VIEWS)
    steps: int = _setting(
        2000,
        f"optimiser steps at most (0: what `epochs` come to on the Domain, but {LEAST_STEPS} or more)",
        low=0,
    )
    epochs: float = _setting(1.75, "where steps are 0: passes over the training sequences", low=0.0)
    batch_size: int = _setting(128, "sequences per optimiser step, over all processes", low=1)
    accumulate: int = _setting(
        1,
        "micro-batches per optimiser step; contrastive negatives, in-batch candidates and the balance of the two views "
        "are those of a micro-batch",
        low=1,
    )
    targets_per_sequence: int | None = _setting(
        None, "positions of a sequence that are targets in a step (null: all; a history readout has one)", low=1
    )
    min_history: int = _setting(1, "fewest items before a training target", low=1)
    id_init: str = _setting(
        "random",
        "initial rows of the ID table: random, or spectral: near to each other where the same users had the items",
        choices=("random", "spectral"),
    )
    projection_init: str = _setting(
        "random",
        "directions of features that fresh projections start from, where they are wider than hidden_size: random, or "
        "principal: those in which the items of the Domain differ most, which keeps the most of their similarities",
        choices=("random", "principal"),
    )
    optimizer: str = _setting("adamw", "optimiser", choices=("adam", "adamw"))
    learning_rate: float = _setting(1e-3, "peak learning rate", low=0.0)
    tower_learning_rate: float | None = _setting(
        None, "peak learning rate of a pretrained tower (default: learning_rate)", low=0.0
    )
    projection_learning_rate: float | None = _setting(
        None,
        "peak learning rate of the projection of features (default: its tower's); a low one keeps the similarities "
        "that the encoders give, which is what transfers",
        low=0.0,
    )
    frozen_tower_steps: int = _setting(0, "steps for which a pretrained tower stays frozen (-1: throughout)", low=-1)
    weight_decay: float = _setting(0.0, "weight decay (matrices only)", low=0.0)
    warmup_steps: int = _setting(100, "steps of linear warm-up", low=0)
    schedule: str = _setting("constant", "learning rate after warm-up", choices=("constant", "cosine"))
    clip_norm: float = _setting(1.0, "largest gradient norm (0: no clipping)", low=0.0)
    precision: str = _setting(
        "fp32",
        "fp32; bf16 mixed precision; or auto: bf16 where the device has matrix units for it, and fp32 elsewhere",
        choices=("fp32", "bf16", "auto"),
    )
    evaluate_every: int = _setting(
        200, f"steps between evaluations on the validation users (0: {EVALUATIONS} evaluations in all)", low=0
    )
    patience: int = _setting(10, "evaluations without a better validation recall before stopping (0: never)", low=0)
    selection_view: str = _setting(
        "both", "view whose validation recall selects the best checkpoint", choices=("id", "mm", "both")
    )
    with_validation: bool = _setting(
        False,
        "whether the validation's sequences are trained on too, and the weights of the last step kept: what `bivrec "
        "refit` sets",
    )
    with_test: bool = _setting(
        False, "whether the test's sequences are trained on too, so that nothing is left to measure results on"
    )
    id_weight: float = _setting(
        0.5,
        "share of the ID view where both views rank together; fit with every evaluation on the validation users, "
        "unless these are trained on",
        low=0.0,
        high=1.0,
    )
    seed: int = _setting(0, "seed of initialisation, batches, dropout and noise", low=0, high=(1 << 32) - 1)

    def __post_init__(self) -> None:
        # Models keep what belongs to the views by their place; however they are named, it is one model.
        object.__setattr__(self, "views", tuple(sorted(self.views, key=VIEWS.index)))


@dataclass(frozen=True)
class Config:
    """A recipe: everything that a training needs beside its Domain."""

    description: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `config_from_dict` gives the same Config back."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def settings(self) -> dict[str, Any]:
        """`section.key` -> its value as of `to_dict`, without the description."""
        sections = {name: part for name, part in self.to_dict().items() if name != "description"}
        return {f"{section}.{key}": value for section, part in sections.items() for key, value in part.items()}


def config_from_dict(values: Mapping[str, Any], source: str = "configuration") -> Config:
    """Build a Config; BivrecError lists every unknown key and impossible value, with the allowed ones."""
    faults: list[str] = []
    config = _build(Config, values, "", faults)
    if not faults:
        faults = _contradictions(config)
    if faults:
        raise BivrecError(f"{source}: " + "; ".join(faults))
    return config


def held_out_known(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the splits that are held out, those that were trained on too; `training` is that section as of `to_dict`."""
    return tuple(split for split in HELD_OUT if training.get(f"with_{split}", False))


def model_config_from_dict(values: Any, source: str) -> ModelConfig:
    """Build the architecture of a published tower, with the same checks as a recipe."""
    # They come from a file of anybody's, so they may not even be a mapping; config_from_dict says so.
    limits = SYSTEM_LIMITS.get(str(values.get("system"))) if isinstance(values, Mapping) else None
    views = limits[0][0] if limits else VIEWS
    return config_from_dict({"model": values, "training": {"views": views}}, source).model


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Values with each `section.key=value` set; values are read as YAML, so `[4, 8]`, `0.1` and `null` work."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for override in overrides:
        section, name, value = read_override(override)
        target = result.setdefault(section, {})
        if not isinstance(target, dict):
            raise BivrecError(f"--set {override}: '{section}' has no keys of its own; the sections are {_sections()}")
        target[name] = value
    return result


def read_override(override: str, option: str = "--set") -> tuple[str, str, Any]:
    """Section, key and value of `section.key=value`; the value is read as YAML.

    Raises BivrecError if it has another form; the message names `option`, from which it came.
    """
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise BivrecError(f"{option} {override}: expected section.key=value, for example model.hidden_size=128")
    try:
        return section, name, yaml.safe_load(text)
    except yaml.YAMLError:
        raise BivrecError(f"{option} {override}: the value {text!r} is not valid YAML") from None


def describe(config: Config, *, beside_tower: Collection[str] | None = None) -> str:
    """The configuration as a YAML recipe in which every key carries its description.

    beside_tower: of a finetuning, the settings of the architecture that its recipe names; the others are the tower's,
    and are told in comments.
    """
    # JSON is YAML on one line.
    lines = [f"description: {json.dumps(config.description)}"]
    for section in ("model", "objective", "training"):
        lines += ["", f"{section}:"]
        part = getattr(config, section)
        for item in dataclasses.fields(part):
            setting = f"{item.name}: {json.dumps(_plain(getattr(part, item.name)))}"
            if section == "model" and beside_tower is not None and item.name not in beside_tower:
                setting = f"# {item.name}: from the tower"
            lines.append(f"  {setting:<36} # {_help(item.metadata)}")
    return "\n".join(lines) + "\n"


def _help(setting: Mapping[str, Any]) -> str:
    """The description of a setting, with the values that it admits if it does not name them itself."""
    text, choices = str(setting["help"]), list(setting["choices"] or [])
    if all(re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", text) for choice in choices):
        return text
    return f"{text}{'; choices' if set(':;') & set(text) else ''}: {', '.join(choices[:-1])} or {choices[-1]}"


def _sections() -> str:
    return ", ".join(item.name for item in dataclasses.fields(Config) if item.name != "description")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _build(cls: type[T], values: Any, prefix: str, faults: list[str]) -> T:
    if not isinstance(values, Mapping):
        faults.append(f"{prefix.rstrip('.') or 'recipe'}: expected keys and values, found {values!r}")
        return cls()
    types = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            faults.append(f"{prefix}{key}: unknown key; {hint}allowed: {', '.join(known)}")
        elif dataclasses.is_dataclass(types[key]):
            arguments[key] = _build(typing.cast("type[Any]", types[key]), value, f"{prefix}{key}.", faults)
        else:
            before = len(faults)
            converted = _convert(value, types[key], known[key].metadata, f"{prefix}{key}", faults)
            if len(faults) == before:
                arguments[key] = converted
    return cls(**arguments)


def _convert(value: Any, kind: Any, limits: Mapping[str, Any], name: str, faults: list[str]) -> Any:
    """`value` as `kind`, or None and a fault: int, float, str, `float | None`, and tuples of int or str."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            example = ", ".join(limits.get("choices") or ("4", "8"))
            faults.append(f"{name}: expected a list such as [{example}], found {value!r}")
            return None
        return tuple(_convert(part, typing.get_args(kind)[0], limits, name, faults) for part in value)
    if type(None) in typing.get_args(kind):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 (no dot) as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    right = isinstance(value, int | float) and math.isfinite(value) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        faults.append(f"{name}: expected {kind.__name__}, found {value!r}")
        return None
    low, high, choices = limits.get("low"), limits.get("high"), limits.get("choices")
    if choices and value not in choices:
        faults.append(f"{name}: {value!r} is not one of {', '.join(choices)}")
    if low is not None and value < low:
        faults.append(f"{name}: {value} is below the least allowed value {low}")
    if high is not None and value > high:
        faults.append(f"{name}: {value} is above the greatest allowed value {high}")
    return float(value) if kind is float else value


def _contradictions(config: Config) -> list[str]:
    """Faults between settings that are fine one by one."""
    model, objective, training = config.model, config.objective, config.training
    faults = []
    if model.hidden_size % model.num_heads:
        faults.append(f"model.num_heads: {model.num_heads} does not divide model.hidden_size {model.hidden_size}")
    for name, count in (("scales", len(model.scales)), ("num_interests", len(model.num_interests))):
        if count > MOST_STAGES:
            faults.append(f"model.{name}: {count} values, expected at most {MOST_STAGES}")
    if not model.num_interests:
        faults.append("model.num_interests: expected at least one clustering stage, for example [4]")
    elif model.interests_per_item > min(model.num_interests):
        faults.append(
            f"model.interests_per_item: {model.interests_per_item} is more than the fewest interests "
            f"of a stage, {min(model.num_interests)}"
        )
    if len(set(model.scales)) != len(model.scales):
        faults.append(f"model.scales: {list(model.scales)} names a scale twice")
    for name, values in (("model.modalities", model.modalities), ("training.views", training.views)):
        if len(set(values)) != len(values):
            faults.append(f"{name}: {list(values)} names one twice")
    if not training.views:
        faults.append(f"training.views: expected one or more of {', '.join(VIEWS)}")
    if training.selection_view != "both" and training.selection_view not in training.views:
        faults.append(f"training.selection_view: the view {training.selection_view} is not in training.views")
    if model.system in SYSTEM_LIMITS:
        faults += _system_faults(model, training)
    if training.batch_size % training.accumulate:
        faults.append(
            f"training.accumulate: {training.accumulate} does not divide training.batch_size {training.batch_size}"
        )
    if training.with_test and not training.with_validation:
        faults.append("training.with_test: expected training.with_validation too")
    if objective.candidates == "in-batch" and training.batch_size < 2 * training.accumulate:
        faults.append("training.batch_size: in-batch candidates need at least 2 sequences in a micro-batch")
    return faults


def _system_faults(model: ModelConfig, training: TrainingConfig) -> list[str]:
    """What a baseline cannot do."""
    views, readouts = SYSTEM_LIMITS[model.system]
    faults = []
    if training.views not in views:
        allowed = " or ".join(f"[{', '.join(option)}]" for option in views)
        faults.append(f"training.views: the system {model.system} is trained with {allowed}")
    if model.readout not in readouts:
        faults.append(f"model.readout: the system {model.system} has no readout {model.readout}; set {readouts[0]}")
    if model.system in ("nova", "dif-sr") and not model.num_layers:
        faults.append(f"model.num_layers: the system {model.system} adds texts within its layers; set 1 or more")
    if len(training.views) > 1 and training.selection_view != "both":
        faults.append(
            f"training.selection_view: the system {model.system} has one model of both views; set both, "
            f"found {training.selection_view}"
        )
    if len(training.views) > 1 and (training.frozen_tower_steps or training.tower_learning_rate is not None):
        faults.append(
            f"training.frozen_tower_steps, training.tower_learning_rate: the system {model.system} has one model of "
            "both views, without a tower to treat apart; leave them out"
        )
    return faults
