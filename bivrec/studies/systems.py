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
    citation: str
    paper_row: str | None = None
    """Name of the row in Table 1 of the BiVRec paper (Hu et al. 2024); None: it has none."""

    @property
    def needs_features(self) -> bool:
        """Whether the Domain must be encoded."""
        return "mm" in self.overrides["training"]["views"]


def _system(
    name: str,
    views: str,
    citation: str,
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
    return System(sections, view or views, citation, paper_row)


_BIVREC = "Hu et al. 2024, arXiv 2402.17334"
_COMIREC = "Cen et al., KDD 2020, arXiv 2005.09347"
_SASREC = "Kang & McAuley, ICDM 2018, arXiv 1808.09781"
_RE4 = "Zhang et al., WWW 2022"
_UNISREC = "Hou et al., KDD 2022, arXiv 2206.05941"

SYSTEMS: dict[str, System] = {
    "bivrec-id": _system("bivrec", "both", _BIVREC, "BivRec-ID", view="id"),
    "bivrec-mm": _system("bivrec", "both", _BIVREC, "BivRec-MM", view="mm"),
    "bivrec": _system("bivrec", "both", _BIVREC),
    "pure-id": _system("bivrec", "id", _BIVREC, "PureID"),
    "pure-mm": _system("bivrec", "mm", _BIVREC, "PureMM"),
    "comirec-sa": _system("comirec-sa", "id", _COMIREC, "ComiRec-SA", routed=True),
    "comirec-sa+": _system("comirec-sa", "both", _COMIREC, "ComiRec-SA+", routed=True),
    "comirec-sa-dense+": _system("comirec-sa", "both", _COMIREC, readout="prefix"),
    "comirec-dr": _system("comirec-dr", "id", _COMIREC, routed=True),
    "comirec-dr+": _system("comirec-dr", "both", _COMIREC, routed=True),
    "sasrec": _system("sasrec", "id", _SASREC, "SASRec*", readout="prefix"),
    "sasrec-mm": _system("sasrec", "mm", _SASREC, readout="prefix"),
    "sasrec+": _system("sasrec", "both", _SASREC, "SASRec*+", readout="prefix"),
    "fdsa+": _system("fdsa", "both", "Zhang et al., IJCAI 2019", "FDSA*+", readout="prefix"),
    "mmsrec": _system(
        "mmsrec", "mm", "Song et al. 2023, arXiv 2304.13277", "MMSRec*", readout="history", score="cosine"
    ),
    "mmmlp": _system("mmmlp", "both", "Liang et al., WWW 2023, arXiv 2302.11243", "MMMLP*", readout="history"),
    "nova+": _system("nova", "both", "Liu et al., AAAI 2021, arXiv 2103.03578", "NOVA*+", readout="prefix"),
    "dif-sr+": _system("dif-sr", "both", "Xie et al., SIGIR 2022, arXiv 2204.11046", "DIF-SR*+", readout="prefix"),
    "re4": _system("re4", "id", _RE4, routed=True),
    "re4+": _system("re4", "both", _RE4, routed=True),
    "unisrec": _system("unisrec", "mm", _UNISREC, readout="prefix", score="cosine"),
    "unisrec+": _system("unisrec", "both", _UNISREC, readout="prefix", score="cosine"),
}
"""Identifier -> system. A `+` reads IDs and features in one model, as in Table 1; `dense` learns every position, with
the interest score of the recipe, which the paper does not."""
