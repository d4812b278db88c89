"""The recommendation loss: softmax cross-entropy over items, full or sampled (Eq. 19-21).

`scored_by` says which of a row's interests score the candidates: `target-interest`, the one with the largest dot
product with the target (Eq. 19-20); `best-interest`, each candidate's own nearest one, as when ranking by the maximum;
`all-interests`, the logarithm of the summed exponentials over all of them, so that exp(score) is that of a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 2**20
"""Logits that are held at once: small enough for a processor's cache, large enough for efficient products."""
LOGITS_PER_CHUNK_ON_GPU = 2**26
"""The same on a GPU, where starting a small product takes longer than the product."""


@dataclass(frozen=True)
class Repeats:
    """Where a row's user has had the candidate before."""

    since: Tensor
    """[B, C] int32: position of the history of a sequence from which on its user has had the candidate."""
    sequence: Tensor
    """[R]: the sequence that a row was read from."""
    position: Tensor
    """[R]: the position after which it was read."""
    target_had: Tensor
    """[R] bool: whether the user of a row has had its target."""

    def had(self, rows: slice) -> Tensor:
        """Bool [r, C]: whether the users of some rows have had the candidates."""
        had: Tensor = self.since[self.sequence[rows]] <= self.position[rows].unsqueeze(1)
        return had


