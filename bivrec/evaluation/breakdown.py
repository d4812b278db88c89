"""What is found and shown of items that the training users had often, seldom, or never."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class PopularityGroups:
    """The items of a catalogue by how often they are in the training sequences."""

    of_item: Integers
    """[V + 1]: the place in FEWEST of each item's group."""

    @classmethod
    def of_training(cls, train: Sequences, num_items: int) -> PopularityGroups:
        """Count the items 1..num_items of the training sequences."""
        occurrences = np.bincount(train.items, minlength=num_items + 1)
        return cls(np.searchsorted(list(FEWEST.values()), occurrences, side="right") - 1)

    def targets(self, users: EvaluationUsers) -> dict[str, Targets]:
        """The targets of the users by group; groups without any are left out."""
        offsets, targets = users.targets()
        owners = np.repeat(np.arange(len(users)), np.diff(offsets))
        found = {}
        for place, name in enumerate(FEWEST):
            of_group = self.of_item[targets] == place
            counts = np.bincount(owners[of_group], minlength=len(users))
            if counts.any():
                group_offsets = np.concatenate([[0], np.cumsum(counts)])
                found[name] = Targets(np.flatnonzero(counts), group_offsets, targets[of_group])
        return found

    def shares(self, recommended: Integers) -> dict[str, float]:
        """Of all places of lists [U, k], the share of each group that the catalogue has; 0 ends a list."""
        shown = np.bincount(self.of_item[recommended[recommended > 0]], minlength=len(FEWEST))
        there = np.bincount(self.of_item[1:], minlength=len(FEWEST)) > 0
        shares = shown / max(1, shown.sum())
        return {name: float(shares[place]) for place, name in enumerate(FEWEST) if there[place]}


def recall_of(targets: Targets, recommended: npt.NDArray[np.int64], k: int) -> PerUser:
    """Recall at k of these targets alone, float64 [users who have any].

    recommended: [all users, K] item indices, best first; 0 where a list ended.
    """
    hits, num_targets = find_hits(recommended, targets.offsets, targets.items)
    return recall(hits[targets.users], num_targets[targets.users], k)


def coverage(recommended: Integers, num_items: int) -> float:
    """Share of the items 1..num_items that are in any of the lists [U, k]; 0 ends a list."""
    return len(np.unique(recommended[recommended > 0])) / num_items
