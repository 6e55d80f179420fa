"""Local Mixup: mixup in which pairs of distant images count less.

Baena, Drumetz, Gripon, "Preventing Manifold Intrusion with Locality: Local Mixup", 2022, arXiv:2201.04368 (EUSIPCO 2022
as "A Local Mixup to Prevent Manifold Intrusion").

The mix of two distant images may fall among those of another class. The loss of each pair is therefore weighted by how
near its two original images are, in the Euclidean distance of their normalised values.
Equations: d_ij = ‖x_i - x_j‖ → `pair_distances`; the weights w_ij → `Exponential`, `Threshold`, `Nearest`;
L = Σ w·ℓ / Σ w → `LocalLoss`; the choice of a near partner → `NearPartners`.

Paper and code: the paper's K nearest neighbours are those in the whole data set, ours those in the batch; a row always
counts with itself. The authors' image scripts compute the weights but then return ones, and so train plain mixup
(`rule="code"`); their notebook of spirals multiplies the mean loss by the mean weight (`rule="notebook"`). Their CIFAR
notebook defines a variant that draws near partners instead (`variant="partners"`), with λ ~ U(0, ½) for the own image
and every pair counting 1. Distances grow with the number of values, so decays and thresholds do not carry over from one
resolution to another; `quantile` sets the threshold by the step's own distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Criterion, LossWrapper, Need, Pairing, Per, Scene, Step
from mixwell.core.errors import IncompatibleRecipe, ParameterError, number_in
from mixwell.core.mix import Partners, onto
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.sample.ksample.k_mixup import group_costs
from mixwell.sample.linear.mixup import Linear

__all__ = [
    "Exponential",
    "HalvedBeta",
    "LocalLoss",
    "NearPartners",
    "Nearest",
    "Rule",
    "Threshold",
    "distances",
    "near_partner",
    "pair_distances",
    "partner_shares",
]

Rule = Literal["paper", "code", "notebook"]


def pair_distances(images: Float[Tensor, "b ..."], partners: Partners) -> Float[Tensor, " r"]:
    """‖x_i - x_j‖ of each row's two images over all their values, in fp32 at least."""
    apart = partners.of(images).sub_(partners.of(images, -1))  # column -1 of the partners is the row itself
    wide = torch.promote_types(apart.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(apart, dim=tuple(range(1, apart.ndim)), dtype=wide)
    return norm


def distances(images: Float[Tensor, "b ..."]) -> Float[Tensor, "b b"]:
    """‖x_i - x_j‖ between all images of a batch, in fp32 at least."""
    return group_costs(images[None], images[None], "euclidean")[0].fill_diagonal_(0)


def partner_shares(apart: Float[Tensor, "b b"], decay: float) -> Float[Tensor, "b b"]:
    """The probability with which each row takes each for its partner: ∝ exp(-a·d_ij), itself included."""
    return torch.softmax(-decay * apart, 1)


def near_partner(shares: Float[Tensor, "b b"], points: Float[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """The partner on which each row's point in [0, 1) falls, where the rows of `shares` sum to 1."""
    ends = shares.cumsum(1)
    found = torch.searchsorted(ends, points.to(ends.dtype)[:, None], right=True)[:, 0]
    return found.clamp_max(shares.shape[1] - 1)


@dataclass(frozen=True)
class Exponential:
    """w = exp(-a·d).

    Attributes:
        decay: a ≥ 0.
    """

    decay: float

    def __call__(self, images: Float[Tensor, "b ..."], partners: Partners) -> Float[Tensor, " r"]:
        return (-self.decay * pair_distances(images, partners)).exp_()


@dataclass(frozen=True)
class Threshold:
    """w = 1 where d ≤ ε, else 0.

    Attributes:
        epsilon: ε, as a distance, or as a quantile in [0, 1] of the step's distances if `relative`.
        relative: which of the two.
    """

    epsilon: float
    relative: bool = False

    def __call__(self, images: Float[Tensor, "b ..."], partners: Partners) -> Float[Tensor, " r"]:
        apart = pair_distances(images, partners)
        limit = torch.quantile(apart, self.epsilon) if self.relative else self.epsilon
        return (apart <= limit).to(apart.dtype)


@dataclass(frozen=True)
class Nearest:
    """w = 1 where the partner is one of the K other rows that are nearest to the row, or the row itself; else 0.

    Attributes:
        k: K; in a batch of at most K + 1 rows every pair counts.
    """

    k: int

    def __call__(self, images: Float[Tensor, "b ..."], partners: Partners) -> Float[Tensor, " r"]:
        apart = distances(images)
        limits = apart.kthvalue(min(self.k + 1, len(apart)), 1).values  # the row itself is the first, at distance 0
        own, other = partners.sources.unbind(1)
        return (apart[own, other] <= limits[own]).to(apart.dtype)


class LocalLoss(LossWrapper):
    """Every mixed row counts in the loss as its pair is near.

    Args:
        graph: the weight of each row's pair, from the clean images.
        rule: "paper" takes the weighted mean of the rows' losses; "code" counts every row as 1; "notebook" multiplies
            the loss by the mean weight.
    """

    needs = frozenset({Need.PAIR})

    def __init__(self, graph: Exponential | Threshold | Nearest, rule: Rule = "paper") -> None:
        super().__init__()
        self.graph = graph
        self.rule = rule

    def weights(self, step: Step) -> Float[Tensor, " r"]:
        """The weight of each row's pair, in [0, 1].

        Raises:
            IncompatibleRecipe: rows are mixed with images of other batches.
        """
        mix, images = step.mix, step.batch.images
        if len(mix.pool) != len(images):
            raise IncompatibleRecipe(
                f"local_mixup measures the distance between two images of the batch, but this recipe mixes "
                f"{len(images)} images with sources from a pool of {len(mix.pool)}. Take partners from the batch, such "
                "as mixup's."
            )
        return self.graph(images.detach(), Partners(mix.sources, mix.pool))

    def counts(self, step: Step) -> Float[Tensor, " r"] | None:
        return self.weights(step) if self.rule == "paper" else None

    def wrap(self, total: Float[Tensor, ""], step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        return total * self.weights(step).mean() if self.rule == "notebook" else total


class NearPartners(Pairing):
    """Partners drawn from the batch with probability ∝ exp(-a·d); a row may meet itself.

    Args:
        decay: a ≥ 0; 0 draws uniformly.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) points, uniform in [0, 1), on each row's cumulative probabilities."""
        return rng.random(rows, np.float32)

    def partners(self, draws: np.ndarray, scene: Scene) -> Partners:
        images = scene.batch.images
        shares = partner_shares(distances(images), self.decay)
        return Partners.at(near_partner(shares, onto(draws, images))[:, None], scene.batch.labels)


class HalvedBeta(Beta):
    """λ ~ Beta(α, α) / 2: the partner outweighs the own image."""

    def lam(self, draws: np.ndarray, scene: Scene) -> Float[Tensor, " #r"]:
        return torch.from_numpy(draws / 2)


@method("local_mixup", section="1.1", paper="2201.04368", venue="EUSIPCO 2022")
def local_mixup(
    variant: Literal["weights", "partners"] = "weights",
    graph: Literal["exponential", "threshold", "knn"] = "exponential",
    decay: float | None = None,
    epsilon: float | None = None,
    quantile: float | None = None,
    k: int | None = None,
    rule: Rule = "paper",
    alpha: float = 1.0,
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: "weights" weights the loss of each pair, "partners" draws near partners instead.
    graph: the weight of a pair at distance d: "exponential" exp(-a·d), "threshold" 1 up to ε, "knn" 1 for neighbours.
    decay: a of "exponential" and of "partners"; 0.0005 and 0.001 if not given, for normalised images of 32×32.
    epsilon: ε of "threshold"; the authors take 35 for normalised CIFAR-10.
    quantile: ε of "threshold" as a quantile of each step's distances, in place of epsilon.
    k: how many nearest rows of the batch are neighbours in "knn".
    rule: "paper" averages the losses by weight, "code" counts every pair as 1 (the authors' image scripts), "notebook"
        multiplies the mean loss by the mean weight (their spirals).
    alpha: λ ~ Beta(α, α); half of that for "partners".
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch".
    """
    given = {"decay": decay, "epsilon": epsilon, "quantile": quantile, "k": k}
    known = {"exponential": ("decay",), "threshold": ("epsilon", "quantile"), "knn": ("k",)}[graph]
    for name, value in given.items():
        if value is not None and name not in known:
            raise ParameterError(f"local_mixup: graph={graph!r} has no {name}. Leave it out, or take another graph.")
    if graph != "exponential" and sum(given[name] is not None for name in known) != 1:
        raise ParameterError(
            f"local_mixup: graph={graph!r} needs {' or '.join(known)}, as no value suits every kind of data. "
            "Give exactly one."
        )
    if variant == "partners":
        if graph != "exponential" or rule != "paper":
            raise ParameterError(
                "local_mixup: variant='partners' draws partners by exp(-decay·distance) and weights no loss, so graph "
                "and rule have no effect. Leave them out."
            )
        pairing = NearPartners(number_in("decay", 1e-3 if decay is None else decay, 0))
        return Pieces(pairing, (Linear(), HalvedBeta(alpha, per=per)), prob)
    return Pieces(LocalLoss(_graph(decay, epsilon, quantile, k), rule), (Linear(), Beta(alpha, per=per)), prob)


def _graph(
    decay: float | None, epsilon: float | None, quantile: float | None, k: int | None
) -> Exponential | Threshold | Nearest:
    """The graph of the one parameter that is given."""
    hint = "For plain training without mixing use the recipe 'none'."
    if epsilon is not None:
        return Threshold(number_in("epsilon", epsilon, 0, open_low=True, hint=hint))
    if quantile is not None:
        return Threshold(number_in("quantile", quantile, 0, 1, open_low=True, hint=hint), relative=True)
    if k is not None:
        return Nearest(int(number_in("k", k, 1, hint=hint)))
    return Exponential(number_in("decay", 5e-4 if decay is None else decay, 0))
