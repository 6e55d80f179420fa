"""How images are mixed: one answer per axis of the sample policy, in a recipe or inside a piece of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.algebra import Node
from mixwell.core.axes import Blend, Draws, Need, Pairing, Piece, Ratio, Scene, SelfBlend, Slot
from mixwell.core.compose import Chosen, compose
from mixwell.core.errors import BatchError, IncompatibleRecipe
from mixwell.core.mix import Mix, Partners
from mixwell.core.plain import OF_A_PAIR, Beta, Permutation

__all__ = ["Inner", "InnerDraws", "Policy", "picked"]

_NO_LAM = torch.full((1,), torch.nan)
_SLOTS = frozenset({Slot.SELF, Slot.PAIRING, Slot.RATIO, Slot.BLEND})


class Policy(nn.Module):
    """Who mixes with whom, how much of each, and how. What the blend does not use is not there.

    Attributes:
        alone, pairing, ratio, blend: the pieces, or None.
        owners: the method that each piece came from.
    """

    def __init__(self, chosen: Chosen) -> None:
        super().__init__()
        self.alone = cast(SelfBlend | None, chosen.pieces.get(Slot.SELF))
        self.blend = blend = cast(Blend | None, chosen.pieces.get(Slot.BLEND))
        self.pairing: Pairing | None = None
        self.ratio: Ratio | None = None
        if blend is not None and blend.partners:
            self.pairing = cast(Pairing, chosen.pieces.get(Slot.PAIRING) or Permutation(blend.partners))
        if blend is not None and blend.takes_lam:
            self.ratio = cast(Ratio, chosen.pieces.get(Slot.RATIO) or Beta(1.0))
        self.owners = chosen.owners

    @property
    def mixing(self) -> tuple[Piece, ...]:
        """Its pieces, in the order in which a step meets them."""
        return tuple(piece for piece in (self.alone, self.pairing, self.ratio, self.blend) if piece is not None)

    def views(self, scene: Scene) -> tuple[Float[Tensor, "b ..."], ...]:
        """The images that go into the mix: the batch's own, or the views that are made of each."""
        if self.alone is None:
            return (scene.batch.images,)
        return self.alone.images(scene.draws.of.get(self.alone), scene)

    def lam(self, scene: Scene) -> Float[Tensor, " #n"]:
        """λ of the step; one NaN if the blend takes none."""
        if self.ratio is None or self.blend is None:
            return _NO_LAM
        if self.ratio.network:
            scene.pairs = self.blend.pairs(len(scene.batch))
            scene.partners = partial(self._partners, scene)
        return self.ratio.lam(scene.draws.of.get(self.ratio), scene)

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        scene: Scene,
        partners: Partners | None = None,
        lam: Float[Tensor, " #n"] | None = None,
    ) -> Mix:
        """Mix pixels, or the map of the scene's site; with `partners` and `lam` in place of the pieces' if given."""
        blend = self.blend
        if blend is None:
            return Mix.plain(images, scene.batch.labels)
        if blend.grid and images.ndim != 4:
            raise BatchError(
                f"{self.owners[blend]} cuts pixel grids: expected images (B, C, H, W), got {tuple(images.shape)}. "
                "For other shapes take a recipe such as mixup."
            )
        draws = scene.draws.of
        if self.pairing is None:
            partners = Partners.alone(scene.batch)
        elif partners is None:
            partners = self._partners(scene) if scene.partners else self._pair(scene)
        return blend.mix(images, partners, self.lam(scene) if lam is None else lam, draws.get(blend), scene)

    def _pair(self, scene: Scene) -> Partners:
        pairing = cast(Pairing, self.pairing)
        return pairing.partners(scene.draws.of.get(pairing), scene)

    def _partners(self, scene: Scene) -> Partners:
        """Who mixes with whom, found once where others ask for it too."""
        found: Partners = scene.once(self, partial(self._pair, scene), "partners")
        return found


def picked(weights: Sequence[float], point: float) -> int:
    """Which option a point in [0, 1) falls on: the first whose cumulative weight is beyond it."""
    for option, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return option
    return max(range(len(weights)), key=weights.__getitem__)  # the weights' sum was rounded below the point


@dataclass(eq=False)
class InnerDraws:
    """Which option of an inner recipe acts, and what its pieces drew."""

    option: int
    of: dict[nn.Module, Any]


class Inner(nn.Module):
    """A recipe inside a piece, which runs it on images of its own choice.

    Args:
        node: the recipe.
        owner: the method that was given it, for messages.

    Raises:
        IncompatibleRecipe: the recipe acts inside a network or in the loss.
    """

    def __init__(self, node: Node, owner: str) -> None:
        super().__init__()
        found = compose(node)
        for chosen in (option.chosen for option in found):
            for piece in chosen.essential:
                if piece.slot not in _SLOTS or piece.network:
                    name = chosen.owners[piece]
                    raise IncompatibleRecipe(
                        f"{owner} runs the recipe it was given on images alone, but {name} acts inside the network or "
                        f"in the loss. Give {owner} a recipe such as cutmix, and add {name} beside it."
                    )
        self.weights = [option.weight for option in found]
        self.options = nn.ModuleList(Policy(option.chosen) for option in found)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """What the options do."""
        return tuple(cast(Policy, option) for option in self.options)

    @property
    def blends(self) -> tuple[Blend | None, ...]:
        """Each option's blend."""
        return tuple(policy.blend for policy in self.policies)

    @property
    def gives(self) -> frozenset[Need]:
        """What the mixes of every option have."""
        found = [OF_A_PAIR | {Need.MASKS} if blend is None else blend.gives for blend in self.blends]
        return frozenset.intersection(*map(frozenset, found))

    @property
    def plain(self) -> bool:
        """Whether it never does anything."""
        return not any(policy.mixing for policy in self.policies)

    def draw(self, rows: int, rng: Generator, option: int | None = None) -> InnerDraws:
        """Every random number of one use; the option is drawn too if it is not given."""
        if option is None:
            option = 0 if len(self.weights) == 1 else picked(self.weights, rng.random())
        return InnerDraws(option, {piece: piece.draw(rows, rng) for piece in self.policies[option].mixing})

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        draws: InnerDraws,
        scene: Scene,
        partners: Partners | None = None,
    ) -> Mix:
        """Mix any images aligned with the batch; with `partners` in place of drawn ones if they are given."""
        inside = replace(scene, batch=replace(scene.batch, images=images), draws=Draws(draws.of))
        policy = self.policies[draws.option]
        return policy.mix(policy.views(inside)[0], inside, partners)
