"""Tables of a study: Markdown and LaTeX to read, CSV to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bivrec.data.domain import Domain
from bivrec.data.info import LEAVE_ONE_OUT
from bivrec.files import new_file
from bivrec.studies.significance import PValues, paired_tests
from bivrec.studies.study import Measured, Study

_MARKDOWN = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
_LATEX = {"best": "textbf:--rwrap;", "second": "underline:--rwrap;", "": ""}


@dataclass(frozen=True)
class Table:
    """One Domain and group of entries under one protocol."""

    domain: Domain
    group: str
    remove_seen: bool
    rows: tuple[Measured, ...]
    p_values: dict[str, PValues]
    """Name of a row -> of the difference between it and the row that is tested, which itself is not in it."""

    @property
    def heading(self) -> str:
        """What sets it apart from the other tables of a study."""
        seen = "seen items removed" if self.remove_seen else "seen items kept"
        return ", ".join(filter(None, (self.domain.name, self.group, seen)))

    def means(self, row: Measured) -> dict[str, np.ndarray]:
        """Metric -> mean over users for each seed (one value for a floor), in percent."""
        return {metric: 100 * values.mean(1) for metric, values in row.per_user(self.remove_seen).items()}


def tables_of(study: Study, measured: Sequence[Measured]) -> list[Table]:
    """A table for each Domain, group and protocol; rows in the order of the study."""
    groups: dict[tuple[Path, str], list[Measured]] = {}
    for row in measured:
        groups.setdefault((row.entry.domain.path, row.entry.group), []).append(row)
    tables = []
    for (_, group), rows in groups.items():
        for remove_seen in (False, True):
            users = {row.entry.name: row.per_user(remove_seen)[study.tested].mean(0) for row in rows}
            # It may have failed.
            reference = study.reference if study.reference in users else None
            tables.append(Table(rows[0].entry.domain, group, remove_seen, tuple(rows), paired_tests(users, reference)))
    return tables


def write_tables(folder: Path, name: str, study: Study, tables: Sequence[Table]) -> None:
    """Write NAME.md, NAME.csv and NAME.tex into a folder, replacing older ones."""
    contents = {"md": _markdown(study, tables), "csv": _csv(study, tables), "tex": _latex(study, tables)}
    for suffix, text in contents.items():
        with new_file(folder / f"{name}.{suffix}") as staging:
            staging.write_text(text, encoding="utf-8")


def mean_and_deviation(values: np.ndarray) -> str:
    """The mean, and of several seeds the standard deviation."""
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def _cells(study: Study, table: Table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts of a table, and which of them are the `best` and the `second` of their column."""
    texts, ranks = [], []
    for row in table.rows:
        means = table.means(row)
        p_values = table.p_values.get(row.entry.name)
        text: dict[str, str] = {metric: mean_and_deviation(means[metric]) for metric in study.metrics}
        text["p (t-test)"] = _p(p_values.t_test) if p_values else ""
        text["p (bootstrap)"] = _p(p_values.bootstrap) if p_values else ""
        text |= {column: mean_and_deviation(values) for column, values in row.more.items()}
        text["chosen"] = row.entry.chosen
        text["seconds"] = "" if row.seconds is None else f"{row.seconds:.0f}"
        text["parameters"] = "" if row.parameters is None else f"{row.parameters:,}"
        if not table.remove_seen:
            text |= {f"paper {metric}": f"{figure:.2f}" for metric, figure in row.entry.paper.items()}
        texts.append(text)
        ranks.append({metric: round(float(means[metric].mean()), 2) for metric in study.metrics})
    names = pd.Index([row.entry.name for row in table.rows], name="model")
    frame = pd.DataFrame(texts, index=names).fillna("")
    frame = frame.loc[:, (frame != "").any()]
    ordered = pd.DataFrame(ranks, index=names).rank(ascending=False, method="min")
    emphasis = pd.DataFrame("", index=names, columns=frame.columns)
    emphasis[list(study.metrics)] = ordered.map(lambda rank: {1: "best", 2: "second"}.get(rank, ""))
    return frame, emphasis


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(study: Study, tables: Sequence[Table]) -> str:
    parts = [f"# {study.title}", study.settings, f"```\n{study.command}\n```" if study.command else ""]
    for table in tables:
        frame, emphasis = _cells(study, table)
        marked = pd.DataFrame(
            {column: [_MARKDOWN[e].format(t) for t, e in zip(frame[column], emphasis[column], strict=True)]
             for column in frame},
            index=frame.index,
        )  # fmt: skip
        text = marked.to_markdown(disable_numparse=True)
        parts += [f"## {table.heading}", text, _caption(study, table)]
    parts += ["\n".join(f"- {note}" for note in study.notes)] if study.notes else []
    return "\n\n".join(filter(None, parts)) + "\n"


