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


def test_axes_keep_their_meaning():
    features = mixed(500, 12)
    correlation = torch.corrcoef(torch.cat([features.T, whiten(features).T]))[:12, 12:]
    assert (correlation.diagonal() > 0.5).all()


def test_fewer_items_than_dimensions_stay_bounded():
    white = whiten(mixed(10, 64))
    assert torch.isfinite(white).all()
    assert white.T.cov().diagonal().max() < 1.01
    assert whiten(torch.ones(3, 4)).abs().max() == 0
