import shutil
import tarfile

import numpy as np
import pytest
import torch
from features_domain import make_domain, save_bert, save_pictures, texts
from PIL import Image
from safetensors.torch import load_file

from bivrec.data.domain import Domain
from bivrec.data.info import FeatureSpec
from bivrec.errors import BivrecError
from bivrec.features.encode import check_absent, encode_images, encode_texts, features_of_file, store
from bivrec.features.image import DescriptorImageEncoder
from bivrec.features.text import HashingTextEncoder, TransformersTextEncoder
from bivrec.features.whitening import SHRINKAGE
from bivrec.locks import locked

FEATURES = "features.safetensors"


class Interrupted(HashingTextEncoder):
    """Fails after some calls, and counts them."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __call__(self, inputs):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().__call__(inputs)


def stored(domain, modality):
    """The rows as they lie in the file; `Domain.features` gives them length 1."""
    return load_file(domain.path / "features.safetensors")[modality]


def test_items_without_text_get_zeros_and_are_counted(tmp_path):
    domain = make_domain(tmp_path / "d", ["red lamp", None, "  ", "blue chair"], title=[None, "green box", "", "x"])
    encoded = encode_texts(domain, HashingTextEncoder())
    domain = store(domain, encoded)
    rows = domain.features(("text",))
    assert (encoded.encoded, domain.info.missing["text"]) == (3, 1)
    assert domain.has_modality("text").tolist() == [False, True, True, False, True]
    torch.testing.assert_close(rows[[1, 2, 4]], HashingTextEncoder()(["red lamp", "green box", "blue chair"]))
    assert rows[[0, 3]].abs().max() == 0
    assert domain.info.features == {"text": FeatureSpec("hashing", "1", 256, "sum", None)}


def test_order_of_rows_is_that_of_the_items(tmp_path):
    inputs = texts(50)
    encoder = TransformersTextEncoder(str(save_bert(tmp_path / "bert")))
    domain = make_domain(tmp_path / "d", inputs)
    store(domain, encode_texts(domain, encoder, batch_size=7))
    torch.testing.assert_close(stored(domain, "text")[1:], encoder(inputs), atol=1e-5, rtol=1e-4)


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path):
    domain = make_domain(tmp_path / "d", texts(200))
    shutil.copytree(domain.path, tmp_path / "whole")
    whole = Domain.open(tmp_path / "whole")
    store(whole, encode_texts(whole, HashingTextEncoder(), batch_size=4, whitening=SHRINKAGE))
    with pytest.raises(KeyboardInterrupt):
        encode_texts(domain, Interrupted(40), batch_size=4, whitening=SHRINKAGE)
    assert not (domain.path / FEATURES).exists()
    rest = Interrupted(50 - 32)
    store(domain, encode_texts(domain, rest, batch_size=4, whitening=SHRINKAGE))
    assert rest.calls == 0
    assert (domain.path / FEATURES).read_bytes() == (tmp_path / "whole" / FEATURES).read_bytes()
    assert not list(domain.path.glob(".*"))


def test_parts_of_another_encoder_are_not_used(tmp_path):
    domain = make_domain(tmp_path / "d", texts(200))
    with pytest.raises(KeyboardInterrupt):
        encode_texts(domain, Interrupted(40), batch_size=4)
    stored = store(domain, encode_texts(domain, HashingTextEncoder(32), batch_size=4))
    torch.testing.assert_close(stored.features(("text",))[1:], HashingTextEncoder(32)(texts(200)))


def test_whitening_is_fit_on_the_items_that_have_the_modality(tmp_path):
    inputs = [None if row % 5 == 0 else text for row, text in enumerate(texts(600))]
    domain = make_domain(tmp_path / "d", inputs)
    domain = store(domain, encode_texts(domain, HashingTextEncoder(8), whitening=1e-3))
    rows, has = stored(domain, "text"), domain.has_modality("text")
    torch.testing.assert_close(rows[has].T.cov(), torch.eye(8), atol=0.05, rtol=0)
    assert rows[~has].abs().max() == 0
    assert domain.info.features["text"].whitening == 1e-3


def test_half_precision(tmp_path):
    for name in ("half", "full"):
        domain = make_domain(tmp_path / name, texts(50))
        store(domain, encode_texts(domain, HashingTextEncoder(), half=name == "half"))
    half, full = (Domain.open(tmp_path / name) for name in ("half", "full"))
    assert (half.path / FEATURES).stat().st_size < 0.6 * (full.path / FEATURES).stat().st_size
    assert half.features(("text",)).dtype == torch.float32
    torch.testing.assert_close(half.features(("text",)), full.features(("text",)), atol=1e-3, rtol=1e-3)


def test_images_that_cannot_be_read_count_as_missing(tmp_path):
    names = save_pictures(tmp_path / "pictures", 4)
    (tmp_path / "pictures" / names[1]).write_bytes(b"damaged")
    domain = make_domain(tmp_path / "d", texts(6), [*names, None, "absent.png"], images=tmp_path / "pictures")
    images = encode_images(domain, DescriptorImageEncoder(), batch_size=1)
    domain = store(domain, encode_texts(domain, HashingTextEncoder()), images)
    assert images.unreadable == ("1.png", "absent.png")
    assert images.fault.startswith("cannot identify image file")
    assert domain.info.missing == {"text": 0, "image": 3}
    assert domain.has_modality("image").tolist() == [False, True, False, True, True, False, False]
    assert domain.features(("text", "image")).shape == (7, 256 + 240)


@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_pictures_that_were_replaced_are_not_used(tmp_path, packed):
    names = save_pictures(tmp_path / "pictures", 40)

    def pack():
        with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
            archive.add(tmp_path / "pictures", arcname=".")

    pack()
    images = tmp_path / ("pictures.tar" if packed else "pictures")
    domain = make_domain(tmp_path / "d", texts(40), names, images=images)
    calls = iter(range(40))

    class InterruptedInTheSecondPart(DescriptorImageEncoder):
        def __call__(self, pictures):
            if next(calls) == 34:
                raise KeyboardInterrupt
            return super().__call__(pictures)

    with pytest.raises(KeyboardInterrupt):
        encode_images(domain, InterruptedInTheSecondPart(), batch_size=1)
    for name in names:
        Image.new("RGB", (9, 9), "red").save(tmp_path / "pictures" / name)
    pack()
    rows = encode_images(domain, DescriptorImageEncoder(), batch_size=1).features[1:]
    assert torch.equal(rows, rows[:1].expand_as(rows))


def test_domains_without_the_modality(tmp_path):
    domain = make_domain(tmp_path / "d", [None, ""])
    with pytest.raises(BivrecError, match="no item has a text or title"):
        encode_texts(domain, HashingTextEncoder())
    with pytest.raises(BivrecError, match="no item names an image; prepare the Domain again"):
        encode_images(domain, DescriptorImageEncoder())
    domain = make_domain(tmp_path / "e", ["a", "b"], ["1.png", "2.png"])
    with pytest.raises(BivrecError, match="not recorded; give it with --images"):
        encode_images(domain, DescriptorImageEncoder())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BivrecError, match=r"none of the 2 images can be read, first 1\.png"):
        encode_images(domain, DescriptorImageEncoder(), tmp_path / "empty")


def test_one_process_at_a_time_encodes_a_modality(tmp_path):
    """Another would take the parts away that it counts on, or mix its own with them."""
    domain = make_domain(tmp_path / "d", texts(3))

    class Meanwhile(HashingTextEncoder):
        def __call__(self, inputs):
            with pytest.raises(BivrecError, match=r"\.encode-text: process \d+ on .* is at work in this folder; wait"):
                encode_texts(domain, HashingTextEncoder())
            return super().__call__(inputs)

    encoded = encode_texts(domain, Meanwhile())
    with locked(domain.path / ".encode-text"):
        store(domain, encoded)
        assert list((domain.path / ".encode-text").glob("*.safetensors"))
    store(domain, encode_texts(domain, HashingTextEncoder()))
    assert not (domain.path / ".encode-text").exists()


def test_no_part_gets_into_a_domain_that_was_prepared_anew(tmp_path):
    """Whose own encoding would take it for one of its own."""
    domain, expected = make_domain(tmp_path / "d", texts(3)), make_domain(tmp_path / "e", ["other", "texts", "now"])

    class Meanwhile(HashingTextEncoder):
        def __call__(self, inputs):
            shutil.rmtree(domain.path)
            shutil.copytree(expected.path, domain.path)
            with pytest.raises(KeyboardInterrupt):
                encode_texts(Domain.open(domain.path), Interrupted(0))
            return super().__call__(inputs)

    with pytest.raises(BivrecError, match="d: was prepared anew meanwhile; encode it again"):
        encode_texts(domain, Meanwhile())
    anew, wanted = (encode_texts(Domain.open(one.path), HashingTextEncoder()) for one in (domain, expected))
    assert torch.equal(anew.features, wanted.features)


def test_features_computed_elsewhere(tmp_path):
    domain = make_domain(tmp_path / "d", texts(3))
    path, ids = tmp_path / "f.npy", tmp_path / "ids.txt"
    np.save(path, np.arange(6.0).reshape(2, 3))
    ids.write_text("item000002\nelsewhere\n")
    encoded = features_of_file(domain, "image", path, ids=ids, encoder="resnet-152")
    assert (encoded.encoded, encoded.unused) == (1, ("elsewhere",))
    domain = store(domain, encoded)
    assert stored(domain, "image").tolist() == [[0] * 3, [0] * 3, [0] * 3, [0, 1, 2]]
    assert domain.info.features["image"] == FeatureSpec("resnet-152", None, 3, "file", None)
    ids.write_text("x\ny\n")
    with pytest.raises(BivrecError, match="none of its 2 items is in"):
        features_of_file(domain, "image", path, ids=ids)


def test_features_too_large_for_half_precision(tmp_path):
    domain = make_domain(tmp_path / "d", texts(2))
    np.save(tmp_path / "f.npy", np.full((1, 3), 1e6))
    (tmp_path / "ids.txt").write_text("item000001\n")
    with pytest.raises(BivrecError, match="item index 2 are not finite; leave out --half"):
        features_of_file(domain, "text", tmp_path / "f.npy", ids=tmp_path / "ids.txt", half=True)


def test_features_of_several_modalities_are_stored_together(tmp_path):
    """What an interrupted command had done is there for the next, and nothing stands in its way."""
    pictures = save_pictures(tmp_path / "pictures", 6)
    domain = make_domain(tmp_path / "d", texts(6), pictures, images=tmp_path / "pictures")
    encoded = encode_texts(domain, HashingTextEncoder(), batch_size=2)
    check_absent(Domain.open(domain.path), ("text", "image"))
    again = Interrupted(0)
    store(domain, encode_texts(domain, again, batch_size=2), encode_images(domain, DescriptorImageEncoder()))
    assert torch.equal(stored(domain, "text"), encoded.features)
    assert not list(domain.path.glob(".*"))


def test_features_that_are_there_already(tmp_path):
    domain = make_domain(tmp_path / "d", texts(6))
    domain = store(domain, encode_texts(domain, HashingTextEncoder(8)))
    check_absent(domain, ("image",))
    with pytest.raises(BivrecError) as fault:
        check_absent(domain, ("text", "image"))
    assert str(fault.value) == f"{domain.path} has text features already (hashing@1 (8-d, sum)); pass --overwrite"
