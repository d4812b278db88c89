import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from bivrec.data.domain import FEATURES_FILE, Domain, write_domain
from bivrec.data.info import SPLITS, FeatureSpec
from bivrec.data.prepare import prepare
from bivrec.data.sequences import Sequences
from bivrec.data.synthetic import DomainSize, World
from bivrec.errors import BivrecError

TEXT = FeatureSpec("hashing", None, 4, "mean", whitening=None)
IMAGE = FeatureSpec("descriptor", None, 2, "mean", whitening=0.001)


@pytest.fixture
def domain(small_domain, tmp_path):
    return Domain.open(shutil.copytree(small_domain.path, tmp_path / "domain"))


def present(domain, *missing):
    has = torch.ones(domain.num_items + 1, dtype=torch.bool)
    has[[0, *missing]] = False
    return has


def test_sequences_are_views_of_the_file(small_domain):
    for split in SPLITS:
        sequences = small_domain.sequences(split)
        assert not sequences.items.flags.owndata
        assert sequences.items.dtype == np.int32
        assert sequences.offsets.dtype == sequences.timestamps.dtype == np.int64
        assert len(sequences) == len(sequences.user_ids) == small_domain.info.users[split]
        assert sequences.offsets[-1] == len(sequences.items) == small_domain.info.interactions[split]
        assert sequences.lengths.sum() == len(sequences.items)
        assert all((np.diff(sequences.timestamps[first:last]) >= 0).all() for first, last in _bounds(sequences))
        assert 1 <= sequences.items.min() <= sequences.items.max() <= small_domain.num_items


def _bounds(sequences):
    return zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)


def test_the_folder_opens_with_datasets_alone(small_domain):
    stored = datasets.load_from_disk(str(small_domain.path / "sequences"))
    sequences = small_domain.sequences("train")
    assert stored["train"][3]["items"] == sequences[3].tolist()
    assert stored["train"].features["items"].feature.dtype == "int32"
    assert small_domain.item_table()["item_id"][:] == small_domain.item_ids()


def catalogue_of(ids, folder, info):
    nothing = pa.nulls(sum(map(len, ids)), pa.string())
    # Parts that begin inside of what they are made of, as slices do.
    column = pa.chunked_array([pa.array(["before", *part])[1:] for part in ids], pa.string())
    items = pa.table([column, nothing, nothing, nothing], ["item_id", "title", "text", "image"])
    nobody = Sequences(np.array([0]), np.array([], np.int32), np.array([], np.int64), [])
    folder.mkdir()
    write_domain(folder, dataclasses.replace(info, num_items=len(items)), dict.fromkeys(SPLITS, nobody), items)
    return Domain.open(folder).catalogue


def test_the_catalogue_is_the_ids_in_their_order(small_domain, tmp_path):
    found = [
        catalogue_of(ids, tmp_path / str(place), small_domain.info)
        for place, ids in enumerate(
            [[["ab", "c", "é"]], [["ab"], ["c", "é"]], [["c", "ab", "é"]], [["a", "bc", "é"]], [["abc", "", "é"]],
             [["ab", "c"]]]
        )
    ]  # fmt: skip
    assert found[0] == found[1]
    assert len(set(found[1:])) == 5


def test_features_of_both_modalities(domain):
    size = domain.num_items + 1
    text, image = torch.rand(size, 4), torch.rand(size, 2)
    domain = domain.with_features({"text": text}, {"text": present(domain, 3)}, {"text": TEXT})
    domain = domain.with_features({"image": image}, {"image": present(domain)}, {"image": IMAGE})
    assert domain.info.features == {"text": TEXT, "image": IMAGE}
    assert domain.info.missing == {"text": 1, "image": 0}
    both = domain.features(("image", "text"))
    assert both.shape == (size, 6)
    assert not both[0].any()
    assert not both[3, 2:].any()
    assert torch.equal(both[1:, :2], functional.normalize(image[1:], dim=1))
    assert torch.equal(both[4:, 2:], functional.normalize(text[4:], dim=1))
    items = torch.tensor([[3, 0], [7, 3]])
    assert torch.equal(domain.feature_rows(("image", "text"))[items], both[items])
    assert torch.equal(domain.has_modality("text"), present(domain, 3))
    domain.verify()


def test_user_ids_are_read_when_asked_for(small_domain):
    ids = small_domain.sequences("test").user_ids
    column = datasets.load_from_disk(str(small_domain.path / "sequences"))["test"]["user_id"][:]
    assert ids == column
    assert (ids[0], ids[-1], ids[1:3]) == (column[0], column[-1], column[1:3])
    assert ids != column[1:]


