"""What is held out for evaluation: how many interactions, from the first, each split has of every user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from bivrec.data.info import LEAVE_ONE_OUT, SPLITS, TEMPORAL, USER_SPLIT
from bivrec.errors import BivrecError

Shares = tuple[int, int, int]
"""Parts of the users, or of the interactions, that are in each of SPLITS."""
DEFAULT_SHARES: Shares = (8, 1, 1)
FEWEST_TO_HOLD_OUT = 3
"""Interactions of a user who is evaluated under leave-one-out: one to train on, and a target of validation and test."""


@dataclass(frozen=True)
class Split:
    """A protocol (see `DomainInfo`), and the shares of the users or of the interactions by which it splits."""

    protocol: str = USER_SPLIT
    shares: Shares | None = DEFAULT_SHARES
    """None under leave-one-out, and where the source splits the users."""

    @classmethod
    def parse(cls, text: str) -> Split:
        """Read `8:1:1`, `leave-one-out`, `temporal` or `temporal:8:1:1`. Raises BivrecError for anything else."""
        if text == LEAVE_ONE_OUT:
            return cls(LEAVE_ONE_OUT, None)
        if text == TEMPORAL:
            return cls(TEMPORAL)
        found = re.fullmatch(rf"({TEMPORAL}:)?([0-9]+):([0-9]+):([0-9]+)", text)
        shares = (int(found[2]), int(found[3]), int(found[4])) if found else (0, 0, 0)
        if found is None or not all(shares):
            raise BivrecError(
                f"split '{text}': expected three whole numbers above 0, such as 8:1:1, or {LEAVE_ONE_OUT}, {TEMPORAL} "
                f"or {TEMPORAL}:8:1:1"
            )
        return cls(TEMPORAL if found[1] else USER_SPLIT, shares)


@dataclass(frozen=True)
class Parts:
    """What the splits have of a log."""

    kept: np.ndarray
    """Int64 [splits, users]: of how many interactions, from the first, each split has of a user."""
    cutoffs: Mapping[str, int] = field(default_factory=dict)
    """See `DomainInfo`."""

    @property
    def lengths(self) -> np.ndarray:
        """Int64 [users]: interactions that are in any split; the splits that have a user begin alike."""
        longest: np.ndarray = self.kept.max(0)
        return longest


def split_by_users(lengths: np.ndarray, shares: Shares, seed: int, k_core: int) -> Parts:
    """Whole users by a permutation of the seed. lengths: int64 [users], interactions of each.

    Raises BivrecError if there are too few users, and k_core, by which they were filtered, says what to do.
    """
    split = np.zeros(len(lengths), np.int8)
    users = np.flatnonzero(lengths)
    validation, test = (max(1, len(users) * share // sum(shares)) for share in shares[1:])
    if len(users) <= validation + test:
        raise BivrecError(f"{len(users)} users are left, too few to split {ratio(shares)}; {_more_data(k_core)}")
    shuffled = np.random.default_rng(seed).permutation(users)
    split[shuffled[-validation - test : -test]] = 1
    split[shuffled[-test:]] = 2
    return _whole(lengths, split)


def split_as_given(lengths: np.ndarray, given: np.ndarray, k_core: int) -> Parts:
    """Whole users as the source says. given: [users], the position in SPLITS of each one's.

    Raises BivrecError if a split has no user who can be trained on or evaluated.
    """
    parts = _whole(lengths, given)
    # Of a user who is evaluated, one interaction at least is the history and one the target.
    for name, part, fewest in zip(SPLITS, parts.kept, (1, 2, 2), strict=True):
        if not (part >= fewest).any():
            enough = " with 2 interactions or more" if fewest == 2 else ""
            advice = ", or lower --k-core" if k_core > 1 else ""
            raise BivrecError(f"no {name} users{enough} are left; check the split column{advice}")
    return parts


def leave_one_out(lengths: np.ndarray, k_core: int) -> Parts:
    """The last interaction is the test target, the one before it the validation target.

    Raises BivrecError if no user has FEWEST_TO_HOLD_OUT interactions.
    """
    # Something must be left to train on.
    evaluated = lengths >= FEWEST_TO_HOLD_OUT
    if not evaluated.any():
        raise BivrecError(
            f"no user with {FEWEST_TO_HOLD_OUT} interactions or more is left, as leave-one-out needs; "
            f"{_more_data(k_core)}"
        )
    return Parts(np.stack([lengths - 2 * evaluated, (lengths - 1) * evaluated, lengths * evaluated]))


def split_by_time(users: np.ndarray, timestamps: np.ndarray, lengths: np.ndarray, shares: Shares) -> Parts:
    """At the times before which the first shares of all interactions lie; those of one time stay together.

    users, timestamps: [interactions], by user and time. A user is evaluated who has interactions before a target's
    time and since; users of whom neither training nor evaluation has anything have length 0.
    Raises BivrecError if nobody can be evaluated, or the times are positions in sequences.
    """
    # Of Python's integers, which do not overflow.
    places = [len(timestamps) * share // sum(shares) for share in accumulate(shares[:2])]
    validation, test = np.partition(timestamps, places)[places].tolist()
    _refuse_positions(timestamps, lengths)
    before_validation, before_test = (
        np.bincount(users[timestamps < cutoff], minlength=len(lengths)) for cutoff in (validation, test)
    )
    validated = (before_validation > 0) & (before_test > before_validation)
    tested = (before_test > 0) & (lengths > before_test)
    for name, evaluated, cutoff in (("validation", validated, validation), ("test", tested, test)):
        if not evaluated.any():
            raise BivrecError(
                f"no {name} users: nobody has interactions both before time {cutoff} and since; prepare more data, or "
                f"split it otherwise than {ratio(shares)} by time"
            )
    kept = np.stack([before_validation, before_test * validated, lengths * tested])
    return Parts(kept, {"validation": validation, "test": test})


def ratio(shares: Shares) -> str:
    """As it is written: `8:1:1`."""
    return ":".join(map(str, shares))


def _refuse_positions(timestamps: np.ndarray, lengths: np.ndarray) -> None:
    """Raise BivrecError if most users begin at the first time of all: then times are positions in sequences."""
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    if len(starts) > 1 and np.median(timestamps[starts]) == (first := timestamps.min()):
        raise BivrecError(
            f"most users begin at time {first}: these are positions in sequences, not times, and cannot be split by "
            "time; take shares of the users, or leave-one-out"
        )


def _whole(lengths: np.ndarray, user_split: np.ndarray) -> Parts:
    """Users who are in one split, given by its position in SPLITS."""
    return Parts(np.where(user_split == np.arange(len(SPLITS))[:, None], lengths, 0))


def _more_data(k_core: int) -> str:
    return "prepare more data, or lower --k-core" if k_core > 1 else "prepare more data"
