"""CAMixup: mixup only for classes on which the network is surer than it is right.

Wen, Jerfel, Muller, Dusenberry, Snoek, Lakshminarayanan, Tran, "Combining Ensembles and Data Augmentation can Harm your
Calibration", ICLR 2021, arXiv:2010.09875.

Mixed labels and the averaging of an ensemble both lower confidence, too much together. Before every epoch but the
first, accuracy and confidence of each class are measured on held-out images; in the epoch, images of classes where
accuracy exceeds confidence stay as they are, and the others are mixed with the batch in reverse order, by a λ of at
least ½. In the first epoch nothing is mixed.
Equations: accuracy - confidence of each class → `gap_sums`; α of a class that is mixed, 1 of one that is not →
`coefficients`; max(λ, 1-λ) with λ ~ Beta(α, α) → `folded`; partners N-1-i → `Reverse`.

`mixwell train` keeps a tenth of the training images for it; a loop of your own calls `recipe.use_data(held_out=...)`
once and `recipe.before_epoch(model)` at each epoch's start. It is the image's own class that counts, not its partner's;
of label rows, whether the classes that are mixed make up half of it.

Paper and code: the paper's name is class adjusted, the code's confidence adjusted. A class without held-out images
keeps its α, where the code has no number. α ≥ 1 would mix nothing, and is refused. Members of an ensemble have
coefficients of their own, which `gap_sums` and `coefficients` give; a recipe trains one network. α could not be checked
in the paper.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Need, Pairing, Ratio, Scene
from mixwell.core.batch import Batch
from mixwell.core.clock import Clock
from mixwell.core.errors import BatchError, MixwellError, ParameterError, number_in
from mixwell.core.mix import Partners, onto
from mixwell.core.registry import Pieces, method
from mixwell.core.splits import Splits, summed_over_processes
from mixwell.probe import Anatomy
from mixwell.probe.capture import logits_of
from mixwell.probe.trace import untouched
from mixwell.sample.linear.mixup import Linear

__all__ = ["ClassAdjusted", "Reverse", "coefficients", "folded", "gap_sums"]


def gap_sums(
    probabilities: Float[Tensor, "e m c"], labels: Shaped[Tensor, "m ..."]
) -> tuple[Float[Tensor, "e c"], Float[Tensor, " c"]]:
    """Accuracy minus confidence, summed over the images of each class, and how many images these are; in fp64.

    Args:
        probabilities: (E, M, C) of each member of an ensemble, for each image.
        labels: (M,) class ids, or (M, C) rows that sum to 1, which count in each class by its share.
    """
    probabilities = probabilities.double()
    confidence, guess = probabilities.max(2)
    if labels.is_floating_point():
        shares = labels.double()
    else:
        shares = nn.functional.one_hot(labels.long(), probabilities.shape[2]).double()
    right = shares.expand_as(probabilities).gather(2, guess[..., None])[..., 0]
    return (right - confidence) @ shares, shares.sum(0)


def coefficients(
    gaps: Float[Tensor, "... c"], alpha: float, before: Float[Tensor, "... c"] | float = 1.0
) -> Float[Tensor, "... c"]:
    """1 for classes that are not mixed, as accuracy exceeds confidence, α for the others.

    Args:
        gaps: accuracy minus confidence; NaN for classes without images, which keep what they had `before`.
    """
    found = torch.full_like(gaps, alpha).masked_fill(gaps > 0, 1)
    return torch.where(gaps.isnan(), before, found)


def folded(drawn: Float[Tensor, "..."], coefficient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """λ in [½, 1] of each image: max(λ, 1-λ) of the drawn one where its coefficient is below 1, else 1."""
    lam = torch.where(coefficient < 1, drawn, 1.0)
    return torch.maximum(lam, 1 - lam)


class Reverse(Pairing):
    """Image i is mixed with image N-1-i; the middle one of an odd batch with itself."""

    def partners(self, draws: None, scene: Scene) -> Partners:
        own = np.arange(len(scene.batch))
        return Partners(onto(np.stack((own, own[::-1])).T, scene.batch.images), scene.batch.labels)


class ClassAdjusted(Ratio):
    """λ ≥ ½ for images of classes on which the network is surer than right, 1 for the others.

    Attributes:
        coefficients: (C,) α for classes that are mixed in this epoch, 1 for the others; once it is built.

    Args:
        alpha: of Beta(α, α), in (0, 1).
    """

    needs = frozenset({Need.OWN_ROW})
    network = True
    held_out = True

    def __init__(self, alpha: float = 0.4) -> None:
        super().__init__()
        self.alpha = number_in(
            "alpha", alpha, 0, 1, open_low=True, open_high=True, hint="From 1 on it would stand for no mixing."
        )
        self.coefficients: Tensor

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        if num_classes is None:
            raise ParameterError("camixup measures confidence per class. Give num_classes to mixwell.create.")
        device = next((parameter.device for parameter in anatomy.net.parameters()), None)
        self.register_buffer("coefficients", torch.ones(num_classes, device=device))

    def before_epoch(self, net: nn.Module, data: Splits, clock: Clock) -> None:
        """Measure every class on the held-out images; before the first step nothing is known, and nothing mixed.

        Raises:
            BatchError: images have several labels, so that no class can be right or wrong.
            MixwellError: there are no held-out images.
        """
        batches = data.held_out()
        if clock.step == 0:
            return
        with untouched(net), torch.no_grad():
            found = [self._measured(net, batch) for batch in batches]
        if not found:
            raise MixwellError("camixup measures classes on held-out images, but there are none. Hold out some more.")
        sums, counts = summed_over_processes(torch.stack(found).sum(0))
        gaps = (sums / counts).to(self.coefficients)
        self.coefficients.copy_(coefficients(gaps, self.alpha, self.coefficients))

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) λ ~ Beta(α, α), whether it is used or not."""
        return rng.beta(self.alpha, self.alpha, rows)

    def lam(self, draws: np.ndarray, scene: Scene) -> Float[Tensor, " r"]:
        labels = scene.batch.labels
        known = self.coefficients.to(labels.device)
        if labels.is_floating_point():
            mixed = labels @ (known < 1).to(labels.dtype) >= labels.sum(1) / 2
            own = torch.where(mixed, self.alpha, 1.0)
        else:
            own = known[labels.long()]
        return folded(onto(draws, labels), own)

    def _measured(self, net: nn.Module, batch: Batch) -> Float[Tensor, "2 c"]:
        labels = batch.labels
        if labels.is_floating_point() and not torch.allclose(labels.sum(1), labels.new_ones(len(labels)), atol=1e-2):
            raise BatchError(
                "camixup asks of each class how often it is right: expected class ids or label rows that sum to 1, got "
                "images with several labels. Take another ratio for multi-label data."
            )
        sums, counts = gap_sums(logits_of(net(batch.images)).double().softmax(1)[None], labels)
        return torch.stack((sums[0], counts))


@method("camixup", section="2.2", paper="2010.09875", venue="ICLR 2021")
def camixup(alpha: float = 0.4) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α) for the classes that are mixed, in (0, 1); the paper takes less on ImageNet, 0.2.
    """
    return Pieces(ClassAdjusted(alpha), (Reverse(), Linear()))
