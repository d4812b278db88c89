import codecs
import datetime
import gzip
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from stages import as_rows

from bivrec.data.columns import ID, TEXT, read_columns
from bivrec.data.images import find_images
from bivrec.data.prepare import prepare
from bivrec.data.tables import Columns, read_tables
from bivrec.errors import BivrecError


def write(table, path):
    if path.name.endswith(".parquet"):
        pq.write_table(table, path)
    elif ".jsonl" in path.name:
        lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    else:
        options = pa_csv.WriteOptions(delimiter="\t" if ".tsv" in path.name else ",")
        with pa.CompressedOutputStream(str(path), "gzip") if path.suffix == ".gz" else path.open("wb") as sink:
            pa_csv.write_csv(table, sink, options)
    return path


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "parquet", "jsonl", "jsonl.gz"])
def test_every_format_reads_the_same(interactions_csv, tmp_path, suffix):
    path = write(pa_csv.read_csv(interactions_csv), tmp_path / f"table.{suffix}")
    assert as_rows(read_tables(path)) == as_rows(read_tables(interactions_csv))


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz"])
def test_a_byte_order_mark_is_no_content(interactions_csv, tmp_path, suffix):
    path = write(pa_csv.read_csv(interactions_csv), tmp_path / f"table.{suffix}")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    marked = codecs.BOM_UTF8 + content
    path.write_bytes(gzip.compress(marked) if path.suffix == ".gz" else marked)
    assert as_rows(read_tables(path)) == as_rows(read_tables(interactions_csv))


def test_folder_of_parts(interactions_csv, tmp_path):
    table = pa_csv.read_csv(interactions_csv)
    folder = tmp_path / "spark"
    folder.mkdir()
    write(table.slice(30), folder / "part-00001.parquet")
    write(table.slice(0, 30), folder / "part-00000.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.parquet.crc").touch()
    assert as_rows(read_tables(folder)) == as_rows(read_tables(interactions_csv))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_part_without_a_column_of_texts_has_none(interactions_csv, tmp_path, suffix):
    items = tmp_path / "items"
    items.mkdir()
    ids = read_tables(interactions_csv).item_ids.to_pylist()
    some = pa.table({"item_id": ids[:2], "title": ["a", "b"], "text": ["of a", "of b"]})
    write(some, items / f"part-0.{suffix}")
    write(pa.table({"item_id": ids[2:4], "title": ["c", "d"]}), items / f"part-1.{suffix}")
    assert read_tables(interactions_csv, items).catalogue["text"].to_pylist() == ["of a", "of b", "c", "d"]
    log = tmp_path / "log"
    log.mkdir()
    table = pa_csv.read_csv(interactions_csv)
    write(table, log / f"part-0.{suffix}")
    write(table.drop_columns(["timestamp"]), log / f"part-1.{suffix}")
    with pytest.raises(BivrecError, match=rf"part-1\.{suffix}: .*'timestamp'"):
        read_tables(log)


def test_halves_of_an_emoji_become_question_marks(interactions_csv, tmp_path):
    """Titles that were cut, in JSON."""
    item = read_tables(interactions_csv).item_ids[0].as_py()
    (tmp_path / "items.jsonl").write_text(f'{{"item_id": "{item}", "title": "lamp \\ud83d", "text": "a lamp"}}\n')
    assert read_tables(interactions_csv, tmp_path / "items.jsonl").catalogue["title"].to_pylist() == ["lamp ?"]


def test_categories_that_no_row_has_are_nothing(interactions_csv, tmp_path):
    """As pandas writes them for a part of a table."""
    table = pa_csv.read_csv(interactions_csv)

    def categories(values, more):
        names = list(dict.fromkeys(values)) + more
        return pa.DictionaryArray.from_arrays([names.index(value) for value in values], pa.array(names))

    split = categories(["train"] * len(table), ["not a split"])
    path = write(table.append_column("split", split), tmp_path / "log.parquet")
    assert not read_tables(path, columns=Columns(split="split")).splits.any()
    item = table["item_id"][0].as_py()
    twice = categories([item, item], ["another", "and another"])
    write(pa.table({"item_id": twice, "title": ["a", "b"]}), tmp_path / "items.parquet")
    with pytest.raises(BivrecError, match=f"item '{item}' has 2 rows"):
        read_tables(path, tmp_path / "items.parquet")


def test_an_empty_part_is_one_of_an_empty_partition(interactions_csv, tmp_path):
    folder = tmp_path / "spark"
    folder.mkdir()
    (folder / "part-00000.csv").touch()
    (folder / "part-00001.csv").write_bytes(interactions_csv.read_bytes())
    assert as_rows(read_tables(folder)) == as_rows(read_tables(interactions_csv))
    (folder / "part-00001.csv").write_bytes(b"")
    with pytest.raises(BivrecError, match=r"part-00000\.csv: cannot be read: Empty CSV file"):
        read_tables(folder)


