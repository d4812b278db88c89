import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from stages import in_subprocess

from bivrec.cards import domain_card
from bivrec.cli import main
from bivrec.data.domain import Domain
from bivrec.data.info import FeatureSpec


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(main, ["prepare", *map(str, arguments)])

    return invoke


def test_tables(run, interactions_csv, tmp_path):
    result = run("tables", "--interactions", interactions_csv, "--to", tmp_path / "shop", "--name", "my-shop")
    assert result.exit_code == 0, result.output
    assert "my-shop (tables)" in result.output
    assert "10 users" in result.output
    assert Domain.open(tmp_path / "shop").info.users == {"train": 8, "validation": 1, "test": 1}


def test_without_a_core_nothing_is_told_of_it(run, interactions_csv, tmp_path):
    arguments = ("tables", "--interactions", interactions_csv, "--split", "1:1:1", "--to")
    assert (
        "by the 1-core 0 users, 0 items and 0 interactions; " in run(*arguments, tmp_path / "one", "--k-core", 1).output
    )
    assert "exact duplicates; 0 items without interactions" in run(*arguments, tmp_path / "none", "--k-core", 0).output


def test_a_letter_that_the_terminal_lacks_is_escaped(run, interactions_csv, tmp_path):
    assert run("tables", "--interactions", interactions_csv, "--to", tmp_path / "shop", "--name", "店").exit_code == 0
    told = in_subprocess("-m", "bivrec", "info", tmp_path / "shop", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert told.returncode == 0, told.stderr
    assert "\\u5e97 (tables)" in told.stdout


def test_images_that_are_named_but_not_given_are_told(run, interactions_csv, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title,image\ni0,Tea,tea.jpg\ni1,Pot,\n")
    result = run(
        "tables", "--interactions", interactions_csv, "--items", tmp_path / "items.csv", "--to", tmp_path / "d"
    )
    assert result.exit_code == 0
    assert result.stderr == (
        "Warning: images that the items name (1, such as tea.jpg) are not used; give them with --images\n"
    )


def test_overwrite_does_not_delete_what_it_reads(run, interactions_csv, tmp_path):
    shop = tmp_path / "shop"
    assert run("tables", "--interactions", interactions_csv, "--to", shop).exit_code == 0
    inside = Path(shutil.copy(interactions_csv, shop / "clicks.csv"))
    result = run("tables", "--interactions", inside, "--to", shop, "--overwrite")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {shop}: holds clicks.csv, which bivrec did not make there")
    assert inside.read_bytes() == interactions_csv.read_bytes()


def test_overwrite_spares_what_is_no_domain(run, interactions_csv, tmp_path):
    options = ("--interactions", interactions_csv, "--overwrite", "--to")
    for _ in range(2):
        assert run("tables", *options, tmp_path / "domains" / "shop").exit_code == 0
    for place in (tmp_path / "domains", interactions_csv):
        result = run("tables", *options, place)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {place}: ")
        assert len(result.output.splitlines()) == 1
    assert Domain.open(tmp_path / "domains" / "shop").name == "shop"
    assert interactions_csv.read_text().startswith("user_id")


def test_features_that_go_with_a_domain_are_told(run, interactions_csv, tmp_path):
    options = ("tables", "--interactions", interactions_csv, "--overwrite", "--to", tmp_path / "shop")
    assert "Warning" not in run(*options).output
    domain = Domain.open(tmp_path / "shop")
    rows = torch.zeros(domain.num_items + 1, 4)
    spec = FeatureSpec("hashing", "1", 4, "sum", whitening=None)
    domain.with_features({"text": rows}, {"text": rows.any(1)}, {"text": spec})
    assert "Warning: the replaced Domain had text features; run `bivrec encode " in run(*options).output
    assert "Warning" not in run(*options).output


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        (978300760, 1046454590, "978300760 to 1046454590 (2000-12-31 to 2003-02-28 UTC)"),
        (978300760123, 1046454590000, "978300760123 to 1046454590000 (2000-12-31 to 2003-02-28 UTC)"),
        (978300760.5, 1046454590, "978300760500000 to 1046454590000000 (2000-12-31 to 2003-02-28 UTC)"),
        # Seconds and milliseconds.
        (978300760, 1046454590000, "978300760 to 1046454590000"),
        (1, 12, "1 to 12"),
    ],
)
@pytest.mark.parametrize("split", ["1:1:1", "leave-one-out"])
def test_the_range_of_the_timestamps_is_told(run, tmp_path, first, last, told, split):
    rows = [f"{user},i{item},{first if (user, item) == (1, 0) else last}" for user in range(3) for item in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    options = ("--interactions", tmp_path / "t.csv", "--k-core", 0, "--split", split)
    result = run("tables", *options, "--to", tmp_path / "d")
    assert f"  timestamps {told}\n" in result.output


def test_column_options(run, tmp_path):
    rows = "\n".join(f"{user},{item},{item}" for user in range(5) for item in range(5))
    (tmp_path / "t.csv").write_text("u,i,t\n" + rows)
    names = ["--user-column", "u", "--item-column", "i", "--timestamp-column", "t"]
    assert run("tables", "--interactions", tmp_path / "t.csv", *names, "--to", tmp_path / "d").exit_code == 0


@pytest.mark.parametrize("role", ["--user-column=item_id", "--timestamp-column=user_id", "--split-column=timestamp"])
def test_a_column_has_one_role(run, interactions_csv, tmp_path, role):
    result = run("tables", "--interactions", interactions_csv, "--to", tmp_path / "d", role)
    assert result.exit_code == 1
    assert f"column '{role.partition('=')[2]}' is both " in result.output
    assert not (tmp_path / "d").exists()


def test_columns_of_items_are_for_items(run, interactions_csv, tmp_path):
    result = run("tables", "--interactions", interactions_csv, "--to", tmp_path / "d", "--title-column", "title")
    assert (result.exit_code, result.output) == (1, "Error: leave --title-column out: of no use without --items\n")


def test_a_least_rating(run, tmp_path):
    rows = "\n".join(f"{user},i{item},{item},{item}" for user in range(5) for item in range(5))
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp,stars\n" + rows)
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},Title\n" for item in range(5)))
    tables = ("tables", "--interactions", tmp_path / "t.csv", "--items", tmp_path / "items.csv", "--k-core", 0)
    rated = ("--rating-column", "stars", "--min-rating", 2)
    result = run(*tables, *rated, "--to", tmp_path / "d")
    assert result.exit_code == 0, result.output
    assert "rated below 2 (left out): 10 interactions" in result.output
    assert "2 items without interactions" in result.output
    info = Domain.open(tmp_path / "d").info
    assert (info.num_items, info.num_interactions, info.source["min_rating"]) == (3, 15, 2)
    card = domain_card("shop", info)
    assert "An interaction is a rating of 2 or more; lower ones were dropped first." in card
    assert "10 interactions rated below the least rating" in card
    # Items that are rated below alone are those that nobody has.
    assert run(*tables, *rated, "--keep-items", "--to", tmp_path / "kept").exit_code == 0
    assert Domain.open(tmp_path / "kept").item_ids() == ["i2", "i3", "i4", "i0", "i1"]
    result = run(*tables, "--rating-column", "stars", "--to", tmp_path / "no")
    assert result.output == "Error: leave --rating-column out: of no use without --min-rating\n"


