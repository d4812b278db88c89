"""Model and data cards, rendered from the templates of the folder model_cards/; an undefined variable is an error."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import jinja2
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from bivrec.config import ModelConfig, held_out_known
from bivrec.data.domain import CATALOGUE_FILE, sequence_file
from bivrec.data.info import LEAVE_ONE_OUT, SPLITS, TEMPORAL, USER_SPLIT, DomainInfo, FeatureSpec
from bivrec.errors import BivrecError
from bivrec.terms import terms_of

TEMPLATES = "bivrec_model_cards"
PAPER = "2402.17334"
METRIC_NAMES = {
    "recall": "Recall (hits / distinct targets)",
    "ndcg": "nDCG (ideal: min(k, targets))",
    "ndcg_hits": "nDCG of hits (ComiRec's variant)",
    "hr": "Hit rate",
    "mrr": "Mean reciprocal rank (of the first hit)",
}
VIEW_NAMES = {"id": "ID view", "mm": "multimodal view", "both": "both views"}
FLOOR_NAMES = {
    "popularity": "most popular",
    "item-knn": "item-kNN",
    "recent-item-knn": "item-kNN, recent items weighted",
    "spectral-knn": "spectral kNN",
    "recent-spectral-knn": "spectral kNN, recent items weighted",
    "content-knn": "content-kNN",
    "recent-content-knn": "content-kNN, recent items weighted",
}
DROPPED_NAMES = {
    "rated_below": "interactions rated below the least rating",
    "outside_period": "interactions outside of the set's period",
    "interactions_with_other_domain": "interactions with items of another Domain",
    "duplicate_interactions": "repeated interactions",
    "k_core_users": "users by the k-core",
    "k_core_items": "items by the k-core",
    "k_core_interactions": "interactions by the k-core",
    "items_without_interactions": "items without interactions",
    "interactions_without_history": "interactions of users who begin too late for any split",
    "images_not_found": "names of images that are not there",
}
PROTOCOL = {
    USER_SPLIT: {
        "users": "those of the split, none of them trained on",
        "targets": "the last 20 % of a user's sequence",
    },
    LEAVE_ONE_OUT: {
        "users": "all with 3 interactions or more",
        "targets": "the last interaction of a user",
    },
    TEMPORAL: {
        "users": "all with interactions both before the test's time and since",
        "targets": "what a user did since the test's time",
    },
}
TAGS = ["recommendation", "sequential-recommendation", "multimodal", f"arxiv:{PAPER}"]
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def model_card(
    kind: str,
    name: str,
    model: ModelConfig,
    features: Mapping[str, FeatureSpec],
    training: Mapping[str, Any],
    parameters: int,
    *,
    picture: str | None = None,
) -> str:
    """The README.md of a published `tower` or `joint` model: metadata with a model-index, and the text.

    training: an artefact's record of its training, with the facts of `card_facts` where they are known.
    picture: the file beside the card that shows the training curve.
    """
    views = [view for view in training["results"] if kind == "joint" or view == "mm"]
    domain, started_from = training["domain"], _started_from(training["started_from"])
    protocol = domain["protocol"]
    terms = terms_of(training.get("source"), domain["name"])
    data = ModelCardData(
        library_name="bivrec",
        # The Hub knows no task of recommendation, and refuses names that it does not know.
        pipeline_tag="other",
        tags=[*TAGS, "transfer-learning"],
        datasets=[_dataset(training.get("dataset"), domain["name"])],
        license=terms.license,
        license_name=terms.license_name,
        license_link=terms.license_link,
        # The frozen encoders are no base models: none of their weights is here, and none was changed.
        base_model=started_from["repository"] if started_from else None,
        model_name=name,
        eval_results=[_evaluation(view, metric, value, training) for view in views for metric, value in
                      training["results"][view].items()] or None,
    )  # fmt: skip
    return _render(
        f"{kind}.md.jinja",
        metadata=data.to_yaml(),
        name=name,
        address=address_of(name),
        model=model,
        features=features,
        training={**training, "command": neutral_command(training["command"])},
        started_from=started_from,
        protocol=protocol,
        known=held_out_known(training["config"]["training"]),
        dataset=training.get("dataset"),
        source=training.get("source"),
        floors=training.get("floors"),
        terms=terms,
        parameters=parameters,
        picture=picture,
        view_names=VIEW_NAMES,
        floor_names=FLOOR_NAMES,
    )


def domain_card(name: str, info: DomainInfo) -> str:
    """The README.md of a published Domain: metadata that `datasets.load_dataset` reads, and the text."""
    terms = terms_of(info.source, info.name)
    rows = sum(info.users.values())
    # `datasets` cannot load a split without rows.
    splits = [split for split in SPLITS if info.users[split]]
    data = DatasetCardData(
        pretty_name=info.name,
        license=terms.license,
        license_name=terms.license_name,
        license_link=terms.license_link,
        tags=["bivrec", *TAGS],
        size_categories=[next((label for limit, label in SIZES if rows < limit), "1M<n<10M")],
        configs=[
            {
                "config_name": "sequences",
                "default": True,
                "data_files": [{"split": split, "path": sequence_file(split)} for split in splits],
            },
            {"config_name": "items", "data_files": [{"split": "items", "path": CATALOGUE_FILE}]},
        ],
    )
    dropped = [f"{count:,} {DROPPED_NAMES[reason]}" for reason, count in info.dropped.items() if count]
    return _render(
        "domain.md.jinja",
        metadata=data.to_yaml(),
        name=name,
        address=address_of(name),
        info=info,
        terms=terms,
        splits=splits,
        dropped=dropped,
    )


def address_of(name: str) -> str:
    """What commands call a model or Domain: `ORG/NAME` on the Hub, of a folder a place that the reader knows."""
    return name if "/" in name else f"PATH/TO/{name}"


def neutral_command(command: str) -> str:
    """A command with absolute paths cut to their last part: they say where files lay, not what they were."""
    return shlex.join(last_parts(word) for word in shlex.split(command))


def neutral_origin(origin: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The tower that a training started from; of a folder the last part of its path."""
    return {**origin, "name": last_parts(str(origin["name"]))} if origin else None


