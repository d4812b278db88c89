import numpy as np
import pyarrow as pa
import pytest

from bivrec.data.info import SPLITS
from bivrec.data.prepare import prepare
from bivrec.data.raw import RawData, catalogue_table, encode_ids
from bivrec.errors import BivrecError
from bivrec.files import sha256


def raw_data(rows, **others):
    """RawData of (user, item, timestamp) rows."""
    users, user_ids = encode_ids(pa.chunked_array([[row[0] for row in rows]]))
    items, item_ids = encode_ids(pa.chunked_array([[row[1] for row in rows]]))
    timestamps = np.array([row[2] for row in rows], np.int64)
    return RawData(users, items, timestamps, user_ids, item_ids, {"reader": "test"}, **others)


def histories(domain, splits=SPLITS):
    """User id -> item ids in the order of time."""
    ids = np.array(["", *domain.item_ids()])
    parts = [domain.sequences(split) for split in splits]
    return {user: ids[part[row]].tolist() for part in parts for row, user in enumerate(part.user_ids)}


def random_rows(seed=0, users=60, items=30, count=600):
    random = np.random.default_rng(seed)
    return [(f"u{u}", f"i{i}", int(t)) for u, i, t in random.integers([users, items, 50], size=(count, 3))]


def test_order_is_by_time_and_ties_keep_the_order_of_the_file(tmp_path):
    rows = [("b", "x", 5), ("a", "z", 1), ("a", "y", 1), ("a", "x", 0), ("b", "z", 3), ("c", "x", 1), ("c", "y", 1)]
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=0)
    assert histories(domain) == {"a": ["x", "z", "y"], "b": ["z", "x"], "c": ["x", "y"]}


# In NumPy 1 a product of int32 and a number that fits into it, as the third does, would be int32.
UNITS = {"seconds": 1, "milliseconds": 1000, "microseconds": 10**6, "too large for one number": 2**57}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("earliest", [0, -25])
def test_order_is_that_of_two_stable_sorts(tmp_path, unit, earliest):
    rows = [(user, item, (time + earliest) * unit) for user, item, time in random_rows()]
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=0)
    expected = {}
    for user, item, _ in sorted(dict.fromkeys(rows), key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)
    assert histories(domain) == expected


def test_exact_duplicates_are_dropped_and_later_repeats_kept(tmp_path):
    rows = [("a", "x", 1), ("a", "y", 1), ("a", "x", 1), ("a", "x", 2), ("b", "x", 1), ("c", "x", 1)]
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=0)
    assert histories(domain)["a"] == ["x", "y", "x"]
    assert domain.info.dropped["duplicate_interactions"] == 1


def test_k_core_is_iterated_until_stable(tmp_path):
    rows = random_rows()
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=8)
    left = list(dict.fromkeys(rows))
    before = None
    while before != len(left):
        before = len(left)
        for place in (0, 1):
            counts = {}
            for row in left:
                counts[row[place]] = counts.get(row[place], 0) + 1
            left = [row for row in left if counts[row[place]] >= 8]
    expected = {}
    for user, item, _ in sorted(left, key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)
    assert histories(domain) == expected
    assert len(expected) < 60
    assert domain.info.dropped["k_core_interactions"] == len(set(rows)) - len(left)


def test_items_are_numbered_by_popularity_among_training_users_then_id(tmp_path):
    domain = prepare(raw_data(random_rows(count=300)), tmp_path / "d", k_core=2)
    counts = np.bincount(domain.sequences("train").items, minlength=domain.num_items + 1)[1:]
    keys = list(zip(-counts, domain.item_ids(), strict=True))
    assert keys == sorted(keys)


def test_split_is_8_1_1_and_depends_only_on_ids_and_seed(tmp_path):
    rows = random_rows()
    first = prepare(raw_data(rows), tmp_path / "first", k_core=0)
    shuffled = prepare(raw_data(rows[::-1]), tmp_path / "shuffled", k_core=0)
    other = prepare(raw_data(rows), tmp_path / "other", k_core=0, seed=1)
    assert first.info.users == {"train": 48, "validation": 6, "test": 6}
    assert first.sequences("test").user_ids == shuffled.sequences("test").user_ids
    assert first.sequences("test").user_ids != other.sequences("test").user_ids


