"""`bivrec encode`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from bivrec.cli.options import DOMAIN, Command, refuse_unused
from bivrec.errors import BivrecError

if TYPE_CHECKING:
    from bivrec.data.domain import Domain
    from bivrec.features.encode import Encoded, Encoder

TEXT_ENCODER = "bert-base-uncased"
IMAGE_ENCODER = "microsoft/resnet-50"
MAX_SHRINKAGE = 1e6
FILE = click.Path(path_type=Path)
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _name(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Callback of a name for cards and tables, such as a model of the Hub has."""
    if value is not None and not NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r}: expected letters, digits, '.', '_' and '-', as in ORG/NAME or NAME")
    return value


@click.command(cls=Command)
@click.argument("domain", type=DOMAIN)
@click.option("--text", metavar="ENCODER", help="Hub id (MODEL or MODEL@REVISION), folder, or `hashing`.")
@click.option("--image", metavar="ENCODER", help="Hub id (MODEL or MODEL@REVISION), folder, or `descriptor`.")
@click.option("--text-name", metavar="NAME", callback=_name,
              help="Name of a --text folder in cards and errors.  [default: its last part]")  # fmt: skip
@click.option("--image-name", metavar="NAME", callback=_name,
              help="Name of an --image folder.  [default: its last part]")  # fmt: skip
@click.option("--text-features", type=FILE, help="Text features computed elsewhere; --text then names their encoder.")
@click.option(
    "--image-features", type=FILE, help="Image features computed elsewhere; --image then names their encoder."
)
@click.option("--ids", type=FILE, help="Item ids of the rows of a .npy feature file, one per line.")
@click.option("--images", type=FILE, help="Folder or tar of the images, if not where `prepare` found them.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "last", "projection"]),
    help="How tokens become one vector.  [default: projection of CLIP, SigLIP and their like; of others mean]",
)
@click.option("--max-tokens", type=click.IntRange(3), default=64, help="Longer texts are cut.")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Items per batch.")
@click.option("--whiten", is_flag=True, help="Centre the features and even out their variances (ZCA).")
@click.option(
    "--shrinkage",
    type=float,
    metavar="S",
    help="How softly to whiten: 0.001 fully, 1000 only centres.  [default: 30]",
)
@click.option("--half", is_flag=True, help="Store float16.")
@click.option("--device", help="Torch device; a GPU if there is one.", default=None)
@click.option("--overwrite", is_flag=True, help="Replace features that DOMAIN has already.")
def encode(
    domain: Path | str,
    text: str | None,
    image: str | None,
    text_name: str | None,
    image_name: str | None,
    text_features: Path | None,
    image_features: Path | None,
    ids: Path | None,
    images: Path | None,
    pooling: str | None,
    max_tokens: int,
    batch_size: int,
    whiten: bool,
    shrinkage: float | None,
    half: bool,
    device: str | None,
    overwrite: bool,
) -> None:
    """Add frozen text and image features to DOMAIN.

    Only the modalities that an option names are encoded. If none is named, each that DOMAIN has is encoded with the
    encoder of the paper: bert-base-uncased, microsoft/resnet-50. A killed run goes on where it stopped.

    Feature files: .npy with --ids; .safetensors with one vector per item, its key the item id; .b of the Amazon 2014
    data (10-byte id, 4096 float32).
    """
    from bivrec.data.domain import Domain
    from bivrec.features.encode import (
        check_absent,
        encode_images,
        encode_texts,
        features_of_file,
        images_of,
        store,
    )

    whitening = _whitening(whiten, shrinkage)
    if "" in (text, image):
        raise BivrecError("--text and --image: expected the name of an encoder, found nothing")
    opened = Domain.open(domain)
    # Before an encoder is loaded.
    opened.check_writable()
    if not (text or image or text_features or image_features):
        described = _described(opened)
        text = TEXT_ENCODER if "text" in described else None
        image = IMAGE_ENCODER if "image" in described else None
        if not (text or image):
            raise BivrecError(
                f"{domain}: its items have neither texts nor images; give --text-features or --image-features"
            )
    for modality, source, features in (("text", text, text_features), ("image", image, image_features)):
        in_folder = source and not features and Path(source).is_dir()
        refuse_unused((f"{modality}_name",), f"--{modality} FOLDER; other encoders have a name", in_folder)
    _refuse_unused(None if text_features else text, None if image_features else image, text_features, image_features)
    if not overwrite:
        given = {"text": text or text_features, "image": image or image_features}
        check_absent(opened, [modality for modality, source in given.items() if source])
    # Whatever can be at fault comes before the first encoder runs, which may take hours.
    text_encoder = None if text_features or not text else _text_encoder(text, text_name, pooling, max_tokens, device)
    image_encoder = None if image_features or not image else _image_encoder(image, image_name, device)
    if image_encoder:
        images_of(opened, images)
    how = _How(whitening=whitening, half=half)
    files = (("text", text_features, text), ("image", image_features, image))
    encoded = [
        features_of_file(opened, modality, file, ids=ids, encoder=encoder, **how)
        for modality, file, encoder in files
        if file
    ]
    if text_encoder:
        encoded.append(encode_texts(opened, text_encoder, batch_size=batch_size, **how))
    if image_encoder:
        encoded.append(encode_images(opened, image_encoder, images, batch_size=batch_size, **how))
    store(opened, *encoded)
    for one in encoded:
        _report(one)
    for modality in _described(opened):
        if modality not in opened.info.features and modality not in (one.modality for one in encoded):
            click.echo(f"{modality}: not encoded; `bivrec encode {opened.location} --{modality} ENCODER` adds it")


