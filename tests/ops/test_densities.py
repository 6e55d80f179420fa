import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import gaussian_kde, multivariate_normal

from mixwell.ops.densities import (
    covariances_of,
    gaussian_log_density,
    isotropic_log_density,
    kernel_log_density,
    kernels_of,
    moments_of,
    nearest,
    shrunk,
)

CLASSES = 3


def data(rows=60, dims=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    return torch.randn(rows, dims, generator=generator).double() + 2 * labels[:, None], labels


def one_hot(labels):
    return F.one_hot(labels, CLASSES)


def test_moments_are_numpys():
    features, labels = data()
    means, covariances = covariances_of(*moments_of(features, one_hot(labels)))
    for k in range(CLASSES):
        rows = features[labels == k].numpy()
        np.testing.assert_allclose(means[k], rows.mean(0))
        np.testing.assert_allclose(covariances[k], np.cov(rows.T, ddof=0))


def test_one_covariance_within_classes():
    features, labels = data()
    means, covariances = covariances_of(*moments_of(features, one_hot(labels), own=False))
    centred = features - means[labels]
    torch.testing.assert_close(covariances, (centred.T @ centred / len(features))[None])


def test_sums_of_parts_are_the_sums_of_the_whole():
    features, labels = data()
    parts = [moments_of(features[i::2], one_hot(labels[i::2])) for i in (0, 1)]
    for whole, one, other in zip(moments_of(features, one_hot(labels)), *parts, strict=True):
        torch.testing.assert_close(whole, one + other)


def test_soft_labels_share_a_sample():
    features, _ = data(rows=2)
    halves = torch.full((2, CLASSES), 0.0)
    halves[:, :2] = 0.5
    means, covariances = covariances_of(*moments_of(features, halves))
    torch.testing.assert_close(means[0], features.mean(0))
    torch.testing.assert_close(means[0], means[1])
    torch.testing.assert_close(covariances[0], torch.cov(features.T, correction=0))
    assert (means[2] == 0).all()


@pytest.mark.parametrize("own", [True, False])
def test_gaussians_are_scipys(own):
    features, labels = data()
    means, covariances = covariances_of(*moments_of(features, one_hot(labels), own=own))
    covariances = shrunk(covariances, 0.1, 1e-3)
    points = torch.randn(7, 4).double()
    found = gaussian_log_density(points, means, torch.linalg.cholesky(covariances))
    for k in range(CLASSES):
        expected = multivariate_normal(means[k], covariances[k if own else 0]).logpdf(points)
        np.testing.assert_allclose(found[:, k], expected)


def test_an_isotropic_gaussian_is_one_with_a_multiple_of_the_identity():
    points, means, variance = torch.randn(7, 4), torch.randn(CLASSES, 4), torch.rand(CLASSES) + 0.5
    full = gaussian_log_density(points, means, torch.diag_embed(variance.sqrt()[:, None].expand(-1, 4)))
    constant = full - isotropic_log_density(points, means, variance)
    torch.testing.assert_close(constant, constant[:1, :1].expand(7, CLASSES))


def test_shrinkage_keeps_the_mean_variance():
    matrices = torch.randn(2, 5, 5)
    matrices = matrices @ matrices.transpose(1, 2)
    half = shrunk(matrices, 0.5)
    torch.testing.assert_close(half.diagonal(dim1=1, dim2=2).sum(1), matrices.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(
        half - torch.diag_embed(half.diagonal(dim1=1, dim2=2)),
        0.5 * (matrices - torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))),
    )
    whole = shrunk(matrices, 1.0, 0.25)
    torch.testing.assert_close(whole[0], (matrices[0].trace() / 5 + 0.25) * torch.eye(5))


@pytest.mark.parametrize("bandwidth", [0.3, None])
def test_kernels_are_scipys(bandwidth):
    features, labels = data(rows=50)  # 17, 17 and 16 samples
    points = features[::5] + 0.1
    found = kernel_log_density(points, kernels_of(features, labels, CLASSES, bandwidth, ridge=1e-12))
    for k in range(CLASSES):
        expected = gaussian_kde(features[labels == k].T.numpy(), bw_method=bandwidth or "scott").logpdf(
            points.T.numpy()
        )
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-6)


def test_a_class_without_samples_is_never_likely():
    features, labels = data(rows=6)
    found = kernel_log_density(features, kernels_of(features, labels, CLASSES + 1))
    assert torch.isinf(found[:, 3]).all()
    assert torch.isfinite(found[:, :3]).all()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_nearest_sample(chunk):
    points, samples = torch.randn(9, 3), torch.randn(11, 3)
    assert torch.equal(nearest(points, samples, chunk), torch.cdist(points, samples).argmin(1))
