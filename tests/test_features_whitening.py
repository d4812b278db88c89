import pytest
import torch

from bivrec.features.whitening import whiten


def mixed(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) @ mixing + 3


def test_covariance_is_the_identity():
    white = whiten(mixed(500, 12), shrinkage=0)
    torch.testing.assert_close(white.T.cov(), torch.eye(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(12), atol=1e-4, rtol=0)


def test_shrinkage_keeps_what_stands_out():
    features = mixed(500, 12)
    centred = features - features.mean(0)
    only_centred = whiten(features, shrinkage=1e6)
    torch.testing.assert_close(only_centred / only_centred.norm(), centred / centred.norm(), atol=1e-5, rtol=0)
    torch.testing.assert_close(only_centred.var(0).mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    spreads = [torch.linalg.cond(whiten(features, shrinkage)) for shrinkage in (0, 0.1, 1, 10, 1e6)]
    assert spreads == sorted(spreads)


def test_a_direction_of_the_mean_variance_keeps_variance_one():
    features = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 1.5**0.5, 1.0])
    scale = whiten(features, shrinkage=1).std(0)
    variance = features.var(0)
    expected = 2 * variance / (variance + variance.mean())
    torch.testing.assert_close(scale**2, expected, atol=0.05, rtol=0)


def test_axes_keep_their_meaning():
    features = mixed(500, 12)
    correlation = torch.corrcoef(torch.cat([features.T, whiten(features, shrinkage=1e-3).T]))[:12, 12:]
    assert (correlation.diagonal() > 0.5).all()


@pytest.mark.parametrize("shrinkage", [0, 1e-3])
def test_fewer_items_than_dimensions_stay_bounded(shrinkage):
    white = whiten(mixed(10, 64), shrinkage)
    assert torch.isfinite(white).all()
    assert white.T.cov().diagonal().max() < 1.01
    assert whiten(torch.ones(3, 4)).abs().max() == 0
