"""What tells where an image is salient: sources that methods name, and that may be exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixwell.core.axes import Piece, Scene
from mixwell.core.errors import BatchError, ParameterError, closest
from mixwell.ops.saliency import fine_grained, spectral_residual
from mixwell.ops.tokens import grid_of
from mixwell.probe import Anatomy, Views, Want

__all__ = ["Saliency", "Source", "resized", "saliency_of", "source_of"]

Source = Literal["fine_grained", "spectral", "gradient", "cam", "activation", "attention", "patch_attention"]
"""Names of the sources, in the order of what they cost."""


class Saliency(Piece):
    """A source of saliency maps; a part of the piece that uses it, which hands on `build`, `wants` and `views`."""

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        """A map ≥ 0 per image of the clean batch, fp32 and detached, at the source's own resolution."""
        raise NotImplementedError


class FineGrained(Saliency):
    """Contrast of a pixel's brightness with its surroundings at six scales (Montabone and Soto; OpenCV's fine-grained).

    Reads raw pixels, rounded to 256 levels.
    """

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        batch = replace(scene.batch, images=scene.batch.images.detach().float())  # half precision has other levels
        return fine_grained((batch.raw.clamp(0, 1) * 255).round().to(torch.uint8)).float()


class SpectralResidual(Saliency):
    """What a grey image's log spectrum has beyond its own local mean (Hou and Zhang)."""

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        return spectral_residual(scene.batch.images.detach())


class _Looking(Saliency):
    network = True

    def looks(self, scene: Scene) -> Views:
        """The clean batch through the network.

        Raises:
            BatchError: there is no network at hand.
        """
        if scene.views is None:
            raise BatchError(
                "This saliency is read from the network. Use recipe(model, images, labels) in the training loop."
            )
        return scene.views


class InputGradient(_Looking):
    """Root mean square over channels of the clean loss's gradient with respect to the image."""

    def views(self) -> tuple[Want, ...]:
        return (Want("gradient", "input"),)

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        gradient = self.looks(scene).gradient().float()
        return gradient.square().mean(1).sqrt()


class Activation(_Looking):
    """Size of the activations of a stage, summed over channels.

    Args:
        site: stage number or module name.
    """

    def __init__(self, site: int | str = -1) -> None:
        super().__init__()
        self.site = site

    def views(self) -> tuple[Want, ...]:
        return (Want("features", self.site),)

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        return self.looks(scene).features(self.site).float().abs().sum(1)


class ClassActivation(_Looking):
    """Class activation map of each image's own class, from 0 at its least place; soft labels weight the classes'."""

    def views(self) -> tuple[Want, ...]:
        return (Want("features", -1),)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        anatomy.site(-1)
        _ = anatomy.classifier

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        found = self.looks(scene).cam()
        return found - found.amin((1, 2), keepdim=True)


class ClassAttention(_Looking):
    """Attention of a transformer's class token to each patch, in its last block."""

    def views(self) -> tuple[Want, ...]:
        return (Want("class_attention", -1),)

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        return _on_grid(self.looks(scene).class_attention(), scene)


class PatchAttention(_Looking):
    """Attention of a transformer's patches to each patch, in its last block."""

    def views(self) -> tuple[Want, ...]:
        return (Want("patch_attention", -1),)

    def maps(self, scene: Scene) -> Float[Tensor, "b h w"]:
        return _on_grid(self.looks(scene).patch_attention(), scene)


def _on_grid(attention: Float[Tensor, "b n"], scene: Scene) -> Float[Tensor, "b h w"]:
    """Attention to the patches, at their places."""
    height, width = scene.batch.images.shape[-2:]
    return attention.float().view(len(attention), *grid_of(attention.shape[1], height / width, "the last block"))


_SOURCES: dict[str, Callable[[], Saliency]] = {
    "fine_grained": FineGrained,
    "spectral": SpectralResidual,
    "gradient": InputGradient,
    "cam": ClassActivation,
    "activation": Activation,
    "attention": ClassAttention,
    "patch_attention": PatchAttention,
}


def source_of(value: str) -> Source:
    """`value` as the name of a source.

    Raises:
        ParameterError: it is none.
    """
    for name in get_args(Source):
        if value == name:
            found: Source = name
            return found
    raise ParameterError(f"Unknown saliency {value!r}: {closest(value, get_args(Source))}")


def saliency_of(name: str) -> Saliency:
    """The source of that name.

    Raises:
        ParameterError: there is none.
    """
    return _SOURCES[source_of(name)]()


def resized(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b y x"]:
    """Maps at another resolution: bilinear where it is finer, means of the places where it is coarser."""
    if maps.shape[1:] == size:
        return maps
    if size[0] <= maps.shape[1] and size[1] <= maps.shape[2]:
        return F.adaptive_avg_pool2d(maps[:, None], size)[:, 0]
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
