"""Loading frozen encoders with `transformers`, from the Hugging Face Hub or a local folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor

from bivrec.errors import BivrecError, not_installed
from bivrec.repository import commit_of

LOCAL_REVISION = "sha256:"
"""A revision that begins so is the checksum of a local folder's weights, or of a feature file."""


@dataclass(frozen=True)
class Pretrained:
    """A frozen network with what prepares its input (tokenizer or image processor)."""

    name: str
    """Hub id, or what the local folder is called."""
    revision: str
    """Commit hash on the Hub, or `sha256:...` over the weights of a local folder."""
    weights: str | None
    """`sha256:...` over the weights of a network of the Hub; None of a local folder, whose revision it is."""
    model: Any
    preprocessor: Any
    has_pooler: bool
    """Whether the checkpoint has all weights of the pooling head; without, what the head gives is random."""


def load_pretrained(source: str, preprocessor: str, device: str, called: str | None = None) -> Pretrained:
    """Load `MODEL`, `MODEL@REVISION` or a local folder with AutoModel, and its `preprocessor` (name of an Auto class).

    called: what a local folder is called, its own name if None; towers know such an encoder by its weights.
    Only safetensors weights are read. Raises BivrecError if `transformers` or the model is missing,
    or if a weight of the network other than its pooling head's is not in the checkpoint (it would be random).
    """
    transformers = _transformers()
    folder = Path(source)
    is_folder = folder.is_dir()
    if not is_folder and (folder.is_absolute() or source.startswith(("./", "../", "~"))):
        raise BivrecError(f"{source}: no such folder; give a folder with config.json and *.safetensors, or a Hub id")
    name, commit = (source, None) if is_folder else _resolved(source)
    with _one_line(source, is_folder), _only_errors(transformers):
        processor, model, missing = _load(transformers, preprocessor, name, commit)
    # Some checkpoints lack the pooling head: those of classifiers and language models.
    absent = [key for key in missing if "pooler" not in key]
    if absent:
        raise BivrecError(
            f"{source}: {len(absent)} weights are not in the checkpoint, first {absent[0]}; choose another"
        )
    try:
        model = model.float().eval().requires_grad_(False).to(device)
    except (RuntimeError, AssertionError) as fault:
        raise BivrecError(f"device '{device}': not usable ({str(fault).splitlines()[0]}); try --device cpu") from None
    checksum = _hash_weights(folder if commit is None else _snapshot(name, commit))
    return Pretrained(
        name=(called or folder.resolve().name) if commit is None else name,
        revision=commit or checksum,
        weights=None if commit is None else checksum,
        model=model,
        preprocessor=processor,
        has_pooler=not missing,
    )


def is_dual(model: Any) -> bool:
    """Whether a network has a space of texts and images together, as CLIP and SigLIP do."""
    return hasattr(model, "get_text_features") and hasattr(model, "get_image_features")


def projected(output: Any) -> Tensor:
    """The vectors [n, d] of `get_text_features` and `get_image_features`, which transformers 4 gave as they are."""
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vectors


def trial(source: str, encode: Callable[[Sequence[Any]], Tensor], example: Any) -> int:
    """The dimension of what an encoder makes of an example.

    Raises BivrecError if it makes nothing of it: networks differ in what they are given and give.
    """
    try:
        return encode([example]).shape[1]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise BivrecError(
            f"{source}: cannot be used as an encoder ({reason}); choose one such as BERT for texts, ResNet for images"
        ) from None


def default_device() -> str:
    """`cuda` if there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _transformers() -> Any:
    # The tokenizers' own thread pool would warn about forks in the user's process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError:
        raise not_installed("transformers", "encoders") from None
    return transformers


def _load(transformers: Any, preprocessor: str, name: str, revision: str | None) -> tuple[Any, Any, Iterable[str]]:
    """The preprocessor, the network, and the names of its weights that the checkpoint lacks."""
    prepare = getattr(transformers, preprocessor).from_pretrained(name, revision=revision)
    config = transformers.AutoConfig.from_pretrained(name, revision=revision)
    # Of T5 the encoder alone, which is all that Sentence-T5 has.
    encodes_texts = preprocessor == "AutoTokenizer" and type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    network = transformers.AutoModelForTextEncoding if encodes_texts else transformers.AutoModel
    model, loading = network.from_pretrained(name, revision=revision, use_safetensors=True, output_loading_info=True)
    return prepare, model, loading["missing_keys"]


@contextmanager
def _one_line(source: str, is_folder: bool) -> Iterator[None]:
    """Makes faults of loading BivrecErrors."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())[:200]
        if isinstance(fault, RuntimeError):
            hint = "are the weights those of its config.json? get it anew, or choose another"
        elif is_folder:
            hint = "a folder with config.json, the preprocessor's files and *.safetensors is expected"
        else:
            hint = "is all of it in the cache? run `hf download` before, or choose another"
        raise BivrecError(f"{source}: the encoder cannot be loaded ({reason}); {hint}") from None


@contextmanager
def _only_errors(transformers: Any) -> Iterator[None]:
    """Without the table of what a checkpoint has beside the network, heads above all, and without what else might be
    installed; what the checkpoint lacks is checked here."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def _resolved(source: str) -> tuple[str, str]:
    """Name and commit of `MODEL[@REVISION]`: all of an encoder is of one commit, and nothing is asked for in vain.

    Without a connection transformers would ask for a minute.
    """
    name, _, revision = source.partition("@")
    try:
        return name, commit_of(name, revision or None)
    except BivrecError as fault:
        raise BivrecError(f"{fault}; the encoders `hashing` (texts) and `descriptor` (images) need no Hub") from None


def _snapshot(name: str, commit: str) -> Path:
    """The folder of the local cache, named by the commit, that a network of the Hub was just loaded from."""
    config = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=commit)
    if not isinstance(config, str):
        raise BivrecError(f"{name}: not in the cache of the Hub after loading; is HF_HUB_CACHE the same for all?")
    return Path(config).parent


def _hash_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return LOCAL_REVISION + digest.hexdigest()