def test_given_split(tmp_path):
    raw = raw_data(random_rows(users=6), splits=np.array([0, 1, 2, 2, 0, 0], np.int8))
    domain = prepare(raw, tmp_path / "d", k_core=0)
    ids = raw.user_ids.to_pylist()
    assert domain.sequences("test").user_ids == sorted(ids[2:4])
    assert domain.sequences("validation").user_ids == [ids[1]]


def test_shares_of_the_split(tmp_path):
    domain = prepare(raw_data(random_rows()), tmp_path / "d", k_core=0, split="2:1:3")
    assert domain.info.users == {"train": 20, "validation": 10, "test": 30}
    assert domain.info.source["split"] == "2:1:3"


def test_a_given_split_takes_no_shares(tmp_path):
    raw = raw_data(random_rows(users=6), splits=np.array([0, 1, 2, 2, 0, 0], np.int8))
    assert "split" not in prepare(raw, tmp_path / "d", k_core=0).info.source
    with pytest.raises(BivrecError, match="leave --split or --split-column out"):
        prepare(raw, tmp_path / "other", k_core=0, split="8:1:1")


def test_leave_one_out_is_that_of_a_slow_loop(tmp_path):
    rows = random_rows(users=90, count=260)
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=0, split="leave-one-out")
    expected = {split: {} for split in SPLITS}
    for user in {row[0] for row in rows}:
        own = sorted(dict.fromkeys(row for row in rows if row[0] == user), key=lambda row: row[2])
        items = [item for _, item, _ in own]
        if len(items) < 3:
            expected["train"][user] = items
        else:
            expected["test"][user], expected["validation"][user] = items, items[:-1]
            expected["train"][user] = items[:-2]
    # Among the users are some with 1, 2 and 3 interactions.
    assert {len(items) for items in expected["train"].values()} >= {1, 2, 3}
    assert {len(items) for items in expected["test"].values()} >= {3, 4}
    assert 0 < len(expected["test"]) < len(expected["train"])
    for split in SPLITS:
        assert histories(domain, [split]) == expected[split]
        assert list(domain.sequences(split).user_ids) == sorted(expected[split])
        assert domain.sequences(split).leave_one_out
    assert domain.info.protocol == "leave-one-out"
    assert domain.info.users == {split: len(expected[split]) for split in SPLITS}
    assert domain.info.num_users == len({row[0] for row in rows})
    assert domain.info.num_interactions == len(set(rows))
    for split in ("train", "test"):
        part = domain.sequences(split)
        times = {user: sorted(row[2] for row in set(rows) if row[0] == user) for user in part.user_ids}
        for place, user in enumerate(part.user_ids):
            own = part.timestamps[part.offsets[place] : part.offsets[place + 1]]
            assert own.tolist() == times[user][: len(own)]


def test_what_is_held_out_adds_no_popularity_but_stays_in_the_catalogue(tmp_path):
    rows = [(user, item, time) for user in "ab" for time, item in enumerate(["y", "x", "late"])]
    rows += [("c", "y", 0), ("c", "x", 1), ("d", "a", 0), ("d", "b", 1), ("d", "c", 2), ("d", "last", 3)]
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=0, split="leave-one-out")
    # In training: y thrice, a, b and x once.
    assert domain.item_ids() == ["y", "a", "b", "x", "c", "last", "late"]


def test_leave_one_out_draws_nothing(tmp_path):
    rows = random_rows(users=90, count=260)
    sums = []
    for name, order, seed in (("first", 1, 0), ("second", 1, 7), ("shuffled", -1, 0)):
        # By user backwards: within a user, ties keep the order of the file.
        given = [row for user in sorted({row[0] for row in rows})[::order] for row in rows if row[0] == user]
        path = prepare(raw_data(given), tmp_path / name, k_core=2, split="leave-one-out", seed=seed).path
        sums.append([sha256(path / f"{part}/data-00000-of-00001.arrow")
                     for part in ("items", *(f"sequences/{split}" for split in SPLITS))])  # fmt: skip
    assert sums[0] == sums[1] == sums[2]


