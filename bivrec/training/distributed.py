"""Collectives that losses and the loop need; with one process they are the identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from bivrec.errors import BivrecError


def world_size() -> int:
    """Number of processes of this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Rows [B, ...] of all processes in the order of their ranks, [world * B, ...]; gradients flow to all of them."""
    if world_size() == 1:
        return rows
    if not rows.requires_grad:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    gathered: Tensor = _GatherWithGradient.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a detached value over processes."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


@contextmanager
def failing_alike() -> Iterator[None]:
    """A block in which only the main process does something; where it fails, all do, and none waits for it."""
    fault: Exception | None = None
    try:
        yield
    except Exception as raised:
        fault = raised
    complaints = [None if fault is None else str(fault)]
    if world_size() > 1:
        dist.broadcast_object_list(complaints)
    if fault is not None:
        raise fault
    if complaints[0] is not None:
        raise BivrecError(complaints[0])


@torch.no_grad()
def share_weights(model: nn.Module) -> None:
    """Give every process the weights and the buffers that the main one has."""
    if world_size() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def mean_sparse_over_processes(rows: Tensor) -> Tensor:
    """The mean over processes of a sparse gradient [V, D]; only the rows that some process has are sent.

    Gathered as dense tensors, which every backend can do; each process adds them up in the same order.
    """
    rows = rows.coalesce()
    if world_size() == 1:
        return rows
    places, values = rows.indices()[0], rows.values()
    count = torch.tensor([len(places)], device=places.device)
    counts = gather_rows(count).tolist()
    missing = max(counts) - len(places)
    # Filling adds zeros to row 0.
    all_places = gather_rows(functional.pad(places, (0, missing)))
    all_values = gather_rows(functional.pad(values, (0, 0, 0, missing)))
    return torch.sparse_coo_tensor(
        all_places.unsqueeze(0), all_values / world_size(), rows.shape, check_invariants=False
    ).coalesce()


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        # Every process's loss depends on these rows: their gradients add up.
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
