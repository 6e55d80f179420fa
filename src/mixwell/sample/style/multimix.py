"""MultiMix: many mixtures of a whole batch, made where they cost least, right before the classifier.

Venkataramanan, Kijak, Amsaleg, Avrithis, "Embedding Space Interpolation Beyond Mini-Batch, Beyond Pairs and Beyond
Examples", NeurIPS 2023, arXiv:2311.05538.

From the m embeddings of a batch, n points of their convex hull are made, each with a random weight for every example,
and the classifier is trained on these alone. `variant="dense"` does so at each of the r positions of the last feature
map, where examples also count by how much attention they get there; every position of every mixture is then a row of
its own, with a label of its own, so that the network's own pooling and classifier classify each.
Equations: α_k ~ U(0.5, 2), λ_k ~ Dirichlet(α_k·1) → `dirichlet`; Z̃ = ΛZ and ẑ_j = Σ_i w_ij z_ij → `combined`;
a = ReLU(s) / Σ ReLU(s), s_j = z_j·u → `attention_of`; w = a·λ over its sum over the examples → `attended`;
Ỹ = ΛY → the mix's label shares. u is the pooled map ("gap_…") or the class's row of the classifier ("cam_…").

Over a whole batch the paper's α makes mixtures that are all close to its mean. Where classes are few, so that each has
many examples in a batch, their labels hardly differ and a network learns very slowly; there, a smaller α such as
(0.02, 0.1) makes mixtures of a few examples.

Nothing is drawn per pair: every row mixes all. Attention and λ are constants to the gradient. Where no example has
attention at a position, λ alone counts there; a map without any positive similarity has the same attention everywhere.
There is no official code: these rules, and which attention is the default, are ours. Dense rows need a head that
classifies what it pools; where layers stand between the stages and the pooling, name the module whose output is pooled
as `site`, as BatchNorms behind the site take their moments of the mixtures.

Memory: a step holds the rows (n·r·d), their weights (n·r·m, which labels and gradient share) and the logits (n·r·C).
On CIFAR-100 (ResNet-18, m = 128, r = 16, d = 512) dense mixtures take 33 + 8 + 6 MB in fp32, and as much again for
gradients; on ImageNet (ResNet-50, m = 128, r = 49, d = 2048) 401 + 25 + 196 MB, of which a smaller n takes as much
less. Plain mixtures take 1/r of that. Weights are drawn in chunks of mixtures, so that making them takes little more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Shaped
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Blend, Need, Scene
from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, layout_of
from mixwell.core.places import Hidden
from mixwell.core.registry import Pieces, method
from mixwell.probe import Anatomy

__all__ = ["DenseMixtures", "HullDraws", "Mixtures", "attended", "attention_of", "combined", "dirichlet"]

Attention = Literal["gap_relu", "cam_relu", "gap_softmax"]


class HullDraws(NamedTuple):
    """What the weights of n mixtures are made from, for any number of positions.

    Attributes:
        alphas: (n,) concentration of each mixture's weights.
        key: of the weights' random numbers, in [0, 2**63).
    """

    alphas: Float64[np.ndarray, " n"]
    key: int


def dirichlet(draws: HullDraws, positions: int, rows: int, device: torch.device) -> Float[Tensor, "r n m"]:
    """λ ~ Dirichlet(α_k, …, α_k) over m rows for each position and mixture, in fp32, as drawn on the device."""
    alphas = torch.from_numpy(draws.alphas.astype(np.float32)).to(device)
    generator = torch.Generator(device).manual_seed(draws.key)
    gammas = torch._standard_gamma(alphas[:, None].expand(positions, -1, rows), generator=generator)
    return gammas.div_(gammas.sum(2, keepdim=True))


def attention_of(
    maps: Float[Tensor, "m d h w"], towards: Float[Tensor, "m d"], rule: Literal["relu", "softmax"] = "relu"
) -> Float[Tensor, "m r"]:
    """Each position's share of its map's attention, without gradient; in fp32 (fp64 for fp64 maps).

    Args:
        maps: (m, d, h, w) floating.
        towards: (m, d) the vector u of each map, whose inner products with the positions are compared.
        rule: "relu" for positive products over their sum, "softmax" over the positions.
    """
    precise = torch.promote_types(maps.dtype, torch.float32)
    with torch.autocast(maps.device.type, enabled=False), torch.no_grad():
        products = torch.einsum("mdr,md->mr", maps.flatten(2).to(precise), towards.to(precise))
        if rule == "softmax":
            return products.softmax(1)
        positive = products.relu_()
        total = positive.sum(1, keepdim=True)
        return torch.where(total > 0, positive / total, 1 / positive.shape[1])


def attended(lam: Float[Tensor, "r n m"], attention: Float[Tensor, "m r"]) -> Float[Tensor, "r n m"]:
    """λ times the examples' attention at each position, made to sum to 1 over the examples; λ where all that is 0.

    Args:
        lam: (r, n, m) sums to 1 over m.
        attention: (m, r) ≥ 0.
    """
    weights = lam * attention.T[:, None]
    total = weights.sum(2, keepdim=True)
    return torch.where(total > 0, weights.div_(total), lam)


def combined(x: Float[Tensor, "m ..."], weights: Float[Tensor, "n m"]) -> Float[Tensor, "n ..."]:
    """n weighted sums of the rows of x, in its dtype and memory layout.

    Args:
        x: (m, ...) floating.
        weights: (n, m).
    """
    rows = x if layout_of(x) is torch.contiguous_format else x.permute(0, 2, 3, 1)
    with torch.autocast(x.device.type, enabled=False):
        sums = (weights.to(x.dtype) @ rows.flatten(1)).view(-1, *rows.shape[1:])
    return sums if rows is x else sums.permute(0, 3, 1, 2)


class Mixtures(Blend):
    """Random weighted means of all rows of a batch.

    Args:
        n: how many.
        alpha: (low, high) range of the uniform concentration of a mixture's weights.
        chunk: mixtures whose weights are drawn at once; what that takes besides the weights is as large as a chunk.

    Attributes:
        lam: what makes weights of the draws; a replay of given weights puts its own in its place.
    """

    gives = frozenset({Need.SIMPLEX})
    partners = 0
    takes_lam = False
    grid = False

    def __init__(self, n: int = 1000, alpha: tuple[float, ...] = (0.5, 2.0), chunk: int = 256) -> None:
        super().__init__()
        for name, value in (("n", n), ("chunk", chunk)):
            if value < 1:
                raise ParameterError(f"{name} must be a whole number ≥ 1, got {value}.")
        if len(alpha) != 2:
            raise ParameterError(f"alpha must be (low, high), got {alpha!r}. For a constant take it twice.")
        self.n, self.chunk = n, chunk
        self.low = number_in("alpha's low", alpha[0], 0, open_low=True)
        self.high = number_in("alpha's high", alpha[1], self.low)
        self.lam = dirichlet

    def draw(self, rows: int, rng: Generator) -> HullDraws:
        return HullDraws(rng.uniform(self.low, self.high, self.n), int(rng.integers(2**63)))

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: HullDraws,
        scene: Scene,
    ) -> Mix:
        precise = torch.promote_types(images.dtype, torch.float32)
        chunks = [self.lam(part, 1, len(images), images.device)[0].to(precise) for part in self._chunks(draws)]
        weights = _joined(chunks, 0)

        def apply(x: Tensor) -> Tensor:
            return combined(x, weights)

        return _mix_of_all(apply(images), partners, weights, apply)

    def _chunks(self, draws: HullDraws) -> list[HullDraws]:
        """The draws of each chunk of mixtures, with keys of their own."""
        starts = range(0, len(draws.alphas), self.chunk)
        return [HullDraws(draws.alphas[at : at + self.chunk], (draws.key + at) % 2**63) for at in starts]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class DenseMixtures(Mixtures):
    """Random weighted means of all maps of a batch at each position, rows of their own: the first position's come
    first.

    Args:
        n: how many mixtures, each of as many rows as there are positions.
        alpha, chunk: see `Mixtures`.
        attention: what an example's attention is, see `multimix`.
    """

    grid = True
    aligned = False

    def __init__(
        self,
        n: int = 1000,
        alpha: tuple[float, ...] = (0.5, 2.0),
        attention: Attention = "gap_relu",
        chunk: int = 256,
    ) -> None:
        super().__init__(n, alpha, chunk)
        self.attention: Attention = attention
        self.network = attention == "cam_relu"
        self._classifier: tuple[nn.Linear, ...] = ()  # the network's own, which must not become the recipe's

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        if anatomy.class_token:
            raise ModelError(
                f"Dense mixtures are classified position by position, but {type(anatomy.net).__name__} classifies its "
                "class token. Take variant='multimix', or a network that pools positions: a CNN, Swin, or a "
                "transformer without class token."
            )
        if self.attention == "cam_relu":
            classifier = anatomy.modules[anatomy.classifier]
            assert isinstance(classifier, nn.Linear), "the anatomy's classifiers are linear"
            self._classifier = (classifier,)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: HullDraws,
        scene: Scene,
    ) -> Mix:
        size = (images.shape[2], images.shape[3])
        rule: Literal["relu", "softmax"] = "softmax" if self.attention == "gap_softmax" else "relu"
        attention = attention_of(images, self._towards(images, scene.batch.labels), rule)
        weights = _joined(
            [
                attended(self.lam(part, attention.shape[1], len(images), images.device).to(attention.dtype), attention)
                for part in self._chunks(draws)
            ],
            1,
        )

        def apply(x: Tensor) -> Tensor:
            seen = x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
            with torch.autocast(x.device.type, enabled=False):
                sums = weights.to(x.dtype) @ seen.flatten(2).permute(2, 0, 1)
            return sums.flatten(0, 1)[:, :, None, None]

        return _mix_of_all(apply(images), partners, weights.flatten(0, 1), apply)

    def _towards(self, maps: Float[Tensor, "b c h w"], labels: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b c"]:
        """What the positions are compared with: the pooled map, or the weights of the image's classes."""
        if not self._classifier:
            return maps.mean((2, 3))
        weight = self._classifier[0].weight
        if weight.shape[1] != maps.shape[1]:
            raise ModelError(
                f"attention='cam_relu' compares positions with the classifier's rows of {weight.shape[1]} numbers, "
                f"but the site's maps have {maps.shape[1]} channels. Name as site the module whose output is pooled, "
                "or take attention='gap_relu'."
            )
        return labels.to(weight.dtype) @ weight if labels.is_floating_point() else weight[labels.long()]