def test_half_precision_is_kept_on_disk_and_widened_on_reading(domain):
    features = {"text": torch.rand(domain.num_items + 1, 4).half()}
    domain = domain.with_features(features, {"text": present(domain)}, {"text": TEXT})
    assert load_file(domain.path / FEATURES_FILE)["text"].dtype == torch.float16
    assert domain.features(("text",)).dtype == torch.float32


def test_features_have_the_permissions_of_any_new_file(domain):
    domain = domain.with_features(
        {"text": torch.rand(domain.num_items + 1, 4)}, {"text": present(domain)}, {"text": TEXT}
    )
    (domain.path / "other").touch()
    assert (domain.path / FEATURES_FILE).stat().st_mode == (domain.path / "other").stat().st_mode


def test_one_handle_stores_one_modality_after_the_other(domain):
    size = domain.num_items + 1
    text, image = torch.rand(size, 4), torch.rand(size, 2)
    domain.with_features({"text": text}, {"text": present(domain, 3)}, {"text": TEXT})
    stored = domain.with_features({"image": image}, {"image": present(domain)}, {"image": IMAGE})
    assert stored.info.features == {"text": TEXT, "image": IMAGE}
    assert stored.info.missing == {"text": 1, "image": 0}
    assert torch.equal(load_file(domain.path / FEATURES_FILE)["text"][4:], text[4:])
    stored.verify()


def test_a_stale_handle_keeps_the_features_that_others_stored_anew(domain):
    """With their own specification."""
    size = domain.num_items + 1
    early = domain.with_features({"text": torch.rand(size, 4)}, {"text": present(domain)}, {"text": TEXT})
    anew, spec = torch.rand(size, 6), dataclasses.replace(TEXT, dimension=6, revision="2")
    domain.with_features({"text": anew}, {"text": present(domain, 5)}, {"text": spec})
    stored = early.with_features({"image": torch.rand(size, 2)}, {"image": present(domain)}, {"image": IMAGE})
    assert stored.info.features == {"text": spec, "image": IMAGE}
    assert stored.features(("text",)).shape == (size, 6)
    assert torch.equal(stored.has_modality("text"), present(domain, 5))
    stored.verify()


def test_features_that_are_stored_at_once_are_all_kept(domain):
    size, names = domain.num_items + 1, [f"modality{number}" for number in range(6)]
    features = {name: torch.rand(size, 3) for name in names}

    def store(name):
        handle = Domain(domain.path, domain.info)
        handle.with_features({name: features[name]}, {name: present(domain)}, {name: TEXT})

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(store, names))
    stored = Domain.open(domain.path)
    assert set(stored.info.features) == set(names)
    kept = load_file(domain.path / FEATURES_FILE)
    assert all(torch.equal(kept[name][1:], features[name][1:]) for name in names)
    stored.verify()


def test_features_of_items_that_are_no_more_are_refused(domain):
    features, has = {"text": torch.rand(domain.num_items + 1, 4)}, {"text": present(domain)}
    drawn = World.create(topics=6, seed=1).domain("small", DomainSize(200, 120, 12))
    other = prepare(drawn.raw, domain.path, overwrite=True)
    with pytest.raises(BivrecError, match=r"domain: was prepared anew .* other items; encode it again"):
        domain.with_features(features, has, {"text": TEXT})
    assert Domain.open(domain.path).info == other.info
    shutil.rmtree(domain.path)
    with pytest.raises(BivrecError, match="domain: no such folder"):
        domain.with_features(features, has, {"text": TEXT})
    assert not domain.path.exists()


def test_killed_while_features_are_stored_it_opens_without_features(domain, monkeypatch):
    features, has = {"text": torch.rand(domain.num_items + 1, 4)}, {"text": present(domain)}
    domain = domain.with_features(features, has, {"text": TEXT})
    monkeypatch.setattr("bivrec.data.domain.write_info", _fail_at_second_call(monkeypatch))
    with pytest.raises(KeyboardInterrupt):
        domain.with_features(features, has, {"text": TEXT})
    assert Domain.open(domain.path).info.features == {}


