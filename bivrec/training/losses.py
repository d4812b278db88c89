"""The recommendation loss: softmax cross-entropy over items, full or sampled (Eq. 19-21).

`scored_by` says which of a row's interests score the candidates: `target-interest`, the one with the largest dot
product with the target (Eq. 19-20); `best-interest`, each candidate's own nearest one, as when ranking by the maximum;
`all-interests`, the logarithm of the summed exponentials over all of them, so that exp(score) is that of a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LOGITS_PER_CHUNK = 2**20
"""Logits that are held at once: small enough for a processor's cache, large enough for efficient products."""


@dataclass(frozen=True)
class Repeats:
    """What scores gain where a row's user has had the candidate before, and where that is."""

    bias: Tensor
    """Scalar, added to these scores."""
    since: Tensor
    """[B, C] int32: position of the history of a sequence from which on its user has had the candidate."""
    sequence: Tensor
    """[R]: the sequence that a row was read from."""
    position: Tensor
    """[R]: the position after which it was read."""

    def had(self, rows: slice) -> Tensor:
        """Bool [r, C]: whether the users of some rows have had the candidates."""
        had: Tensor = self.since[self.sequence[rows]] <= self.position[rows].unsqueeze(1)
        return had


def full_softmax_loss(
    interests: Tensor, targets: Tensor, catalogue: Tensor, scored_by: str, repeats: Repeats | None = None
) -> Tensor:
    """Summed cross-entropy of targets [R], rows of catalogue [V, D], for interests [R, K, D].

    The R x V logits are never held together: each chunk of rows yields its loss and its gradients at once.
    """
    readers = interests
    if scored_by == "target-interest" and interests.shape[1] > 1:
        nearest = (interests @ functional.embedding(targets, catalogue).unsqueeze(-1)).argmax(1)
        readers = interests.gather(1, nearest.unsqueeze(-1).expand(-1, 1, interests.shape[2]))
    bias = readers.new_zeros(()) if repeats is None else repeats.bias
    loss: Tensor = _FullSoftmax.apply(readers, targets, catalogue, bias, repeats, scored_by == "all-interests")  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Each candidate is scored by the nearest of the row's k readers [R, k, D], or by all of them (`mixture`)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        readers: Tensor,
        targets: Tensor,
        catalogue: Tensor,
        bias: Tensor,
        repeats: Repeats | None,
        mixture: bool,
    ) -> Tensor:
        reader_gradient = torch.zeros_like(readers)
        catalogue_gradient = torch.zeros_like(catalogue)
        loss = torch.zeros((), device=readers.device)
        bias_gradient = torch.zeros_like(loss)
        step = max(1, LOGITS_PER_CHUNK // (readers.shape[1] * len(catalogue)))
        for first in range(0, len(readers), step):
            rows = slice(first, first + step)
            had = None if repeats is None else repeats.had(rows).float()
            part = _chunk_gradient(readers[rows], targets[rows], catalogue, had, bias, mixture)
            loss += part[0]
            reader_gradient[rows] = part[1]
            catalogue_gradient += part[2]
            bias_gradient += part[3]
        ctx.save_for_backward(reader_gradient, catalogue_gradient, bias_gradient)
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reader_gradient, catalogue_gradient, bias_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        return reader_gradient * gradient, None, catalogue_gradient * gradient, bias_gradient * gradient, None, None


def _chunk_gradient(
    readers: Tensor, targets: Tensor, catalogue: Tensor, had: Tensor | None, bias: Tensor, mixture: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss of a chunk of rows, and its gradients to the readers [r, k, D], the catalogue [V, D] and the bias."""
    rows, count, width = readers.shape
    row = torch.arange(rows, device=targets.device)
    # In half precision only the products are: exponentials of rounded differences would be off by per cents.
    logits = (readers.flatten(0, 1) @ catalogue.T).float().view(rows, count, -1)
    if had is not None:
        logits += (had * bias).unsqueeze(1)
    positives = logits[row, :, targets]
    if not mixture:
        own_best = positives.max(1, keepdim=True)
        positives = torch.full_like(positives, -torch.inf).scatter_(1, own_best.indices, own_best.values)
    positive = positives.logsumexp(1)
    share = (positives - positive.unsqueeze(1)).exp()
    # Normalising the few rows that are multiplied spares passes over the many logits.
    powers, highest, total = (_mixture_powers if mixture else _best_powers)(logits)
    loss = (total.log() + highest - positive).sum()
    bias_gradient = torch.zeros_like(loss)
    if had is not None:
        expected = (powers.sum(1) * had).sum(1) / total
        bias_gradient = (expected - had[row, targets]).sum()
    powers = powers.flatten(0, 1).to(readers.dtype)
    own = functional.embedding(targets, catalogue)
    reader_gradient = (powers @ catalogue).view(rows, count, width) / total.view(-1, 1, 1)
    reader_gradient = reader_gradient - share.unsqueeze(2) * own.unsqueeze(1)
    catalogue_gradient = powers.T @ (readers / total.view(-1, 1, 1)).flatten(0, 1)
    catalogue_gradient = catalogue_gradient.to(catalogue.dtype)
    catalogue_gradient.index_add_(0, targets, -(share.unsqueeze(2) * readers).sum(1).to(catalogue.dtype))
    return loss, reader_gradient, catalogue_gradient, bias_gradient


def _mixture_powers(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - highest) [r, k, V] in the place of the logits, the highest [r], and the sum [r] of the powers."""
    highest = logits.flatten(1).amax(1)
    powers = logits.sub_(highest.view(-1, 1, 1)).exp_()
    return powers, highest, powers.flatten(1).sum(1)


def _best_powers(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the largest of the k logits of every item; the others have none, and equal ones share it."""
    if logits.shape[1] == 1:
        return _mixture_powers(logits)
    best = logits.amax(1)
    highest = best.amax(1)
    # Only a k-th of the logits is exponentiated, and the passes over all of them are the cheapest that there are.
    is_best = torch.eq(logits, best.unsqueeze(1), out=logits)
    best.sub_(highest.unsqueeze(1)).exp_()
    total = best.sum(1)
    return is_best.mul_(best.div_(is_best.sum(1)).unsqueeze(1)), highest, total


def sampled_softmax_loss(
    interests: Tensor,
    targets: Tensor,
    candidates: Tensor,
    left_out: Tensor,
    target_log_inclusion: Tensor,
    candidate_log_inclusion: Tensor,
    scored_by: str,
    repeats: Repeats | None = None,
    target_had: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy of each row's target against shared sampled candidates.

    interests [R, K, D]; targets [R, D]; candidates [C, D]. left_out [R, C] marks the candidates that are no negatives
    of the row, at least those that are its own target (accidental hits). The logarithms of the probabilities with which
    the targets [R] and the candidates [C] come into the sample are subtracted from the logits (Bengio & Senecal 2008).
    target_had [R] bool: with `repeats`, whether the row's user has had the target before.
    """
    positive, logits = _score(interests, targets, candidates, scored_by)
    positive = positive.float() - target_log_inclusion
    logits = logits.float() - candidate_log_inclusion
    if repeats is not None and target_had is not None:
        positive = positive + target_had * repeats.bias
        logits = logits + repeats.had(slice(None)) * repeats.bias
    logits = logits.masked_fill(left_out, -torch.inf)
    return (torch.logaddexp(positive, torch.logsumexp(logits, 1)) - positive).sum()


def _score(interests: Tensor, targets: Tensor, candidates: Tensor, scored_by: str) -> tuple[Tensor, Tensor]:
    """Scores of the targets [R] and of the candidates [R, C]."""
    rows, count, _ = interests.shape
    own = (interests @ targets.unsqueeze(-1)).squeeze(-1)
    positive, nearest = own.max(1)
    if scored_by != "target-interest" and count > 1:
        every = (interests.flatten(0, 1) @ candidates.T).view(rows, count, -1)
        return (positive, every.amax(1)) if scored_by == "best-interest" else (own.logsumexp(1), every.logsumexp(1))
    return positive, interests[torch.arange(rows, device=nearest.device), nearest] @ candidates.T
