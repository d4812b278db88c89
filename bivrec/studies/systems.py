"""The systems of a comparison: each row of the paper's Table 1, and what a recipe must change to train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class System:
    """One row of a comparison: a training and the view that is ranked with."""

    overrides: Mapping[str, Mapping[str, Any]]
    """Section -> key -> value: what makes the system, to be laid over a recipe of stage `pretrain`."""
    view: str
    """The view that is ranked: `id`, `mm` or `both`. Rows with equal overrides share one training."""
    paper_row: str | None = None
    """Name of the row in Table 1 of the BiVRec paper (Hu et al. 2024); None: it has none."""

    @property
    def needs_features(self) -> bool:
        """Whether the Domain must be encoded."""
        return "mm" in self.overrides["training"]["views"]


def _system(
    name: str,
    views: str,
    paper_row: str | None = None,
    *,
    view: str | None = None,
    routed: bool = False,
    **model: Any,
) -> System:
    """`routed`: of several interests, the one nearest to the target learns, and the nearest to an item scores it."""
    trained = ["id", "mm"] if views == "both" else [views]
    sections = {"model": model, "training": {"views": trained, "selection_view": view or views}}
    if name != "bivrec":
        model["system"] = name
    if routed:
        model |= {"readout": "history", "num_interests": [4], "interest_score": "max"}
        sections["objective"] = {"negatives_scored_by": "target-interest"}
    return System(sections, view or views, paper_row)


SYSTEMS: dict[str, System] = {
    "bivrec-id": _system("bivrec", "both", "BivRec-ID", view="id"),
    "bivrec-mm": _system("bivrec", "both", "BivRec-MM", view="mm"),
    "bivrec": _system("bivrec", "both"),
    "pure-id": _system("bivrec", "id", "PureID"),
    "pure-mm": _system("bivrec", "mm", "PureMM"),
    "comirec-sa": _system("comirec-sa", "id", "ComiRec-SA", routed=True),
    "comirec-sa+": _system("comirec-sa", "both", "ComiRec-SA+", routed=True),
    "comirec-sa-dense+": _system("comirec-sa", "both", readout="prefix"),
    "comirec-dr": _system("comirec-dr", "id", routed=True),
    "comirec-dr+": _system("comirec-dr", "both", routed=True),
    "sasrec": _system("sasrec", "id", "SASRec*", readout="prefix"),
    "sasrec-mm": _system("sasrec", "mm", readout="prefix"),
    "sasrec+": _system("sasrec", "both", "SASRec*+", readout="prefix"),
    "fdsa+": _system("fdsa", "both", "FDSA*+", readout="prefix"),
    "mmsrec": _system("mmsrec", "mm", "MMSRec*", readout="history", score="cosine"),
    "mmmlp": _system("mmmlp", "both", "MMMLP*", readout="history"),
    "nova+": _system("nova", "both", "NOVA*+", readout="prefix"),
    "dif-sr+": _system("dif-sr", "both", "DIF-SR*+", readout="prefix"),
    "re4": _system("re4", "id", routed=True),
    "re4+": _system("re4", "both", routed=True),
    "unisrec": _system("unisrec", "mm", readout="prefix", score="cosine"),
    "unisrec+": _system("unisrec", "both", readout="prefix", score="cosine"),
}
"""Identifier -> system. A `+` reads IDs and features in one model, as in Table 1; `dense` learns every position, with
the interest score of the recipe, which the paper does not."""
