"""StackMix: stack two images into one of twice the size, with the mean of their labels.

Chen, Sinha, Kyrillidis, "StackMix: A Complementary Mix Algorithm", UAI 2022, arXiv:2011.12618.

The network sees an image above a random partner (or to its left) and learns half of each label; at evaluation every
image is stacked with itself. Equations: x̃ = concat(x_i, x_j) → `stacked`; ỹ = ½·y_i + ½·y_j → the mix's label shares.
A recipe given as `recipe` mixes the images before they are stacked: CutMix→StackMix is `stackmix(cutmix)`.

Paper and code: no official code was found; nothing is drawn but the partners. Networks must take the doubled size, or
`resize=true` shrinks the stack to the size of one image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.algebra import Node, Plain
from mixwell.core.axes import Blend, Need, Scene
from mixwell.core.mix import Mix, Partners
from mixwell.core.policy import Inner, InnerDraws
from mixwell.core.registry import Pieces, method

__all__ = ["Stack", "stacked"]

Axis = Literal["height", "width"]


def stacked(
    own: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], axis: Axis = "height", resize: bool = False
) -> Float[Tensor, "b c h2 w2"]:
    """`own` above `other`, or to its left.

    Args:
        axis: "height" stacks one above the other, "width" side by side.
        resize: shrink the stack to the size of one image, by the mean over areas.
    """
    stack = torch.cat((own, other), 2 if axis == "height" else 3)
    return F.interpolate(stack, own.shape[2:], mode="area") if resize else stack


class Stack(Blend):
    """An image and its partner in one.

    Args:
        recipe: what is done to the images first.
        axis: "height" or "width".
        resize: whether the stack is shrunk to the size of one image.
    """

    takes_lam = False
    hidden = False
    aligned = False

    def __init__(self, recipe: Node, axis: Axis = "height", resize: bool = False) -> None:
        super().__init__()
        self.inner = Inner(recipe, "stackmix")
        self.axis = axis
        self.resize = resize
        pair = {Need.PAIR} if self.inner.plain else set()
        self.gives = frozenset({Need.MASKS, Need.SIMPLEX, Need.OWN_ROW} | pair) & (self.inner.gives | pair)

    def draw(self, rows: int, rng: Generator) -> InnerDraws:
        return self.inner.draw(rows, rng)

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: InnerDraws,
        scene: Scene,
    ) -> Mix:
        first = self.inner.mix(images, draws, scene)
        other = partners.column()

        def both(x: Tensor, y: Tensor) -> Tensor:
            return stacked(x, y, self.axis, self.resize)

        def apply(x: Tensor) -> Tensor:
            mixed = first.apply(x)
            return both(mixed, partners.of(mixed))

        def masks(mix: Mix) -> Tensor:
            shown = first.shown(images.shape[2:])
            nothing = torch.zeros_like(shown)
            return torch.cat((both(shown, nothing), both(nothing, shown[other])), 1)

        def origins(mix: Mix) -> Tensor:
            seen = first.weights[:, :, None, None] if first.origins is None else first.origins
            seen = seen.expand(len(other), *seen.shape[1:])
            return torch.cat((seen, seen[other]), 1)

        return Mix(
            both(first.images, partners.of(first.images)),
            torch.cat((first.sources, first.sources[other]), 1),
            torch.cat((first.weights, first.weights[other]), 1) / 2,
            first.pool,
            apply,
            make_masks=masks,
            make_origins=origins,
        )

    def eval_images(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Each image stacked with itself."""
        return stacked(images, images, self.axis, self.resize)


@method("stackmix", section="1.3", paper="2011.12618", venue="UAI 2022")
def stackmix(recipe: Node | None = None, axis: Axis = "height", resize: bool = False, prob: float = 1.0) -> Pieces:
    """Args:
    recipe: mixes the images before they are stacked; none if not given.
    axis: "height" stacks one image above the other, "width" side by side.
    resize: shrink the stack to the size of one image, for networks of a fixed size.
    prob: share of the batches that are stacked.
    """
    return Pieces(Stack(recipe or Plain(), axis, resize), prob=prob)
