"""The recommendation loss: softmax cross-entropy over items, full or sampled (Eq. 19-21).

The interest with the largest dot product with the target scores it (Eq. 19) and every candidate (Eq. 20). With
`best_interest`, each candidate is scored by its own nearest interest instead, as when ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LOGITS_PER_CHUNK = 2**20
"""Logits that are held at once: small enough for a processor's cache, large enough for efficient products."""


def full_softmax_loss(
    interests: Tensor, targets: Tensor, catalogue: Tensor, best_interest: bool, left_out: Tensor | None = None
) -> Tensor:
    """Summed cross-entropy of targets [R], rows of catalogue [V, D], for interests [R, K, D].

    left_out [R, S]: rows of the catalogue that are no negatives of the row; -1 fills up.
    The R x V logits are never held together: each chunk of rows yields its loss and its gradients at once.
    """
    if best_interest or interests.shape[1] == 1:
        readers = interests
    else:
        nearest = (interests @ functional.embedding(targets, catalogue).unsqueeze(-1)).argmax(1)
        readers = interests.gather(1, nearest.unsqueeze(-1).expand(-1, 1, interests.shape[2]))
    loss: Tensor = _FullSoftmax.apply(readers, targets, catalogue, left_out)  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Each candidate is scored by the nearest of the row's k readers [R, k, D]."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        readers: Tensor,
        targets: Tensor,
        catalogue: Tensor,
        left_out: Tensor | None,
    ) -> Tensor:
        reader_gradient = torch.zeros_like(readers)
        catalogue_gradient = torch.zeros_like(catalogue)
        loss = torch.zeros((), device=readers.device)
        step = max(1, LOGITS_PER_CHUNK // (readers.shape[1] * len(catalogue)))
        for first in range(0, len(readers), step):
            rows = slice(first, first + step)
            chunk_loss, logit_gradient, which = _softmax_gradient(
                readers[rows], targets[rows], catalogue, None if left_out is None else left_out[rows]
            )
            loss += chunk_loss
            for k in range(readers.shape[1]):
                part = logit_gradient if which is None else logit_gradient * (which == k)
                reader_gradient[rows, k] = part @ catalogue
                catalogue_gradient += part.T @ readers[rows, k]
        ctx.save_for_backward(reader_gradient, catalogue_gradient)
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reader_gradient, catalogue_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        return reader_gradient * gradient, None, catalogue_gradient * gradient, None


def _softmax_gradient(
    readers: Tensor, targets: Tensor, catalogue: Tensor, left_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss of a chunk of rows, gradient [r, V] of its logits, and the reader [r, V] that gave each (None: only one)."""
    logits = (readers.transpose(0, 1) @ catalogue.T).float()
    scores, which = (logits[0], None) if len(logits) == 1 else logits.max(0)
    row = torch.arange(len(targets), device=targets.device)
    positive = scores[row, targets]
    if left_out is not None:
        # Filling points at the target, whose score is put back afterwards.
        scores.scatter_(1, torch.where(left_out < 0, targets.unsqueeze(1), left_out), -torch.inf)
        scores[row, targets] = positive
    normaliser = torch.logsumexp(scores, 1)
    loss = (normaliser - positive).sum()
    gradient = scores.sub_(normaliser.unsqueeze(1)).exp_()
    gradient[row, targets] -= 1
    return loss, gradient.to(readers.dtype), which


def sampled_softmax_loss(
    interests: Tensor,
    targets: Tensor,
    candidates: Tensor,
    left_out: Tensor,
    target_log_inclusion: Tensor,
    candidate_log_inclusion: Tensor,
    best_interest: bool,
) -> Tensor:
    """Summed cross-entropy of each row's target against shared sampled candidates.

    interests [R, K, D]; targets [R, D]; candidates [C, D]. left_out [R, C] marks the candidates that are no negatives
    of the row, at least those that are its own target (accidental hits). The logarithms of the probabilities with which
    the targets [R] and the candidates [C] come into the sample are subtracted from the logits (Bengio & Senecal 2008).
    """
    positive, logits = _score(interests, targets, candidates, best_interest)
    positive = positive.float() - target_log_inclusion
    logits = (logits.float() - candidate_log_inclusion).masked_fill(left_out, -torch.inf)
    return (torch.logaddexp(positive, torch.logsumexp(logits, 1)) - positive).sum()


def _score(interests: Tensor, targets: Tensor, candidates: Tensor, best_interest: bool) -> tuple[Tensor, Tensor]:
    """Scores of the targets [R] and of the candidates [R, C]."""
    rows, count, _ = interests.shape
    positive, nearest = (interests @ targets.unsqueeze(-1)).squeeze(-1).max(1)
    if best_interest:
        return positive, (interests.flatten(0, 1) @ candidates.T).view(rows, count, -1).amax(1)
    return positive, interests[torch.arange(rows, device=nearest.device), nearest] @ candidates.T
