import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stages import as_rows

from bivrec.cli import main
from bivrec.data.domain import Domain
from bivrec.data.info import SPLITS
from bivrec.data.taobao import FILE, PERIOD_END, PERIOD_START, read_taobao
from bivrec.errors import BivrecError

ROWS = [
    (100, 7, 3, "pv", PERIOD_START),
    (100, 8, 3, "buy", PERIOD_START + 5),
    (1, 7, 3, "pv", PERIOD_END - 1),
    (1, 9, 4, "pv", PERIOD_END),
    (1, 9, 4, "fav", -2134949234),
    (1, 8, 4, "pv", PERIOD_START - 1),
    (1, 8, 4, "cart", PERIOD_START + 1),
]


def text(rows: list[tuple[object, ...]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def write(folder: Path, content: str) -> Path:
    path = folder / FILE
    path.write_text(content)
    return path


def test_clicks_of_the_nine_days_are_interactions(tmp_path: Path) -> None:
    raw = read_taobao(write(tmp_path, text(ROWS)))
    assert as_rows(raw) == [("100", "7", PERIOD_START), ("1", "7", PERIOD_END - 1)]
    assert raw.dropped == {"outside_period": 2}
    assert raw.source == {"reader": "taobao", "interactions": FILE, "behaviours": ["pv"]}


def test_the_period_is_that_of_days_in_china() -> None:
    china = np.timedelta64(8, "h")
    assert np.datetime64(PERIOD_START, "s") + china == np.datetime64("2017-11-25T00:00:00")
    assert np.datetime64(PERIOD_END, "s") + china == np.datetime64("2017-12-04T00:00:00")


def test_other_behaviours(tmp_path: Path) -> None:
    raw = read_taobao(write(tmp_path, text(ROWS)), behaviours=("buy", "cart", "fav"))
    assert as_rows(raw) == [("100", "8", PERIOD_START + 5), ("1", "8", PERIOD_START + 1)]
    assert raw.dropped == {"outside_period": 1}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_packed_as_it_comes(tmp_path: Path, suffix: str, by_folder: bool) -> None:
    content = text(ROWS)
    path = tmp_path / f"{FILE}{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/._" + FILE, b"\0")
            archive.writestr(f"data/{FILE}", content)
    else:
        path.write_bytes(gzip.compress(content.encode()) if suffix else content.encode())
    assert len(as_rows(read_taobao(tmp_path if by_folder else path))) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("5,x,1,pv,3", r"UserBehavior\.csv: .*Row #8: .* int32: invalid value 'x'"),
        ("5,,1,pv,3", r"UserBehavior\.csv: row 8: item is empty: expected an integer"),
        ("5,6,1,pv", r"UserBehavior\.csv: .*Row #8: Expected 5 columns, got 4"),
        ("5,6,1,pv,soon", r"UserBehavior\.csv: .*Row #8: .* int64: invalid value 'soon'"),
        ("5,6,1,look,3", r"UserBehavior\.csv: row 8: behaviour 'look': expected pv, buy, cart, fav"),
    ],
)
def test_a_damaged_row(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(BivrecError, match=message):
        read_taobao(write(tmp_path, text(ROWS) + row + "\n"))


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / f"{FILE}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, text(ROWS * 1000))
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:60] + b"\xff" * 20 + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(BivrecError, match=r"UserBehavior\.csv\.zip: cannot be read .* fetch the file again"):
            read_taobao(path)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("other.csv", "")
    with pytest.raises(BivrecError, match=r"no UserBehavior\.csv in the archive; found other\.csv"):
        read_taobao(tmp_path / "other.zip")


@pytest.mark.parametrize("name", [FILE, f"{FILE}.zip"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BivrecError, match=r"UserBehavior\.csv.*: no such file; check the path"):
        read_taobao(tmp_path / name)


def test_a_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match=r"none of UserBehavior\.csv, .* in the folder"):
        read_taobao(tmp_path)


def test_no_row_of_the_period(tmp_path: Path) -> None:
    with pytest.raises(BivrecError, match=r"no row of pv from 25 November .* `bivrec prepare tables`"):
        read_taobao(write(tmp_path, "1,2,3,pv,4\n"))


def test_command(tmp_path: Path) -> None:
    rows = [
        (user, item, 1, behaviour, PERIOD_START + 10 * item + user)
        for user in range(5)
        for item in range(6)
        for behaviour in ("pv", "cart")
    ]
    write(tmp_path, text([*rows, (1, 2, 1, "pv", 0)]))
    arguments = ["prepare", "taobao", str(tmp_path), "--to", str(tmp_path / "d"), "--behaviour", "cart"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "outside of the set's period (left out): 0 interactions" in result.output
    domain = Domain.open(tmp_path / "d")
    assert domain.info.source["behaviours"] == ["cart"]
    ids = domain.item_ids()
    for split in SPLITS:
        sequences = domain.sequences(split)
        assert all([ids[item - 1] for item in sequences[row]] == list("012345") for row in range(len(sequences)))
