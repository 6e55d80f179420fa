"""DJMix: an image is mixed with its reconstruction by a discrete auto-encoder, and both must be predicted alike.

Hataya, Nakayama, "DJMix: Unsupervised Task-agnostic Image Augmentation for Improving Robustness of Convolutional Neural
Networks", IJCNN 2022, openreview:0n3BaVlNsHI.

A frozen VQ-VAE, trained without labels on the training images, takes an image through its codebook; what comes back
differs almost invisibly, and is mixed with the image. The network is trained on the image, and pays for the
Jensen–Shannon divergence of its predictions for the image and the mix. No other image is involved.
Equations: G(x), encode, quantise, decode → `mixwell.nets.vq.VQAutoEncoder`; x̃ = λ·x + (1-λ)·G(x) → `with_itself`;
ℓ + γ·JS(f(x), f(x̃)) → `JensenShannon` of AugMix.

The auto-encoder is made before training: `recipe.prepare(batches, data)`, which `mixwell train` and `mixwell prepare`
call. One of your own, any function of pixels in [0, 1], is given with `recipe.options[0].alone.use(autoencoder)`.

The authors published no code. The paper's idea is certain; λ ~ Beta(1, 1), γ = 1 and the task's loss on the clean image
are our choice where we could not check the paper, as is BatchNorm over both views together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.artefacts import Workshop
from mixwell.core.axes import Criterion, Need, Per, Scene, SelfBlend, Step, Term, per_of
from mixwell.core.errors import BatchError, MixwellError, ParameterError, number_in
from mixwell.core.mix import onto
from mixwell.core.registry import Pieces, method
from mixwell.core.rng import key_of, seeded
from mixwell.core.targets import Targets
from mixwell.nets.frozen import Frozen
from mixwell.nets.vq import VQAutoEncoder, train_vq, vq_autoencoder
from mixwell.sample.linear.augmix import JensenShannon

__all__ = ["BothViews", "VQReconstruction", "with_itself"]


def with_itself(
    images: Float[Tensor, "b ..."], reconstruction: Float[Tensor, "b ..."], lam: Float[np.ndarray, " #b"]
) -> Float[Tensor, "b ..."]:
    """λ·x + (1-λ)·G(x).

    Args:
        images: (B, ...) x.
        reconstruction: (B, ...) G(x), in the same range.
        lam: (B,), or (1,) for all.
    """
    weight = onto(1 - lam, images).to(images.dtype).view(-1, *(1,) * (images.ndim - 1))
    return torch.lerp(images, reconstruction.to(images.dtype), weight)


class VQReconstruction(SelfBlend):
    """Two views of an image: itself, and its mix with its reconstruction by a frozen discrete auto-encoder.

    Args:
        alpha: λ, the image's own share, is drawn from Beta(α, α).
        lam: a fixed λ in [0, 1] in place of a drawn one.
        per: one λ per "sample" or per "batch".
        first: which view the label is trained on.
        stride, channels, codes, dim: of the auto-encoder that `prepare` makes, see `vq_autoencoder`.
        beta, epochs: of its training, see `train_vq`.
    """

    gives = frozenset({Need.VIEWS})

    def __init__(
        self,
        alpha: float = 1.0,
        lam: float | None = None,
        per: Per = "sample",
        first: Literal["clean", "mixed"] = "clean",
        stride: int = 4,
        channels: int = 64,
        codes: int = 512,
        dim: int = 64,
        beta: float = 0.25,
        epochs: int = 10,
    ) -> None:
        super().__init__()
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.lam = None if lam is None else number_in("lam", lam, 0, 1)
        self.per = per_of(per)
        self.first = first
        self.stride, self.channels, self.codes, self.dim = stride, channels, codes, dim
        with torch.device("meta"):
            vq_autoencoder(1, stride, channels, codes, dim)  # a wrong number is told where it is written
        self.beta = number_in("beta", beta, 0)
        if epochs < 1:
            raise ParameterError(f"epochs must be a whole number ≥ 1, got {epochs!r}.")
        self.epochs = epochs
        self.autoencoder: Frozen | None = None
        self._own = False

    def use(self, autoencoder: Callable[[Tensor], Tensor]) -> None:
        """Take this auto-encoder in place of one that `prepare` makes.

        Args:
            autoencoder: pixels (B, C, H, W) in [0, 1] → their reconstruction in the same range and shape. A module is
                frozen, and moves with the recipe.
        """
        self.autoencoder, self._own = Frozen(autoencoder), True

    def prepare(self, workshop: Workshop) -> None:
        if self._own:
            return
        settings = {name: getattr(self, name) for name in ("stride", "channels", "codes", "dim", "beta", "epochs")}
        made = workshop.made("vq-autoencoder", settings, lambda: self._trained(workshop))
        net = self._net(made["encoder.0.weight"].shape[1])
        net.load_state_dict(made)
        self.autoencoder = Frozen(net).to(workshop.device)

    def _net(self, image_channels: int) -> VQAutoEncoder:
        with seeded(key_of("vq-autoencoder"), nn.Identity()):
            return vq_autoencoder(image_channels, self.stride, self.channels, self.codes, self.dim)

    def _trained(self, workshop: Workshop) -> dict[str, Tensor]:
        def pixels() -> Iterator[Tensor]:
            return (batch.raw.to(workshop.device, torch.float32) for batch in workshop.batches())

        def report(done: int) -> None:
            workshop.progress("VQ auto-encoder", done, self.epochs)

        net = self._net(next(pixels()).shape[1]).to(workshop.device)
        train_vq(net, pixels, self.epochs, self.beta, progress=report)
        return {name: value.cpu() for name, value in net.state_dict().items()}

    def draw(self, rows: int, rng: Generator) -> Float[np.ndarray, " #b"]:
        """λ."""
        count = 1 if self.per == "batch" else rows
        return rng.beta(self.alpha, self.alpha, count) if self.lam is None else np.full(count, self.lam)

    def images(self, draws: Float[np.ndarray, " #b"], scene: Scene) -> tuple[Float[Tensor, "b c h w"], ...]:
        """The clean batch and the mixed one, in the order in which they are trained.

        Raises:
            MixwellError: there is no auto-encoder yet.
            BatchError: the images have no pixel grid, other channels than the auto-encoder's, or no known
                normalisation; or the auto-encoder changes their shape.
        """
        batch = scene.batch
        if self.autoencoder is None:
            raise MixwellError(
                "djmix mixes images with their reconstruction by an auto-encoder, and there is none yet. Call "
                "recipe.prepare(batches, data) before training, which makes or loads it; `mixwell train` does so by "
                "itself."
            )
        if batch.images.ndim != 4:
            raise BatchError(
                f"djmix reconstructs pixel grids: expected images (B, C, H, W), got {tuple(batch.images.shape)}. Take "
                "a recipe such as mixup."
            )
        made = self.autoencoder(batch.raw)
        if made.shape != batch.images.shape:
            raise BatchError(
                "An auto-encoder must return images of the shape that it got: expected "
                f"{tuple(batch.images.shape)}, got {tuple(made.shape)}."
            )
        assert batch.pixels is not None, "raw pixels are known"
        mixed = with_itself(batch.images, batch.pixels.normalise(made), draws)
        return (batch.images, mixed) if self.first == "clean" else (mixed, batch.images)


class BothViews(Term):
    """Half of the second view's loss in place of half of the first's, so that both are trained alike."""

    needs = frozenset({Need.VIEWS})

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        (other,) = step.outputs.others
        first: Tensor = criterion(step.outputs.logits, targets, step.mix.valid)
        second: Tensor = criterion(other, targets, step.mix.valid)
        return (second - first) / 2


@method("djmix", section="1.1", paper="openreview:0n3BaVlNsHI", venue="IJCNN 2022")
def djmix(
    alpha: float = 1.0,
    lam: float | None = None,
    weight: float = 1.0,
    task: Literal["clean", "mixed", "both"] = "clean",
    per: Per = "sample",
    stride: int = 4,
    channels: int = 64,
    codes: int = 512,
    dim: int = 64,
    beta: float = 0.25,
    epochs: int = 10,
) -> Pieces:
    """Args:
    alpha: λ, the image's share against its reconstruction, is drawn from Beta(α, α).
    lam: a fixed λ in [0, 1] in place of a drawn one.
    weight: γ of the Jensen–Shannon divergence, ≥ 0.
    task: which image the task's loss sees: the clean one, the mixed one, or both, averaged.
    per: one λ per "sample" or per "batch".
    stride: pixels per code of the auto-encoder along each side, a power of 2; 8 for images of 224 pixels.
    channels: width of the auto-encoder's hidden layers.
    codes: size of its codebook.
    dim: size of a code.
    beta: weight of the commitment in its training.
    epochs: passes of its training over the training images.
    """
    first: Literal["clean", "mixed"] = "mixed" if task == "mixed" else "clean"
    blend = VQReconstruction(alpha, lam, per, first, stride, channels, codes, dim, beta, epochs)
    consistency = JensenShannon(weight)
    return Pieces(essential=(blend, consistency, BothViews()) if task == "both" else (blend, consistency))
