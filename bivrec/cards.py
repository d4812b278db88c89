"""Model cards, rendered from the templates of the folder model_cards/; an undefined variable is an error."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from bivrec.config import ModelConfig
from bivrec.data.domain import FeatureSpec

TEMPLATES = "bivrec_model_cards"
PAPER = "2402.17334"
METRIC_NAMES = {
    "recall": "Recall (hits / distinct targets)",
    "ndcg": "nDCG (ideal: min(k, targets))",
    "ndcg_hits": "nDCG of hits (ComiRec's variant)",
    "hr": "Hit rate",
}


def tower_card(
    name: str, model: ModelConfig, features: Mapping[str, FeatureSpec], training: Mapping[str, Any], parameters: int
) -> str:
    """The README.md of a published tower: metadata with a model-index, and the text."""
    results = training["results"].get("mm", {})
    data = ModelCardData(
        library_name="bivrec",
        tags=["recommendation", "sequential-recommendation", "multimodal", "transfer-learning", f"arxiv:{PAPER}"],
        model_name=name,
        eval_results=[_evaluation(metric, value, training["domain"]["name"]) for metric, value in results.items()]
        or None,
    )
    return _render(
        "tower.md.jinja",
        metadata=data.to_yaml(),
        name=name,
        model=model,
        features=features,
        training=training,
        parameters=parameters,
        metric_names=METRIC_NAMES,
    )


def _evaluation(metric: str, value: float, domain: str) -> EvalResult:
    kind, _, k = metric.partition("@")
    return EvalResult(
        task_type="sequential-recommendation",
        task_name="Sequential recommendation, full ranking, multimodal view",
        dataset_type=domain,
        dataset_name=domain,
        dataset_split="test",
        metric_type=metric,
        metric_name=f"{METRIC_NAMES[kind]} at {k}",
        metric_value=value,
    )


def _render(template: str, **values: Any) -> str:
    source = (resources.files(TEMPLATES) / template).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(source).render(**values)
