"""Reader of Taobao's UserBehavior (https://tianchi.aliyun.com/dataset/649), 100,150,807 rows of nine days.

A row is user, item, category, behaviour (pv: a click, cart, fav, buy) and Unix time, without a header. Categories are
numbers without names, so items have no text. Interactions of one behaviour, pv, as in ComiRec (Cen et al., KDD 2020).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import pyarrow as pa

from bivrec.data.columns import ID, INTEGER, TIME, read_delimited
from bivrec.data.raw import RawData, encode_ids
from bivrec.errors import BivrecError

FILE = "UserBehavior.csv"
FILES = (FILE, f"{FILE}.zip", f"{FILE}.gz")
BEHAVIOURS = ("pv", "buy", "cart", "fav")
COLUMNS = ("user", "item", "category", "behaviour", "timestamp")

# From 25 November 2017, 0:00, to 4 December, 0:00, in China. The file has rows of other times, from 1902 to 2037: of
# what came when, such a row says nothing.
PERIOD_START, PERIOD_END = 1_511_539_200, 1_512_316_800


def read_taobao(path: Path, *, behaviours: Sequence[str] = ("pv",)) -> RawData:
    """Read the rows of these behaviours from the file, plain, .zip or .gz, or from the folder that holds it.

    Rows outside of the set's nine days are left out and counted. Raises BivrecError if there is no such file, a row is
    damaged, or none is left.
    """
    path = _file(path)
    columns = {"user": INTEGER, "item": INTEGER, "behaviour": ID, "timestamp": TIME}
    with _opened(path) as stream:
        table = read_delimited(path, columns, required=tuple(columns), delimiter=",", names=COLUMNS, stream=stream)
    wanted = _of_behaviours(path, table["behaviour"], behaviours)
    timestamps = table["timestamp"].to_numpy()
    in_period = (timestamps >= PERIOD_START) & (timestamps < PERIOD_END)
    kept = wanted & in_period
    if not kept.any():
        raise BivrecError(
            f"{path}: no row of {', '.join(behaviours)} from 25 November to 3 December 2017 (Unix times {PERIOD_START} "
            f"to {PERIOD_END - 1}); expected Taobao's UserBehavior, for other sets use `bivrec prepare tables`"
        )
    mask = pa.array(kept)
    users, user_ids = encode_ids(table["user"].filter(mask))
    items, item_ids = encode_ids(table["item"].filter(mask))
    return RawData(
        users=users,
        items=items,
        timestamps=timestamps[kept],
        user_ids=user_ids,
        item_ids=item_ids,
        source={"reader": "taobao", "interactions": path.name, "behaviours": list(behaviours)},
        dropped={"outside_period": int((wanted & ~in_period).sum())},
    )


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise BivrecError(f"{path}: none of {', '.join(FILES)} in the folder; give Taobao's UserBehavior set")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | None]:
    """The member of an archive; None: the file can be read by its path."""
    if path.suffix.lower() != ".zip":
        yield None
        return
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if PurePosixPath(name).name == FILE), None)
            if member is None:
                raise BivrecError(f"{path}: no {FILE} in the archive; found {', '.join(archive.namelist())[:200]}")
            with archive.open(member) as stream:
                yield stream
    except FileNotFoundError:
        raise BivrecError(f"{path}: no such file; check the path") from None
    # zipfile raises a RuntimeError, or a kind of it, for an encrypted archive and for unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as fault:
        raise BivrecError(f"{path}: cannot be read ({fault}); fetch the file again, or unpack it") from None


def _of_behaviours(path: Path, column: pa.ChunkedArray, behaviours: Sequence[str]) -> np.ndarray:
    """Bool [n]: the rows of these behaviours."""
    codes, names = encode_ids(column.unify_dictionaries())
    known = names.to_pylist()
    for code, name in enumerate(known):
        if name not in BEHAVIOURS:
            row = int(np.argmax(codes == code)) + 1
            raise BivrecError(
                f"{path}: row {row}: behaviour {name[:60]!r}: expected {', '.join(BEHAVIOURS)}; mend or remove the row"
            )
    wanted: np.ndarray = np.isin(known, behaviours)[codes]
    return wanted
