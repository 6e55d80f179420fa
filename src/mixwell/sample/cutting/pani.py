"""Pani MixUp: every patch of an image is mixed with the most similar patches of other images.

Sun, Yu, Lin, Zhu, "Patch-level Neighborhood Interpolation: A General and Effective Graph-based Regularization
Strategy", ACML 2023, arXiv:1911.09307.

Patches are joined to their nearest neighbours among all patches of some other images of the batch, wherever these
stand; most patches are left alone, and the others are interpolated with their neighbours. The label follows the weight
that each image contributed. Equations: the graph → `mixwell.ops.patches.nearest`; x̃_t = (1-Σ_k η_k)·x_t + Σ_k η_k·x_k →
`interpolate`; η → `expand`.

No official code is known. What the paper leaves open is read as: η_tk = m_t·b_t·w_tk with m_t ~ Bernoulli(1 -
mask_ratio), b_t ~ Beta(α, α), and w uniform numbers divided by their sum. Candidates are drawn at random and are never
the image itself, whose patches would be their own nearest neighbours. Pixels beyond the last whole patch stay unmixed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt64
from numpy.random import Generator, Philox
from torch import Tensor

from mixwell.core.axes import Blend, Need, Pairing, Scene
from mixwell.core.errors import BatchError, number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.plain import OF_A_PAIR
from mixwell.core.registry import Pieces, method
from mixwell.ops.patches import nearest, patches_of

__all__ = ["Derangement", "PatchNeighbours", "PatchShares", "expand", "interpolate"]


class PatchShares(NamedTuple):
    """How much of each patch its K neighbours take.

    Attributes:
        total: (B, T) Σ_k η_k, 0 where a patch is left alone.
        split: (B, T, K) of it among the neighbours, sum 1.
    """

    total: Float[np.ndarray, "b t"]
    split: Float[np.ndarray, "b t k"]


def expand(
    key: UInt64[np.ndarray, " 2"], shape: tuple[int, int, int], mask_ratio: float = 0.6, alpha: float = 2.0
) -> PatchShares:
    """The shares that belong to a key.

    Args:
        key: of a Philox stream.
        shape: images B, patches T, neighbours K.
        mask_ratio: probability that a patch is left alone.
        alpha: of the other patches' Beta(α, α).
    """
    rng = Generator(Philox(key=key))
    mixed = rng.random(shape[:2]) >= mask_ratio
    total = np.zeros(shape[:2])
    total[mixed] = rng.beta(alpha, alpha, np.count_nonzero(mixed))
    split = 1 - rng.random(shape)  # in (0, 1], so that no sum is 0
    return PatchShares(total, split / split.sum(2, keepdims=True))


def interpolate(
    x: Float[Tensor, "b c h w"],
    vectors: Float[Tensor, "b t d"],
    patch: tuple[int, int],
    neighbours: Int[Tensor, "b t k"],
    shares: PatchShares,
) -> Float[Tensor, "b c h w"]:
    """The images with each patch interpolated with its neighbours.

    Args:
        x: (B, C, H, W).
        vectors: (B, T, D) their patches.
        patch: height and width of the patches.
        neighbours: positions among the B·T patches of all images.
        shares: of the neighbours.
    """
    mixed = x.clone()
    own = patches_of(mixed, patch)
    other = vectors.flatten(0, 1).index_select(0, neighbours.flatten())
    if neighbours.shape[2] > 1:
        split = onto(shares.split, x).to(x.dtype)
        other = (other.view(*neighbours.shape, -1) * split[..., None]).sum(2)
    total = onto(shares.total, x).to(x.dtype)
    own.lerp_(other.view(own.shape), total.view(*own.shape[:3], 1, 1, 1))
    return mixed


class Derangement(Pairing):
    """Random other rows of the batch, never the row itself; all different as far as the batch allows.

    In a batch of one image it has only itself.

    Args:
        count: partners of each row.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = int(number_in("candidates", count, 1))

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, S) partners."""
        order = rng.permutation(rows)
        shifts = np.resize(rng.permutation(rows - 1) + 1 if rows > 1 else [0], self.count)
        partners = np.empty((rows, self.count), np.int64)
        partners[order] = order[(np.arange(rows)[:, None] + shifts) % rows]
        return partners

    def partners(self, draws: np.ndarray, scene: Scene) -> Partners:
        return Partners.at(onto(draws, scene.batch.images), scene.batch.labels)


class PatchNeighbours(Blend):
    """Interpolate patches with their nearest neighbours among all patches of the partners.

    Args:
        patch: side of a patch in pixels; the image's side where that is smaller.
        neighbours: K, of each patch.
        candidates: partners of each image.
        mask_ratio: probability that a patch is left alone, in [0, 1].
        alpha: of the other patches' Beta(α, α).
    """

    takes_lam = False
    aligned = False

    def __init__(
        self, patch: int = 8, neighbours: int = 1, candidates: int = 1, mask_ratio: float = 0.6, alpha: float = 2.0
    ) -> None:
        super().__init__()
        self.patch = int(number_in("patch", patch, 1))
        self.neighbours = int(number_in("neighbours", neighbours, 1))
        self.partners = int(number_in("candidates", candidates, 1))
        self.mask_ratio = number_in("mask_ratio", mask_ratio, 0, 1)
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.gives = (OF_A_PAIR if self.partners == 1 else OF_A_PAIR - {Need.PAIR}) | {Need.MASKS}

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """A key, which `expand` makes into as many numbers as the images have patches."""
        return rng.integers(2**64, size=2, dtype=np.uint64)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray | PatchShares,
        scene: Scene,
    ) -> Mix:
        """Mix; `draws` are a key, or the shares themselves.

        Raises:
            BatchError: a patch has fewer possible neighbours than wanted.
        """
        height, width = images.shape[2:]
        patch = (min(self.patch, height), min(self.patch, width))
        grid = (height // patch[0], width // patch[1])
        count = grid[0] * grid[1]
        if self.neighbours > self.partners * count:
            raise BatchError(
                f"pani: expected at least {self.neighbours} patches among {self.partners} candidate(s), got "
                f"{self.partners * count} of {patch[0]}×{patch[1]} in images of {height}×{width}. Take smaller "
                "patches, more candidates or fewer neighbours."
            )
        if isinstance(draws, PatchShares):
            shares = draws
        else:
            shares = expand(draws, (len(images), count, self.neighbours), self.mask_ratio, self.alpha)

        vectors = _vectors(images, patch)
        candidates = vectors.index_select(0, partners.index.flatten()).view(len(images), -1, vectors.shape[2])
        found = nearest(vectors, candidates, self.neighbours)[1]
        candidate = found // count
        rows = partners.index.gather(1, candidate.flatten(1)).view_as(found)
        neighbours = rows * count + found % count

        eta = onto((shares.total[..., None] * shares.split).astype(np.float32), images)
        taken = eta.new_zeros(len(images), self.partners, count)
        taken.scatter_add_(1, candidate.transpose(1, 2), eta.transpose(1, 2))
        others = taken.sum(2) * (patch[0] * patch[1] / (height * width))
        own = 1 - others.sum(1)

        def apply(x: Tensor) -> Tensor:
            scaled = _scaled(patch, (height, width), x)
            return interpolate(x, _vectors(x, scaled), scaled, neighbours, shares)

        def masks(mix: Mix) -> Tensor:
            tiles = torch.unflatten(taken, 2, grid).repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)
            shown = F.pad(tiles, (0, width - tiles.shape[3], 0, height - tiles.shape[2]))
            return torch.cat((1 - shown.sum(1, keepdim=True), shown), 1)

        mixed = interpolate(images, vectors, patch, neighbours, shares)
        weights = torch.cat((own[:, None], others), 1)
        return Mix(mixed, partners.sources, weights, partners.pool, apply, area=own, make_masks=masks)


def _vectors(x: Float[Tensor, "b c h w"], patch: tuple[int, int]) -> Float[Tensor, "b t d"]:
    return patches_of(x, patch).flatten(3).flatten(1, 2)


def _scaled(patch: tuple[int, int], size: tuple[int, int], x: Tensor) -> tuple[int, int]:
    """The patches' size in x, which shows the same as images of `size` at its own resolution."""
    height, width = x.shape[2:]
    if patch[0] * height % size[0] or patch[1] * width % size[1]:
        raise BatchError(
            f"pani mixed {size[0]}×{size[1]} images in patches of {patch[0]}×{patch[1]}: expected a tensor in which "
            f"these are whole pixels, got {height}×{width}. Take larger patches, or upsample the tensor."
        )
    return patch[0] * height // size[0], patch[1] * width // size[1]


@method("pani", section="1.3", paper="1911.09307", venue="ACML 2023")
def pani(
    patch: int = 8,
    neighbours: int = 1,
    candidates: int = 1,
    mask_ratio: float = 0.6,
    alpha: float = 2.0,
    prob: float = 1.0,
) -> Pieces:
    """Args:
    patch: side of a patch in pixels; 8 suits 32×32, 16 or 32 suit 224×224.
    neighbours: nearest patches that each patch is mixed with.
    candidates: other images in which each image's neighbours are sought.
    mask_ratio: probability that a patch is left alone.
    alpha: the neighbours' share of a patch is drawn from Beta(α, α).
    prob: share of the batches that are mixed.
    """
    blend = PatchNeighbours(patch, neighbours, candidates, mask_ratio, alpha)
    return Pieces(essential=blend, suggested=Derangement(candidates), prob=prob)