def softmax_loss(
    interests: Tensor,
    targets: Tensor,
    candidates: Tensor,
    hits: Tensor,
    scored_by: str,
    log_inclusion: tuple[Tensor, Tensor] | None = None,
    repeats: Repeats | None = None,
    repeat_bias: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy of each row's target against candidates that all rows share.

    interests [R, K, D]; targets [R, D]; candidates [C, D]: the catalogue, or a sample of it. hits [R]: the candidate
    that is the row's target, and so no negative; C: there is none. log_inclusion: the logarithms of the probabilities
    with which the targets [R] and the candidates [C] come into a sample, which are subtracted from the logits (Bengio &
    Senecal 2008). repeat_bias: a scalar that is added to the scores where `repeats` says so; both or neither.

    The R x C logits are never held together: each chunk of rows yields its loss and its gradients at once.
    """
    readers = interests
    if scored_by == "target-interest" and interests.shape[1] > 1:
        nearest = (interests @ targets.unsqueeze(-1)).argmax(1)
        readers = interests.gather(1, nearest.unsqueeze(-1).expand(-1, 1, interests.shape[2]))
    bias = readers.new_zeros(()) if repeat_bias is None else repeat_bias
    loss: Tensor = _Softmax.apply(  # type: ignore[no-untyped-call]
        readers, targets, candidates, bias, hits, log_inclusion, repeats, scored_by == "all-interests"
    )
    return loss


class _Softmax(torch.autograd.Function):
    """Each candidate is scored by the nearest of the row's k readers [R, k, D], or by all of them (`mixture`)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        readers: Tensor,
        targets: Tensor,
        candidates: Tensor,
        bias: Tensor,
        hits: Tensor,
        log_inclusion: tuple[Tensor, Tensor] | None,
        repeats: Repeats | None,
        mixture: bool,
    ) -> Tensor:
        parts = (readers, targets, candidates, bias)
        # In bfloat16, a sum over hundreds of chunks would stop growing.
        gradients = [torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32)) for part in parts]
        loss = torch.zeros((), device=readers.device)
        kind = readers.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else readers.dtype
        factors = candidates.to(half)
        logits = LOGITS_PER_CHUNK if kind == "cpu" else LOGITS_PER_CHUNK_ON_GPU
        step = max(1, logits // (readers.shape[1] * len(candidates)))
        for first in range(0, len(readers), step):
            rows = slice(first, first + step)
            chunk = _Chunk(readers[rows], targets[rows], factors)
            if log_inclusion is not None:
                chunk.subtract(log_inclusion[0][rows], log_inclusion[1])
            had = None if repeats is None else (repeats.target_had[rows].float(), repeats.had(rows).float())
            if had is not None:
                chunk.add(bias, *had)
            loss += chunk.loss(hits[rows], mixture)
            gradients[0][rows], gradients[1][rows] = chunk.row_gradients()
            chunk.add_candidate_gradient(gradients[2])
            if had is not None:
                gradients[3].add_(chunk.mean_gain(*had))
        ctx.save_for_backward(*(gradient.to(part.dtype) for gradient, part in zip(gradients, parts, strict=True)))
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors  # type: ignore[attr-defined]
        return *(part * gradient for part in parts), None, None, None, None


class _Chunk:
    """Some rows: their scores, and then in the same memory what the gradients need of them.

    In half precision only the products are: exponentials of rounded differences would be off by per cents.
    """

    def __init__(self, readers: Tensor, targets: Tensor, candidates: Tensor) -> None:
        """readers [r, k, D] and targets [r, D] in full precision; candidates [C, D] in that of the products."""
        self._readers, self._targets, self._candidates = readers, targets, candidates
        rows, count, _ = readers.shape
        self._scores = (self._multiplied(readers) @ candidates.T).float().view(rows, count, -1)
        self._own = (readers.float() * targets.float().unsqueeze(1)).sum(2)

    def _multiplied(self, values: Tensor) -> Tensor:
        return values.flatten(0, 1).to(self._candidates.dtype)

    def subtract(self, of_targets: Tensor, of_candidates: Tensor) -> None:
        """Lower the scores by of_targets [r] and of_candidates [C]."""
        self._own = self._own - of_targets.unsqueeze(1)
        self._scores -= of_candidates

    def add(self, bias: Tensor, target_had: Tensor, had: Tensor) -> None:
        """Raise the scores of the targets and the candidates that were had, [r] and [r, C]."""
        self._own = self._own + (bias * target_had).unsqueeze(1)
        self._scores += (bias * had).unsqueeze(1)

    def loss(self, hits: Tensor, mixture: bool) -> Tensor:
        """Summed loss. The scores become powers: exponentials, not yet divided by their `total`."""
        last = self._scores.shape[2] - 1
        place = hits.clamp(max=last).view(-1, 1, 1).expand(-1, self._scores.shape[1], 1)
        kept = self._scores.gather(2, place).masked_fill_((hits <= last).view(-1, 1, 1), -torch.inf)
        self._scores.scatter_(2, place, kept)
        own = self._own
        if not mixture:
            best = own.max(1, keepdim=True)
            own = torch.full_like(own, -torch.inf).scatter_(1, best.indices, best.values)
        positive = own.logsumexp(1)
        highest, total = (_mixture_powers if mixture else _best_powers)(self._scores, positive)
        power = (positive - highest).exp()
        # Dividing the few rows that are multiplied spares passes over the many scores.
        self._total = total + power
        self._missing = 1 - power / self._total
        self._share = (own - positive.unsqueeze(1)).exp() * self._missing.unsqueeze(1)
        return (self._total.log() + highest - positive).sum()

    def row_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients to the readers [r, k, D] and to the targets [r, D]."""
        expected = (self._multiplied(self._scores) @ self._candidates).view(self._readers.shape)
        to_readers = expected / self._total.view(-1, 1, 1) - self._share.unsqueeze(2) * self._targets.unsqueeze(1)
        return to_readers, -(self._share.unsqueeze(2) * self._readers).sum(1)

    def add_candidate_gradient(self, into: Tensor) -> None:
        """Add the gradient to the candidates [C, D]."""
        powers, readers = self._multiplied(self._scores), self._multiplied(self._readers / self._total.view(-1, 1, 1))
        if powers.dtype == into.dtype:
            torch.addmm(into, powers.T, readers, out=into)
        else:
            into += powers.T @ readers

    def mean_gain(self, target_had: Tensor, had: Tensor) -> Tensor:
        """The gradient to the bias of `add`."""
        expected = (self._scores.sum(1) * had).sum(1) / self._total
        return (expected - self._missing * target_had).sum()


def _mixture_powers(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Put exp(logits - highest) [r, k, C] in the place of logits; the highest, also of the positive, and the sum."""
    highest = torch.maximum(logits.flatten(1).amax(1), positive)
    powers = logits.sub_(highest.view(-1, 1, 1)).exp_()
    return highest, powers.flatten(1).sum(1)


def _best_powers(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the largest of the k logits of every item; the others have none, and equal ones share it."""
    if logits.shape[1] == 1:
        return _mixture_powers(logits, positive)
    best = logits.amax(1)
    highest = torch.maximum(best.amax(1), positive)
    # Only a k-th of the logits is exponentiated, and the passes over all of them are the cheapest that there are.
    is_best = torch.eq(logits, best.unsqueeze(1), out=logits)
    best.sub_(highest.unsqueeze(1)).exp_()
    total = best.sum(1)
    is_best.mul_(best.div_(is_best.sum(1)).unsqueeze(1))
    return highest, total
