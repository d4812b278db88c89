"""What a model card tells beside the artefact: gathered from a Run, and measured on the Domain of its training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bivrec.artefact import BiVRec, Tower
from bivrec.artefact_files import CURVE_FILE
from bivrec.baselines.floors import fit_floor
from bivrec.cards import last_parts
from bivrec.config import CONTENT_FLOORS, FLOORS, held_out_known
from bivrec.data.domain import Domain
from bivrec.data.refit import RefitDomain
from bivrec.errors import BivrecError
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.ranking import Scorer, evaluate
from bivrec.evaluation.scorer import ModelScorer
from bivrec.finetune import zero_shot_model
from bivrec.plots import plot_training
from bivrec.training.fit import RESULT_KS
from bivrec.training.run import Run


def card_facts(run: Run, model: Tower | BiVRec) -> dict[str, Any]:
    """Facts to add to an artefact's record of its training.

    source: of the Domain's data. dataset: `ORG/NAME@commit` if the Domain came from the Hub. floors: name -> metrics
    on the Domain's test users; None if the model was trained on these, or the Domain is not there any more or has
    changed, so that they cannot be measured. results: of a tower that has none (see `artefact.tower_config`), likewise.
    """
    location = str(run.info.domain["path"])
    facts: dict[str, Any] = {
        "source": public_source(run.source),
        "dataset": location.removeprefix("hub:") if location.startswith("hub:") else None,
        "floors": None,
    }
    try:
        domain = run.open_domain()
    except BivrecError:
        return facts
    known = held_out_known(run.info.config["training"])
    if "test" in known:
        return facts
    if known:
        # Floors may know what the model knows.
        domain = RefitDomain(domain)
    if isinstance(model, Tower) and not model.training["results"]:
        facts["results"] = {"mm": _measure(ModelScorer(zero_shot_model(domain, model)), domain)}
    return {**facts, "floors": measure_floors(domain)}


def measure_floors(domain: Domain) -> dict[str, dict[str, float]]:
    """Floor -> metrics on the test users, by the protocol of a Run's results; content floors need features."""
    names = [name for name in FLOORS if domain.info.features or name not in CONTENT_FLOORS]
    return {name: _measure(fit_floor(name, domain), domain) for name in names}


def _measure(scorer: Scorer, domain: Domain) -> dict[str, float]:
    return evaluate(scorer, EvaluationUsers.from_sequences(domain.sequences("test")), RESULT_KS).metrics


def draw_training_curve(run: Run, folder: Path) -> str | None:
    """Write the picture of the training into a folder; its file name, or None without matplotlib or any evaluation."""
    if importlib.util.find_spec("matplotlib") is None or not any(m["split"] == "validation" for m in run.metrics()):
        return None
    plot_training(folder / CURVE_FILE, {"": run}, "recall@20", f"{run.info.stage} on {run.info.domain['name']}")
    return CURVE_FILE


def public_source(source: dict[str, Any]) -> dict[str, Any]:
    """A Domain's source with absolute paths cut to their last part, in sources within it too."""
    return {key: _public_value(value) for key, value in source.items()}


def _public_value(value: Any) -> Any:
    if isinstance(value, dict):
        return public_source(value)
    return last_parts(value) if isinstance(value, str) else value