def test_leave_one_out_needs_a_user_with_three_interactions(tmp_path):
    rows = [(user, item, time) for user in "abcdefghijkl" for time, item in enumerate("xy")]
    for k_core, advice in ((0, "prepare more data$"), (2, "lower --k-core$")):
        with pytest.raises(BivrecError, match=rf"no user with 3 interactions or more is left, .*; .*{advice}"):
            prepare(raw_data(rows), tmp_path / "d", k_core=k_core, split="leave-one-out")
    assert not (tmp_path / "d").exists()
    one = prepare(raw_data([*rows, ("a", "z", 9)]), tmp_path / "d", k_core=0, split="leave-one-out")
    assert one.info.users == {"train": 12, "validation": 1, "test": 1}


def test_splits_that_cannot_be(tmp_path):
    with pytest.raises(BivrecError, match="split 'leave-two-out': expected three whole numbers above 0"):
        prepare(raw_data(random_rows()), tmp_path / "d", split="leave-two-out")
    raw = raw_data(random_rows(users=6), splits=np.array([0, 1, 2, 2, 0, 0], np.int8))
    with pytest.raises(BivrecError, match="leave --split or --split-column out"):
        prepare(raw, tmp_path / "d", k_core=0, split="leave-one-out")


def test_items_of_another_domain_are_left_out_before_the_core(tmp_path):
    other = prepare(raw_data([(user, item, 1) for user in "abc" for item in ("i0", "i7", "elsewhere")]), tmp_path / "o",
                    k_core=0)  # fmt: skip
    rows = random_rows()
    domain = prepare(raw_data(rows), tmp_path / "d", k_core=8, without=other)
    expected = [row for row in rows if row[1] not in ("i0", "i7")]
    assert histories(domain) == histories(prepare(raw_data(expected), tmp_path / "expected", k_core=8))
    assert domain.info.source["without"] == "o"
    assert domain.info.dropped["interactions_with_other_domain"] == len(rows) - len(expected)
    with pytest.raises(BivrecError, match="all items are in the Domain that is to be left out"):
        prepare(raw_data(rows), tmp_path / "nothing", without=prepare(raw_data(rows), tmp_path / "all", k_core=0))


