import os
from pathlib import Path

import pytest

from bivrec.data.movielens import read_movielens
from bivrec.data.prepare import prepare
from bivrec.errors import BivrecError

CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.0,100\n2,11,0.5,101\n",
    "movies.csv": 'movieId,title,genres\n10,"Café, The (1995)",Comedy|Drama\n11,Plain (2000),(no genres listed)\n',
}
DAT = {
    "ratings.dat": "1::10::4::100\n2::11::0.5::101\n",
    "movies.dat": "10::Café, The (1995)::Comedy|Drama\n11::Plain (2000)::(no genres listed)\n",
}
HUNDRED_K = {
    "u.data": "1\t10\t4\t100\n2\t11\t1\t101\n",
    "u.item": "10|Café, The (1995)|01-Jan-1995||http://x|0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0|0\n"
    "11|Plain (2000)|01-Jan-2000||http://x|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
}


def unpack(folder: Path, files: dict[str, str], encoding: str = "utf-8") -> Path:
    for name, content in files.items():
        (folder / name).write_text(content, encoding=encoding)
    return folder


@pytest.mark.parametrize(
    ("files", "encoding"), [(CSV, "utf-8"), (DAT, "latin-1"), (DAT, "utf-8"), (HUNDRED_K, "latin-1")]
)
def test_layouts(tmp_path, files, encoding):
    raw = read_movielens(unpack(tmp_path, files, encoding))
    assert raw.user_ids.take(raw.users).to_pylist() == ["1", "2"]
    assert raw.item_ids.take(raw.items).to_pylist() == ["10", "11"]
    assert raw.timestamps.tolist() == [100, 101]
    assert raw.catalogue.select(["item_id", "title", "text"]).to_pylist() == [
        {"item_id": "10", "title": "Café, The (1995)", "text": "Café, The (1995). Comedy, Drama."},
        {"item_id": "11", "title": "Plain (2000)", "text": "Plain (2000)."},
    ]


@pytest.mark.parametrize("files", [CSV, DAT, HUNDRED_K])
def test_a_least_rating(tmp_path, files):
    raw = read_movielens(unpack(tmp_path, files), min_rating=3.5)
    assert raw.user_ids.take(raw.users).to_pylist() == ["1"]
    assert raw.item_ids.to_pylist() == ["10"]
    # The item of whom no rating is left is still one of the set's.
    assert raw.catalogue["item_id"].to_pylist() == ["10", "11"]
    assert raw.dropped == {"rated_below": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plots.csv", "item_id,text\n11,A plot.\n10,\n99,Another.\n"),
        ("plots.jsonl", '{"item_id": 11, "text": "A plot."}\n{"item_id": 10, "text": null}\n'),
    ],
)
def test_texts_are_added(tmp_path, name, content):
    unpack(tmp_path, CSV | {name: content})
    raw = read_movielens(tmp_path, texts=tmp_path / name)
    assert raw.catalogue["text"].to_pylist() == ["Café, The (1995). Comedy, Drama.", "Plain (2000). A plot."]


def test_texts_of_other_films(tmp_path):
    unpack(tmp_path, CSV | {"plots.csv": "item_id,text\nmovie-11,A plot.\n"})
    with pytest.raises(BivrecError, match=r"plots\.csv: none of its items .* such as 'movie-11', the films .* '10'"):
        read_movielens(tmp_path, texts=tmp_path / "plots.csv")


def test_unknown_layout(tmp_path):
    with pytest.raises(BivrecError, match=r"expected u\.data .* ratings\.dat .* ratings\.csv"):
        read_movielens(tmp_path)


@pytest.mark.parametrize(
    ("files", "name", "content", "message"),
    [
        (CSV, "ratings.csv", "userId,movieId,rating,timestamp\n1,x,4,1\n", r"Row #2: .* invalid value 'x'"),
        (CSV, "ratings.csv", "userId,movieId,rating\n1,2,4\n", r"no column 'timestamp'; found 'userId', 'movieId'"),
        (DAT, "ratings.dat", "1::10::4::100\n1::10::4::x\n", r"ratings\.dat: .*Row #2: .* invalid value 'x'"),
        (DAT, "movies.dat", "10::Title\n", r"movies\.dat: row 1: '10::Title': expected 3 fields .* found 2"),
    ],
)
def test_faults(tmp_path, files, name, content, message):
    unpack(tmp_path, files | {name: content})
    with pytest.raises(BivrecError, match=message):
        read_movielens(tmp_path)


@pytest.mark.skipif("BIVREC_DATA" not in os.environ, reason="needs real data: set BIVREC_DATA to its folder")
def test_real_latest_small(tmp_path):
    raw = read_movielens(Path(os.environ["BIVREC_DATA"]) / "raw" / "ml-latest-small")
    assert (len(raw.users), len(raw.user_ids), len(raw.item_ids)) == (100_836, 610, 9_724)
    domain = prepare(raw, tmp_path / "d", k_core=0)
    assert domain.info.dropped["items_without_interactions"] == 18
    assert domain.info.missing["text"] == 0
    assert domain.item_table()[0]["title"] == "Forrest Gump (1994)"
