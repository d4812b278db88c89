"""Frozen text encoders."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bivrec.errors import BivrecError
from bivrec.features.pretrained import default_device, is_dual, load_pretrained, projected, trial

POOLINGS = ("mean", "cls", "last", "projection")


class TransformersTextEncoder:
    """A transformer of the Hub or a local folder; its last hidden states, pooled.

    `mean` pools over the real tokens (special tokens included), `cls` takes the first, `last` the last one, as
    embeddings of language models do. `projection` is the vector in the space that CLIP, SigLIP and their like share
    with images; these have no other.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str | None = None,
        pooling: str | None = None,
        max_tokens: int = 64,
        device: str | None = None,
    ) -> None:
        """name: of a local folder, for people; its own if None. pooling: `projection` where there is one, or else
        `mean`, if None."""
        if pooling not in (None, *POOLINGS):
            raise BivrecError(f"pooling '{pooling}': expected one of {', '.join(POOLINGS)}")
        self.device = device or default_device()
        pretrained = load_pretrained(source, "AutoTokenizer", self.device, name)
        self.name, self.revision, self.weights = pretrained.name, pretrained.revision, pretrained.weights
        self._model, self._tokenizer = pretrained.model, pretrained.preprocessor
        dual = is_dual(self._model)
        self.pooling, self.max_tokens = pooling or ("projection" if dual else "mean"), max_tokens
        if dual != (self.pooling == "projection"):
            has = "only the projection of CLIP and its like" if dual else "no projection into a space with images"
            raise BivrecError(f"pooling '{pooling}': {source} has {has}; leave --pooling out")
        # Of the positions of some networks, such as RoBERTa, a text cannot have all.
        config = getattr(self._model.config, "text_config", self._model.config)
        longest = min(getattr(config, "max_position_embeddings", max_tokens), self._tokenizer.model_max_length)
        if not 3 <= max_tokens <= longest:
            raise BivrecError(f"max_tokens {max_tokens}: {source} reads 3 to {longest} tokens")
        self.dimension = trial(source, self, "word " * max_tokens)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Float32 [len(texts), dimension] on the CPU."""
        # SigLIP learned from texts that were all filled up to one length, and reads a vector off the last place.
        padding = "max_length" if self.pooling == "projection" else "longest"
        batch = self._tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        pooled: Tensor = self._pool(batch).float().cpu()
        return pooled

    def _pool(self, batch: Any) -> Any:
        if self.pooling == "projection":
            return projected(self._model.get_text_features(**batch))
        states = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].to(states.dtype)
        if self.pooling == "mean":
            return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        places = torch.arange(mask.shape[1], device=mask.device)
        # Some tokenizers, those of many language models, fill up on the left.
        place = (mask * (places + 1)).argmax(1) if self.pooling == "last" else mask.argmax(1)
        return states[torch.arange(len(states), device=states.device), place]


class HashingTextEncoder:
    """Signed feature hashing of words and their character trigrams; needs no download.

    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (2009). Rows have unit length.
    """

    name = "hashing"
    revision = "1"
    pooling = "sum"

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Float32 [len(texts), dimension]."""
        return torch.stack([self._encode(text) for text in texts])

    def _encode(self, text: str) -> Tensor:
        row = torch.zeros(self.dimension)
        words = re.findall(r"\w+", text.lower()) or [text.strip()]
        grams = Counter(words)
        grams.update(f"#{word}#"[start : start + 3] for word in words for start in range(len(word)))
        for gram, count in grams.items():
            code = _stable_hash(gram)
            row[(code >> 1) % self.dimension] += (1 if code & 1 else -1) * count**0.5
        return torch.nn.functional.normalize(row, dim=0)


@lru_cache(maxsize=1 << 18)
def _stable_hash(gram: str) -> int:
    # The built-in hash differs between processes.
    return int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "little")