def _latex(study: Study, tables: Sequence[Table]) -> str:
    parts, settings = [], study.settings.replace("`", "")
    for table in tables:
        frame, emphasis = _cells(study, table)
        frame.index.name = None
        styler = frame.style.format(escape="latex").format_index(escape="latex").format_index(escape="latex", axis=1)
        styler = styler.apply(lambda _, emphasis=emphasis: emphasis.map(_LATEX.__getitem__), axis=None)
        caption = " ".join(filter(None, (f"{study.title}: {table.heading}.", settings, _caption(study, table))))
        parts.append(styler.to_latex(hrules=True, caption=_escaped(caption), position="t", position_float="centering"))
    comments = ("needs \\usepackage{booktabs}", study.title, settings, study.command)
    return "".join(f"% {comment}\n" for comment in comments if comment) + "\n".join(parts)


def _csv(study: Study, tables: Sequence[Table]) -> str:
    """One line for each model, Domain and protocol; full precision, percent."""
    lines: list[dict[str, Any]] = []
    for table in tables:
        for row in table.rows:
            p_values = table.p_values.get(row.entry.name)
            line: dict[str, Any] = {
                "domain": table.domain.name,
                "protocol": table.domain.info.protocol,
                "split": study.split,
                "seen": "removed" if table.remove_seen else "kept",
                "group": table.group,
                "model": row.entry.name,
                "view": "" if isinstance(row.entry.ranked_by, str) else row.entry.view,
                "seeds": " ".join(map(str, row.seeds)),
            }
            for metric, values in table.means(row).items():
                line[metric] = values.mean()
                line[f"{metric} std"] = values.std(ddof=1) if len(values) > 1 else None
            line["p t-test"] = p_values.t_test if p_values else None
            line["p bootstrap"] = p_values.bootstrap if p_values else None
            line |= {column: values.mean() for column, values in row.more.items()}
            line |= {"chosen": row.entry.chosen} if row.entry.chosen else {}
            line["seconds"] = row.seconds
            line["parameters"] = row.parameters
            paper = {} if table.remove_seen else row.entry.paper
            lines.append(line | {f"paper {metric}": paper.get(metric) for metric in study.metrics})
    frame = pd.DataFrame(lines).astype({"parameters": "Int64"})
    text: str = frame.to_csv(index=False)
    return text


def _caption(study: Study, table: Table) -> str:
    users = next(iter(table.rows[0].kept.values())).shape[1]
    seeds = sorted({seed for row in table.rows for seed in row.seeds})
    counts = {len(row.seeds) for row in table.rows if row.seeds}
    parts = [
        f"{users} {study.split} users ({table.domain.info.protocol}), {table.domain.num_items} items ranked, in %; "
        "best bold, second best underlined."
    ]
    if table.domain.info.protocol == LEAVE_ONE_OUT:
        parts.append("With one target for each user recall is hr, and ndcg is ndcg_hits.")
    if seeds:
        spread = "; mean ± standard deviation over seeds" if max(counts) > 1 else ""
        unequal = " (some trainings have not ended: not every model has all)" if len(counts) > 1 else ""
        parts.append(f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}{unequal}{spread}.")
    if table.p_values:
        tested = next(row.entry.name for row in table.rows if row.entry.name not in table.p_values)
        corrected = "the other models, with this one named in advance" if tested == study.reference else "all pairs"
        parts.append(
            f"p: {study.tested} of {tested} against each other model, paired over users (means over seeds), "
            f"Holm-corrected over {corrected}; the trainings are taken as they are, what other seeds would change is "
            "not in it."
        )
    return " ".join(parts)


def _escaped(text: str) -> str:
    for character in "%&_#":
        text = text.replace(character, f"\\{character}")
    return text
