"""A small Domain, and tiny random networks, for the tests of the features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from bivrec.data.domain import Domain, write_domain
from bivrec.data.info import REQUIRED_KEYS, SPLITS, USER_SPLIT, DomainInfo
from bivrec.data.sequences import Sequences

WORDS = (
    "red",
    "green",
    "blue",
    "small",
    "large",
    "steel",
    "paper",
    "glass",
    "lamp",
    "chair",
    "table",
    "pen",
    "ink",
    "box",
)


def texts(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 12))) for _ in range(count)]


def make_domain(
    folder: Path,
    text: Sequence[str | None],
    image: Sequence[str | None] | None = None,
    title: Sequence[str | None] | None = None,
    images: Path | None = None,
) -> Domain:
    count = len(text)
    ids = [f"item{row:06d}" for row in range(count)]
    columns = {"item_id": ids, "title": title or [None] * count, "text": text, "image": image or [None] * count}
    items = pa.table({name: pa.array(list(values), pa.string()) for name, values in columns.items()})
    one_user = Sequences(np.array([0, count]), np.arange(1, count + 1, dtype=np.int32), np.arange(count), ["user"])
    info = DomainInfo(
        format_version=1,
        name="small",
        source={"reader": "tests"},
        images=str(images) if images else None,
        seed=0,
        k_core=0,
        num_items=count,
        users=dict.fromkeys(SPLITS, 1),
        interactions=dict.fromkeys(SPLITS, count),
        num_users=len(SPLITS),
        num_interactions=len(SPLITS) * count,
        dropped=dict.fromkeys(REQUIRED_KEYS["dropped"], 0),
        items_not_listed=0,
        missing={name: items[name].null_count for name in ("text", "image")},
        features={},
        files={},
        protocol=USER_SPLIT,
        cutoffs={},
    )
    folder.mkdir(parents=True)
    write_domain(folder, info, dict.fromkeys(SPLITS, one_user), items)
    return Domain.open(folder)


def save_pictures(folder: Path, count: int, seed: int = 0) -> list[str]:
    """`count` random pictures of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    names = [f"{row}.png" for row in range(count)]
    for row, name in enumerate(names):
        pixels = generator.integers(0, 256, (20 + row % 7, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def save_bert(folder: Path, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def save_t5(folder: Path, words: Path) -> Path:
    """The encoder alone, as Sentence-T5; tokenizer of the BERT in `words`."""
    from transformers import BertTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = BertTokenizerFast.from_pretrained(words)
    T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_dual(folder: Path, kind: str, words: Path) -> Path:
    """A CLIP or SigLIP (`kind`) of 24 dimensions, which reads up to 64 tokens; tokenizer of the BERT in `words`."""
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(words)
    tokenizer.model_max_length = 64
    sizes = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 3}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        transformers.CLIPModel(config).save_pretrained(folder)
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        transformers.SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.SiglipImageProcessor(size=size).save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    """One that classifies, so that its checkpoint has no pooling head."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_resnet(folder: Path) -> Path:
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder
