"""UniSRec: universal sequence representations (Hou et al., KDD 2022, arXiv 2206.05941)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bivrec.baselines.attention import INITIAL_STD, in_full
from bivrec.baselines.sasrec import SASRec
from bivrec.model.items import FeatureItems
from bivrec.model.tower import Interests

NUM_EXPERTS = 8
ITEM_DROP = 0.2
CONTRAST_TEMPERATURE = 0.07
CONTRAST_WEIGHT = 1e-3


class AdaptorItems(FeatureItems):
    """Item vectors from frozen features by parametric whitening and a mixture of experts (Eq. 2-5).

    Each of G experts whitens, (x - b) W; the offset b W is learnt itself. Gates are softmax(x W_2 + noise), with
    Gaussian noise of width softplus(x W_3) in training alone.
    """

    def __init__(self, feature_size: int, hidden_size: int) -> None:
        super().__init__(feature_size, hidden_size)
        self.projection = nn.Linear(feature_size, NUM_EXPERTS * hidden_size, bias=False)
        for expert in self.projection.weight.data.view(NUM_EXPERTS, hidden_size, feature_size):
            nn.init.orthogonal_(expert)
        self.offset = nn.Parameter(torch.empty(NUM_EXPERTS, hidden_size))
        # An item without features is the offset alone; a cosine has no direction to turn where that is zero.
        nn.init.trunc_normal_(self.offset, std=INITIAL_STD)
        self.gate = nn.Linear(feature_size, NUM_EXPERTS, bias=False)
        self.noise = nn.Linear(feature_size, NUM_EXPERTS, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of the items with these indices (0: padding, a zero vector)."""
        features = self.feature_rows(indices)
        logits = self.gate(features)
        if self.training:
            logits = logits + torch.randn_like(logits) * functional.softplus(self.noise(features))
        whitened = self.projection(features).view(*indices.shape, *self.offset.shape) + self.offset
        mixed: Tensor = (logits.softmax(-1).unsqueeze(-1) * whitened).sum(-2)
        return mixed * (indices > 0).unsqueeze(-1)


class UniSRec(SASRec):
    """A causal transformer over adapted features, with sequence-sequence contrast beside the next item (Eq. 9).

    The sequence-item task (Eq. 8) is the recommendation loss, with the negatives of the objective. With IDs, their
    vectors are added to the items': the paper's transductive setting.
    """

    def auxiliary_loss(self, items: Tensor, mask: Tensor, interests: Interests) -> Tensor:
        """InfoNCE of each user and the same user with a share of the items dropped.

        The negatives are the other rows that this process has of the batch.
        """
        kept = mask & (torch.rand(mask.shape, device=mask.device) >= ITEM_DROP)
        kept[:, -1] = mask[:, -1]
        dropped, whole = (in_full(read.vectors[:, -1, 0]) for read in (self(items, kept), interests))
        # Logits of up to 14 that are rounded to bfloat16 would be off by hundredths.
        with torch.autocast(items.device.type, enabled=False):
            logits = functional.normalize(whole, dim=-1) @ functional.normalize(dropped, dim=-1).T
        own = torch.arange(len(logits), device=logits.device)
        return CONTRAST_WEIGHT * functional.cross_entropy(logits / CONTRAST_TEMPERATURE, own)
