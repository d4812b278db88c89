"""Reader of the MovieLens sets (https://grouplens.org/datasets/movielens), as they are when unpacked.

Every rating is an interaction, whatever its value, unless a least one is asked for. The text of a movie is its title
and genres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bivrec.data.columns import ID, INTEGER, NUMBER, TEXT, TIME, read_columns, read_delimited
from bivrec.data.raw import RawData, catalogue_table, check_joined, encode_ids, only_rated
from bivrec.errors import BivrecError

# Flags 6-24 of u.item, in the order of u.genre.
GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
NO_GENRES = ("", "unknown", "(no genres listed)")

COLUMNS = {"user": INTEGER, "item": INTEGER, "timestamp": TIME}
NAMES_OF_CSV = {"user": "userId", "item": "movieId"}

Types = Mapping[str, pa.DataType]
Movie = tuple[str, str, list[str]]
"""Id, title, genres."""


def read_movielens(
    folder: Path, *, texts: Path | None = None, images: Path | None = None, min_rating: float | None = None
) -> RawData:
    """Read 100K (u.data), 1M and 10M (ratings.dat), 20M, 25M, 32M and the latest sets (ratings.csv).

    `texts` (columns item_id, text) is added to the texts of the movies; an image is the file of `images` that is
    named by the movie's id. Interactions rated below `min_rating` are left out.
    Raises BivrecError if the folder holds none of these sets, a row is damaged, or no interaction is left.
    """
    for ratings, movies, reader in (
        ("u.data", "u.item", _read_100k),
        ("ratings.dat", "movies.dat", _read_dat),
        ("ratings.csv", "movies.csv", _read_csv),
    ):
        if (folder / ratings).is_file() and (folder / movies).is_file():
            columns = {**COLUMNS, "rating": NUMBER} if min_rating is not None else COLUMNS
            table, listed = reader(folder / ratings, folder / movies, columns)
            break
    else:
        raise BivrecError(
            f"{folder}: not an unpacked MovieLens set: expected u.data and u.item (100K), ratings.dat and movies.dat "
            "(1M, 10M), or ratings.csv and movies.csv (20M, 25M, 32M, latest)"
        )
    users, user_ids = encode_ids(table["user"])
    items, item_ids = encode_ids(table["item"])
    source = {"reader": "movielens", "interactions": ratings, "items": movies}
    if texts:
        source["texts"] = texts.name
    raw = RawData(
        users=users,
        items=items,
        timestamps=table["timestamp"].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
        source=source,
        catalogue=_catalogue(listed, texts),
        images=images,
    )
    return raw if min_rating is None else only_rated(raw, table["rating"], min_rating)


def _read_100k(ratings: Path, movies: Path, columns: Types) -> tuple[pa.Table, list[Movie]]:
    def parse(fields: list[str]) -> Movie:
        flags = fields[5:]
        genres = [genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag == "1"]
        return fields[0], fields[1], genres

    names = ("user", "item", "rating", "timestamp")
    return _read_ratings(ratings, "\t", names, columns), _read_movies(movies, "|", 5 + len(GENRES_100K), parse)


def _read_dat(ratings: Path, movies: Path, columns: Types) -> tuple[pa.Table, list[Movie]]:
    def parse(fields: list[str]) -> Movie:
        return fields[0], fields[1], fields[2].split("|")

    # To a reader of one-character delimiters, `::` encloses an empty column.
    names = ("user", "empty1", "item", "empty2", "rating", "empty3", "timestamp")
    return _read_ratings(ratings, ":", names, columns), _read_movies(movies, "::", 3, parse)


def _read_csv(ratings: Path, movies: Path, columns: Types) -> tuple[pa.Table, list[Movie]]:
    named = {NAMES_OF_CSV.get(name, name): kind for name, kind in columns.items()}
    table = read_delimited(ratings, named, required=tuple(named), delimiter=",")
    listed = read_columns(movies, {"movieId": ID, "title": TEXT, "genres": TEXT}).to_pylist()
    return table.rename_columns(list(columns)), [
        (row["movieId"], row["title"] or "", (row["genres"] or "").split("|")) for row in listed
    ]


def _read_ratings(path: Path, delimiter: str, names: tuple[str, ...], columns: Types) -> pa.Table:
    return read_delimited(path, columns, required=tuple(columns), delimiter=delimiter, names=names)


def _read_movies(path: Path, separator: str, num_fields: int, parse: Callable[[list[str]], Movie]) -> list[Movie]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # 100K and 1M are Latin-1.
        text = content.decode("latin-1")
    movies = []
    # Not splitlines: Latin-1 has line separators of its own.
    for row, line in enumerate(text.rstrip("\n").split("\n"), 1):
        fields = line.rstrip("\r").split(separator)
        if len(fields) != num_fields:
            raise BivrecError(
                f"{path}: row {row}: {line[:60]!r}: expected {num_fields} fields separated by '{separator}', "
                f"found {len(fields)}; fetch the set again"
            )
        movies.append(parse(fields))
    return movies


def _catalogue(movies: list[Movie], texts: Path | None) -> pa.Table:
    ids = pa.array([movie for movie, _, _ in movies], pa.string())
    titles = [title for _, title, _ in movies]
    described = [_sentences(title, genres) for _, title, genres in movies]
    if texts:
        table = read_columns(texts, {"item_id": ID, "text": TEXT})
        described_ids = table["item_id"].cast(pa.string()).combine_chunks()
        check_joined(texts, described_ids, "the set", "films", ids, "make them alike")
        rows = pc.index_in(ids, value_set=described_ids)
        extra = table["text"].take(rows).to_pylist()
        described = [f"{text} {more}" if more else text for text, more in zip(described, extra, strict=True)]
    return catalogue_table(ids, titles, described)


def _sentences(title: str, genres: list[str]) -> str:
    named = ", ".join(genre for genre in genres if genre not in NO_GENRES)
    return f"{title}. {named}." if named else f"{title}."
