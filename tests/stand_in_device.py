"""A stand-in for a GPU: tensors that say they lie on one, and are computed on the processor.

What a GPU refuses is refused: a kernel that meets tensors of two devices, or a tensor of the processor indexed with one
of the device. Autocast is that of CUDA, which differs from the processor's. `questions` counts the calls for which a
host would wait. What it cannot show is speed, and faults of the kernels themselves.

As a script it reads commands of bivrec from the standard input, a JSON object of lists of arguments by name, carries
each out on the stand-in, and prints a JSON object {"exit_code", "output", "kernels", "questions"} by name: how many
kernels ran on the device, and the questions of the last training step. ID tables have sparse gradients whatever their
size, where candidates are sampled.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate.state
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import bivrec.training.checkpoint
import bivrec.training.objective
from bivrec.cli import main
from bivrec.training.loop import Trainer

NAME = "gpu"
AUTOCAST = "AutocastPrivateUse1"
aten = torch.ops.aten

ACROSS_DEVICES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
OF_UNKNOWN_SIZE = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}

# The lists of CUDA (ATen/autocast_mode.h), as far as bivrec calls them.
TO_HALF = "linear matmul mm mv addmm addmv bmm addbmm baddbmm scaled_dot_product_attention"
TO_FLOAT = (
    "exp expm1 log log2 log10 log1p reciprocal rsqrt softplus layer_norm native_layer_norm group_norm logsumexp "
    "cosine_similarity nll_loss kl_div mse_loss binary_cross_entropy_with_logits softmax.int log_softmax.int cumsum "
    "cumprod prod prod.dim_int sum sum.dim_IntList pow.Tensor_Scalar pow.Tensor_Tensor linalg_vector_norm "
    "norm.ScalarOpt_dim"
)
TO_WIDEST = "addcdiv addcmul dot vdot index_put scatter_add tensordot cat stack"

questions: Counter[str] = Counter()
kernels: Counter[str] = Counter()


class OnDevice(Tensor):
    """A tensor of the device; `host` is what it is computed with."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        strides = None if host.is_sparse else host.stride()
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls, host.size(), strides=strides, dtype=host.dtype, layout=host.layout, device=torch.device(NAME, 0)
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(kernel, args, kwargs or {})


def compute(kernel: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a kernel on the processor, if a device would take its arguments."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    here = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    # A scalar may come from the processor.
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    decided_by_first = kernel in ACROSS_DEVICES | INDEXING
    onto_device = isinstance(args[0], OnDevice) if decided_by_first else bool(here)
    may_mix = kernel in ACROSS_DEVICES or (kernel in INDEXING and onto_device)
    if here and elsewhere and not may_mix:
        raise RuntimeError(f"{kernel}: {len(here)} tensors on the device, {len(elsewhere)} on the processor")
    if kwargs.get("device") is not None:
        onto_device = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    if here:
        kernels[str(kernel)] += 1
        questions[str(kernel)] += _host_waits(kernel, args, onto_device)
    args, kwargs = tree_map(lambda value: value.host if isinstance(value, OnDevice) else value, (args, kwargs))

    def wrap(value: Any) -> Any:
        if not onto_device or not isinstance(value, Tensor):
            return value
        return here[id(value)] if id(value) in here else OnDevice(value)

    return tree_map(wrap, kernel(*args, **kwargs))


def _host_waits(kernel: Any, args: Any, onto_device: bool) -> bool:
    if kernel in INDEXING:
        # A mask has as many results as it has true values; an index of the processor is sent.
        return any(index is not None and (index.dtype == torch.bool or index.device.type == "cpu") for index in args[1])
    return kernel in OF_UNKNOWN_SIZE or (kernel in ACROSS_DEVICES and not onto_device)


class Kernels(TorchDispatchMode):
    """Sends to `compute` what has no tensor of the device among its arguments: what makes one."""

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(kernel, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What torch does before kernels are called, and only for devices that it was built for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if function in (Tensor.tolist, Tensor.__format__):
            return function(args[0].cpu(), *args[1:], **kwargs)
        return function(*args, **kwargs)


class Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install_autocast() -> list[torch.library.Library]:
    """Register CUDA's autocast for the device, for as long as what is returned is kept."""
    others, named = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, AUTOCAST)
    for names, dtype in (
        (TO_HALF, lambda _: torch.get_autocast_dtype(NAME)),
        (TO_FLOAT, lambda _: torch.float32),
        (TO_WIDEST, lambda dtypes: functools.reduce(torch.promote_types, dtypes, torch.bfloat16)),
    ):
        for name in names.split():
            packet, _, overload = name.partition(".")
            kernel = getattr(getattr(aten, packet), overload or "default")
            named.impl(name, functools.partial(_cast_and_call, kernel, dtype), AUTOCAST)
    return [others, named]


def _cast_and_call(kernel: Any, dtype: Callable[[list[torch.dtype]], torch.dtype], *args: Any, **kwargs: Any) -> Any:
    def is_cast(value: Any) -> bool:
        return isinstance(value, OnDevice) and value.dtype in (torch.float32, torch.bfloat16)

    target = dtype([value.dtype for value in tree_leaves((args, kwargs)) if is_cast(value)])
    args, kwargs = tree_map(lambda value: value.to(target) if is_cast(value) else value, (args, kwargs))
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return kernel(*args, **kwargs)


@contextmanager
def stand_in_device() -> Iterator[None]:
    """The device is there, and is what Accelerate takes; once in a process, which is then good for nothing else."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    accelerate.state.PartialState.default_device = property(lambda _: torch.device(NAME, 0))
    save_file = bivrec.training.checkpoint.save_file
    # Of safetensors, which reads the memory of a device by itself.
    bivrec.training.checkpoint.save_file = lambda tensors, *rest, **options: save_file(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, *rest, **options
    )
    libraries = install_autocast()
    with Kernels(), Functions():
        yield
    del libraries


def count_questions() -> Counter[str]:
    """The questions of the last training step, whenever it was."""
    last: Counter[str] = Counter()
    step = Trainer._step

    def counted(trainer: Trainer, number: int) -> dict[str, Tensor]:
        questions.clear()
        parts = step(trainer, number)
        last.clear()
        last.update(+questions)
        return parts

    Trainer._step = counted
    return last


def carry_out(commands: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    results = {}
    bivrec.training.objective.SPARSE_ROWS = 0
    asked = count_questions()
    with stand_in_device():
        for name, arguments in commands.items():
            asked.clear()
            kernels.clear()
            result = CliRunner().invoke(main, arguments)
            fault = "".join(traceback.format_exception(result.exception)) if result.exception else ""
            results[name] = {
                "exit_code": result.exit_code,
                "output": result.output + fault,
                "kernels": kernels.total(),
                "questions": dict(asked),
            }
    return results


if __name__ == "__main__":
    print(json.dumps(carry_out(json.load(sys.stdin))))
