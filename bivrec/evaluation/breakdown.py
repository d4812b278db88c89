"""Which targets are found: those that the training users had often, seldom, or never."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bivrec.data.sequences import Sequences
from bivrec.data.stretches import Integers
from bivrec.evaluation.metrics import PerUser, find_hits, recall
from bivrec.evaluation.protocol import EvaluationUsers

FEWEST = {"never": 0, "1-4 times": 1, "5-19 times": 5, "20 or more": 20}
"""Group -> fewest training interactions of its items."""


class Targets(NamedTuple):
    """The targets of one group in CSR form."""

    users: Integers
    """Rows of the users who have any."""
    offsets: Integers
    """Int64 [all users + 1]."""
    items: Integers


def targets_by_popularity(users: EvaluationUsers, train: Sequences, num_items: int) -> dict[str, Targets]:
    """The targets of the users by how often their items are in the training sequences; groups without any left out."""
    occurrences = np.bincount(train.items, minlength=num_items + 1)
    offsets, targets = users.targets()
    owners = np.repeat(np.arange(len(users)), np.diff(offsets))
    groups = np.searchsorted(list(FEWEST.values()), occurrences[targets], side="right") - 1
    found = {}
    for place, name in enumerate(FEWEST):
        of_group = groups == place
        counts = np.bincount(owners[of_group], minlength=len(users))
        if counts.any():
            group_offsets = np.concatenate([[0], np.cumsum(counts)])
            found[name] = Targets(np.flatnonzero(counts), group_offsets, targets[of_group])
    return found


def recall_of(targets: Targets, recommended: npt.NDArray[np.int64], k: int) -> PerUser:
    """Recall at k of these targets alone, float64 [users who have any].

    recommended: [all users, K] item indices, best first; 0 where a list ended.
    """
    hits, num_targets = find_hits(recommended, targets.offsets, targets.items)
    return recall(hits[targets.users], num_targets[targets.users], k)
