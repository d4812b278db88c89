"""Re4: re-contrast, re-attend, re-construct for multi-interest recommendation (Zhang et al., WWW 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.baselines.attention import hidden_but, in_full
from bivrec.baselines.comirec import readable
from bivrec.config import ModelConfig
from bivrec.model.dropout import Dropout
from bivrec.model.tower import Interests

# The defaults of a public implementation, rec_pangu's. They go with means over all interests and positions of a history
# as long as they may be, of which most have no error: means over those that have one would be ten times as large.
CONTRAST_TEMPERATURE = 0.02
ATTEND_WEIGHT, CONTRAST_WEIGHT, CONSTRUCT_WEIGHT = 0.01, 0.1, 0.1


class Re4(nn.Module):
    """Interests by attention, a = softmax(W_2 tanh(W_1 X)), z = a X W_3, and three backward flows from them to items.

    Items with more than an equal share of an interest's attention represent it. Re-contrast: an interest is nearer to
    them than to other items, other interests and another user's items. Re-attend: attention agrees with the dot
    products of interests and items. Re-construct: an interest gives back the items that represent it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.max_history = config.max_history
        self.dropout = Dropout(config.dropout)
        self.inner = nn.Linear(width, 4 * width, bias=False)
        self.outer = nn.Linear(4 * width, config.num_interests[-1], bias=False)
        self.value = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.value.weight)
        self.upsample = nn.Linear(width, width * config.max_history)
        self.construct_inner = nn.Linear(width, width, bias=False)
        self.construct_outer = nn.Linear(width, config.max_history, bias=False)
        self.construct_value = nn.Linear(width, width, bias=False)

    def forward(self, items: Tensor, mask: Tensor, read: Tensor | None = None) -> Interests:
        """K interests [B, 1, K, D] of histories with item vectors [B, N, D] and mask [B, N]."""
        items = self.dropout(items)
        logits = self.outer(torch.tanh(self.inner(items))).transpose(1, 2)
        visible = readable(mask, None).squeeze(1)
        weights = hidden_but(visible, logits).softmax(-1) * visible
        return Interests((weights.to(items.dtype) @ self.value(items)).unsqueeze(1), weights, mask)

    def auxiliary_loss(self, items: Tensor, mask: Tensor, interests: Interests) -> Tensor:
        """The weighted losses of the backward flows."""
        found, attention = interests.vectors[:, -1], interests.allocation
        representative = attention > 1 / mask.sum(1)[:, None, None]
        contrast = contrast_loss(items, mask, found, representative, self.max_history)
        attend = attend_loss(items, mask, found, attention)
        construct = self._construct_loss(items, mask, found, representative)
        return CONTRAST_WEIGHT * contrast + ATTEND_WEIGHT * attend + CONSTRUCT_WEIGHT * construct

    def _construct_loss(self, items: Tensor, mask: Tensor, found: Tensor, representative: Tensor) -> Tensor:
        """Squared error of the representative items as an interest [B, K, D] gives them back."""
        length = items.shape[1]
        # What is made of an interest belongs to ages, the most recent first.
        made = self.upsample(found).unflatten(-1, (-1, items.shape[2]))[:, :, :length]
        logits = self.construct_outer(torch.tanh(self.construct_inner(made)))[..., :length].transpose(2, 3)
        real = mask.flip(1)[:, None, None, :]
        shares = hidden_but(real, logits).softmax(-1)
        given = (shares.to(made.dtype) @ self.construct_value(made)).flip(2)
        error = (given - items.unsqueeze(1)).square().mean(-1)
        return _mean(error, representative, self.max_history)


def contrast_loss(items: Tensor, mask: Tensor, found: Tensor, representative: Tensor, max_history: int) -> Tensor:
    """InfoNCE of interests [B, K, D] and the items [B, N, D] that represent them, representative [B, K, N].

    The mean is over B x K x max_history pairs, of which the others count 0. Another user is the one of the previous row
    that this process has of the batch.
    """
    # Logits of up to 50 that are rounded to bfloat16 would be off by tenths.
    with torch.autocast(items.device.type, enabled=False):
        vectors, interests = (functional.normalize(in_full(part), dim=-1) for part in (items, found))
        near, mutual, foreign = (
            interests @ others.transpose(1, 2) / CONTRAST_TEMPERATURE
            for others in (vectors, interests, vectors.roll(1, 0))
        )
    itself = torch.eye(found.shape[1], dtype=torch.bool, device=found.device)
    own, among = hidden_but(mask.unsqueeze(1), near), hidden_but(~itself, mutual)
    others = hidden_but(mask.roll(1, 0).unsqueeze(1), foreign)
    normaliser = torch.cat([own, among, others], -1).logsumexp(-1, keepdim=True)
    return _mean(normaliser - own, representative, max_history)


def attend_loss(items: Tensor, mask: Tensor, found: Tensor, attention: Tensor) -> Tensor:
    """Cross-entropy of attention [B, K, N] with respect to the softmax of interests [B, K, D] dot items [B, N, D]."""
    wanted = hidden_but(mask.unsqueeze(1), found @ items.transpose(1, 2)).softmax(-1)
    logarithms = attention.clamp(min=torch.finfo(attention.dtype).tiny).log()
    return -(wanted * logarithms * mask.unsqueeze(1)).sum(-1).mean()


def _mean(values: Tensor, chosen: Tensor, max_history: int) -> Tensor:
    """Of values [B, K, N], where histories are as long as they may be, and values that are not chosen 0."""
    return (values * chosen).sum() / (chosen.shape[0] * chosen.shape[1] * max_history)
