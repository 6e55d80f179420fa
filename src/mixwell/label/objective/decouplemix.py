"""DecoupleMix: let both mixed classes be confident at once.

Liu, Li, Wang, Tan, Wu, Li, "Harnessing Hard Mixed Samples with Decoupled Regularizer", NeurIPS 2023, arXiv:2203.10761.

To the mixed cross-entropy it adds, for each of the two classes, a cross-entropy whose softmax leaves the other class
out, so that the two do not compete. It acts on any mix of two images with class ids. Equations: -log φ_{a|b} →
`decoupled`; DM(CE) → `Decoupled`; DM(BCE) → `DecoupledBinary`; r(λ; t, ξ) → `rescaled`.

Paper and code: the paper's regulariser does not contain λ; OpenMixup weights each side by r(λ) (`rescale="pow"` or
"exp") and may keep only the heavier or lighter side (`sides="more"` or "less"). Its code reads the two classes off the
first sample, which swaps the weights of a whole batch, and falls back to cross-entropy where one λ per sample is drawn;
ours works by index and per sample. As there, the regulariser is left out where the smaller share is below 0.001, and
for two images of one class. `sides="own"` is the asymmetric rule of semi-supervised training, in which the partner's
label is a guess.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mixwell.core.axes import Criterion, Need
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets

__all__ = ["Decoupled", "DecoupledBinary", "Rescale", "Sides", "decoupled", "rescaled"]

Rescale = Literal["none", "pow", "exp"]
Sides = Literal["both", "more", "less", "own"]


def decoupled(logits: Float[Tensor, "r c"], classes: Int[Tensor, "r 2"]) -> Float[Tensor, "r 2"]:
    """-log φ_{a|b} and -log φ_{b|a}: cross-entropy of each class with the other out of the softmax; 0 where a = b."""
    wanted = logits.gather(1, classes)
    rest = [logits.scatter(1, classes[:, other : other + 1], float("-inf")).logsumexp(1) for other in (1, 0)]
    same = classes[:, :1] == classes[:, 1:]
    return torch.where(same, 0, torch.stack(rest, 1) - wanted)


def rescaled(shares: Float[Tensor, "..."], rescale: Rescale, exponent: float, threshold: float) -> Float[Tensor, "..."]:
    """r(λ; t, ξ): 1 from the threshold t on; below it (λ/t)^ξ, or the exponential form with base ξ. "none" gives 1."""
    if rescale == "none":
        return torch.ones_like(shares)
    if rescale == "pow":
        below = (shares / threshold) ** exponent
    else:
        floor = exponent ** (-2 * threshold)
        below = (exponent ** (2 * shares - 2 * threshold) - floor) / (1 - floor)
    return torch.where(shares >= threshold, torch.ones_like(shares), below)


class Decoupled(Criterion):
    """DM(CE): soft cross-entropy plus η times the decoupled terms of the chosen sides.

    Args:
        eta: weight η ≥ 0.
        sides: which of the two classes get a term: "both", the one with share ≥ ½ ("more") or < ½ ("less"), or the
            image's "own".
        rescale, exponent, threshold: weight of a term by its label share, as `rescaled`; "none" is the paper's.
    """

    needs = frozenset({Need.PAIR})
    smoothable = weightable = False

    def __init__(
        self,
        eta: float,
        sides: Sides = "both",
        rescale: Rescale = "none",
        exponent: float = 1.0,
        threshold: float = 1.0,
    ) -> None:
        super().__init__()
        self.eta = number_in("eta", eta, 0)
        self.sides, self.rescale = sides, rescale
        self.exponent = number_in("exponent", exponent, 0)
        self.threshold = number_in("threshold", threshold, 0, 1, open_low=True)

    def side_weights(self, shares: Float[Tensor, "r 2"]) -> Float[Tensor, "r 2"]:
        """The weight of each side's term."""
        own = torch.tensor([True, False], device=shares.device)
        kept = {"both": torch.ones_like(own), "more": shares >= 0.5, "less": shares < 0.5, "own": own}[self.sides]
        weights = self.eta * rescaled(shares, self.rescale, self.exponent, self.threshold)
        return torch.where(kept & (shares.amin(1, keepdim=True) >= 1e-3), weights, 0)

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        logits, classes = logits.to(torch.promote_types(logits.dtype, torch.float32)), targets.classes
        mixed = -(targets.weights * F.log_softmax(logits, 1).gather(1, classes)).sum(1)
        if classes.shape[1] == 1:  # a term's clean batch
            return mixed
        return mixed + (self.side_weights(targets.weights) * decoupled(logits, classes)).sum(1)


class DecoupledBinary(Criterion):
    """DM(BCE): sigmoid cross-entropy, summed over classes, towards rescaled shares, which may sum to more than 1.

    Args:
        sides: "both", or "own" to rescale only the image's own share.
        rescale, exponent, threshold: as `rescaled`.
    """

    needs = frozenset({Need.PAIR})
    smoothable = weightable = False

    def __init__(self, sides: Sides, rescale: Rescale, exponent: float, threshold: float) -> None:
        super().__init__()
        self.sides, self.rescale = sides, rescale
        self.exponent = number_in("exponent", exponent, 0)
        self.threshold = number_in("threshold", threshold, 0, 1, open_low=True)

    def wanted(self, targets: Targets, num_classes: int) -> Float[Tensor, "r c"]:
        """(R, C) targets; at most 1 where both images are of one class."""
        shares = targets.weights
        new = rescaled(shares, self.rescale, self.exponent, self.threshold) if self.rescale != "none" else shares
        if self.sides == "own" and shares.shape[1] == 2:
            new = torch.stack((new[:, 0], shares[:, 1]), 1)
        rows = new.new_zeros(len(targets), num_classes)
        return rows.scatter_add_(1, targets.classes, new).clamp_max(1)

    def rows(self, logits: Float[Tensor, "r c"], targets: Targets) -> Float[Tensor, " r"]:
        wanted = self.wanted(targets, logits.shape[1])
        return F.binary_cross_entropy_with_logits(logits.float(), wanted.float(), reduction="none").sum(1)

    def probabilities(self, logits: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


@method("decouplemix", section="2.1", paper="2203.10761", venue="NeurIPS 2023", gate="")
def decouplemix(
    variant: Literal["ce", "bce"] = "ce",
    eta: float | None = None,
    sides: Sides = "both",
    rescale: Rescale | None = None,
    exponent: float = 1.0,
    threshold: float | None = None,
) -> Pieces:
    """Args:
    variant: "ce" on the softmax, "bce" on sigmoids.
    eta: weight η of the decoupled terms of "ce"; 0.1 if not given.
    sides: "both" classes, the "more" or "less" present one, or the image's "own" (semi-supervised).
    rescale: weight of a side by its label share: "none" (default of "ce"), "pow" (default of "bce") or "exp".
    exponent: ξ of the rescaling.
    threshold: share t from which on a class counts fully; 1 for "ce", 0.8 for "bce" if not given.
    """
    if variant == "bce":
        if eta is not None or sides not in ("both", "own"):
            raise ParameterError(
                "decouplemix: variant='bce' has no eta, and its sides are 'both' or 'own'. Leave them out."
            )
        return Pieces(DecoupledBinary(sides, rescale or "pow", exponent, 0.8 if threshold is None else threshold))
    return Pieces(
        Decoupled(
            0.1 if eta is None else eta, sides, rescale or "none", exponent, 1.0 if threshold is None else threshold
        )
    )