def test_parts_in_folders_of_the_folder_are_not_left_out_in_silence(interactions_csv, tmp_path):
    folder = tmp_path / "spark"
    (folder / "date=2023-11-14").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    for part in ("part-00000.csv", "date=2023-11-14/part-00001.csv"):
        (folder / part).write_bytes(interactions_csv.read_bytes())
    with pytest.raises(BivrecError, match=r"spark: has a folder in it, date=2023-11-14; expected parts such as"):
        read_tables(folder)
    shutil.rmtree(folder / "date=2023-11-14")
    assert as_rows(read_tables(folder)) == as_rows(read_tables(interactions_csv))


def test_a_delta_table_is_refused(interactions_csv, tmp_path):
    """Its folder keeps the files that an update has replaced."""
    folder = tmp_path / "delta"
    (folder / "_delta_log").mkdir(parents=True)
    (folder / "part-00000.csv").write_bytes(interactions_csv.read_bytes())
    with pytest.raises(BivrecError, match=r"delta: a Delta table.*write it as plain Parquet"):
        read_tables(folder)


def test_files_of_recbole(tmp_path):
    (tmp_path / "t.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\tx\t5\nu\ty\t6\n")
    (tmp_path / "t.item").write_text("item_id:token\tname:token_seq\nx\tInk, blue\ny\tPen\n")
    raw = read_tables(tmp_path / "t.inter", tmp_path / "t.item", columns=Columns(title="name"))
    assert as_rows(raw) == [("u", "x", 5), ("u", "y", 6)]
    assert raw.catalogue["title"].to_pylist() == ["Ink, blue", "Pen"]
    (tmp_path / "t.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\tx\tsoon\n")
    with pytest.raises(BivrecError, match=r"t\.inter: row 2: timestamp 'soon'"):
        read_tables(tmp_path / "t.inter")
    with pytest.raises(BivrecError, match=r"no column 'when'; found 'user_id', 'item_id', 'timestamp'"):
        read_tables(tmp_path / "t.inter", columns=Columns(timestamp="when"))


def test_a_json_array_is_no_lines(tmp_path):
    (tmp_path / "t.json").write_text('[\n  {"user_id": 1,\n')
    with pytest.raises(BivrecError, match=r"t\.json: a JSON array; write one object a line"):
        read_tables(tmp_path / "t.json")


STRAY = [
    ('"red shoes', "blue", '"green'),
    ('"red shoes', '"blue', "green"),
    ('"red" shoes', 'bl"ue', "green"),
]


@pytest.mark.parametrize("queries", STRAY, ids=["a pair", "neighbours", "within"])
@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz"])
def test_no_row_of_a_tsv_is_lost_to_quotes_that_are_letters(tmp_path, queries, suffix):
    rows = [f"u{row}\t{queries[row % 3]}\ti{row % 4}\t{row}" for row in range(12)]
    content = "\n".join(["user_id\tquery\titem_id\ttimestamp", *rows])
    path = tmp_path / f"log.{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    assert as_rows(read_tables(path)) == [(f"u{row}", f"i{row % 4}", row) for row in range(12)]
    items = tmp_path / f"items.{suffix}"
    content = "item_id\ttitle\n" + "".join(f"i{row}\t{queries[row % 3]}\n" for row in range(4))
    items.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    assert read_tables(path, items).catalogue["title"].to_pylist() == [*queries, queries[0]]


def test_quotes_of_a_tsv_that_quotes_are_no_letters(tmp_path):
    (tmp_path / "log.tsv").write_text('"user_id"\titem_id\ttimestamp\n"u"\t1\t5\nv\t"2"\t6\n')
    (tmp_path / "items.tsv").write_text('item_id\ttitle\n1\t"two\nlines and a ""mark"""\n2\tplain\n')
    raw = read_tables(tmp_path / "log.tsv", tmp_path / "items.tsv")
    assert as_rows(raw) == [("u", "1", 5), ("v", "2", 6)]
    assert raw.catalogue["title"].to_pylist() == ['two\nlines and a "mark"', "plain"]


