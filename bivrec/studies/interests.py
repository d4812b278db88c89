"""The interests of users as points: whether those of one user lie together (Fig. 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bivrec.data.domain import Domain
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.scorer import ModelScorer
from bivrec.model.bivrec import BiVRecNetwork
from bivrec.studies.study import Measured, Training
from bivrec.studies.workshop import Workshop

NUM_USERS = 20

Points = npt.NDArray[np.float64]


def interest_points(model: BiVRecNetwork, view: str, domain: Domain, num_users: int = NUM_USERS) -> Points:
    """Interests [users, K, D] of test users, the same for every model of the Domain."""
    users = EvaluationUsers.from_sequences(domain.sequences("test"))
    scorer = ModelScorer(model, view)
    drawn = np.random.default_rng(0).permutation(len(users))[:num_users]
    # One at a time: histories of other lengths beside it would only add padding.
    encoded = [
        scorer.encode(users.histories(user, user + 1, scorer.max_history)).interests[0][0] for user in drawn.tolist()
    ]
    return np.stack([vectors.double().cpu().numpy() for vectors in encoded])


def silhouette(points: Points) -> float:
    """Mean silhouette of interests [users, K, D] with the user as cluster, by cosine distance; NaN if K is 1."""
    from sklearn.metrics import silhouette_score

    users, count, _ = points.shape
    if count == 1 or users < 2:
        return float("nan")
    return float(
        silhouette_score(points.reshape(users * count, -1), np.repeat(np.arange(users), count), metric="cosine")
    )


def t_sne(points: Points) -> Points:
    """The interests in the plane, [users, K, 2] (van der Maaten & Hinton 2008), by cosine distance."""
    from sklearn.manifold import TSNE

    users, count, _ = points.shape
    perplexity = min(30.0, (users * count - 1) / 3)
    plane = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    return np.asarray(plane.fit_transform(points.reshape(users * count, -1)), np.float64).reshape(users, count, 2)


def silhouettes(workshop: Workshop, measured: Sequence[Measured]) -> list[Measured]:
    """Add the silhouette of each seed, and the points of the first seed for the picture."""
    result = []
    for row in measured:
        assert isinstance(row.entry.ranked_by, Training)
        points = [
            interest_points(model, row.entry.view, row.entry.domain)
            for _, model in workshop.models(row.entry.ranked_by, row.entry.domain)
        ]
        column = {"silhouette": np.array([silhouette(own) for own in points])}
        result.append(dataclasses.replace(row, more=column, points=t_sne(points[0])))
    return result
