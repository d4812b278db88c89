"""Which training user has which item."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bivrec.data.domain import Domain


def user_item_matrix(domain: Domain) -> Tensor:
    """Coalesced sparse float32 [U, V + 1] of the training users: 1 where a user has an item, however often."""
    sequences = domain.sequences("train")
    stride = domain.num_items + 1
    users = np.repeat(np.arange(len(sequences), dtype=np.int64), sequences.lengths)
    pairs = np.stack(np.divmod(np.unique(users * stride + sequences.items), stride))
    return torch.sparse_coo_tensor(
        torch.from_numpy(pairs),
        torch.ones(pairs.shape[1]),
        (len(sequences), stride),
        is_coalesced=True,
        check_invariants=False,
    )
