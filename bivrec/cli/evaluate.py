"""bivrec evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bivrec.cli.options import DOMAIN, FOLDER, Command, refuse_unused, warn
from bivrec.cli.reports import echo_evaluation
from bivrec.config import CONTENT_FLOORS, FLOORS
from bivrec.data.info import SPLITS
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.data.domain import Domain
    from bivrec.evaluation.metrics import PerUser
    from bivrec.evaluation.protocol import EvaluationUsers
    from bivrec.evaluation.ranking import EvaluationResult
    from bivrec.scorers import NamedScorer

LENGTH = click.IntRange(1, 1 << 31)
"""Beyond all catalogues and histories; what is beyond 64 bits as well cannot be computed with."""


@click.command(cls=Command)
@click.argument("domain", type=DOMAIN)
@click.option("--run", "runs", type=FOLDER, multiple=True, help="A Run; repeatable.")
@click.option("--from-hub", "sources", metavar="MODEL", multiple=True,
              help="A published tower or joint model, ORG/NAME[@revision] or a folder; repeatable.")  # fmt: skip
@click.option("--floor", "floors", multiple=True, help="A method without training; repeatable.",
              type=click.Choice(FLOORS))  # fmt: skip
@click.option("--lists", type=FOLDER, multiple=True, metavar="FILE",
              help="Ranked lists of another program, a table of user_id, item_id and rank; repeatable.")  # fmt: skip
@click.option("--zero-shot", is_flag=True, help="Use the tower alone on a DOMAIN that it was not trained on.")
@click.option("--view", type=click.Choice(["id", "mm", "both", "all"]), default="all", help="View of the models.")
@click.option("--split", type=click.Choice(SPLITS), default="test", help="Users to ask.")
@click.option("--k", "ks", type=LENGTH, multiple=True, default=(20,), help="List length; repeatable.")
@click.option("--remove-seen", is_flag=True, help="Never recommend an item of the user's history.")
@click.option("--cold", type=LENGTH, help="Keep only the last N items of each history.")
@click.option("--by-popularity", is_flag=True,
              help="Also what is found and shown of items that were trained on never, seldom, and often.")  # fmt: skip
@click.option("--test", is_flag=True,
              help="Test the lead of the best row in each metric: paired over the users, Holm-corrected.")  # fmt: skip
@click.option("--reference", metavar="ROW", help="With --test: the row whose lead is tested, named in advance.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--plot", type=FOLDER, help="Write a picture of the recall (PNG).")
@click.option("--per-user", type=FOLDER, help="New folder for one Parquet file of per-user metrics per row.")
def evaluate(
    domain: Path | str,
    runs: tuple[Path, ...],
    sources: tuple[str, ...],
    floors: tuple[str, ...],
    lists: tuple[Path, ...],
    zero_shot: bool,
    view: str,
    split: str,
    ks: tuple[int, ...],
    remove_seen: bool,
    cold: int | None,
    by_popularity: bool,
    test: bool,
    reference: str | None,
    as_json: bool,
    plot: Path | None,
    per_user: Path | None,
) -> None:
    """Rank the whole catalogue of DOMAIN for the users of a split.

    The target is the last 20 % of a user's sequence; in a Domain that was prepared by leave-one-out its last item, in
    one that was split by time all since then.

    Each --run, --from-hub and --floor gives one row per view, each --lists one row (`bivrec export` writes what another
    program needs to train and to rank). A Run and a published joint model rank the catalogue that they were trained on;
    with --zero-shot only their tower is used, on any DOMAIN. A published tower is zero-shot on every DOMAIN whose items
    it was not trained on; where it was, a warning says on what share of them.
    """
    from bivrec.data.domain import Domain
    from bivrec.evaluation.protocol import EvaluationUsers
    from bivrec.evaluation.ranking import write_per_user
    from bivrec.files import check_new_folder, new_folder
    from bivrec.scorers import named_scorers
    from bivrec.studies.significance import check_libraries

    if not (runs or sources or floors or lists):
        raise BivrecError("nothing to evaluate: give --run, --from-hub, --floor or --lists")
    refuse_unused(("zero_shot", "view"), "--run or --from-hub", runs or sources)
    if cold is not None and lists:
        raise BivrecError("--cold says how much of a history is read, which --lists settled already; leave one out")
    # Before the ranking, which may take long.
    refuse_unused(("reference",), "--test", test)
    if test:
        check_libraries(("scipy",))
    if per_user is not None:
        check_new_folder(per_user)
    if plot is not None:
        from bivrec.plots import check_picture, plot_comparison

        check_picture(plot)
    opened = Domain.open(domain)
    users = EvaluationUsers.from_sequences(opened.sequences(split))
    if cold is not None:
        users = users.cold_start(cold)
    of_models = partial(named_scorers, opened, runs, sources, view=view, zero_shot=zero_shot)
    names = [*_names_of_lists(lists), *floors]
    refits = []
    # All are opened once more than needed: what is wrong with any must be told before the first is ranked.
    for named in of_models():
        if split in named.known:
            raise BivrecError(f"{named.name}: was trained on the {split}, and cannot be evaluated on it")
        names.append(named.name)
        refits.append(bool(named.known))
    _check_names(names, reference)
    if test and len(names) == 1:
        raise BivrecError(f"--test compares rows, and {names[0]} is the only one; add --floor item-knn")
    if per_user is not None:
        _check_names(list(map(_file_of, names)))
    learned = [*(floor for floor in floors if floor not in CONTENT_FLOORS), *(map(str, () if zero_shot else runs))]
    if split == "train" and learned:
        warn(f"--split train: {', '.join(learned)} learned from what these users are asked for")
    known = _known_to(opened, refits, floors)
    ranked = _ranked(chain(named_scorers(known, floors=floors), of_models()), users, ks, remove_seen)
    # Lists first, for the same reason.
    rows = {row.name: row for row in chain(_listed(lists, opened, users, ks, remove_seen), ranked)}
    told: dict[str, Any] = {
        "domain": opened.name,
        "protocol": opened.info.protocol,
        "split": split,
        "users": len(users),
        "skipped_users": users.skipped,
        "items": opened.num_items,
        "k": ks,
        "remove_seen": remove_seen,
        "cold": cold,
        "reference": reference,
        "results": {name: row.result.metrics for name, row in rows.items()},
        "sources": {name: row.source for name, row in rows.items()},
        "id_weights": {name: row.id_weight for name, row in rows.items() if row.id_weight is not None},
    }
    tests = partial(_p_values, reference=reference) if test else None
    if tests:
        told["p_values"] = tests({name: row.result.per_user for name, row in rows.items()})
    if by_popularity:
        told["by_popularity"] = _by_popularity(rows, users, known, _leading(ks), tests)
    # Printed first, so that a full disk does not lose it.
    click.echo(json.dumps(told)) if as_json else echo_evaluation(told)
    if per_user is not None:
        with new_folder(per_user) as staging:
            for name, row in rows.items():
                write_per_user(staging / _file_of(name), users, row.result)
    if plot is not None:
        plot_comparison(plot, told["results"], f"recall@{_leading(ks)}", f"{opened.name}: {len(users)} {split} users")


def _known_to(domain: Domain, refits: Sequence[bool], floors: Sequence[str]) -> Domain:
    """What floors, and groups by popularity, may know of a Domain: as much as the models that were trained on it.

    refits: of each model whether it was trained on the validation too; says so where only some were.
    """
    from bivrec.data.refit import RefitDomain

    if any(refits) and not all(refits):
        too = "; the floors know the training alone" if floors else ""
        warn(f"some models were trained on the validation too, which is a part of what they differ by{too}")
    return RefitDomain(domain) if refits and all(refits) else domain


def _names_of_lists(paths: Sequence[Path]) -> list[str]:
    from bivrec.files import distinct_names

    return distinct_names(paths, [path.stem for path in paths])


def _file_of(row: str) -> str:
    """For the values of its users."""
    return f"{row.replace(' ', '_').replace('/', '_')}.parquet"


def _check_names(names: Sequence[str], reference: str | None = None) -> None:
    """Raise BivrecError if two rows, or their files, have one name, or none has that of the reference."""
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise BivrecError(f"two rows are called '{repeated}'; leave one out, or rename its file or folder")
    if reference is not None and reference not in names:
        raise BivrecError(f"--reference '{reference}': there is no such row, but {', '.join(names)}")


class _Row(NamedTuple):
    name: str
    result: EvaluationResult
    source: dict[str, Any]
    """What it is (`kind`), and where it is from."""
    id_weight: float | None = None


def _ranked(
    scorers: Iterable[NamedScorer], users: EvaluationUsers, ks: Sequence[int], remove_seen: bool
) -> Iterator[_Row]:
    from bivrec.evaluation.ranking import evaluate as rank

    told: set[str] = set()
    for named in scorers:
        for line in (*named.warnings, named.not_zero_shot):
            # Of all views of a Run it is one.
            if line and line not in told:
                told.add(line)
                warn(line)
        result = rank(named.scorer, users, ks, remove_seen)
        yield _Row(named.name, result, {"kind": named.kind, **named.source}, named.id_weight)


def _listed(
    paths: Sequence[Path], domain: Domain, users: EvaluationUsers, ks: Sequence[int], remove_seen: bool
) -> Iterator[_Row]:
    """Of lists that another program made; warns of what is missing in them."""
    from bivrec.evaluation.lists import evaluate_lists, read_lists

    for path, name in zip(paths, _names_of_lists(paths), strict=True):
        lists = read_lists(path, domain, users)
        if not lists.ranked:
            warn(f"{path}: no column rank: the rows of a user are taken as in order, best first")
        if missing := lists.num_missing:
            warn(f"{path}: no list of {missing:,} of the {len(users):,} users; for them nothing is found")
        if (longest := lists.items.shape[1]) < max(ks):
            warn(f"{path}: no list is longer than {longest}, of {max(ks)} items that are asked for")
        result = evaluate_lists(lists, users, ks, remove_seen)
        if not any(values.any() for values in result.per_user.values()):
            warn(f"{path}: no list holds a target; were they ranked after the histories that `bivrec export` writes?")
        yield _Row(name, result, {"kind": "lists", "name": name})


def _leading(ks: Sequence[int]) -> int:
    """The k that is told where one must do."""
    return 20 if 20 in ks else ks[0]


def _by_popularity(
    rows: Mapping[str, _Row], users: EvaluationUsers, domain: Domain, k: int, tests: Callable[..., Any] | None
) -> dict[str, Any]:
    """The recall at k of targets by how often the training users had them, and the shares of such items in lists."""
    from bivrec.evaluation.breakdown import PopularityGroups, coverage, recall_of

    popularity = PopularityGroups.of_training(domain.sequences("train"), domain.num_items)
    groups = popularity.targets(users)
    lists = {name: row.result.recommended[:, :k] for name, row in rows.items()}
    per_user = {
        name: {group: recall_of(targets, recommended, k) for group, targets in groups.items()}
        for name, recommended in lists.items()
    }
    return {
        "metric": f"recall@{k}",
        "users": {group: len(targets.users) for group, targets in groups.items()},
        "targets": {group: len(targets.items) for group, targets in groups.items()},
        "results": {
            name: {group: float(values.mean()) for group, values in of_row.items()} for name, of_row in per_user.items()
        },
        "recommended": {
            name: {**popularity.shares(recommended), "catalogue": coverage(recommended, domain.num_items)}
            for name, recommended in lists.items()
        },
        **({"p_values": tests(per_user)} if tests else {}),
    }


def _p_values(
    per_user: Mapping[str, Mapping[str, PerUser]], reference: str | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Metric -> row, but for the tested -> p-values of its lead; from row -> metric -> values of the users."""
    from bivrec.studies.significance import paired_tests

    tests = {
        metric: paired_tests({name: values[metric] for name, values in per_user.items()}, reference)
        for metric in next(iter(per_user.values()))
    }
    return {metric: {name: asdict(p) for name, p in of_rows.items()} for metric, of_rows in tests.items()}
