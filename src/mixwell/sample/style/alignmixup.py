"""AlignMixup: mix feature maps after aligning one to the other by optimal transport.

Venkataramanan, Kijak, Amsaleg, Avrithis, "AlignMixup: Improving Representations By Interpolating Aligned Features",
CVPR 2022, arXiv:2103.15375.

Half the batches are mixed at the input by mixup, half in the last feature map, whose positions are first matched by
entropic transport at the squared distance of their features. A coin decides whose geometry stays: the partner's
features are moved to the image's positions, or the image's to the partner's; λ weights the image's features either way.
Equations: M_ij = ‖a_i - a'_j‖² → `mixwell.ops.sinkhorn.squared_distances`; P* → `mixwell.ops.sinkhorn.sinkhorn`, no
gradient passes it; R = r·P* → `alignment`; ã' = A'Rᵀ and ã = AR → `moved`.

The authors' network pools the last map and classifies it right after the mix, and pooling undoes an alignment: the
columns of R sum to 1, so with the partner moved their released head sees exactly what Manifold Mixup at the last stage
would give it, and with the image moved only the looseness of the stop rule makes a difference. The alignment acts in
full where something that is not linear follows the mix: name an earlier stage (`sites=(0, -2)`), or take a network
whose last stage a BatchNorm and ReLU follow, such as `preact-resnet18`. In a transformer whose head reads the class
token, take an earlier stage too; prefix tokens are mixed as they are. Time and memory grow with the square of a map's
number of positions: stages of 16×16 or smaller are affordable.

Paper and code: the code stops as soon as an iteration changes the potentials by less than 0.1, a mean over the batch,
and so do we; rows of R then sum to between ½ and 2, and a moved partner is no weighted mean of its features. Divide by
these sums with `normalise_rows=true`. The code draws one λ per batch (`per="batch"`). The paper's further modes, the
mixing of embeddings and an auto-encoder, are not in the authors' code, and not here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of
from mixwell.core.places import ByPlace, Hidden, Sites
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.ops.sinkhorn import sinkhorn, squared_distances
from mixwell.sample.linear.mixup import Linear, linear

__all__ = ["Aligned", "alignment", "moved"]


def alignment(
    own: Float[Tensor, "b c h w"],
    partner: Float[Tensor, "b c h w"],
    eps: float = 0.1,
    iterations: int = 100,
    threshold: float = 0.1,
    normalise_rows: bool = False,
) -> Float[Tensor, "b r r"]:
    """How much each of the r = h·w positions of `own` (rows) has to do with each of `partner` (columns).

    Columns sum to 1, and rows about as far as the transport has converged.

    Args:
        own, partner: (B, C, h, w) floating.
        eps, iterations, threshold: see `sinkhorn`.
        normalise_rows: divide the rows by their sums.

    Returns:
        (B, r, r) in fp32, without gradient.
    """
    cost = squared_distances(own.flatten(2).float(), partner.flatten(2).float())
    plan = sinkhorn(cost, eps, iterations, threshold).plan
    return plan / plan.sum(2, keepdim=True) if normalise_rows else plan * plan.shape[1]


def moved(x: Float[Tensor, "b c h w"], weights: Float[Tensor, "b r r"]) -> Float[Tensor, "b c h w"]:
    """Features moved to other positions of the same grid: Σ_j weights_ij · x_j at position i, in x's dtype and layout.

    Args:
        x: (B, C, h, w) floating.
        weights: (B, r, r) what each position (rows) takes of each of the r = h·w (columns).
    """
    with torch.autocast(x.device.type, enabled=False):
        flat = x.contiguous().flatten(2) @ weights.to(x.dtype).transpose(1, 2)
    return flat.view(x.shape).contiguous(memory_format=layout_of(x))


class Aligned(Blend):
    """The weighted mean of a map and its partner, one of them moved to the positions of the other.

    A tensor of the maps' grid is moved and mixed as they are; one of another resolution is mixed without moving.

    Args:
        eps, iterations, threshold, normalise_rows: see `alignment`; rows are normalised where the partner moves.
    """

    gives = OF_A_PAIR | {Need.DIFFERENTIABLE}
    aligned = False

    def __init__(
        self, eps: float = 0.1, iterations: int = 100, threshold: float = 0.1, normalise_rows: bool = False
    ) -> None:
        super().__init__()
        self.eps = number_in("eps", eps, 0, open_low=True)
        if iterations < 1:
            raise ParameterError(f"iterations must be a whole number ≥ 1, got {iterations}.")
        self.iterations = iterations
        self.threshold = number_in("threshold", threshold, 0)
        self.normalise_rows = normalise_rows

    def draw(self, rows: int, rng: Generator) -> bool:
        """Whether the image's own map is the one that is moved, for the whole batch."""
        return bool(rng.random() < 0.5)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: bool,
        scene: Scene,
    ) -> Mix:
        size, other = images.shape[2:], partners.of(images)
        normalised = self.normalise_rows and not draws
        weights = alignment(images, other, self.eps, self.iterations, self.threshold, normalised)

        def mixed(own: Tensor, other: Tensor) -> Tensor:
            if draws:
                return linear(moved(own, weights.transpose(1, 2)), other, lam)
            return linear(own, moved(other, weights), lam)

        def apply(x: Tensor) -> Tensor:
            return mixed(x, partners.of(x)) if x.shape[2:] == size else linear(x, partners.of(x), lam)

        def masks(mix: Mix) -> Tensor:
            return mix.weights[:, :, None, None]

        return Mix.of_pair(mixed(images, other), partners, lam, apply, lam=lam, make_masks=masks)


@method("alignmixup", section="1.6", paper="2103.15375", venue="CVPR 2022")
def alignmixup(
    alpha: float = 2.0,
    sites: Sites = (0, -1),
    eps: float = 0.1,
    iterations: int = 100,
    threshold: float = 0.1,
    normalise_rows: bool = False,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α).
    sites: stage numbers or module names, one of which is drawn per batch; at 0, the input, images are mixed as by
        mixup, elsewhere aligned. With earlier stages than the last the alignment acts in full.
    eps: weight of the transport's entropy, in units of squared feature distances.
    iterations: of the transport, at most.
    threshold: change of the transport's potentials below which it stops; 0 for all iterations.
    normalise_rows: make moved partners weighted means of their features.
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch"; the site and who is moved are always per batch.
    """
    blend = ByPlace(Linear(), Aligned(eps, iterations, threshold, normalise_rows))
    return Pieces(essential=(Hidden(sites), blend), suggested=Beta(alpha, per=per), prob=prob)