@pytest.mark.parametrize("unknown", ["NULL", "null", "NaN", "nan", "None", "<NA>", "N/A", "#N/A", "\\N", '"NULL"'])
def test_what_databases_write_for_nothing_is_nothing(tmp_path, unknown):
    for row in (f"{unknown},x,1", f"u,{unknown},1", f"u,x,{unknown}"):
        (tmp_path / "t.csv").write_text(f"user_id,item_id,timestamp\nu,x,0\n{row}\n")
        with pytest.raises(BivrecError, match=r"t\.csv: row 3: (user_id|item_id|timestamp) is empty"):
            read_tables(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\nu,x,0\nu,y,1\n")
    (tmp_path / "items.csv").write_text(f"item_id,title,text\nx,{unknown},{unknown}\ny,Nullarbor,null and void\n")
    catalogue = read_tables(tmp_path / "t.csv", tmp_path / "items.csv").catalogue
    assert catalogue["title"].to_pylist() == [None, "Nullarbor"]
    assert catalogue["text"].to_pylist() == [None, "null and void"]


def test_a_row_may_be_long(tmp_path):
    picture = "A" * 3_000_000
    (tmp_path / "items.csv").write_text(f'item_id,title,html\nx,X,"<p>\n{picture}"\ny,Y,\n')
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\nu,x,0\nu,y,1\n")
    columns = Columns(text=("html",))
    catalogue = read_tables(tmp_path / "t.csv", tmp_path / "items.csv", columns=columns).catalogue
    assert catalogue["text"].to_pylist() == [f"<p>\n{picture}", "Y"]


PICTURES = ("b.jpg", "deep/c.png")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["b.jpg", None, None], ["b.jpg", "b.jpg", "deep/c.png"]),
        (["./deep/c.png", "pictures/b.jpg", "deep/c.png"], ["deep/c.png", "b.jpg", "deep/c.png"]),
        (["https://shop/a.jpg?v=2", "https://shop/x.jpg", "https://shop/y"], [None, "b.jpg", "deep/c.png"]),
    ],
    ids=["names", "names with folders", "addresses, of items whose files have their ids"],
)
def test_images_are_found_by_name_or_else_by_id(tmp_path, images, expected):
    for name in PICTURES:
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).touch()
    found, unfound = find_images(tmp_path / "pictures", ["a", "b", "c"], images)
    assert found == expected
    assert unfound == sum(name is not None and file is None for name, file in zip(images, expected, strict=True))


def test_images_of_no_item_are_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "front.png").touch()
    with pytest.raises(BivrecError) as caught:
        find_images(tmp_path / "pictures", ["a", "b"], [None, "https://shop/b"])
    assert str(caught.value) == (
        f"{tmp_path / 'pictures'}: none of its 1 images, such as 'front.png', is of an item; expected names such as "
        "'https://shop/b', as an item names it, or 'a.png', by an item's id"
    )


def test_names_of_images_are_no_images_without_the_files(tmp_path):
    rows = "".join(f"{user},{item},1\n" for user in range(3) for item in "xyz")
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n" + rows)
    (tmp_path / "items.csv").write_text("item_id,title,image\nx,X,https://shop/x.jpg\ny,Y,y.jpg\n")
    domain = prepare(read_tables(tmp_path / "t.csv", tmp_path / "items.csv"), tmp_path / "d", split="1:1:1", k_core=0)
    assert domain.info.missing["image"] == 3
    assert domain.item_table()["image"] == [None] * 3


def test_other_names_and_types(tmp_path):
    moment = datetime.datetime(2001, 9, 9, 1, 46, 40)
    table = pa.table({"who": [1, 2], "what": pa.array([7, 8], pa.int32()), "when": [moment, moment]})
    raw = read_tables(write(table, tmp_path / "t.parquet"), columns=Columns("who", "what", "when"))
    assert as_rows(raw) == [("1", "7", 10**9), ("2", "8", 10**9)]


DATES = (
    "2023-11-14 22:50:02",
    "2024-01-01",
    "2023-11-14T22:50:02Z",
    "2023-11-14T22:50:02.75+00:00",
    "2023-11-14T23:50:02.123456789+0100",
    "2023-11-14 22:50",
    "1969-12-31",
    "2024-02-29T00:00:00-05:30",
)