def test_movielens(run, tmp_path):
    rows = "\n".join(f"{user},{item},4.0,{item}" for user in range(5) for item in range(5))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,One,Drama\n")
    result = run("movielens", tmp_path, "--to", tmp_path / "d")
    assert result.exit_code == 0, result.output
    assert "not in the table of items (kept, without text and image): 4 items, such as '0'" in result.output


def test_without_the_items_of_another_domain(run, interactions_csv, tmp_path):
    rows = "\n".join(f"{user},i{item},{item}" for user in range(10) for item in range(20))
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n" + rows)
    assert run("tables", "--interactions", interactions_csv, "--to", tmp_path / "shop").exit_code == 0
    shared = set(Domain.open(tmp_path / "shop").item_ids())
    new = ("tables", "--interactions", tmp_path / "t.csv", "--without", tmp_path / "shop", "--to", tmp_path / "new")
    result = run(*new, "--split", "2:1:2")
    assert result.exit_code == 0, result.output
    assert "with items of shop (left out): " in result.output
    domain = Domain.open(tmp_path / "new")
    assert set(domain.item_ids()) == {f"i{item}" for item in range(20)} - shared
    assert len(domain.item_ids()) < 20
    assert domain.info.users == {"train": 4, "validation": 2, "test": 4}


def test_leaving_out_what_is_no_domain(run, tmp_path):
    """Said before anything is read."""
    options = ("--interactions", tmp_path / "none.csv", "--without", tmp_path, "--to", tmp_path / "d")
    result = run("tables", *options)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: --without {tmp_path}: not a Domain (no domain.json)")


