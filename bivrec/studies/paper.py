"""The figures of the paper (arXiv 2402.17334), to stand beside ours: its Tables 1 to 3, in percent."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

from bivrec.data.info import USER_SPLIT, DomainInfo

TABLES = "paper_tables"


def name_in_paper(info: DomainInfo) -> str:
    """The data set whose figures may stand beside those of a Domain: none under another protocol than the paper's."""
    return info.name if info.protocol == USER_SPLIT else ""


def table1(system: str, data_set: str) -> dict[str, float]:
    """Metric -> figure of a system on a data set (Table 1); empty where the paper has none."""
    for row in _rows("table1.csv"):
        if (row["model"], row["dataset"]) == (system, data_set):
            return {metric: float(value) for metric, value in row.items() if "@" in metric}
    return {}


def table2(setting: str, variant: str, view: str, data_set: str) -> dict[str, float]:
    """Recall@20 of a variant of the ablation (Table 2, MovieLens-1M); setting: `single-view` or `joint`."""
    if data_set != "ml-1m" or view == "both":
        return {}
    for row in _rows("table2.csv"):
        if (row["setting"], row["variant"]) == (setting, variant):
            return {"recall@20": float(row[view.upper()])}
    return {}


def table3(system: str, source: str, target: str) -> dict[str, float]:
    """Recall@20 of a system on a target domain after pretraining on MovieLens-25M alone (Table 3)."""
    name = system if system == "Supervised" else f"ML-25m {system}"
    for row in _rows("table3.csv"):
        if row["model"] == name and target in row and (system == "Supervised" or source == "ml-25m"):
            return {"recall@20": float(row[target])}
    return {}


@cache
def _rows(name: str) -> list[dict[str, str]]:
    text = (resources.files("bivrec.studies") / TABLES / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