def test_ids_have_other_names_in_each_table(tmp_path):
    (tmp_path / "clicks.csv").write_text("user_id,product_id,timestamp\nu,7,1\n")
    (tmp_path / "products.csv").write_text("id,title\n7,Ink\n")
    columns = Columns(item="product_id", id="id")
    raw = read_tables(tmp_path / "clicks.csv", tmp_path / "products.csv", columns=columns)
    assert raw.catalogue.select(["item_id", "title"]).to_pylist() == [{"item_id": "7", "title": "Ink"}]
    with pytest.raises(BivrecError, match=r"products\.csv: no column 'product_id'; found 'id', 'title'"):
        read_tables(tmp_path / "clicks.csv", tmp_path / "products.csv", columns=Columns(item="product_id"))


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "jsonl", "parquet"])
def test_dates_as_text(tmp_path, suffix):
    dates = (*DATES, "2023-11-14 22:50:02 UTC", "2023-11-14 22:50:02.5 +0100")
    users = [f"u{place}" for place in range(len(dates))]
    table = pa.table({"user_id": users, "item_id": ["x"] * len(dates), "timestamp": dates})
    moments = [datetime.datetime.fromisoformat(date.replace(" UTC", "Z").replace(" +", "+")) for date in dates]
    in_zone = [moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC) for moment in moments]
    # Some have a fraction of a second, and so all are microseconds.
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    expected = [(moment - epoch) // datetime.timedelta(microseconds=1) for moment in in_zone]
    read = read_tables(write(table, tmp_path / f"t.{suffix}"))
    assert read.timestamps.tolist() == expected
    # As a column of dates says it, whose type Parquet keeps.
    typed = table.set_column(2, "timestamp", pa.array(in_zone, pa.timestamp("us", "UTC")))
    assert read_tables(write(typed, tmp_path / "typed.parquet")).timestamps.tolist() == expected


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ("1600566344.25 1600566344.75 1600566344 1600566344.5", [0, 3, 1]),
        ("2020-09-20T01:45:44.25Z 2020-09-20T01:45:44.75Z 2020-09-20T01:45:44Z 2020-09-20T01:45:44.5Z", [0, 3, 1]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_fractions_of_a_second_keep_their_order(tmp_path, times, order, suffix):
    """As time.time() logs them; cut off, they would be duplicates, or in the order of the file."""
    times = times.split()
    if suffix != "csv" and "Z" not in times[0]:
        times = list(map(float, times))
    elif suffix == "parquet":
        times = pa.array(times).cast(pa.timestamp("ms", "UTC"))
    table = pa.table({"user_id": ["a"] * 4, "item_id": ["y"] * 4, "timestamp": times})
    raw = read_tables(write(table, tmp_path / f"t.{suffix}"))
    assert raw.timestamps.tolist() == [1600566344_000000 + part for part in (250000, 750000, 0, 500000)]
    assert np.argsort(raw.timestamps).tolist() == [2, *order]


def test_a_fraction_in_one_part_counts_for_all(tmp_path):
    heads = "user_id,item_id,timestamp\n"
    for kind, whole, fraction in (("numbers", "7", "8.5"), ("dates", "1970-01-01T00:00:07", "1970-01-01T00:00:08.5")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "part-0.csv").write_text(f"{heads}a,x,{whole}\n")
        assert read_tables(folder).timestamps.tolist() == [7]
        (folder / "part-1.csv").write_text(f"{heads}a,x,{fraction}\n")
        assert read_tables(folder).timestamps.tolist() == [7_000_000, 8_500_000]
    (tmp_path / "numbers" / "part-2.csv").write_text(f"{heads}a,x,{2**62}\n")
    with pytest.raises(BivrecError, match=r"part-2\.csv: timestamp: too large for seconds"):
        read_tables(tmp_path / "numbers")


def test_integers_beside_dates_are_refused(tmp_path):
    """Their units differ: 1600566344647 may be milliseconds."""
    rows = "".join(f"u{row},x,{row}\n" for row in range(200_000))
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n" + rows + "a,x,2023-11-14\n")
    with pytest.raises(BivrecError, match=r"t\.csv: row 200002: timestamp: a date after numbers: expected one of the"):
        read_tables(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n" + rows + "a,x,14.11.2023\n")
    with pytest.raises(BivrecError, match=r"t\.csv: row 200002: timestamp '14\.11\.2023': expected an integer or a"):
        read_tables(tmp_path / "t.csv")


def test_numbers_beside_dates_are_refused_in_any_two_parts(tmp_path):
    (tmp_path / "part-0.csv").write_text("user_id,item_id,timestamp\na,x,2023-11-14\n")
    write(pa.table({"user_id": ["a"], "item_id": ["x"], "timestamp": [7.5]}), tmp_path / "part-1.parquet")
    with pytest.raises(BivrecError, match=r"part-1\.parquet: timestamp: a number after dates"):
        read_tables(tmp_path)
    row = '{{"user_id": "a", "item_id": "x", "timestamp": {}}}\n'
    # The lines are read in stretches of 100,000.
    for count in (1, 100_000):
        (tmp_path / "t.jsonl").write_text(row.format(7) * count + row.format('"2023-11-14"'))
        with pytest.raises(BivrecError, match=rf"t\.jsonl: row {count + 1}: timestamp: a date after numbers"):
            read_tables(tmp_path / "t.jsonl")


def test_ids_are_text_as_written(tmp_path):
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n007,NA,1\n")
    assert as_rows(read_tables(tmp_path / "t.csv")) == [("007", "NA", 1)]


def test_items_and_images(interactions_csv, tmp_path):
    items = pa.table(
        {
            "item_id": ["i0", "i1", "i2", "i3"],
            "title": ["Zero", "One", "Two", "Three"],
            "text": ["about zero", None, "", "about three"],
            "image": ["zero.png", None, "lost.png", None],
        }
    )
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in ("./zero.png", "./i1.jpg", "./i4.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    raw = read_tables(interactions_csv, write(items, tmp_path / "items.parquet"), images=tmp_path / "images.tar")
    domain = prepare(raw, tmp_path / "d", k_core=0)
    rows = {row["item_id"]: (row["text"], row["image"]) for row in domain.item_table()}
    assert rows == {
        "i0": ("about zero", "zero.png"),
        "i1": ("One", "i1.jpg"),
        "i2": ("Two", None),
        "i3": ("about three", None),
        "i4": (None, "i4.jpg"),
    }
    assert domain.images.resolve() == tmp_path / "images.tar"
    assert domain.info.dropped["images_not_found"] == 1
    assert domain.info.items_not_listed == 1


def test_ids_that_are_titles(tmp_path):
    (tmp_path / "t.csv").write_text("user_id,title,timestamp\na,One,1\n")
    (tmp_path / "items.csv").write_text("title,text\nOne,\n")
    raw = read_tables(tmp_path / "t.csv", tmp_path / "items.csv", columns=Columns(item="title"))
    assert raw.catalogue.to_pylist() == [{"item_id": "One", "title": "One", "text": "One", "image": None}]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("role", ["title", "text", "image"])
def test_columns_of_the_items_that_are_named_must_exist(interactions_csv, tmp_path, suffix, role):
    table = pa.table({"item_id": ["i0", "i1"], "name": [None, "One"], "nothing": pa.nulls(2, pa.string())})
    items = write(table, tmp_path / f"items.{suffix}")
    for name in ("nme", "nothing", ""):
        with pytest.raises(
            BivrecError, match=rf"items\.{suffix}: no column '{name}', or nothing in it; found item_id, n"
        ):
            read_tables(interactions_csv, items, columns=Columns(**{role: (name,) if role == "text" else name}))
    named = Columns(**{role: ("name",) if role == "text" else "name"})
    assert read_tables(interactions_csv, items, columns=named).catalogue[role][1].as_py() == "One"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_several_texts_are_put_together(interactions_csv, tmp_path, suffix):
    table = pa.table(
        {
            "item_id": ["i0", "i1", "i2", "i3"],
            "title": ["One", "Two", "Three", "Four"],
            "brand": ["Acme", " ", None, None],
            "about": ["Round", "Flat", "Square", None],
        }
    )
    items = write(table, tmp_path / f"items.{suffix}")
    raw = read_tables(interactions_csv, items, columns=Columns(text=("title", "brand", "about")))
    assert raw.catalogue["title"].to_pylist() == ["One", "Two", "Three", "Four"]
    assert raw.catalogue["text"].to_pylist() == ["One. Acme. Round", "Two. Flat", "Three. Square", "Four"]
    raw = read_tables(interactions_csv, items, columns=Columns(text=("brand", "about")))
    assert raw.catalogue["text"].to_pylist() == ["Acme. Round", "Flat", "Square", "Four"]
    with pytest.raises(BivrecError, match="no column 'colour'"):
        read_tables(interactions_csv, items, columns=Columns(text=("brand", "colour")))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["item_id,title", "i0 ,Zero", "i1 ,One"],
            r"none of its items is in .*csv: it has ids such as 'i0 ', .* 'i0'; ma",
        ),
        (["item_id,title", "i0,Zero", "i1,One", "i1,Two"], "item 'i1' has 2 rows; expected one; remove the others"),
        (["item_id,title"], r"items\.csv: no column title, text, image, or nothing in them; found item_id, title"),
        (
            ["user_id,item_id", "a,i0"],
            r"items\.csv: no column title, text, image, or nothing in them; found user_id, i",
        ),
    ],
)
def test_items_that_say_nothing_of_the_interactions(interactions_csv, tmp_path, rows, message):
    (tmp_path / "items.csv").write_text("\n".join([*rows, ""]))
    with pytest.raises(BivrecError, match=message):
        read_tables(interactions_csv, tmp_path / "items.csv")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"user": "item_id"}, "column 'item_id' is both user and item; name another with --user-column or --item-col"),
        ({"timestamp": "user_id"}, "column 'user_id' is both user and timestamp"),
        ({"split": "item_id"}, "column 'item_id' is both item and split"),
    ],
)
def test_a_column_has_one_role(roles, message):
    with pytest.raises(BivrecError, match=message):
        Columns(**roles)


