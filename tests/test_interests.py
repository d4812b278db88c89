"""Interests as points: the silhouette and the picture of Fig. 4."""

import numpy as np
import pytest
import torch
from stages import config, untrained

from bivrec.data.domain import Domain
from bivrec.evaluation.protocol import EvaluationUsers
from bivrec.evaluation.scorer import ModelScorer
from bivrec.studies.interests import interest_points, silhouette, t_sne

pytest_plugins = ("stage_fixtures",)


def slow_silhouette(points: np.ndarray) -> float:
    users, count, _ = points.shape
    unit = points / np.linalg.norm(points, axis=2, keepdims=True)
    values = []
    for user in range(users):
        for k in range(count):
            distance = [[1 - unit[user, k] @ unit[other, j] for j in range(count)] for other in range(users)]
            own = sum(distance[user]) / (count - 1)
            nearest = min(np.mean(distance[other]) for other in range(users) if other != user)
            values.append((nearest - own) / max(own, nearest))
    return float(np.mean(values))


def test_silhouette() -> None:
    points = np.random.default_rng(0).normal(size=(6, 3, 5))
    assert silhouette(points) == pytest.approx(slow_silhouette(points))


def test_interests_that_lie_together_have_a_high_silhouette() -> None:
    generator = np.random.default_rng(0)
    together = np.repeat(generator.normal(size=(8, 1, 16)), 4, axis=1) + 0.01 * generator.normal(size=(8, 4, 16))
    assert silhouette(together) > 0.95
    assert silhouette(generator.permutation(together.reshape(32, 16)).reshape(8, 4, 16)) < 0.1


def test_one_interest_has_no_silhouette() -> None:
    assert np.isnan(silhouette(np.ones((5, 1, 3))))


def test_the_plane_keeps_users_apart() -> None:
    centres = 10 * np.random.default_rng(0).normal(size=(6, 1, 16))
    points = centres + 0.01 * np.random.default_rng(1).normal(size=(6, 4, 16))
    plane = t_sne(points)
    assert plane.shape == (6, 4, 2)
    assert (plane == t_sne(points)).all()
    spread = np.linalg.norm(plane - plane.mean(1, keepdims=True), axis=2).max()
    between = np.linalg.norm(plane.mean(1)[:, None] - plane.mean(1)[None], axis=2)[np.triu_indices(6, 1)].min()
    assert between > spread


def test_points_are_the_interests_of_test_users(target: Domain) -> None:
    model = untrained(target, config())
    points = interest_points(model, "id", target, num_users=5)
    assert points.shape == (5, 2, 8)
    users = EvaluationUsers.from_sequences(target.sequences("test"))
    every = ModelScorer(model, "id").encode(users.histories(0, len(users), 8)).interests[0].double()
    distances = torch.cdist(torch.from_numpy(points).flatten(1), every.flatten(1))
    assert distances.amin(1).max() < 1e-5
    assert (interest_points(model, "id", target, num_users=5) == points).all()
