import numpy as np
import pytest
import scipy.linalg
import torch

from irdm.ops.gaussian import frechet_distance, moments, streaming_moments, symmetric_root


def spread(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.randn(d, d, generator=generator).double()


def test_streamed_moments_are_those_of_all_rows():
    rows = spread(100, 5, 0) + 1e4
    expected = np.cov(rows.numpy().T)
    mean, covariance = streaming_moments(rows.split(7))
    torch.testing.assert_close(mean, rows.mean(dim=0))
    torch.testing.assert_close(covariance, torch.from_numpy(expected))
    torch.testing.assert_close(moments(rows)[1], torch.from_numpy(expected))


def test_frechet_distance_agrees_with_the_matrix_root():
    (m, s), (mr, sr) = moments(spread(60, 6, 0)), moments(spread(80, 6, 1) + 0.5)
    root = scipy.linalg.sqrtm((s @ sr).numpy()).real
    expected = ((m - mr) ** 2).sum() + s.trace() + sr.trace() - 2 * np.trace(root)
    value = frechet_distance(m, s, mr, sr, symmetric_root(sr), jitter=1e-12)
    torch.testing.assert_close(value, expected)


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        moments(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        streaming_moments([torch.zeros(1, 3)])


def test_frechet_distance_of_fewer_rows_than_dimensions():
    """A singular covariance A'A has tr (S_r^1/2 A'A S_r^1/2)^1/2 = the sum of the singular values of A S_r^1/2."""
    few, many = spread(5, 12, 0), spread(80, 12, 1)
    few.requires_grad_()
    (m, s), (mr, sr) = moments(few), moments(many)
    root = symmetric_root(sr)
    nuclear = np.linalg.svd(((few - m) / 2 @ root).detach().numpy(), compute_uv=False).sum()
    expected = ((m - mr) ** 2).sum() + s.trace() + sr.trace() - 2 * nuclear
    value = frechet_distance(m, s, mr, sr, root, jitter=1e-14)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(frechet_distance(m, s, mr, sr, root), few)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e3