def stars(path, suffix, stars, **others):
    count = len(stars)
    columns = {"user_id": [f"u{k}" for k in range(count)], "item_id": ["x", "y"] * (count // 2), **others}
    return write(pa.table({**columns, "timestamp": range(count), "stars": stars}), path / f"t.{suffix}")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("of_type", [int, float])
def test_a_least_rating(tmp_path, suffix, of_type):
    ratings = list(map(of_type, [5, 1, 4, 3, 3, 2]))
    path = stars(tmp_path, suffix, ratings, part=["train", "train", "val", "test", "test", "train"])
    raw = read_tables(path, columns=Columns(rating="stars", split="part"), min_rating=3)
    assert as_rows(raw) == [("u0", "x", 0), ("u2", "x", 2), ("u3", "y", 3), ("u4", "x", 4)]
    assert raw.user_ids.to_pylist() == ["u0", "u2", "u3", "u4"]
    assert raw.splits.tolist() == [0, 1, 2, 2]
    assert raw.dropped == {"rated_below": 2}
    assert read_tables(path, columns=Columns(rating="stars")).dropped == {}


@pytest.mark.parametrize(
    ("suffix", "ratings", "fault"),
    [
        ("csv", ["5", "good"], r"t\.csv: .*Row #3.* 'good'"),
        ("jsonl", ["5", "4"], r"t\.jsonl: row 1: stars '5': expected a number; mend the row"),
        ("jsonl", [5.0, 2**60], r"t\.jsonl: row 2: stars '1152921504606846976': expected a number"),
        ("parquet", ["5", "4"], r"t\.parquet: column 'stars' is of type string: expected a number"),
        ("parquet", [5.0, None], r"t\.parquet: row 2: stars is empty: expected a number"),
        ("parquet", [float("nan"), 1.0], r"t\.parquet: row 1: stars is empty: expected a number"),
        ("parquet", [1, 2], r"no interaction is rated 3 or more, the highest 2; lower --min-rating"),
    ],
)
def test_ratings_that_cannot_be_compared(tmp_path, suffix, ratings, fault):
    if suffix == "jsonl":
        rows = [{"user_id": "u", "item_id": "x", "timestamp": 1, "stars": value} for value in ratings]
        path = tmp_path / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = stars(tmp_path, suffix, ratings)
    with pytest.raises(BivrecError, match=fault):
        read_tables(path, columns=Columns(rating="stars"), min_rating=3)
    with pytest.raises(BivrecError, match="'rating'"):
        read_tables(path, min_rating=3)


def test_split_column(interactions_csv, tmp_path):
    table = pa_csv.read_csv(interactions_csv)
    names = {"u0": "valid", "u1": "test"}
    table = table.append_column("part", [[names.get(user, "train") for user in table["user_id"].to_pylist()]])
    raw = read_tables(write(table, tmp_path / "t.csv"), columns=Columns(split="part"))
    domain = prepare(raw, tmp_path / "d")
    assert domain.sequences("validation").user_ids == ["u0"]
    assert domain.sequences("test").user_ids == ["u1"]


HEAD = "user_id,item_id,timestamp\na,x,1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", HEAD + "a,y,soon\n", r"t\.csv: row 3: timestamp 'soon': expected an integer or a date such as 2023-"),
        ("t.csv", HEAD + "a,y,2023-02-30\n", r"t\.csv: row 3: timestamp '2023-02-30': expected an integer or a date"),
        ("t.csv", HEAD + "a,y,1.5.2\n", r"t\.csv: row 3: timestamp '1\.5\.2': expected an integer or a date"),
        ("t.csv", HEAD + f"a,y,{2**63}\n", rf"t\.csv: row 3: timestamp '{2**63}': expected an integer or a date"),
        ("t.csv", HEAD + "a,y,2023-01-01\na,z\n", r"Row #4: Expected 3 columns, got 2: a,z"),
        ("t.csv", HEAD + "a,y\n", r"Row #3: Expected 3 columns, got 2: a,y"),
        ("t.csv", HEAD + "a,,2\n", r"t\.csv: row 3: item_id is empty: expected an id .*; mend or remove the row$"),
        ("t.csv", HEAD + ",y,2\n" * 3, r"row 3: user_id is empty: .*; mend or remove the 3 rows that are like it$"),
        ("t.csv", HEAD + "a,y,\n", r"row 3: timestamp is empty: expected an integer or a date"),
        ("t.csv", "user_id,asin,timestamp\n", r"no column 'item_id'; found 'user_id', 'asin', 'timestamp'"),
        (
            "t.csv",
            "user_id;item_id;timestamp\na;x;1\n",
            r"t\.csv: the columns are separated by ';', but ',' is expected of \.csv; convert the file",
        ),
        ("t.tsv", HEAD, r"separated by ',', but '\\t' is expected of \.tsv"),
        ("t.csv", "", r"t\.csv: cannot be read: Empty CSV file"),
        ("t.csv", "user_id,item_id,timestamp\n", r"t\.csv: there are no interactions"),
        ("t.xlsx", "", r"unknown format '\.xlsx'; expected \.parquet"),
        ("t.csv.zip", "", r"t\.csv\.zip: an archive; unpack it and give the file in it"),
        ("t.csv.gz", "not compressed", r"t\.csv\.gz: cannot be read: .*incorrect header"),
        ("t.jsonl.gz", "not compressed", r"t\.jsonl\.gz: after row 0: cannot be read"),
        ("t.parquet", "not Parquet", r"t\.parquet: cannot be read"),
        ("t.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": 1}\n', r"row 2: no 'item_id', 'timest"),
        ("t.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": "x"}\n', r"row 1: timestamp 'x': expected an integer"),
        (
            "t.jsonl",
            '{"user_id": 1, "item_id": 2, "timestamp": 3}\n\n{"user_id": 1, "item_id": 2, "timestamp": "2023-13-01"}\n',
            r"row 3: timestamp '2023-13-01': expected an integer",
        ),
        ("t.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": null}\n', r"row 1: timestamp is empty"),
        ("t.jsonl", '\n\n{"user_id": 1, "item_id": null, "timestamp": 3}\n', r"row 3: item_id is empty"),
        ("t.jsonl", 2 * '{"user_id": "", "item_id": 2, "timestamp": 3}\n', r"row 1: user_id is empty: expected an id"),
        ("t.jsonl", '{"user_id": \n', r"t\.jsonl: row 1: not valid JSON"),
        ("t.jsonl", "1\n", r"row 1: expected one JSON object a line, found '1'"),
    ],
)
def test_faults(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(BivrecError, match=message) as fault:
        prepare(read_tables(tmp_path / name), tmp_path / "d")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_an_id_without_a_letter_is_nobody(tmp_path, kind):
    """Or all whom a program does not know would be one user."""
    for name, row in (("user_id", 3), ("item_id", 2)):
        ids = ["a", "b", "c"]
        table = pa.table({"user_id": ids, "item_id": ids, "timestamp": [1, 2, 3]})
        ids[row - 1] = ""
        table = table.set_column(table.column_names.index(name), name, pa.array(ids, pa.string()).cast(kind))
        with pytest.raises(BivrecError, match=rf"t\.parquet: row {row}: {name} is empty: expected an id"):
            read_tables(write(table, tmp_path / "t.parquet"))


def test_wrong_type(tmp_path):
    table = pa.table({"user_id": ["a"], "item_id": ["x"], "timestamp": [True]})
    with pytest.raises(BivrecError, match=r"column 'timestamp' is of type bool: expected an integer or a date"):
        read_tables(write(table, tmp_path / "t.parquet"))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_columns_as_pandas_and_polars_write_them(tmp_path, kind):
    users = pa.array(["a", "b"], pa.string()).cast(kind)
    dates = pa.array(["1970-01-01T00:00:01", "1970-01-01"], pa.string())
    for timestamps, seconds in ((pa.array([1.0, 2.0]), [1, 2]), (dates.cast(kind), [1, 0])):
        table = pa.table({"user_id": users, "item_id": [5, 6], "timestamp": timestamps})
        items = pa.table({"item_id": [5, 6], "title": pa.array(["tea", None], pa.string()).cast(kind)})
        raw = read_tables(write(table, tmp_path / "t.parquet"), write(items, tmp_path / "items.parquet"))
        assert as_rows(raw) == [("a", "5", seconds[0]), ("b", "6", seconds[1])]
        assert raw.catalogue["title"].to_pylist() == ["tea", None]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_whole_numbers_with_a_decimal_point(tmp_path, suffix):
    """As pandas writes integers of a column that had missing values."""
    heads = {"csv": "user_id,item_id,timestamp\n", "tsv": "user_id\titem_id\ttimestamp\n", "jsonl": ""}
    rows = {
        "csv": "a,x,{}\n",
        "tsv": "a\tx\t{}\n",
        "jsonl": '{{"user_id": "a", "item_id": "x", "timestamp": {}}}\n',
    }
    times = ("970185600.0", "-3.00", "7")
    (tmp_path / f"t.{suffix}").write_text(heads[suffix] + "".join(rows[suffix].format(time) for time in times))
    assert read_tables(tmp_path / f"t.{suffix}").timestamps.tolist() == [970185600, -3, 7]


@pytest.mark.parametrize(("fault", "shown"), [(float("nan"), "nan"), (float("-inf"), "-inf"), (2.0**63, "9")])
def test_number_that_is_no_timestamp(tmp_path, fault, shown):
    table = pa.table({"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": [1.0, fault]})
    for name in ("t.parquet", "t.jsonl"):
        with pytest.raises(BivrecError, match=rf"{name}: row 2: timestamp '?{shown}.*: expected an integer or a date"):
            read_tables(write(table, tmp_path / name))


@pytest.mark.parametrize("name", ["T.CSV", "T.CSV.GZ", "t.jsonl.GZ", "T.Parquet"])
def test_suffixes_in_capitals(interactions_csv, tmp_path, name):
    path = write(pa_csv.read_csv(interactions_csv), tmp_path / name.lower()).rename(tmp_path / name)
    assert as_rows(read_tables(path)) == as_rows(read_tables(interactions_csv))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_another_encoding(tmp_path, encoding, suffix):
    content = ("\ufeff" + HEAD).encode(encoding)
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(content) if suffix == "csv.gz" else content)
    with pytest.raises(BivrecError, match=r": not UTF-8, but UTF-16; convert the file"):
        read_tables(tmp_path / f"t.{suffix}")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_letters_of_latin1(tmp_path, suffix):
    content = "item_id,title\ni1,tea\ni2,café\n".replace(",", {"csv": ",", "tsv": "\t"}[suffix])
    (tmp_path / f"t.{suffix}").write_bytes(content.encode("latin-1"))
    with pytest.raises(BivrecError, match=rf"t\.{suffix}: row 3: not UTF-8; convert the file, .*`iconv -f LATIN1"):
        read_columns(tmp_path / f"t.{suffix}", {"item_id": ID}, {"title": TEXT})


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_texts_that_are_numbers_or_lists(interactions_csv, tmp_path, suffix):
    """Categories, the paragraphs of a description, and titles such as 1984."""
    table = pa.table(
        {
            "item_id": ["i0", "i1", "i2"],
            "title": [1984, None, 300],
            "text": [["Books", None, " ", "Fiction"], None, []],
            "image": pa.array([None, None, None], pa.float64()),
        }
    )
    raw = read_tables(interactions_csv, write(table, tmp_path / f"items.{suffix}"))
    assert raw.catalogue["title"].to_pylist() == ["1984", None, "300"]
    # Without a text an item has its title.
    assert raw.catalogue["text"].to_pylist() == ["Books. Fiction", None, "300"]
    with pytest.raises(BivrecError, match="expected a string, an integer, or a list of strings"):
        read_columns(write(pa.table({"item_id": ["i0"], "text": [[1.5]]}), tmp_path / f"t.{suffix}"), {"text": TEXT})


