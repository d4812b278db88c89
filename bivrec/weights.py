"""Weights in safetensors files that nobody vouches for: the header is compared before any tensor is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bivrec.errors import BivrecError
from bivrec.files import new_file

NAMED_FAULTS = 5
HEADER_TYPES = {"F32": "float32"}
"""Type in a safetensors header -> its name in torch: of those that parameters have."""


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as a safetensors file."""
    with new_file(path) as staging:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, staging)


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Bytes of the weights, which may be on no device (`meta`)."""
    return sum(value.numel() * value.element_size() for value in weights.values())


def read_weights(path: Path, expected: Mapping[str, Tensor], source: str, prefix: str = "") -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`, without it, mapped from the file and not copied.

    expected: name -> a tensor, on any device, of the shape and type that the file must have; `source` names the file.
    Raises BivrecError if the file is damaged, has other names, shapes or types, or values that are not finite.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            found = {name: _described_in_header(stored.get_slice(name)) for name in stored.keys()}  # noqa: SIM118
            check_weights(found, expected, source)
            wanted = [name for name in expected if name.startswith(prefix)]
            weights = {name.removeprefix(prefix): stored.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as fault:
        reason = " ".join(str(fault).split())
        raise BivrecError(f"{source}: damaged, or not safetensors ({reason}); fetch or publish it again") from None
    for name, value in weights.items():
        if not _is_finite(value):
            raise BivrecError(f"{source}: {prefix}{name} holds NaN or infinity; publish another checkpoint")
    return weights


def check_weights(found: Mapping[str, str], expected: Mapping[str, Tensor], source: str) -> None:
    """Raise BivrecError, naming the first faults, unless `found` (name -> what `described` says) is as `expected`."""
    faults = [f"{name} is missing" for name in expected if name not in found]
    for name, actual in found.items():
        if name not in expected:
            faults.append(f"{name[:80]!r} is unknown")
        elif actual != (wanted := described(expected[name])):
            faults.append(f"{name} is {actual}, expected {wanted}")
    if faults:
        further = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise BivrecError(f"{source}: the weights are of another model: {'; '.join(faults[:NAMED_FAULTS])}{further}")


def described(value: Tensor) -> str:
    """Type and shape of a tensor."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _described_in_header(part: Any) -> str:
    kind = part.get_dtype()
    return f"{HEADER_TYPES.get(kind, kind)} {part.get_shape()}"


def _is_finite(value: Tensor) -> bool:
    # isfinite() would make copies as large as the tensor.
    return not value.numel() or bool(torch.stack(value.aminmax()).isfinite().all())