def test_leave_one_out_counts_nobody_twice(run, interactions_csv, tmp_path):
    options = ("--interactions", interactions_csv, "--split", "leave-one-out")
    result = run("tables", *options, "--to", tmp_path / "shop")
    assert result.exit_code == 0, result.output
    assert Domain.open(tmp_path / "shop").info.users == dict.fromkeys(("train", "validation", "test"), 10)
    _, *lines = [line.split() for line in result.output.splitlines()]
    assert lines[0][-1] == "leave-one-out"
    assert ["train", "10", "users", "30", "interactions"] in lines
    assert ["test", "10", "users", "50", "interactions"] in lines
    assert "all 10 users 50 interactions, each counted once" in [" ".join(line) for line in lines]
    assert "5 items, density 100.0000%" in result.output


def test_leave_one_out_needs_no_split_column(run, interactions_csv, tmp_path):
    rows = interactions_csv.read_text().splitlines()
    parts = ["train"] * 20 + ["validation"] * 15 + ["test"] * 15
    table = "\n".join(f"{row},{part}" for row, part in zip(rows, ["part", *parts], strict=True))
    (tmp_path / "t.csv").write_text(table)
    options = ("--interactions", tmp_path / "t.csv", "--split-column", "part")
    result = run("tables", *options, "--split", "leave-one-out", "--to", tmp_path / "d")
    assert (result.exit_code, result.output) == (
        1, "Error: the split column splits the users already; leave --split or --split-column out\n",
    )  # fmt: skip
    assert run("tables", *options, "--to", tmp_path / "d").exit_code == 0


@pytest.mark.parametrize("split", ["8:1", "8:1:0", "8:1:x", "0.8:0.1:0.1", "leave-two-out", ""])
def test_shares_are_three_whole_numbers(run, interactions_csv, tmp_path, split):
    result = run("tables", "--interactions", interactions_csv, "--to", tmp_path / "d", "--split", split)
    assert result.exit_code == 2
    assert f"split '{split}': expected three whole numbers above 0, such as 8:1:1, or leave-one-out" in result.output


def test_amazon(run, tmp_path):
    rows = "\n".join(f"{user},{item},4.0,{item}" for user in range(5) for item in range(5))
    (tmp_path / "reviews.csv").write_text("user_id,parent_asin,rating,timestamp\n" + rows)
    result = run("amazon", "--reviews", tmp_path / "reviews.csv", "--to", tmp_path / "d")
    assert result.exit_code == 0, result.output


def test_synthetic(run, tmp_path):
    result = run("synthetic", "--to", tmp_path / "world", "--users", 100, "--target-users", 60, "--no-images")
    assert result.exit_code == 0, result.output
    for name in ("source", "target"):
        assert Domain.open(tmp_path / "world" / name).name == name


def test_a_folder_that_is_taken_is_told_before_anything_is_read(run, tmp_path):
    (tmp_path / "taken").mkdir()
    result = run("tables", "--interactions", tmp_path / "none.csv", "--to", tmp_path / "taken")
    assert result.exit_code == 1
    assert "taken: exists already" in result.output


def test_fault_is_one_line(run, tmp_path):
    result = run("tables", "--interactions", tmp_path / "none.csv", "--to", tmp_path / "d")
    assert result.exit_code == 1
    assert result.output.strip() == f"Error: {tmp_path / 'none.csv'}: no such file; check the path"


@pytest.mark.parametrize("name", ["", " ", "..", "../elsewhere", "a/b"])
def test_a_name_is_that_of_a_folder(run, tmp_path, name):
    """Studies have a folder of this name, which must not lie elsewhere."""
    for command in (("tables", "--interactions", tmp_path / "none.csv"), ("merge", tmp_path / "one", tmp_path / "two")):
        result = run(*command, "--to", tmp_path / "d", "--name", name)
        assert result.exit_code == 1
        assert result.output == f"Error: --name {name!r}: expected a name without '/', as of a folder\n"
