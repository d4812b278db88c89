"""bivrec evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bivrec.cli.options import DOMAIN, FOLDER, refuse_unused
from bivrec.cli.reports import mixture, p_table, results_table
from bivrec.config import FLOORS
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.data.domain import Domain
    from bivrec.evaluation.lists import RankedLists
    from bivrec.evaluation.protocol import EvaluationUsers


@click.command()
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
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", help="Users to ask.")
@click.option("--k", "ks", type=click.IntRange(min=1), multiple=True, default=(20,), help="List length; repeatable.")
@click.option("--remove-seen", is_flag=True, help="Never recommend an item of the user's history.")
@click.option("--cold", type=click.IntRange(min=1), help="Keep only the last N items of each history.")
@click.option("--test", is_flag=True,
              help="Test the lead of the best row in each metric: paired over the users, Holm-corrected.")  # fmt: skip
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
    test: bool,
    as_json: bool,
    plot: Path | None,
    per_user: Path | None,
) -> None:
    """Rank the whole catalogue of DOMAIN for the users of a split.

    The target is the last 20 % of a user's sequence, or in a Domain that was prepared by leave-one-out its last item.

    Each --run, --from-hub and --floor gives one row per view, each --lists one row (`bivrec export` writes what another
    program needs to train and to rank). A Run and a published joint model rank the catalogue
    that they were trained on; with --zero-shot only their tower is used, on any DOMAIN. A published tower is zero-shot
    on every DOMAIN whose items it was not trained on; the row tells where it was.
    """
    from bivrec.data.domain import Domain
    from bivrec.evaluation.lists import evaluate_lists
    from bivrec.evaluation.protocol import EvaluationUsers
    from bivrec.evaluation.ranking import evaluate as rank
    from bivrec.evaluation.ranking import write_per_user
    from bivrec.files import check_new_folder, new_folder
    from bivrec.scorers import named_scorers
    from bivrec.significance import against_best, check_libraries

    if not (runs or sources or floors or lists):
        raise BivrecError("nothing to evaluate: give --run, --from-hub, --floor or --lists")
    refuse_unused(("zero_shot", "view"), "--run or --from-hub", runs or sources)
    # Before the ranking, which may take long.
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
    results, origins, weights = {}, {}, {}
    # Read before anything is ranked, which may take long.
    for name, ranked in _read_all(lists, opened, users, max(ks)).items():
        results[name] = evaluate_lists(ranked, users, ks, remove_seen)
        origins[name] = {"kind": "lists", "name": name}
    for row in named_scorers(opened, runs, sources, floors, view=view, zero_shot=zero_shot, warn=_warn):
        results[row.name] = rank(row.scorer, users, ks, remove_seen)
        origins[row.name] = {"kind": row.kind, **row.source}
        if row.id_weight is not None:
            weights[row.name] = row.id_weight
    metrics = {name: result.metrics for name, result in results.items()}
    names = list(next(iter(metrics.values())))
    tests = {
        metric: against_best({name: result.per_user[metric] for name, result in results.items()})
        for metric in (names if test else ())
    }
    # Printed first, so that a full disk does not lose it.
    if as_json:
        told = {
            "domain": opened.name,
            "protocol": opened.info.protocol,
            "split": split,
            "users": len(users),
            "items": opened.num_items,
            "k": ks,
            "remove_seen": remove_seen,
            "cold": cold,
            "results": metrics,
            "sources": origins,
            "id_weights": weights,
        }
        if test:
            told["p_values"] = {
                metric: {name: asdict(p) for name, p in of_rows.items()} for metric, of_rows in tests.items()
            }
        click.echo(json.dumps(told))
    else:
        click.echo(results_table(metrics, "model"))
        for name, weight in weights.items():
            click.echo(f"{name} = {mixture(weight)}")
        skipped = f", {users.skipped} with fewer than 2 items left out" if users.skipped else ""
        click.echo(
            f"{len(users)} {split} users of {opened.name} ({opened.info.protocol}){skipped}; "
            f"{opened.num_items} items ranked"
        )
        click.echo(_protocol(remove_seen, cold))
        if test:
            click.echo(p_table(list(metrics), tests))
    if per_user is not None:
        with new_folder(per_user) as staging:
            for name, result in results.items():
                write_per_user(staging / f"{name.replace(' ', '_').replace('/', '_')}.parquet", users, result)
    if plot is not None:
        metric = f"recall@{20 if 20 in ks else ks[0]}"
        plot_comparison(plot, metrics, metric, f"{opened.name}: {len(users)} {split} users")


def _read_all(paths: Sequence[Path], domain: Domain, users: EvaluationUsers, k: int) -> dict[str, RankedLists]:
    """Name of each row -> its lists; warns of what is missing in them."""
    from bivrec.evaluation.lists import read_lists

    names = [path.stem for path in paths]
    read = {}
    for path, name in zip(paths, names, strict=True):
        lists = read_lists(path, domain, users)
        if missing := lists.num_missing:
            _warn(f"{path}: no list of {missing:,} of the {len(users):,} users; for them nothing is found")
        if (longest := lists.items.shape[1]) < k:
            _warn(f"{path}: no list is longer than {longest}, of {k} items that are asked for")
        read[name if names.count(name) == 1 else str(path)] = lists
    return read


def _warn(line: str) -> None:
    click.echo(f"Warning: {line}", err=True)


def _protocol(remove_seen: bool, cold: int | None) -> str:
    """What of the protocol the options say."""
    seen = f"seen items {'removed' if remove_seen else 'kept'}"
    if cold is None:
        return seen
    return f"{seen}; of each history {'the last item is' if cold == 1 else f'the last {cold} items are'} read"
