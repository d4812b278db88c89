import sys
import tarfile

import pytest
import torch
from features_domain import save_bert, save_dual, save_pictures, save_resnet, save_vit
from PIL import Image

from bivrec.errors import BivrecError
from bivrec.features.image import DescriptorImageEncoder, ImageFiles, TransformersImageEncoder


@pytest.fixture
def pictures(tmp_path):
    save_pictures(tmp_path / "pictures", 4)
    (tmp_path / "pictures" / "damaged.png").write_bytes((tmp_path / "pictures" / "0.png").read_bytes()[:100])
    (tmp_path / "pictures" / "words.png").write_text("no picture")
    return tmp_path / "pictures"


def make_tar(folder, path, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname=".")
    return path


def test_folder_and_tar_give_the_same_images(pictures, tmp_path):
    archive = ImageFiles(make_tar(pictures, tmp_path / "pictures.tar"))
    for name in ("0.png", "3.png"):
        assert ImageFiles(pictures).read(name).tobytes() == archive.read(name).tobytes()


@pytest.mark.parametrize("name", ["damaged.png", "words.png", "absent.png", ""])
def test_unreadable_images_are_none(pictures, tmp_path, name):
    assert ImageFiles(pictures).read(name) is None
    assert ImageFiles(make_tar(pictures, tmp_path / "pictures.tar")).read(name) is None


def test_why_an_image_cannot_be_read(pictures, tmp_path, monkeypatch):
    files = ImageFiles(pictures)
    assert files.fault("words.png").startswith("cannot identify image file")
    assert files.fault("absent.png") == "No such file or directory"
    assert ImageFiles(make_tar(pictures, tmp_path / "p.tar")).fault("absent.png") == "it is not in the tar"
    # Pillow's guard against files that would fill the memory.
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1)
    assert files.read("0.png") is None
    assert "exceeds limit" in files.fault("0.png")


def test_faulty_sources(pictures, tmp_path):
    with pytest.raises(BivrecError, match="no such folder or tar"):
        ImageFiles(tmp_path / "absent.tar")
    for source in (pictures / "words.png", make_tar(pictures, tmp_path / "small.tar.gz", "w:gz")):
        with pytest.raises(BivrecError, match="not an uncompressed tar"):
            ImageFiles(source)


@pytest.mark.parametrize("kind", ["resnet", "clip", "siglip"])
def test_networks_give_their_pooled_output_or_projection(pictures, tmp_path, kind):
    from transformers import AutoImageProcessor, AutoModel

    if kind == "resnet":
        folder = save_resnet(tmp_path / "resnet")
    else:
        folder = save_dual(tmp_path / kind, kind, save_bert(tmp_path / "bert"))
    encoder = TransformersImageEncoder(str(folder))
    images = [ImageFiles(pictures).read(f"{row}.png") for row in range(4)]
    rows = encoder(images)
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    output = model(**pixels) if kind == "resnet" else model.get_image_features(**pixels)
    expected = (output if isinstance(output, torch.Tensor) else output.pooler_output).detach().flatten(1)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)
    assert rows.shape == (4, encoder.dimension) == (4, 16 if kind == "resnet" else 24)
    assert encoder.pooling == ("pooler" if kind == "resnet" else "projection")
    alone = torch.cat([encoder([image]) for image in images])
    torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-4)


def test_a_classifier_without_pooling_head_gives_its_first_token(pictures, tmp_path):
    from transformers import AutoImageProcessor, ViTForImageClassification

    folder = save_vit(tmp_path / "vit")
    encoder = TransformersImageEncoder(str(folder))
    images = [ImageFiles(pictures).read(f"{row}.png") for row in range(4)]
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    classifier = ViTForImageClassification.from_pretrained(folder).eval().requires_grad_(False)
    logits = classifier(**pixels).logits
    assert encoder.pooling == "cls"
    torch.testing.assert_close(classifier.classifier(encoder(images)), logits, atol=1e-5, rtol=1e-4)


def test_descriptor_tells_colour_and_texture_apart():
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (50, 50), "blue")
    dark_red = Image.new("RGB", (30, 20), (250, 3, 3))
    stripes = Image.new("RGB", (64, 64), "red")
    stripes.paste("blue", (0, 0, 64, 32))
    rows = DescriptorImageEncoder()([red, blue, dark_red, stripes])
    assert rows.shape == (4, 240)
    assert torch.isfinite(rows).all()
    similarity = rows @ rows.T
    assert similarity[0, 2] > 1.9 > similarity[0, 3] > similarity[0, 1]


def test_pillow_is_named_when_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BivrecError, match=r'pillow is not installed.*pip install "bivrec\[images\]"'):
        ImageFiles(tmp_path)
