"""Densities of classes: Gaussians and kernels, in logarithms throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = [
    "Kernels",
    "covariances_of",
    "gaussian_log_density",
    "isotropic_log_density",
    "kernel_log_density",
    "kernels_of",
    "moments_of",
    "nearest",
    "shrunk",
]

_HALF_LOG_TAU = math.log(2 * math.pi) / 2


def moments_of(
    features: Float[Tensor, "n d"], shares: Shaped[Tensor, "n k"], *, own: bool = True
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"], Float[Tensor, "c d d"]]:
    """Sums from which means and covariances follow; sums of parts of the data may be added.

    Args:
        features: fp64 where the result is to be exact.
        shares: how much of each sample belongs to each class; one-hot rows for class ids.
        own: whether products are summed for each class, else over all (C = 1).

    Returns:
        the classes' weights, their sums of features, and the sums of features' products.
    """
    shares = shares.to(features.dtype)
    if own:
        products = torch.einsum("nk,nd,ne->kde", shares, features, features)
    else:
        products = (features.T @ (features * shares.sum(1, keepdim=True)))[None]
    return shares.sum(0), shares.T @ features, products


def covariances_of(
    weights: Float[Tensor, " k"], sums: Float[Tensor, "k d"], products: Float[Tensor, "c d d"]
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "c d d"]]:
    """Means and maximum-likelihood covariances of the sums that `moments_of` gives.

    One covariance per class, or where products were summed over all the one within classes. Classes without weight have
    zeros.
    """
    count = weights.clamp_min(torch.finfo(weights.dtype).tiny)[:, None]
    means = sums / count
    if len(products) == len(weights) > 1:
        return means, products / count[..., None] - means[:, :, None] * means[:, None, :]
    between = torch.einsum("k,kd,ke->de", weights, means, means)
    return means, (products - between) / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def shrunk(covariances: Float[Tensor, "c d d"], shrinkage: float = 0.0, ridge: float = 0.0) -> Float[Tensor, "c d d"]:
    """(1-s)·Σ + s·(tr Σ / d)·I + ridge·I."""
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    mean = covariances.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return (1 - shrinkage) * covariances + (shrinkage * mean + ridge) * identity


def gaussian_log_density(
    points: Float[Tensor, "r d"], means: Float[Tensor, "k d"], factors: Float[Tensor, "c d d"]
) -> Float[Tensor, "r k"]:
    """log N(x; μ_k, Σ_k) of each point for each class.

    Args:
        factors: lower triangular, Σ = L·Lᵀ; C is K, or 1 for one covariance for all.
    """
    white = _whitened(points, means, factors)
    spread = factors.diagonal(dim1=1, dim2=2).log().sum(1) + points.shape[1] * _HALF_LOG_TAU
    found: Tensor = -white.square().sum(2) / 2 - spread[:, None]
    return found.T


def _whitened(
    points: Float[Tensor, "r d"], means: Float[Tensor, "k d"], factors: Float[Tensor, "c d d"]
) -> Float[Tensor, "k r d"]:
    """L⁻¹·(x - μ) for each class."""
    offsets = (points[None] - means[:, None]).transpose(1, 2)
    found: Tensor = torch.linalg.solve_triangular(factors.expand(len(means), -1, -1), offsets, upper=False)
    return found.transpose(1, 2)


def isotropic_log_density(
    points: Float[Tensor, "r d"], means: Float[Tensor, "k d"], variance: float | Float[Tensor, " k"] = 1.0
) -> Float[Tensor, "r k"]:
    """-½‖x - μ_k‖² / s_k - ½·d·log s_k, without the constant that all classes share."""
    s = torch.as_tensor(variance, dtype=points.dtype, device=points.device)
    distances = (points[:, None] - means[None]).square().sum(2)
    return -distances / (2 * s) - points.shape[1] * s.log() / 2


@dataclass(eq=False)
class Kernels:
    """Kernel density estimates of K classes, the largest of which has M samples.

    Attributes:
        means: (K, D) of each class.
        factors: (K, D, D) lower triangular; a class's kernels have the covariance L·Lᵀ.
        samples: (K, M, D) L⁻¹·(x - μ) of its samples, in rows that are filled up with zeros.
        there: (K, M) whether a place of a row holds a sample.
    """

    means: Float[Tensor, "k d"]
    factors: Float[Tensor, "k d d"]
    samples: Float[Tensor, "k m d"]
    there: Bool[Tensor, "k m"]


def kernels_of(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    bandwidth: float | None = None,
    ridge: float = 1e-8,
) -> Kernels:
    """A Gaussian kernel at each sample, with bw² times its class's sample covariance (n - 1), to which `ridge`·I is
    added first. A class of one sample has a kernel of the ridge alone.

    Args:
        bandwidth: bw; None for Scott's n^(-1/(d+4)) of each class.
    """
    labels = labels.long()
    counts = torch.bincount(labels, minlength=num_classes)
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
    rows = features.new_zeros(num_classes, max(1, int(counts.max())), features.shape[1])
    rows[labels[order], place] = features[order]
    there = torch.arange(rows.shape[1], device=labels.device) < counts[:, None]
    n = counts.clamp_min(1).to(features.dtype)
    means = rows.sum(1) / n[:, None]
    centred = (rows - means[:, None]) * there[:, :, None]
    covariance = centred.transpose(1, 2) @ centred / (n - 1).clamp_min(1)[:, None, None]
    width = n ** (-1 / (features.shape[1] + 4)) if bandwidth is None else torch.full_like(n, bandwidth)
    factors = torch.linalg.cholesky(shrunk(covariance, ridge=ridge)) * width[:, None, None]
    white = torch.linalg.solve_triangular(factors, centred.transpose(1, 2), upper=False).transpose(1, 2)
    return Kernels(means, factors, white, there)


def kernel_log_density(points: Float[Tensor, "r d"], kernels: Kernels) -> Float[Tensor, "r k"]:
    """log of each class's estimate at each point; -∞ for classes without samples."""
    asked = _whitened(points, kernels.means, kernels.factors)
    closeness = -torch.cdist(asked, kernels.samples).square() / 2
    closeness = closeness.masked_fill(~kernels.there[:, None], float("-inf"))
    n = kernels.there.sum(1).to(points.dtype)
    spread = kernels.factors.diagonal(dim1=1, dim2=2).log().sum(1) + points.shape[1] * _HALF_LOG_TAU
    found: Tensor = closeness.logsumexp(2) - (spread + n.clamp_min(1).log())[:, None]
    return found.masked_fill(n[:, None] == 0, float("-inf")).T


def nearest(points: Float[Tensor, "r d"], samples: Float[Tensor, "n d"], chunk: int = 65536) -> Int[Tensor, " r"]:
    """The sample that is nearest to each point (Euclidean), compared `chunk` at a time."""
    best = points.new_full((len(points),), float("inf"))
    index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for start in range(0, len(samples), chunk):
        distances, found = torch.cdist(points, samples[start : start + chunk]).min(1)
        closer = distances < best
        best, index = torch.where(closer, distances, best), torch.where(closer, found + start, index)
    return index