def _described(domain: Domain) -> list[str]:
    """The modalities that any item of the Domain has."""
    table = domain.item_table()
    has = {"text": any(table["text"]) or any(table["title"]), "image": any(table["image"])}
    return [modality for modality, any_has in has.items() if any_has]


class _How(TypedDict):
    """What becomes of features before they are stored."""

    whitening: float | None
    half: bool


def _text_encoder(source: str, name: str | None, pooling: str | None, max_tokens: int, device: str | None) -> Encoder:
    from bivrec.features.text import HashingTextEncoder, TransformersTextEncoder

    if source == HashingTextEncoder.name:
        return HashingTextEncoder()
    if source == "descriptor":
        raise BivrecError(
            "--text descriptor: it encodes images; for texts take hashing, or an encoder of the Hub or a folder"
        )
    return TransformersTextEncoder(source, name=name, pooling=pooling, max_tokens=max_tokens, device=device)


def _image_encoder(source: str, name: str | None, device: str | None) -> Encoder:
    from bivrec.features.image import DescriptorImageEncoder, TransformersImageEncoder

    if source == DescriptorImageEncoder.name:
        return DescriptorImageEncoder()
    if source == "hashing":
        raise BivrecError(
            "--image hashing: it encodes texts; for images take descriptor, or an encoder of the Hub or a folder"
        )
    return TransformersImageEncoder(source, name=name, device=device)


def _refuse_unused(text: str | None, image: str | None, *files: Path | None) -> None:
    """text, image: the encoders that are to run; files: of features."""
    from bivrec.features.image import DescriptorImageEncoder
    from bivrec.features.text import HashingTextEncoder

    text_network = text and text != HashingTextEncoder.name
    image_network = image and image != DescriptorImageEncoder.name
    refuse_unused(("pooling", "max_tokens"), "a text encoder of the Hub or a folder", text_network)
    refuse_unused(("device",), "an encoder of the Hub or a folder", text_network or image_network)
    refuse_unused(("images",), "an image encoder", image)
    refuse_unused(("batch_size",), "an encoder", text or image)
    refuse_unused(("ids",), "a .npy feature file", any(file and file.suffix == ".npy" for file in files))


def _whitening(whiten: bool, shrinkage: float | None) -> float | None:
    from bivrec.features.whitening import SHRINKAGE

    if shrinkage is not None and not whiten:
        raise BivrecError(f"--shrinkage {shrinkage:g} is for --whiten; give both or neither")
    # click's own range lets NaN pass.
    if shrinkage is not None and not 0 <= shrinkage <= MAX_SHRINKAGE:
        raise BivrecError(f"--shrinkage {shrinkage:g}: expected 0 to {MAX_SHRINKAGE:g}")
    return SHRINKAGE if whiten and shrinkage is None else shrinkage


def _report(report: Encoded) -> None:
    from bivrec.features.contract import describe

    items = len(report.present) - 1
    click.echo(
        f"{report.modality}: {report.encoded} of {items} items, {items - report.encoded} missing; "
        f"{describe(report.spec)}"
    )
    if report.unreadable:
        first, *others = report.unreadable
        click.echo(
            f"{report.modality}: {len(report.unreadable):,} images cannot be read and count as missing: {first} "
            f"({report.fault}){''.join(f', {name}' for name in others[:2])}"
        )
    if report.unused:
        click.echo(
            f"{report.modality}: {len(report.unused):,} items of the feature file are not in the Domain, such as "
            f"'{report.unused[0]}'"
        )
