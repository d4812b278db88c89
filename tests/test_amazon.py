import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from stages import as_rows

from bivrec.data.amazon import read_amazon
from bivrec.errors import BivrecError

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 100},
    {"reviewerID": "A1", "asin": "B2", "overall": 1.0, "unixReviewTime": 200},
]
REVIEWS_2023 = [
    {"user_id": "A1", "asin": "V1", "parent_asin": "B1", "timestamp": 100_000},
    {"user_id": "A1", "asin": "V2", "parent_asin": "B2", "timestamp": 200_000},
]
ITEM_2014 = {
    "asin": "B1",
    "title": "Pen &amp; Ink",
    "brand": "Acme",
    "categories": [["Office", "Pens"], ["Office", "Ink"]],
    "description": "It's <b>fine</b>.",
}
ITEM_2018 = {
    "asin": "B1",
    "title": "Pen &amp; Ink",
    "brand": "Acme",
    "category": ["Office", "Pens", "Ink"],
    "description": ["It's", "", "fine."],
}
ITEM_2023 = {
    "parent_asin": "B1",
    "title": "Pen & Ink",
    "store": "Acme",
    "categories": ["Office", "Pens", "Ink"],
    "description": ["It's fine."],
}


def lines(path, rows, write=json.dumps):
    content = "".join(write(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("reviews", "item", "write"),
    [
        (REVIEWS_2014, ITEM_2014, repr),
        (REVIEWS_2014, ITEM_2014, json.dumps),
        (REVIEWS_2014, ITEM_2018, json.dumps),
        (REVIEWS_2023, ITEM_2023, json.dumps),
    ],
)
@pytest.mark.parametrize("suffix", ["json.gz", "jsonl"])
def test_layouts(tmp_path, reviews, item, write, suffix):
    other = {**item, "asin": "never", "parent_asin": "never"}
    metadata = lines(tmp_path / f"meta.{suffix}", [item, {**item, "title": "again"}, other], write)
    raw = read_amazon([lines(tmp_path / f"reviews.{suffix}", reviews)], [metadata])
    unit = 1000 if reviews is REVIEWS_2023 else 1
    assert as_rows(raw) == [("A1", "B1", 100 * unit), ("A1", "B2", 200 * unit)]
    [row] = raw.catalogue.to_pylist()
    assert row["title"] == "Pen & Ink"
    assert row["text"] == "Pen & Ink. Acme. Office, Pens, Ink. It's fine"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "reviews", [REVIEWS_2014, [{**row, "rating": 3 * k + 2} for k, row in enumerate(REVIEWS_2023)]]
)
def test_a_least_rating(tmp_path, reviews, suffix):
    path = tmp_path / f"reviews.{suffix}"
    if suffix == "jsonl":
        lines(path, reviews)
    else:
        (pq.write_table if suffix == "parquet" else pa_csv.write_csv)(pa.Table.from_pylist(reviews), path)
    every, liked = read_amazon([path]), read_amazon([path], min_rating=5)
    kept = [next(row for row in as_rows(every) if row[1] == ("B1" if reviews is REVIEWS_2014 else "B2"))]
    assert as_rows(liked) == kept
    assert len(liked.item_ids) == 1
    assert (liked.dropped, liked.source["min_rating"]) == ({"rated_below": 1}, 5)
    with pytest.raises(BivrecError, match=r"no interaction is rated 5\.5 or more, the highest 5; lower --min-rating"):
        read_amazon([path], min_rating=5.5)


def test_metadata_of_what_nobody_reviewed(tmp_path):
    reviews = lines(tmp_path / "r.jsonl", REVIEWS_2014)
    metadata = lines(tmp_path / "m.jsonl", [ITEM_2014, {"asin": "never", "title": "New"}])
    assert read_amazon([reviews], [metadata]).catalogue["item_id"].to_pylist() == ["B1"]
    raw = read_amazon([reviews], [metadata], keep_items=True)
    assert raw.catalogue["item_id"].to_pylist() == ["B1", "never"]
    lines(metadata, [{"asin": "never", "title": "New"}])
    for keep_items in (False, True):
        with pytest.raises(BivrecError, match=r"m\.jsonl: none of its items .* such as 'never', the reviews .* 'B1'"):
            read_amazon([reviews], [metadata], keep_items=keep_items)


def test_parquet_and_csv(tmp_path):
    pq.write_table(pa.Table.from_pylist(REVIEWS_2023), tmp_path / "reviews.parquet")
    pq.write_table(pa.Table.from_pylist([ITEM_2023]), tmp_path / "meta.parquet")
    (tmp_path / "more.csv").write_text("user_id,parent_asin,rating,timestamp\nA2,B1,5.0,300000\n")
    raw = read_amazon([tmp_path / "reviews.parquet", tmp_path / "more.csv"], [tmp_path / "meta.parquet"])
    assert as_rows(raw) == [("A1", "B1", 100_000), ("A1", "B2", 200_000), ("A2", "B1", 300_000)]
    assert raw.catalogue["text"].to_pylist() == ["Pen & Ink. Acme. Office, Pens, Ink. It's fine"]