def test_same_input_same_bytes(tmp_path):
    items = catalogue_table([f"i{k}" for k in range(30)], ["Title"] * 30, [None] * 30)
    digests = []
    for name in ("first", "second"):
        prepare(raw_data(random_rows(), catalogue=items), tmp_path / name, name="same")
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append({path.relative_to(tmp_path / name): sha256(path) for path in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 14


def test_items_unknown_to_the_catalogue_are_kept_and_counted(tmp_path):
    items = catalogue_table(["y", "never", "x", "x"], ["Y", "N", "X", "again"], ["", None, "  ", None])
    rows = [(user, item, time) for user in "abc" for time, item in enumerate("xyz")]
    domain = prepare(raw_data(rows, catalogue=items), tmp_path / "d", k_core=0)
    assert domain.item_table()["title"][:] == ["X", "Y", None]
    assert domain.item_table()["text"][:] == ["X", "Y", None]
    assert domain.info.items_not_listed == 1
    assert domain.info.dropped["items_without_interactions"] == 1
    assert domain.info.missing == {"text": 1, "image": 3}


def listed(*ids):
    return catalogue_table(list(ids), [f"Title of {item}" for item in ids], [None] * len(ids))


ROWS_OF_THREE = [(user, item, time) for user in "abc" for time, item in enumerate("xyz")]


def test_items_of_the_catalogue_are_kept_on_request(tmp_path):
    raw = raw_data([*ROWS_OF_THREE, ("d", "rare", 0), ("d", "unlisted", 1)], catalogue=listed(*"vxwy", "rare", "v"))
    domain = prepare(raw, tmp_path / "d", k_core=3, keep_items=True)
    # As frequent as one another, by id; and so are those that nobody has, or nobody any more.
    assert domain.item_ids() == ["x", "y", "z", "rare", "v", "w"]
    assert domain.item_table()["title"][:] == [f"Title of {item}" for item in "xy"] + [None] + [
        f"Title of {item}" for item in ("rare", "v", "w")
    ]
    assert np.count_nonzero(domain.training_counts()) == 3
    assert (domain.info.num_items, domain.info.items_without_interactions) == (6, 3)
    assert (domain.info.items_not_listed, domain.info.missing) == (1, {"text": 1, "image": 6})
    dropped = domain.info.dropped
    # Of the items with too few interactions one is listed; of the interactions none is kept.
    assert (dropped["k_core_items"], dropped["k_core_interactions"]) == (1, 2)
    assert dropped["items_without_interactions"] == 0


def test_kept_items_change_nothing_else(tmp_path):
    rows, catalogue = random_rows(), listed("never", "a-new-one", *(f"i{item}" for item in range(30)))
    for split in ("8:1:1", "leave-one-out", "temporal"):
        plain, kept = (
            prepare(raw_data(rows, catalogue=catalogue), tmp_path / f"{split}-{keep}", k_core=8, split=split,
                    keep_items=keep)
            for keep in (False, True)
        )  # fmt: skip
        assert histories(kept) == histories(plain)
        assert set(kept.item_ids()) == set(catalogue["item_id"].to_pylist()) > set(plain.item_ids())
        num_trained = np.count_nonzero(plain.training_counts())
        assert kept.item_ids()[:num_trained] == plain.item_ids()[:num_trained]
        assert (plain.info.items_without_interactions, plain.info.dropped["items_without_interactions"]) == (0, 2)


def test_items_of_another_domain_are_not_kept(tmp_path):
    other = prepare(raw_data([(user, item, 1) for user in "abc" for item in ("x", "w")]), tmp_path / "o", k_core=0)
    raw = raw_data(ROWS_OF_THREE, catalogue=listed(*"vwxyz"))
    domain = prepare(raw, tmp_path / "d", k_core=0, without=other, keep_items=True)
    assert domain.item_ids() == ["y", "z", "v"]


def test_nothing_to_keep_items_of(tmp_path):
    with pytest.raises(BivrecError, match="no table of items, whose items are to be kept; name one, or leave"):
        prepare(raw_data(ROWS_OF_THREE), tmp_path / "d", keep_items=True)


def test_everything_removed(tmp_path):
    with pytest.raises(BivrecError, match=r"k-core 100 removes every one of the \d+ interactions .* lower --k-core"):
        prepare(raw_data(random_rows()), tmp_path / "d", k_core=100)
    assert not (tmp_path / "d").exists()


def test_too_few_users_to_split(tmp_path):
    with pytest.raises(BivrecError, match="2 users are left, too few to split 8:1:1"):
        prepare(raw_data([("a", "x", 1), ("b", "x", 1)]), tmp_path / "d", k_core=0)


@pytest.mark.parametrize(
    ("k_core", "advice"), [(0, "prepare more data$"), (2, "prepare more data, or lower --k-core$")]
)
def test_advice_on_too_few_users(tmp_path, k_core, advice):
    rows = [(user, item, 1) for user in "ab" for item in "xy"]
    with pytest.raises(BivrecError, match=advice):
        prepare(raw_data(rows), tmp_path / "d", k_core=k_core)


@pytest.mark.parametrize(
    ("splits", "k_core", "fault"),
    [
        ([0, 0, 2, 2], 0, "no validation users with 2 interactions or more are left; check the split column$"),
        ([0, 0, 1, 1], 0, "no test users with 2 interactions or more are left; check the split column$"),
        ([0, 0, 1, 2], 0, "no test users with 2 interactions or more are left; check the split column$"),
        ([1, 1, 2, 0], 2, "no train users are left; check the split column, or lower --k-core$"),
    ],
)
def test_a_given_split_must_leave_users_to_train_on_and_to_evaluate(tmp_path, splits, k_core, fault):
    # The last user has a single interaction.
    rows = [(user, item, 1) for user in "abc" for item in "xy"] + [("d", "x", 1)]
    raw = raw_data(rows, splits=np.array(splits, np.int8))
    with pytest.raises(BivrecError, match=fault):
        prepare(raw, tmp_path / "d", k_core=k_core)
    assert not (tmp_path / "d").exists()


def test_existing_folder_is_kept_unless_overwritten(tmp_path):
    raw = raw_data(random_rows())
    prepare(raw, tmp_path / "d")
    with pytest.raises(BivrecError, match="exists already"):
        prepare(raw, tmp_path / "d")
    assert prepare(raw, tmp_path / "d", seed=3, overwrite=True).info.seed == 3
