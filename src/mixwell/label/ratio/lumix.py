"""LUMix: a part of the label is what the network sees of each image, and a part is chance.

Sun, Chen, He, Yuille, Torr, Bai, "LUMix: Improving Mixup by Better Modelling Label Uncertainty", ICASSP 2024,
arXiv:2211.15846.

A pasted patch need not show the object that gives its image the label, so that shares by area are uncertain. LUMix
mixes them with the share that the network itself predicts of the two classes, and with a random one; a hinge asks the
network to see both classes. It acts on any mix of two images. The paper's hosts take turns: "0.5*(cutmix + lumix) |
0.5*(mixup(alpha=0.8) + lumix)".
Equations: λ_s = p_a / (p_a + p_b) → the sigmoid of a difference in `presence`; λ = λ_0·(1 - r_s - r_r) + λ_s·r_s +
λ_r·r_r → `uncertain`; Σ_c y_c·max(0, b_c - p_c) → `hinge`, b → `mixed_classes`.

Here λ weights the image's own row; in the pseudo-code it weights the partner's. The prediction is detached, so that the
network cannot move its own target; the hinge's is not. λ_s does not depend on other classes' logits, and two images of
one class give ½. Label rows take the mean probability of their classes; an image without any keeps λ_0.

The authors published no code, only a page that announces it: what is here follows the paper's pseudo-code. Its equation
lacks the factor r_r, without which λ could exceed 1; and what it reads off as y > min(y) is taken by index, which label
smoothing does not disturb. r_s, r_r and α could not be checked in the paper and are our choice.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Criterion, Label, Need, Step, Term
from mixwell.core.errors import BatchError, ParameterError, number_in
from mixwell.core.mix import onto
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.sample.cutting.cutmix import Box

__all__ = ["Hinge", "UncertainShares", "hinge", "mixed_classes", "presence", "uncertain"]


def presence(logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, "r k"]:
    """How much the network sees of each source: the logit of its class, log mean exp of the logits of several classes.

    Of log-probabilities it makes log-probabilities. NaN for a source whose label row is empty.

    Raises:
        BatchError: the labels are neither class ids nor label rows.
    """
    if targets.hard:
        return logits.gather(1, targets.classes)
    if targets.pool.ndim != 2:
        raise BatchError(
            "lumix compares what the network says of the classes of two images: expected class ids or label rows "
            f"(B, C), got labels of shape {tuple(targets.pool.shape)}."
        )
    rows = targets.pool[targets.sources].to(logits.dtype)
    return (logits[:, None] + rows.log()).logsumexp(2) - rows.sum(2).log()


def uncertain(
    shares: Float[Tensor, "r 2"],
    seen: Float[Tensor, "r 2"],
    noise: Float[Tensor, " r"],
    r_s: float,
    r_r: float,
) -> Float[Tensor, "r 2"]:
    """Label shares λ, 1-λ with λ = λ_0·(1 - r_s - r_r) + λ_s·r_s + λ_r·r_r.

    Args:
        shares: λ_0, 1-λ_0.
        seen: `presence` of both sources; where one is NaN, λ_s = λ_0.
        noise: λ_r.
        r_s, r_r: weights of λ_s and λ_r.
    """
    predicted = torch.sigmoid(seen[:, 0] - seen[:, 1]).to(shares.dtype)  # p_a / (p_a + p_b), without overflow
    predicted = torch.where(predicted.isnan(), shares[:, 0], predicted)
    own = shares[:, 0] * (1 - r_s - r_r) + predicted * r_s + noise.to(shares.dtype) * r_r
    return torch.stack((own, 1 - own), 1)


def mixed_classes(wanted: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """b: 1 for every class that is in the mix."""
    return (wanted > 0).to(wanted.dtype)


def hinge(p: Float[Tensor, "r c"], wanted: Float[Tensor, "r c"]) -> Float[Tensor, " r"]:
    """Σ_c y_c·max(0, b_c - p_c): 0 where the network is certain of every class that is in the mix.

    Args:
        p: probabilities.
        wanted: y, label shares without smoothing.
    """
    return (wanted * (mixed_classes(wanted) - p).clamp_min(0)).sum(1)


class UncertainShares(Label):
    """Label shares of the blend, mixed with the network's own guess and with chance.

    Args:
        r_s: weight of the network's guess in [0, 1].
        r_r: weight of chance in [0, 1 - r_s].
        alpha: λ_r ~ Beta(α, α), one per image.
    """

    needs = frozenset({Need.PAIR, Need.SIMPLEX})
    network = True

    def __init__(self, r_s: float = 0.4, r_r: float = 0.1, alpha: float = 1.0) -> None:
        super().__init__()
        self.r_s = number_in("r_s", r_s, 0, 1)
        self.r_r = number_in("r_r", r_r, 0, 1)
        if self.r_s + self.r_r > 1:
            raise ParameterError(
                f"r_s + r_r must be at most 1, got {r_s} + {r_r}; the rest is the weight of the blend's own shares."
            )
        self.alpha = number_in("alpha", alpha, 0, open_low=True)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) λ_r of each image."""
        return rng.beta(self.alpha, self.alpha, rows)

    def targets(self, step: Step) -> Targets:
        found = step.mix.targets()
        seen = presence(step.outputs.logits.detach().float(), found)
        noise = onto(step.draws[self], seen)
        each = len(found) // len(noise)  # an image's mixes share its draw, where it has several
        return step.mix.targets(uncertain(found.weights, seen, noise.repeat(each), self.r_s, self.r_r))


class Hinge(Term):
    """The hinge that asks for every mixed class to be seen, on batches that are mixed.

    Args:
        weight: of the term, ≥ 0.
    """

    needs = frozenset({Need.PAIR})

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = number_in("weight", weight, 0)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        p = criterion.probabilities(step.outputs.logits)
        return self.weight * step.mix.mean(hinge(p, targets.dense(p.shape[1]).to(p.dtype)))


@method("lumix", section="2.3", paper="2211.15846", venue="ICASSP 2024")
def lumix(r_s: float = 0.4, r_r: float = 0.1, alpha: float = 1.0, weight: float = 1.0) -> Pieces:
    """Args:
    r_s: share of the label that follows the network's own guess.
    r_r: share of the label that is chance; r_s + r_r ≤ 1.
    alpha: that chance is λ_r ~ Beta(α, α) for each image.
    weight: of the hinge.
    """
    return Pieces((UncertainShares(r_s, r_r, alpha), Hinge(weight)), Box())
