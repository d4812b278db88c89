"""`bivrec prepare sequences`: a user a line, and the attributes of the items."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from stages import as_rows, bivrec, succeed

from bivrec.data.domain import Domain
from bivrec.data.sequence_lines import read_sequence_lines
from bivrec.errors import BivrecError

LINES = "u1 7 3 7 12\n\n  \nu2\t3 9\nu3 12\n"
ATTRIBUTES = {"3": [1, 22], "7": ["for hair", "Ünal"], "9": [], "40": [1]}


def write(folder: Path, lines: str = LINES, attributes: Any = ATTRIBUTES) -> tuple[Path, Path]:
    (folder / "set.txt").write_text(lines, encoding="utf-8")
    (folder / "set.json").write_text(json.dumps(attributes), encoding="utf-8")
    return folder / "set.txt", folder / "set.json"


def test_the_rank_is_the_time(tmp_path: Path) -> None:
    raw = read_sequence_lines(write(tmp_path)[0])
    assert as_rows(raw) == [
        ("u1", "7", 0), ("u1", "3", 1), ("u1", "7", 2), ("u1", "12", 3), ("u2", "3", 0), ("u2", "9", 1), ("u3", "12", 0)
    ]  # fmt: skip
    assert raw.catalogue is None
    assert raw.source == {"reader": "sequences", "interactions": "set.txt"}


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    lines, attributes = write(tmp_path)
    expected = read_sequence_lines(lines, attributes)
    for path in (lines, attributes):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    found = read_sequence_lines(lines, attributes)
    assert as_rows(found) == as_rows(expected)
    assert found.catalogue == expected.catalogue


def test_attributes_are_texts(tmp_path: Path) -> None:
    raw = read_sequence_lines(*write(tmp_path))
    assert raw.catalogue is not None
    texts = dict(zip(raw.catalogue["item_id"].to_pylist(), raw.catalogue["text"].to_pylist(), strict=True))
    # Of an item without attributes nothing is known.
    assert texts == {"3": "1, 22", "7": "for hair, Ünal", "9": None, "40": "1"}


def test_a_domain_of_them(tmp_path: Path) -> None:
    lines, attributes = write(tmp_path, "".join(f"{user} {user} {user + 1} {user + 2} 50\n" for user in range(9)))
    to = tmp_path / "domain"
    options = ("--k-core", 0, "--split", "leave-one-out", "--to", to)
    printed = succeed("prepare", "sequences", lines, "--attributes", attributes, *options)
    assert "without text: 10 items" in printed
    domain = Domain.open(to)
    assert domain.info.users == {"train": 9, "validation": 9, "test": 9}
    test = domain.sequences("test")
    items = [domain.item_ids()[index - 1] for index in test.items[test.offsets[0] : test.offsets[1]]]
    assert items == [test.user_ids[0], *(str(int(test.user_ids[0]) + step) for step in (1, 2)), "50"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("u1 7 3\nu2\n", "set.txt: row 2: 'u2': expected a user and items; remove the row"),
        ("u1 7\n\nu1 3\n", "set.txt: row 3: user 'u1' has row 1 already; expected all items of a user in one"),
        ("", "there are no interactions"),
    ],
    ids=["no items", "twice", "empty"],
)
def test_damaged_sequences(tmp_path: Path, lines: str, message: str) -> None:
    path, _ = write(tmp_path, lines)
    ended = bivrec("prepare", "sequences", path, "--to", tmp_path / "domain")
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert message in ended.stderr
    assert not (tmp_path / "domain").exists()


def test_a_packed_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "set.txt").write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(BivrecError, match=r"not UTF-8 text .*; save it as UTF-8, unpacked"):
        read_sequence_lines(tmp_path / "set.txt")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ([1, 2], "expected an object of items"),
        ({"3": 22}, "item '3': expected a list of attributes, found 22"),
        ({"3": [{"brand": 1}]}, "item '3': expected a list of attributes"),
        ({"item-3": [1]}, "it has ids such as 'item-3', the sequences ids such as '7'"),
        ({}, "none of its items is in"),
    ],
    ids=["no object", "no list", "nested", "other ids", "none"],
)
def test_damaged_attributes(tmp_path: Path, attributes: Any, message: str) -> None:
    paths = write(tmp_path, attributes=attributes)
    with pytest.raises(BivrecError) as told:
        read_sequence_lines(*paths)
    assert message in str(told.value)


def test_without_times_there_is_no_split_by_time(tmp_path: Path) -> None:
    lines, _ = write(tmp_path)
    ended = bivrec("prepare", "sequences", lines, "--split", "temporal", "--to", tmp_path / "domain")
    assert ended.exit_code == 1
    assert "the file has no times" in ended.stderr


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    ended = bivrec("prepare", "sequences", tmp_path / "none.txt", "--to", tmp_path / "domain")
    assert (ended.exit_code, ended.stderr) == (1, f"Error: {tmp_path / 'none.txt'}: No such file or directory\n")
