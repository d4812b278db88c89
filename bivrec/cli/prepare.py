"""`bivrec prepare`: raw data -> Domain."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bivrec.cli.options import DOMAIN, FOLDER, Group, overwrite_option, refuse_unused, together, warn
from bivrec.cli.reports import echo_domain
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.data.domain import Domain
    from bivrec.data.raw import RawData

images_option = click.option("--images", type=FOLDER, help="Folder or uncompressed tar of the item images.")
keep_items_option = click.option(
    "--keep-items", is_flag=True,
    help="Keep items of the table of items that no interaction has, such as those listed today; they are ranked by "
    "their content. Those that the k-core leaves without interactions stay as well.",
)  # fmt: skip

min_rating_option = click.option(
    "--min-rating", type=float, help="Leave out interactions rated below it.  [default: any rating is an interaction]"
)


def _name(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from bivrec.data.info import check_name

    if value is not None:
        check_name(value, "--name")
    return value


name_option = click.option("--name", callback=_name, help="Name of the Domain (default: that of its folder).")


@click.group(cls=Group)
def prepare() -> None:
    """Turn raw data into a Domain: filter, split, and number the items."""


def _split(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from bivrec.data.splits import Split

    if value is not None:
        try:
            Split.parse(value)
        except BivrecError as fault:
            raise click.BadParameter(str(fault)) from None
    return value


def _open_domain(ctx: click.Context, parameter: click.Parameter, value: Path | str | None) -> Domain | None:
    from bivrec.data.domain import Domain

    if value is None:
        return None
    try:
        return Domain.open(value)
    except BivrecError as fault:
        raise BivrecError(f"--without {fault}") from None


_domain_options = together(
    click.option("--to", required=True, type=FOLDER, metavar="DOMAIN", help="Folder to write."),
    name_option,
    click.option("--without", type=DOMAIN, callback=_open_domain,
                 help="Leave out items that this Domain has, so that a tower trained on it meets none of them."),
    click.option("--k-core", default=5, type=click.IntRange(0),
                 help="Fewest interactions of every user and item that is kept (0: keep all)."),
    click.option("--split", callback=_split, metavar="SPLIT",
                 help="TRAIN:VALIDATION:TEST, shares of the users. leave-one-out: the last interaction of each is the "
                 "test target, the one before it the validation target. temporal, or temporal:8:1:1: targets are what "
                 "came since two times, before which lie such shares of all interactions.  [default: 8:1:1]"),
    click.option("--seed", default=0, type=click.IntRange(0), help="Seed of the split of the users."),
    overwrite_option,
)  # fmt: skip


@prepare.command()
@click.argument("folder", type=FOLDER)
@click.option("--texts", type=FOLDER, help="Table with columns item_id and text, to add to titles and genres.")
@images_option
@min_rating_option
@keep_items_option
@_domain_options
def movielens(folder: Path, texts: Path | None, images: Path | None, min_rating: float | None, **options: Any) -> None:
    """Prepare an unpacked MovieLens set: 100K, 1M, 10M, 20M, 25M, 32M or latest. Images are named by movie id."""
    from bivrec.data.movielens import read_movielens

    _prepare(partial(read_movielens, folder, texts=texts, images=images, min_rating=min_rating), **options)


@prepare.command()
@click.option("--reviews", required=True, multiple=True, type=FOLDER, help="File of reviews; may be given repeatedly.")
@click.option("--metadata", multiple=True, type=FOLDER, help="File of item metadata; may be given repeatedly.")
@images_option
@min_rating_option
@keep_items_option
@_domain_options
def amazon(
    reviews: tuple[Path, ...],
    metadata: tuple[Path, ...],
    images: Path | None,
    min_rating: float | None,
    keep_items: bool,
    **options: Any,
) -> None:
    """Prepare Amazon reviews of 2014, 2018 or 2023: JSON lines or Parquet, reviews also CSV.

    Images are named by asin.
    """
    from bivrec.data.amazon import read_amazon

    refuse_unused(("keep_items",), "--metadata", metadata)
    read = partial(read_amazon, reviews, metadata, images=images, keep_items=keep_items, min_rating=min_rating)
    _prepare(read, keep_items=keep_items, **options)


@prepare.command()
@click.argument("path", type=FOLDER)
@click.option("--behaviour", "behaviours", type=click.Choice(["pv", "buy", "cart", "fav"]), multiple=True,
              default=("pv",), help="Rows that are interactions; repeatable.")  # fmt: skip
@_domain_options
def taobao(path: Path, behaviours: tuple[str, ...], **options: Any) -> None:
    """Prepare Taobao's UserBehavior: the file (.csv, .csv.zip, .csv.gz) or its folder. Items have no texts.

    Rows outside of the set's nine days (25 November to 3 December 2017) are left out and counted.
    """
    from bivrec.data.taobao import read_taobao

    _prepare(partial(read_taobao, path, behaviours=behaviours), **options)


@prepare.command()
@click.argument("path", type=FOLDER)
@click.option("--attributes", type=FOLDER, help="JSON file of the items' attributes, {ITEM: [ATTRIBUTE, ...]}.")
@_domain_options
def sequences(path: Path, attributes: Path | None, **options: Any) -> None:
    """Prepare a file of sequences, a user a line: USER ITEM ITEM ..., oldest first, as S3-Rec publishes them.

    Attributes become the texts of the items.
    """
    from bivrec.data.sequence_lines import read_sequence_lines

    if (options["split"] or "").startswith("temporal"):
        raise BivrecError("--split temporal: the file has no times; choose leave-one-out or shares of the users")
    _prepare(partial(read_sequence_lines, path, attributes), **options)


@prepare.command()
@click.option("--interactions", required=True, type=FOLDER, help="Table of interactions: a file, or a folder of parts.")
@click.option("--items", type=FOLDER, help="Table of items: a file, or a folder of parts.")
@images_option
@click.option("--user-column", default="user_id", help="User ids, in the interactions.")
@click.option("--item-column", default="item_id", help="Item ids, in the interactions.")
@click.option("--id-column", help="Item ids, in the items.  [default: as in the interactions]")
@click.option("--timestamp-column", default="timestamp",
              help="Integers, seconds with a fraction, or dates (ISO 8601), in the interactions. Where any has a "
              "fraction of a second, all become microseconds.")  # fmt: skip
@click.option("--split-column", help="train, validation or test, in the interactions (default: see --split).")
@click.option("--title-column", help="Titles, in the items.  [default: title, if there is one]")
@click.option("--text-column", multiple=True,
              help="Texts, in the items; repeatable.  [default: text, if there is one, else the title]")  # fmt: skip
@click.option("--image-column",
              help="Files of images, in the items; one whose file is not there has ITEM_ID.*.  "
                   "[default: image, if there is one]")  # fmt: skip
@click.option("--rating-column", help="Ratings, in the interactions, for --min-rating.  [default: rating]")
@min_rating_option
@keep_items_option
@_domain_options
def tables(
    interactions: Path, items: Path | None, images: Path | None, min_rating: float | None, **options: Any
) -> None:
    """Prepare your own tables: CSV, TSV, Parquet or JSON lines."""
    from bivrec.data.tables import Columns, read_tables

    refuse_unused(("id_column", "title_column", "text_column", "image_column", "keep_items"), "--items", items)
    refuse_unused(("image_column",), "--images", images)
    refuse_unused(("rating_column",), "--min-rating", min_rating is not None)
    names = [name for name in options if name.endswith("_column")]
    columns = Columns(**{name.removesuffix("_column"): options.pop(name) for name in names})
    read = partial(read_tables, interactions, items, images=images, columns=columns, min_rating=min_rating)
    _prepare(read, **options)


@prepare.command()
@click.argument("domains", type=DOMAIN, nargs=-1, required=True)
@click.option("--to", required=True, type=FOLDER, metavar="DOMAIN", help="Folder to write.")
@name_option
@overwrite_option
def merge(domains: tuple[Path | str, ...], to: Path, name: str | None, overwrite: bool) -> None:
    """Merge DOMAINS into one, as the source of a tower that is to serve several kinds of catalogues.

    Ids become NAME:ID with the name of their Domain, users keep their split, and features are taken along where they
    were made with the same options. All must be split by users, or all by leave-one-out.
    """
    from bivrec.data.domain import Domain
    from bivrec.merge import merge as merged

    echo_domain(merged([Domain.open(domain) for domain in domains], to, name=name, overwrite=overwrite))


@prepare.command()
@click.option("--to", required=True, type=FOLDER, metavar="FOLDER", help="Folder for the Domains source and target.")
@click.option("--users", default=600, help="Users of the source.")
@click.option("--items", default=300, help="Items of the source.")
@click.option("--mean-length", default=30.0, help="Mean interactions drawn for a user of the source.")
@click.option("--target-users", default=400, help="Users of the target.")
@click.option("--target-items", default=200, help="Items of the target.")
@click.option("--target-mean-length", default=15.0, help="Mean interactions drawn for a user of the target.")
@click.option("--topics", default=12, help="Topics that the two share.")
@click.option("--images/--no-images", default=True, help="Draw an image of every item.")
@click.option("--k-core", default=5, type=click.IntRange(0), help="Fewest interactions of users and items (0: all).")
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of the world and of the split of the users.")
@overwrite_option
def synthetic(
    to: Path,
    users: int,
    items: int,
    mean_length: float,
    target_users: int,
    target_items: int,
    target_mean_length: float,
    topics: int,
    images: bool,
    k_core: int,
    seed: int,
    overwrite: bool,
) -> None:
    """Invent two domains that share topics but no items, with texts and images: a source and a transfer target.

    The shape of MovieLens-25M: --users 162541 --items 62423 --mean-length 158 --topics 40 --no-images.
    """
    from bivrec.data.synthetic import DomainSize, write_world

    source = DomainSize(users, items, mean_length)
    target = DomainSize(target_users, target_items, target_mean_length)
    domains = write_world(
        to, source=source, target=target, topics=topics, images=images, k_core=k_core, seed=seed, overwrite=overwrite
    )
    for domain in domains:
        echo_domain(domain)


def _prepare(read: Callable[[], RawData], to: Path, overwrite: bool, **options: Any) -> None:
    from bivrec.data.domain import DOMAIN_FOLDER
    from bivrec.data.prepare import prepare
    from bivrec.files import check_new_folder

    # Before the files are read, which may take long.
    check_new_folder(to, overwrite, kind=DOMAIN_FOLDER)
    lost = _features_at(to)
    raw = read()
    domain = prepare(raw, to, overwrite=overwrite, **options)
    users, items = len(raw.user_ids), len(raw.item_ids)
    click.echo(f"read {len(raw.users):,} interactions of {users:,} users with {items:,} items")
    echo_domain(domain, _not_listed(domain, raw))
    if raw.images is None and raw.catalogue is not None and (named := raw.catalogue["image"].drop_null()):
        warn(f"images that the items name ({len(named):,}, such as {named[0]}) are not used; give them with --images")
    if lost:
        command = f"bivrec encode {shlex.quote(str(to))}"
        warn(f"the replaced Domain had {lost} features; run `{command}` again")


def _not_listed(domain: Domain, raw: RawData) -> str | None:
    """An item that the source does not describe, whose id tells why the tables do not join; None: there is none."""
    import pyarrow.compute as pc

    if raw.catalogue is None or not domain.info.items_not_listed:
        return None
    ids = domain.item_table().data.table["item_id"]
    listed = pc.is_in(ids, value_set=raw.catalogue["item_id"].combine_chunks())
    item: str = ids[pc.index(listed, False).as_py()].as_py()
    return item


def _features_at(path: Path) -> str:
    """The modalities of a Domain that is to be replaced; none where there is no Domain, or a damaged one."""
    from bivrec.data.domain import Domain

    try:
        return " and ".join(Domain.open(path).info.features)
    except BivrecError:
        return ""
