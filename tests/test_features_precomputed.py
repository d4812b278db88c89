import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bivrec.errors import BivrecError
from bivrec.features.precomputed import AMAZON_ROW, file_identity, read_features

IDS = ["item000002", "unknown", "item000000"]
WANTED = ["item000000", "item000001", "item000002"]


def write(folder, kind, values, ids=IDS):
    path, names = folder / f"features{kind}", folder / "ids.txt"
    names.write_text("".join(f"{name}\n" for name in ids))
    if kind == ".npy":
        np.save(path, values)
    elif kind == ".safetensors":
        save_file({name: row.copy() for name, row in zip(ids, values, strict=True)}, path)
    else:
        rows = np.zeros(len(ids), AMAZON_ROW)
        rows["id"], rows["values"] = [name[:10] for name in ids], values
        rows.tofile(path)
    return path, names if kind == ".npy" else None


@pytest.mark.parametrize("kind", [".npy", ".safetensors", ".b"])
def test_every_format(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(3, 4096)).astype(np.float32)
    path, ids = write(tmp_path, kind, values)
    features, present, unused = read_features(path, WANTED, ids)
    assert present.tolist() == [True, False, True]
    assert unused == ["unknown"]
    expected = np.stack([values[2], np.zeros(4096), values[0]]).astype(np.float32)
    torch.testing.assert_close(features, torch.from_numpy(expected))


@pytest.mark.parametrize("kind", [".npy", ".safetensors", ".b"])
def test_nan_names_row_and_item(tmp_path, kind):
    values = np.ones((3, 4096), np.float32)
    values[2, 5] = np.nan
    path, ids = write(tmp_path, kind, values)
    with pytest.raises(BivrecError, match=r"row \d \(item 'item000000'\) holds NaN"):
        read_features(path, WANTED, ids)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [".npy", ".safetensors"])
def test_numbers_beyond_float32_are_told_as_a_fault_alone(tmp_path, kind):
    path, ids = write(tmp_path, kind, np.full((3, 2), 1e300))
    with pytest.raises(BivrecError, match="holds NaN or infinity; 2 rows do; expected finite float32 numbers"):
        read_features(path, WANTED, ids)


@pytest.mark.parametrize("kind", [".npy", ".safetensors"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 0), np.float32), "the features of an item are 0 numbers; expected one or more"),
        (np.zeros((3, 2)), "every number of the 2 items is 0; make the features again"),
    ],
)
def test_features_that_say_nothing(tmp_path, kind, values, message):
    path, ids = write(tmp_path, kind, values)
    with pytest.raises(BivrecError, match=message):
        read_features(path, WANTED, ids)


def test_an_item_may_be_zeros(tmp_path):
    path, ids = write(tmp_path, ".npy", np.array([[0, 0], [1, 2], [3, 4]]))
    features, present, _ = read_features(path, WANTED, ids)
    assert present.tolist() == [True, False, True]
    assert features.tolist() == [[3, 4], [0, 0], [0, 0]]


def test_ids_with_a_byte_order_mark(tmp_path):
    path, ids = write(tmp_path, ".npy", np.ones((3, 2)))
    ids.write_text(ids.read_text(), encoding="utf-8-sig")
    _, present, unused = read_features(path, ["item000002", "item000000"], ids)
    assert present.all()
    assert unused == ["unknown"]


def test_faults_of_npy(tmp_path):
    path, ids = write(tmp_path, ".npy", np.ones((2, 4)))
    with pytest.raises(BivrecError, match=r"2 rows, but .*ids\.txt has 3 ids"):
        read_features(path, WANTED, ids)
    with pytest.raises(BivrecError, match="--ids"):
        read_features(path, WANTED)
    with pytest.raises(BivrecError, match="not a readable UTF-8 text file"):
        read_features(path, WANTED, tmp_path / "absent.txt")
    path, ids = write(tmp_path, ".npy", np.ones(3))
    with pytest.raises(BivrecError, match=r"float64 \[3\]; expected numbers \[items, dimension\]"):
        read_features(path, WANTED, ids)
    path, ids = write(tmp_path, ".npy", np.ones((3, 2)), ["a", "b", "a"])
    with pytest.raises(BivrecError, match="rows 0 and 2 are both item 'a'"):
        read_features(path, WANTED, ids)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(BivrecError, match=r"not a readable \.npy"):
        read_features(path, WANTED, ids)


def test_faults_of_the_other_formats(tmp_path):
    path, _ = write(tmp_path, ".b", np.ones((3, 4096)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BivrecError, match="truncated"):
        read_features(path, WANTED)
    path = tmp_path / "features.safetensors"
    save_file({"item000000": np.ones(3), "item000002": np.ones(4)}, path)
    with pytest.raises(BivrecError, match=r"item 'item000002' has shape \[4\], the first \[3\]"):
        read_features(path, WANTED)
    path.write_bytes(b"nonsense")
    with pytest.raises(BivrecError, match="not a readable safetensors file"):
        read_features(path, WANTED)
    (tmp_path / "features.csv").touch()
    with pytest.raises(BivrecError, match=r"expected \.npy, \.safetensors or \.b"):
        read_features(tmp_path / "features.csv", WANTED)
    with pytest.raises(BivrecError, match="no such file"):
        read_features(tmp_path / "absent.npy", WANTED)


def test_an_unnamed_file_is_identified_by_its_content(tmp_path):
    path, _ = write(tmp_path, ".npy", np.ones((3, 2)))
    encoder, revision = file_identity(path, None)
    assert encoder == "file"
    assert revision.startswith("sha256:")
    assert file_identity(path, "resnet-152") == ("resnet-152", None)