def _mix_of_all(
    images: Float[Tensor, "r ..."], partners: Partners, weights: Float[Tensor, "r m"], apply: Callable[[Tensor], Tensor]
) -> Mix:
    """A mix whose rows have all rows of the batch as sources."""
    sources = partners.sources[:, 0].expand(weights.shape)
    return Mix(images, sources, weights.float(), partners.pool, apply)


@method("multimix", section="1.6", paper="2311.05538", venue="NeurIPS 2023")
def multimix(
    n: int = 1000,
    variant: Literal["multimix", "dense"] = "multimix",
    alpha: tuple[float, ...] = (0.5, 2.0),
    attention: Attention = "gap_relu",
    site: int | str | None = None,
    chunk: int = 256,
    prob: float = 1.0,
) -> Pieces:
    """Args:
    n: mixtures per batch.
    variant: "multimix" mixes embeddings, "dense" every position of a feature map.
    alpha: (low, high) of the uniform concentration of a mixture's Dirichlet weights.
    attention: of the dense variant: similarity to the pooled map ("gap_relu", "gap_softmax") or to the weights of the
        image's class ("cam_relu"), rectified over its sum or as a softmax over the positions.
    site: a stage's number or a module's name; None for the classifier's input, or the last stage if dense.
    chunk: mixtures whose weights are drawn at once; the fewer, the less memory is needed while they are made.
    prob: share of the batches that are mixed.
    """
    if variant == "dense":
        blend: Mixtures = DenseMixtures(n, alpha, attention, chunk)
    else:
        blend = Mixtures(n, alpha, chunk)
    usual: int | str = -1 if variant == "dense" else "embedding"
    return Pieces(essential=(Hidden((usual if site is None else site,)), blend), prob=prob)