def _fail_at_second_call(monkeypatch):
    from bivrec.data.info import write_info

    calls = []

    def write(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_info(*arguments)

    return write


def test_absent_features_name_the_command(domain):
    with pytest.raises(BivrecError, match=r"no image features; make them with `bivrec encode .* --image"):
        domain.features(("image",))


def test_not_a_domain(tmp_path):
    with pytest.raises(BivrecError, match=r"not a Domain .*bivrec prepare"):
        Domain.open(tmp_path)


def test_newer_format(domain):
    values = json.loads((domain.path / "domain.json").read_text())
    (domain.path / "domain.json").write_text(json.dumps(values | {"format_version": 2}))
    with pytest.raises(BivrecError, match="format version 2, this bivrec reads 1; upgrade bivrec"):
        Domain.open(domain.path)


def test_unknown_field(domain):
    values = json.loads((domain.path / "domain.json").read_text())
    (domain.path / "domain.json").write_text(json.dumps(values | {"colour": "red"}))
    with pytest.raises(BivrecError, match="colour"):
        Domain.open(domain.path)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("name", "../elsewhere", "expected a name without '/', as of a folder"),
        ("name", 3, "name: unexpected 3"),
        ("users.train", "many", "users: unexpected {'train': 'many'"),
        ("users", {"train": 1}, "users: no validation"),
        ("dropped", {}, "dropped: no duplicate_interactions"),
        ("missing.text", None, "missing: unexpected"),
        ("cutoffs", None, "cutoffs: unexpected None"),
        ("protocol", "temporal", "cutoffs: no validation"),
        ("images", ["a"], "images: unexpected"),
    ],
)
def test_fields_that_are_not_of_their_kind(domain, path, value, complaint):
    """Anybody may have published it."""
    values = json.loads((domain.path / "domain.json").read_text())
    *parents, key = path.split(".")
    part = values
    for parent in parents:
        part = part[parent]
    part[key] = value
    (domain.path / "domain.json").write_text(json.dumps(values))
    with pytest.raises(BivrecError) as fault:
        Domain.open(domain.path)
    assert complaint in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("item", [0, -5, 10**6])
def test_items_that_there_are_not(small_domain, tmp_path, item):
    """Anybody may have published it, with the right checksums."""
    sequences = {split: small_domain.sequences(split) for split in SPLITS}
    items = sequences["test"].items.copy()
    items[3] = item
    sequences["test"] = dataclasses.replace(sequences["test"], items=items)
    (tmp_path / "d").mkdir()
    write_domain(tmp_path / "d", small_domain.info, sequences, small_domain.item_table().data.table)
    domain = Domain.open(tmp_path / "d")
    with pytest.raises(BivrecError, match=rf"sequences/test/.*: items .*{item}.* of which there are 1 to \d+; make"):
        domain.sequences("test")


def test_tables_that_are_of_something_else(small_domain, tmp_path):
    catalogue = small_domain.item_table().data.table
    sequences = {split: small_domain.sequences(split) for split in SPLITS}
    (tmp_path / "d").mkdir()
    write_domain(tmp_path / "d", small_domain.info, sequences, catalogue.slice(1))
    shutil.rmtree(tmp_path / "d" / "sequences" / "train")
    shutil.copytree(tmp_path / "d" / "items", tmp_path / "d" / "sequences" / "train")
    domain = Domain(tmp_path / "d", small_domain.info)
    with pytest.raises(BivrecError, match=r"not \d+ items"):
        domain.item_ids()
    with pytest.raises(BivrecError, match="not sequences"):
        domain.sequences("train")


@pytest.mark.parametrize("name", ["items/data-00000-of-00001.arrow", "sequences/train/state.json"])
def test_missing_and_truncated_files(domain, name):
    path = domain.path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(BivrecError, match=rf"{name}: {len(content) - 1} bytes where {len(content)} were written"):
        Domain.open(domain.path)
    path.unlink()
    with pytest.raises(BivrecError, match=rf"{name}: missing"):
        Domain.open(domain.path)


def test_verify_reads_every_byte(domain):
    domain = domain.with_features(
        {"text": torch.rand(domain.num_items + 1, 4)}, {"text": present(domain)}, {"text": TEXT}
    )
    content = bytearray((domain.path / FEATURES_FILE).read_bytes())
    content[-1] ^= 1
    (domain.path / FEATURES_FILE).write_bytes(content)
    with pytest.raises(BivrecError, match=r"features.safetensors: the checksum differs"):
        Domain.open(domain.path).verify()


def test_unknown_split(small_domain):
    with pytest.raises(BivrecError, match="'valid': expected one of train, validation, test"):
        small_domain.sequences("valid")
