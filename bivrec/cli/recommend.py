"""bivrec recommend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bivrec.cli.options import DOMAIN, FOLDER, Command, refuse_unused, warn
from bivrec.data.info import ALL, SPLITS
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from bivrec.data.domain import Domain
    from bivrec.data.sequences import Sequences

RECENT = 10
"""Items of a history that are printed."""


@click.command(cls=Command)
@click.argument("domain", type=DOMAIN)
@click.option("--run", type=FOLDER, help="The Run whose model recommends.")
@click.option("--from-hub", "source", metavar="MODEL",
              help="Instead, a published tower or joint model, ORG/NAME[@revision] or a folder.")  # fmt: skip
@click.option("--zero-shot", is_flag=True, help="Use the tower alone on a DOMAIN that it was not trained on.")
@click.option("--view", type=click.Choice(["id", "mm", "both"]), default="both",
              help="View of the model; both of a model with one view is that view.")  # fmt: skip
@click.option("--to", type=FOLDER, metavar="FILE", help="File to write: .parquet, .csv or .jsonl.")
@click.option("--user", "user_ids", metavar="ID", multiple=True,
              help="Only this user, of whatever split; repeatable. Without --to, the list is printed, as "
                   "that of a history with one user is.")  # fmt: skip
@click.option("--split", type=click.Choice([ALL, *SPLITS]), help="Users of DOMAIN, whole sequences.  [default: all]")
@click.option("--history", type=FOLDER, metavar="FILE",
              help="Instead, users of a table of interactions: CSV, TSV, Parquet or JSON lines.")  # fmt: skip
@click.option("--user-column", default="user_id", help="User ids, in the history.")
@click.option("--item-column", default="item_id", help="Item ids, in the history and in what --only names.")
@click.option("--timestamp-column",
              help="Times, in the history; if it has none, its rows are in order.  [default: timestamp]")  # fmt: skip
@click.option("--k", default=20, type=click.IntRange(min=1), help="Items for each user.")
@click.option("--remove-seen/--keep-seen", default=True, help="Whether to leave out the items of a user's history.")
@click.option("--only", type=FOLDER, metavar="FILE",
              help="Recommend only items of this table, such as those in stock.")  # fmt: skip
@click.option("--titles", is_flag=True, help="Also write the titles of the items.")
@click.option("--because", is_flag=True,
              help="Also name the item of the history that speaks most for each recommended one; slow.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace FILE, whatever it holds.")
def recommend(
    domain: Path | str,
    run: Path | None,
    source: str | None,
    zero_shot: bool,
    view: str,
    to: Path | None,
    user_ids: tuple[str, ...],
    split: str | None,
    history: Path | None,
    k: int,
    remove_seen: bool,
    only: Path | None,
    titles: bool,
    because: bool,
    overwrite: bool,
    **columns: str | None,
) -> None:
    """Recommend items of DOMAIN to its users, or to others with a history of such items.

    The whole history of a user is read, where `bivrec evaluate` holds the end out. A file has one row for each user
    and item: user_id, rank, item_id, score. Scores compare the items of one user, not users.
    """
    from bivrec.data.domain import Domain
    from bivrec.recommend import check_output, write_recommendations
    from bivrec.recommend import recommend as ranked
    from bivrec.scorers import open_scorer

    if (run is None) == (source is None):
        raise BivrecError("expected one model: give --run or --from-hub")
    if to is None and not (user_ids or history):
        raise BivrecError("nowhere to write: give --to FILE, or --user ID to print the list of a user")
    if split and (user_ids or history):
        raise BivrecError("--split: every user of a split is asked; leave it out beside --user and --history")
    refuse_unused(("user_column", "timestamp_column"), "--history", history)
    refuse_unused(("item_column",), "--history or --only", history or only)
    refuse_unused(("overwrite",), "--to", to)
    user_ids = tuple(dict.fromkeys(user_ids))
    if to is not None:
        check_output(to, overwrite=overwrite)
    opened = Domain.open(domain)
    users = _users(opened, split or ALL, user_ids, history, columns)
    if to is None and not user_ids and len(users) > 1:
        raise BivrecError(f"{history}: {len(users):,} users; give --to FILE, or --user ID to print the list of one")
    allowed = _allowed(opened, only, str(columns["item_column"])) if only else None
    model = open_scorer(opened, run, source, view=view, zero_shot=zero_shot)
    for line in model.warnings:
        warn(line)
    titles = titles or to is None
    tables = ranked(
        opened, model.scorer, users, k, remove_seen=remove_seen, allowed=allowed, titles=titles, because=because
    )
    if to is not None:
        written = write_recommendations(to, tables, overwrite=overwrite)
        click.echo(f"{to}: {written:,} recommendations of {model.name} to {len(users):,} users of {opened.name}")
        return
    _print_lists(opened, users, [row for table in tables for row in table.to_pylist()])


def _users(
    domain: Domain, split: str, user_ids: Sequence[str], history: Path | None, columns: dict[str, Any]
) -> Sequences:
    from bivrec.data.histories import find_users, read_histories, users_of_domain, users_of_split
    from bivrec.data.tables import Columns

    if history is None:
        return users_of_domain(domain, user_ids) if user_ids else users_of_split(domain, split)
    names = {option.removesuffix("_column"): column for option, column in columns.items() if column is not None}
    read = read_histories(history, domain, Columns(**names), timed="timestamp" in names)
    if read.unknown_items:
        warn(
            f"{read.unknown_item}; left out {read.unknown_items:,} such interactions, and {read.unknown_users:,} users "
            "who have no others"
        )
    if not read.timed and read.users.lengths.max() > 1:
        warn(f"{history}: no column {Columns.timestamp}: the rows are taken as in order")
    return find_users([read.users], user_ids, str(history)) if user_ids else read.users


def _allowed(domain: Domain, path: Path, column: str) -> Tensor:
    """Bool [V + 1]: the items of a table; warns of those that the Domain does not have."""
    import torch

    from bivrec.data.columns import ID, read_columns
    from bivrec.data.raw import encode_ids

    _, ids = encode_ids(read_columns(path, {column: ID})[column])
    indices = torch.from_numpy(domain.item_indices(ids)).long()
    unknown = indices == 0
    if unknown.all():
        raise BivrecError(
            f"{path}: none of its items is in {domain.name}; expected ids such as '{domain.item_ids()[0]}'"
        )
    if unknown.any():
        example = ids[int(unknown.nonzero()[0])]
        warn(f"{path}: {int(unknown.sum()):,} items, such as '{example}', are not in {domain.name}")
    allowed = torch.zeros(domain.num_items + 1, dtype=torch.bool)
    allowed[indices[~unknown]] = True
    return allowed


def _print_lists(domain: Domain, users: Sequences, rows: Sequence[dict[str, Any]]) -> None:
    catalogue: pa.Table = domain.item_table().data.table
    for place, user in enumerate(users.user_ids):
        history = users[place]
        click.echo(f"user {user}: {len(history):,} interactions, the most recent:")
        for item in history[-RECENT:].tolist():
            click.echo(_line("", catalogue["item_id"][item - 1].as_py(), catalogue["title"][item - 1].as_py()))
        click.echo("recommended:")
        for row in rows:
            if row["user_id"] == user:
                click.echo(_line(f"{row['rank']:>3}  {row['score']:>9.4f}", row["item_id"], row["title"]))
                if reason := row.get("because_item_id"):
                    click.echo(_line("    because of", reason, row["because_title"]))


def _line(start: str, item_id: str, title: str | None) -> str:
    """Aligned for a terminal."""
    return f"{start:<14}  {item_id:<12}  {' '.join((title or '').split())[:90]}".rstrip()
