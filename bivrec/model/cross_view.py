"""Cross-view interest learning: coarse (Eq. 13-16) and fine (Eq. 17-18)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INITIAL_TEMPERATURE = 0.07
MAX_SCALE = 100.0


class CrossViewProjection(nn.Module):
    """Pools the interests of each view into one vector per user, in a space that both views share."""

    def __init__(self, hidden_size: int, num_interests: int) -> None:
        super().__init__()
        views = ("id", "mm")
        self.pooling = nn.ParameterDict({view: nn.Parameter(torch.zeros(num_interests)) for view in views})
        self.projection = nn.ModuleDict(
            {
                view: nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
                for view in views
            }
        )
        # The logit of the inverse temperature as a share of its bound: a clamp would hold it there for ever.
        share = 1 / INITIAL_TEMPERATURE / MAX_SCALE
        self.scale_logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self, view: str, interests: Tensor) -> Tensor:
        """Unit vectors [B, D] of interests [B, K, D]."""
        pooled = self.pooling[view].softmax(0) @ interests
        return functional.normalize(self.projection[view](pooled), dim=-1)

    def scale(self) -> Tensor:
        """The inverse temperature, bounded above so that no pair dominates."""
        return MAX_SCALE * self.scale_logit.sigmoid()


def contrastive_loss(
    id_view: Tensor, mm_view: Tensor, all_id: Tensor, all_mm: Tensor, all_users: Tensor, first_row: int, scale: Tensor
) -> Tensor:
    """Symmetric InfoNCE between two views of the same users (Eq. 14-16), a mean over the distinct users.

    all_id, all_mm [G, D] and all_users [G] are the rows of the global batch, which holds the negatives; id_view and
    mm_view [B, D] are this process's rows of it, from `first_row` on. A user counts once, by the first row: a user
    who is drawn twice is never the user's own negative, nor anybody else's twice. The mean over processes of this
    value is the loss of the global batch.
    """
    is_first = ~(all_users.unsqueeze(1) == all_users.unsqueeze(0)).tril(-1).any(1)
    own = torch.arange(first_row, first_row + len(id_view), device=id_view.device)
    losses = []
    for anchors, candidates in ((id_view, all_mm), (mm_view, all_id)):
        # Logits of up to 100 that are rounded to bfloat16 would be off by tenths.
        with torch.autocast(anchors.device.type, enabled=False):
            logits = scale * anchors.float() @ candidates.float().T
        # A repeated row keeps its own positive finite; its loss is not counted below.
        left_out = ~is_first.unsqueeze(0) & (own.unsqueeze(1) != torch.arange(len(all_users), device=own.device))
        losses.append(functional.cross_entropy(logits.masked_fill(left_out, -torch.inf), own, reduction="none"))
    processes = len(all_users) / len(id_view)
    return (torch.stack(losses).mean(0) * is_first[own]).sum() * processes / is_first.sum()


def allocation_loss(id_allocation: Tensor, mm_allocation: Tensor) -> Tensor:
    """Minus the mean over users of the summed row cosines of two allocations [B, K, N'] (Eq. 17-18).

    Columns of masked tokens are zero already; a row that is empty in either view counts 0.
    """
    both = (id_allocation.detach() != 0).any(-1) & (mm_allocation.detach() != 0).any(-1)
    cosine = functional.cosine_similarity(id_allocation, mm_allocation, dim=-1)
    # The fill also stops the gradient of an empty row, which the division by its norm makes meaningless and huge.
    return -cosine.masked_fill(~both, 0).sum(1).mean()