def last_parts(text: str) -> str:
    """A word, or `key=value`, whose path is cut to its last part if it is absolute."""
    return re.sub(r"(^|=)([~/].*)$", lambda found: found[1] + PurePosixPath(found[2]).name, text)


def _evaluation(view: str, metric: str, value: float, training: Mapping[str, Any]) -> EvalResult:
    domain = training["domain"]
    protocol = domain["protocol"]
    known = held_out_known(training["config"]["training"])
    kind, _, k = metric.partition("@")
    return EvalResult(
        task_type="sequential-recommendation",
        task_name="Sequential recommendation",
        dataset_type=domain["name"],
        dataset_name=domain["name"],
        dataset_split="test",
        dataset_args={
            "protocol": protocol,
            **PROTOCOL[protocol],
            "trained_on": " and ".join(("the training split", *(f"the {split}" for split in known))),
            "candidates": "the whole catalogue",
            "seen_items": "not removed",
            "test_users": domain["users"]["test"],
            "items": domain["num_items"],
        },
        metric_type=metric,
        metric_name=f"{METRIC_NAMES[kind]} at {k}, {VIEW_NAMES[view]}",
        metric_config=view,
        metric_value=value,
    )


def _started_from(origin: Mapping[str, Any] | None) -> dict[str, str | None] | None:
    """The tower that was finetuned, with its repository on the Hub if it came from there, and without local paths."""
    if (origin := neutral_origin(origin)) is None:
        return None
    revision = origin["revision"]
    name = origin["name"].partition("@")[0] if revision else origin["name"]
    return {"name": name, "revision": revision, "repository": name if revision else None, "sha256": origin["sha256"]}


def _dataset(repository: str | None, name: str) -> str:
    """Of a Domain that is not on the Hub its name, so that models of one data set are found by it."""
    return repository.partition("@")[0] if repository else _id_of(name)


def _id_of(name: str) -> str:
    # The Hub refuses a card whose data sets have names that none of its own could have.
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "unnamed"


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files(TEMPLATES) / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        return environment.get_template(template).render(**values)
    except jinja2.UndefinedError as fault:
        raise BivrecError(f"the record of the training lacks what its card tells ({fault}); train again") from None
