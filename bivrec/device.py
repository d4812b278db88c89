"""The device of this process: which one it is, and what it is good at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def own_device() -> torch.device:
    """Of this process, its GPU if it has one. As in a training, ACCELERATE_USE_CPU=1 means the processor."""
    # Only the Accelerator of a training asks for the flag itself.
    device: torch.device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    return device


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device has matrix units for bfloat16: GPUs since NVIDIA's Ampere, x86 processors with AMX.

    A step of others takes longer than in float32: 1.4 times with AVX-512, a dozen times with AVX2.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch knows what a processor can do from 2.11 on.
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return device.type == "cpu" and bool(capabilities().get("amx_bf16"))


def chosen_precision(setting: str, device: torch.device) -> str:
    """`training.precision` with `auto` decided for a device: fp32 or bf16."""
    if setting != "auto":
        return setting
    return "bf16" if bfloat16_is_fast(device) else "fp32"