def test_ids_that_are_decimals_without_places(tmp_path):
    """As Spark and Oracle write large keys."""
    ids = pa.array([1025, 1026]).cast(pa.decimal128(38, 0))
    table = pa.table({"user_id": ids, "item_id": ["x", "y"], "timestamp": [1, 2]})
    assert as_rows(read_tables(write(table, tmp_path / "t.parquet"))) == [("1025", "x", 1), ("1026", "y", 2)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_of_two_columns_of_one_name_neither_is_meant(interactions_csv, tmp_path, suffix):
    table = pa_csv.read_csv(interactions_csv)
    path = write(table.append_column("note", table["item_id"]).append_column("note", table["item_id"]),
                 tmp_path / f"table.{suffix}")  # fmt: skip
    assert as_rows(read_tables(path)) == as_rows(read_tables(interactions_csv))
    write(table.append_column("item_id", table["user_id"]), path)
    with pytest.raises(BivrecError, match="more than one column is called 'item_id'; rename all but the right one"):
        read_tables(path)
    ids = table["item_id"].unique()
    write(pa.Table.from_arrays([ids, ids, ids], names=["item_id", "title", "title"]), path)
    with pytest.raises(BivrecError, match="more than one column is called 'title'"):
        read_tables(interactions_csv, path)


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(BivrecError, match=r"none\.csv: no such file"):
        read_tables(tmp_path / "none.csv")
    with pytest.raises(BivrecError, match=r"no files in the folder"):
        read_tables(tmp_path)


def test_damaged_split_column(tmp_path):
    columns = Columns(split="part")
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp,part\na,x,1,train\na,x,2,dev\n")
    with pytest.raises(BivrecError, match=r"interaction 2: split 'dev': expected train, validation, test"):
        read_tables(tmp_path / "t.csv", columns=columns)
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp,part\na,x,1,train\na,x,2,test\n")
    with pytest.raises(BivrecError, match=r"interaction 1: user 'a' is in two splits"):
        read_tables(tmp_path / "t.csv", columns=columns)


def test_images_that_are_not_there(interactions_csv, tmp_path):
    raw = read_tables(interactions_csv, images=tmp_path / "none")
    with pytest.raises(BivrecError, match=r"none: no such folder or tar of images"):
        prepare(raw, tmp_path / "d")
    (tmp_path / "none").mkdir()
    with pytest.raises(BivrecError, match=r"none: no images"):
        prepare(raw, tmp_path / "d")
