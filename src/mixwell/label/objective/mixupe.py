"""MixupE: mixup whose first directional derivative is asked for once more, on the clean images.

Zou, Verma, Mittal, Tang, Pham, Kannala, Bengio, Solin, Kawaguchi, "MixupE: Understanding and Improving Mixup from
Directional Derivative Perspective", UAI 2023, arXiv:2212.13381.

Mixup pulls every image a little towards the mean image and, unseen, keeps the loss from changing in that direction.
MixupE asks for that explicitly: of the network f on the clean batch it pushes Σ_c f_c·(Y - p)_c, to which the
derivative in the direction from the image to the mean comes down, towards 0. The total is then scaled back to the
value of the mixup loss, so that only its gradient is another.
Equations: q = Σ_c f_c·(Y - p)_c → `slopes`; λ̄ = (α + 1)/(2α + 1), the mean of Beta(α + 1, α) → `mean_lam`; L' = L_mix
+ η·(1 - λ̄)·mean|q| → `DirectionalDerivative`; (s / |L'|)·L' with s = |L_mix| → `keeping_value`; d = ∇_x(Σ_c f_c·(p -
Y)_c)·(x̄ - x) → `InputDerivative`.

p - Y is the gradient of the cross-entropy to the logits; beside another criterion it is that criterion's. Every mix
with an own row serves, with a second forward pass. Its λ̄ is that of the parameter `alpha`, which therefore should be
that of the ratio that is used.

Paper and code: the default is the paper's listing, in which p has a gradient. The authors' code has four versions,
which disagree in sign: "v1" adds the derivatives d below a threshold and "v2" their sizes |d|, with a detached p; "v3"
(of their README) and "v4" subtract q, the former where it is below a threshold, the latter with a detached p. d is the
derivative itself, for which the gradient to the images is differentiated again; x̄, the mean training image, is made
by `Recipe.prepare`, which `mixwell train` calls, or given with `recipe.options[0].wrapper.use(mean)`. η and α could
not be checked in the paper and are those of the code's README.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Criterion, LossWrapper, Need, Per, Step
from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, MixwellError, ParameterError, number_in
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.sample.linear.mixup import Linear

__all__ = ["DirectionalDerivative", "InputDerivative", "below", "keeping_value", "mean_image", "mean_lam", "slopes"]

Variant = Literal["paper", "v1", "v2", "v3", "v4"]


def mean_lam(alpha: float) -> float:
    """λ̄, the mean of Beta(α + 1, α)."""
    return (alpha + 1) / (2 * alpha + 1)


def slopes(
    logits: Float[Tensor, "b ..."], criterion: Criterion, targets: Targets, *, detached: bool = False
) -> Float[Tensor, " b"]:
    """q = Σ_c f_c·(Y - p)_c of each row, where p - Y is the gradient of the criterion to the logits, in fp32 at least.

    Args:
        logits: f, with a graph.
        detached: whether p - Y is a constant.
    """
    f = logits.to(torch.promote_types(logits.dtype, torch.float32))
    (pull,) = torch.autograd.grad(criterion.rows(f, targets).sum(), f, create_graph=not detached, retain_graph=True)
    return -(f * pull).flatten(1).sum(1)


def below(values: Float[Tensor, " b"], threshold: float) -> Float[Tensor, " b"]:
    """The values below the threshold; 0 in place of the others."""
    return torch.where(values < threshold, values, 0)


def keeping_value(total: Float[Tensor, ""], changed: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """(s / |L'|)·L' with s = |L|: as large as `total`, with the direction of the gradient of `changed`."""
    tiny = torch.finfo(changed.dtype).tiny
    return changed * (total.detach().abs() / changed.detach().abs().clamp_min(tiny))


def mean_image(batches: Iterable[Batch]) -> Float[Tensor, "1 ..."]:
    """x̄, the mean of all images, in fp32 on the CPU."""
    total, rows = torch.zeros(()), 0
    for batch in batches:
        total = total + batch.images.sum(0, keepdim=True, dtype=torch.float64)
        rows += len(batch)
    return (total / rows).float().cpu()


class _Regularised(LossWrapper):
    """What all versions share: a term is added to the total, which keeps its value.

    Args:
        alpha: α of λ̄.
        eta: weight η ≥ 0 of the term.
    """

    needs = frozenset({Need.OWN_ROW})

    def __init__(self, alpha: float, eta: float) -> None:
        super().__init__()
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.eta = number_in("eta", eta, 0)

    def derivative(self, step: Step, criterion: Criterion) -> Float[Tensor, " b"]:
        """What is minimised of each clean image."""
        raise NotImplementedError

    def term(self, step: Step, criterion: Criterion) -> Float[Tensor, ""]:
        """R, the mean over the clean batch, weighted by 1 - λ̄."""
        return (1 - mean_lam(self.alpha)) * self.derivative(step, criterion).mean()

    def wrap(self, total: Float[Tensor, ""], step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        if not total.requires_grad:  # only the gradient would be another
            return total
        return keeping_value(total, total + self.eta * self.term(step, criterion))


class DirectionalDerivative(_Regularised):
    """Pushes q = Σ_c f_c·(Y - p)_c of the clean batch towards 0, with the total's value kept.

    Args:
        alpha: α of λ̄.
        eta: weight η ≥ 0 of the term.
        variant: "paper" adds |q|, "v3" subtracts q where it is below the threshold, "v4" subtracts q with p detached.
        threshold: of "v3".
    """

    clean = True

    def __init__(
        self,
        alpha: float = 2.0,
        eta: float = 1e-3,
        variant: Literal["paper", "v3", "v4"] = "paper",
        threshold: float = 1.0,
    ) -> None:
        super().__init__(alpha, eta)
        self.variant = variant
        self.threshold = number_in("threshold", threshold)

    def derivative(self, step: Step, criterion: Criterion) -> Float[Tensor, " b"]:
        assert step.clean is not None, "a piece that asks for a clean pass got none"
        q = slopes(step.clean.logits, criterion, _labels(step), detached=self.variant == "v4")
        if self.variant == "paper":
            return q.abs()
        return -(below(q, self.threshold) if self.variant == "v3" else q)


class InputDerivative(_Regularised):
    """Pushes the derivative of the clean loss towards the mean image to 0, with the total's value kept.

    Args:
        alpha: α of λ̄.
        eta: weight η ≥ 0 of the term.
        variant: "v1" adds d where it is below the threshold, "v2" adds |d|.
        threshold: of "v1".
    """

    network = True

    def __init__(
        self, alpha: float = 2.0, eta: float = 1e-3, variant: Literal["v1", "v2"] = "v1", threshold: float = 1.0
    ) -> None:
        super().__init__(alpha, eta)
        self.variant = variant
        self.threshold = number_in("threshold", threshold)
        self.mean: Tensor | None
        self.register_buffer("mean", None, persistent=False)
        self._own = False

    def use(self, mean: Float[Tensor, "..."]) -> None:
        """Take this mean image (C, H, W) or (1, C, H, W), normalised as the images, in place of one that is made."""
        self.mean, self._own = mean, True

    def prepare(self, workshop: Workshop) -> None:
        if not self._own:
            made = workshop.made("mean-image", {}, lambda: {"mean": mean_image(workshop.batches())})
            self.mean = made["mean"].to(workshop.device)

    def derivative(self, step: Step, criterion: Criterion) -> Float[Tensor, " b"]:
        """d by a pass of its own.

        Raises:
            MixwellError: there is no mean image yet.
            BatchError: it is of another shape than the images.
        """
        direction = self._direction(step.batch.images.detach())
        views = step.scene.views
        assert views is not None, "a loss is taken through a network"
        images = step.batch.images.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # neither fused attention nor compiled code can be differentiated twice
            logits = views.probe.run(images, call=views.probe.net.forward).logits
            q = slopes(logits, criterion, _labels(step), detached=True)
            (gradient,) = torch.autograd.grad(-q.sum(), images, create_graph=True)
        d = (gradient.float() * direction).flatten(1).sum(1)
        return d.abs() if self.variant == "v2" else below(d, self.threshold)

    def _direction(self, images: Tensor) -> Float[Tensor, "b ..."]:
        """x̄ - x in fp32."""
        if self.mean is None:
            raise MixwellError(
                f"mixupe(variant={self.variant!r}) looks from each image towards the mean of all, which is not known. "
                "Call recipe.prepare(batches, data) before training, which makes it; `mixwell train` does so by itself."
            )
        mean = self.mean.to(images.device, torch.float32)
        if mean.shape[-(images.ndim - 1) :] != images.shape[1:]:
            raise BatchError(
                f"mixupe's mean image has the shape {tuple(mean.shape[-(images.ndim - 1) :])}, but the images are "
                f"{tuple(images.shape[1:])}. Prepare the recipe with images as they are trained on."
            )
        return mean - images.float()


def _labels(step: Step) -> Targets:
    return Targets.of(step.batch.labels)


@method("mixupe", section="2.1", paper="2212.13381", venue="UAI 2023")
def mixupe(
    variant: Variant = "paper",
    alpha: float = 2.0,
    eta: float = 1e-3,
    threshold: float | None = None,
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: the "paper"'s term, or a version of the authors' code: "v1", "v2", "v3" or "v4".
    alpha: λ ~ Beta(α, α), and α of the term's weight 1 - λ̄, also where another method brings the ratio.
    eta: weight η of the term.
    threshold: "v1" and "v3" count only images whose derivative is below it; 1 if not given.
    per: one λ per "sample" or per "batch".
    """
    if threshold is not None and variant not in ("v1", "v3"):
        raise ParameterError(f"mixupe: variant={variant!r} has no threshold, only 'v1' and 'v3' have. Leave it out.")
    limit = 1.0 if threshold is None else threshold
    wrapper: LossWrapper
    if variant == "v1" or variant == "v2":
        wrapper = InputDerivative(alpha, eta, variant, limit)
    else:
        wrapper = DirectionalDerivative(alpha, eta, variant, limit)
    return Pieces(wrapper, (Linear(), Beta(alpha, per=per)))