def test_fields_come_and_go(tmp_path):
    odd = [{"asin": "B1", "title": None, "description": 5.0}, {"asin": "B2", "brand": ""}]
    raw = read_amazon([lines(tmp_path / "r.json", REVIEWS_2014)], [lines(tmp_path / "m.json", odd)])
    assert raw.catalogue["title"].to_pylist() == raw.catalogue["text"].to_pylist() == [None, None]


PAGE = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Fits kids &lt;5 years and adults >12 kg", "Fits kids <5 years and adults >12 kg"),
        ("I <3 this", "I <3 this"),
        ("<p class='a'>Blue<br />ink</p><!-- x -->", "Blue ink"),
        ("<style>.x{color:red}</style> Good <SCRIPT type='x'>var a = 1 < 2;\n</SCRIPT>", "Good"),
    ],
)
def test_markup_is_no_text(tmp_path, written, text):
    item = {"asin": "B1", "title": PAGE, "description": [written]}
    raw = read_amazon([lines(tmp_path / "r.json", REVIEWS_2014)], [lines(tmp_path / "m.json", [item])])
    assert [raw.catalogue[name][0].as_py() for name in ("title", "text")] == [None, text]


@pytest.mark.parametrize("key", ["features", "feature"])
def test_features_stand_in_for_a_description(tmp_path, key):
    item = {"asin": "B1", "title": "Brush", "description": [], key: ["Soft", "BPA free"]}
    other = {**item, "asin": "B2", "description": ["A brush."]}
    raw = read_amazon([lines(tmp_path / "r.json", REVIEWS_2014)], [lines(tmp_path / "m.json", [item, other])])
    assert raw.catalogue["text"].to_pylist() == ["Brush. Soft BPA free", "Brush. A brush"]


def test_a_folder_of_metadata(tmp_path):
    folder = tmp_path / "raw_meta_Office"
    folder.mkdir()
    for part, item in enumerate(("B1", "B2")):
        pq.write_table(pa.Table.from_pylist([{**ITEM_2023, "parent_asin": item}]), folder / f"full-{part}.parquet")
    raw = read_amazon([lines(tmp_path / "r.json", REVIEWS_2023)], [folder])
    assert raw.catalogue["item_id"].to_pylist() == ["B1", "B2"]


def test_metadata_is_not_evaluated(tmp_path):
    (tmp_path / "m.json").write_text("__import__('os').abort()\n")
    with pytest.raises(BivrecError, match=r"m\.json: row 1: not valid JSON \(nor a Python literal"):
        read_amazon([lines(tmp_path / "r.json", REVIEWS_2014)], [tmp_path / "m.json"])


def test_faults(tmp_path):
    reviews = lines(tmp_path / "r.json", REVIEWS_2014)
    with pytest.raises(BivrecError, match=r"m\.json: row 1: no parent_asin or asin; found title"):
        read_amazon([reviews], [lines(tmp_path / "m.json", [{"title": "x"}])])
    with pytest.raises(BivrecError, match=r"row 1: expected user_id, parent_asin, timestamp or reviewerID, asin"):
        read_amazon([lines(tmp_path / "x.json", [{"a": 1}])])
    new = lines(tmp_path / "new.json", REVIEWS_2023)
    for files in ([reviews, new], [new, new, reviews]):
        with pytest.raises(BivrecError, match=r"new\.json is of the set of 2023, .*/r\.json of an older one.*one set$"):
            read_amazon(files)
    damaged = lines(tmp_path / "r.json.gz", REVIEWS_2014 * 1000)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(BivrecError, match=r"r\.json\.gz: after row \d+: cannot be read"):
        read_amazon([damaged])


@pytest.mark.skipif("BIVREC_DATA" not in os.environ, reason="needs real data: set BIVREC_DATA to its folder")
def test_real_metadata_of_2014(tmp_path):
    path = next((Path(os.environ["BIVREC_DATA"]) / "raw" / "amazon-2014-metadata").glob("*.gz"))
    with gzip.open(path, "rt") as stream:
        asins = [json.loads(line)["asin"] for line in stream]
    reviews = [{"reviewerID": "A", "asin": asin, "unixReviewTime": 1} for asin in asins]
    raw = read_amazon([lines(tmp_path / "r.jsonl", reviews)], [path])
    assert len(raw.catalogue) == 3_658
    assert raw.catalogue["text"].null_count == 0
