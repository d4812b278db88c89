"""The recommendation loss: softmax cross-entropy over items, full or sampled (Eq. 19-21).

`scored_by` says which of a row's interests score the candidates: `target-interest`, the one with the largest dot
product with the target (Eq. 19-20); `best-interest`, each candidate's own nearest one, as when ranking by the maximum;
`all-interests`, the logarithm of the summed exponentials over all of them, so that exp(score) is that of a mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LOGITS_PER_CHUNK = 2**20
"""Logits that are held at once: small enough for a processor's cache, large enough for efficient products."""


def full_softmax_loss(
    interests: Tensor, targets: Tensor, catalogue: Tensor, scored_by: str, left_out: Tensor | None = None
) -> Tensor:
    """Summed cross-entropy of targets [R], rows of catalogue [V, D], for interests [R, K, D].

    left_out [R, S]: rows of the catalogue that are no negatives of the row; -1 fills up.
    The R x V logits are never held together: each chunk of rows yields its loss and its gradients at once.
    """
    readers = interests
    if scored_by == "target-interest" and interests.shape[1] > 1:
        nearest = (interests @ functional.embedding(targets, catalogue).unsqueeze(-1)).argmax(1)
        readers = interests.gather(1, nearest.unsqueeze(-1).expand(-1, 1, interests.shape[2]))
    loss: Tensor = _FullSoftmax.apply(readers, targets, catalogue, left_out, scored_by == "all-interests")  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Each candidate is scored by the nearest of the row's k readers [R, k, D], or by all of them (`mixture`)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        readers: Tensor,
        targets: Tensor,
        catalogue: Tensor,
        left_out: Tensor | None,
        mixture: bool,
    ) -> Tensor:
        reader_gradient = torch.zeros_like(readers)
        catalogue_gradient = torch.zeros_like(catalogue)
        loss = torch.zeros((), device=readers.device)
        step = max(1, LOGITS_PER_CHUNK // (readers.shape[1] * len(catalogue)))
        for first in range(0, len(readers), step):
            rows = slice(first, first + step)
            chunk = readers[rows].transpose(0, 1)
            logits = (chunk @ catalogue.T).float()
            if left_out is not None:
                _leave_out(logits, targets[rows], left_out[rows])
            gradient_of = _mixture_gradient if mixture and len(logits) > 1 else _nearest_gradient
            chunk_loss, gradient = gradient_of(logits, targets[rows])
            gradient = gradient.to(readers.dtype)
            loss += chunk_loss
            reader_gradient[rows] = (gradient @ catalogue).transpose(0, 1)
            catalogue_gradient += gradient.flatten(0, 1).T @ chunk.flatten(0, 1)
        ctx.save_for_backward(reader_gradient, catalogue_gradient)
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reader_gradient, catalogue_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        return reader_gradient * gradient, None, catalogue_gradient * gradient, None, None


def _leave_out(logits: Tensor, targets: Tensor, left_out: Tensor) -> None:
    """Make the logits [k, r, V] of items that are no negatives of a row -inf, save those of its target."""
    row = torch.arange(len(targets), device=targets.device)
    positive = logits[:, row, targets]
    # Filling points at the target, whose score is put back afterwards.
    places = torch.where(left_out < 0, targets.unsqueeze(1), left_out)
    logits.scatter_(2, places.expand(len(logits), -1, -1), -torch.inf)
    logits[:, row, targets] = positive


def _nearest_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss and gradient [k, r, V] of logits [k, r, V], the largest over k being an item's score."""
    row = torch.arange(len(targets), device=targets.device)
    scores, which = (logits[0], None) if len(logits) == 1 else logits.max(0)
    normaliser = torch.logsumexp(scores, 1)
    loss = (normaliser - scores[row, targets]).sum()
    gradient = scores.sub_(normaliser.unsqueeze(1)).exp_()
    gradient[row, targets] -= 1
    if which is None:
        return loss, gradient.unsqueeze(0)
    return loss, torch.zeros_like(logits).scatter_(0, which.unsqueeze(0), gradient.unsqueeze(0))


def _mixture_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss and gradient [k, r, V] of logits [k, r, V], logsumexp over k being an item's score."""
    row = torch.arange(len(targets), device=targets.device)
    positives = logits[:, row, targets]
    positive = positives.logsumexp(0)
    highest = logits.amax((0, 2))
    gradient = logits.sub_(highest.unsqueeze(1)).exp_()
    total = gradient.sum((0, 2))
    loss = (total.log() + highest - positive).sum()
    gradient /= total.unsqueeze(1)
    gradient[:, row, targets] -= (positives - positive).exp()
    return loss, gradient


def sampled_softmax_loss(
    interests: Tensor,
    targets: Tensor,
    candidates: Tensor,
    left_out: Tensor,
    target_log_inclusion: Tensor,
    candidate_log_inclusion: Tensor,
    scored_by: str,
) -> Tensor:
    """Summed cross-entropy of each row's target against shared sampled candidates.

    interests [R, K, D]; targets [R, D]; candidates [C, D]. left_out [R, C] marks the candidates that are no negatives
    of the row, at least those that are its own target (accidental hits). The logarithms of the probabilities with which
    the targets [R] and the candidates [C] come into the sample are subtracted from the logits (Bengio & Senecal 2008).
    """
    positive, logits = _score(interests, targets, candidates, scored_by)
    positive = positive.float() - target_log_inclusion
    logits = (logits.float() - candidate_log_inclusion).masked_fill(left_out, -torch.inf)
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
