"""Places: the sites of a network that a recipe names, and the pieces that act at one of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Place, Ratio, Scene
from mixwell.core.errors import ParameterError, SiteError
from mixwell.core.mix import Mix, Partners
from mixwell.probe import Anatomy, Want

__all__ = ["ByPlace", "ByPlaceDraws", "Hidden", "LamByPlace", "Sites", "hidden_only", "sites_of"]

Sites = tuple[int | str, ...]
"""Stage numbers (0 is the input, 1 the first stage's output, -1 the last's), "input", "stem", "embedding", or names of
modules."""


def sites_of(anatomy: Anatomy, sites: Sites, *, lenient: bool = False) -> tuple[str | None, ...]:
    """The names of sites in a network, None for the input.

    Args:
        lenient: leave out stages that the network does not have.

    Raises:
        SiteError: a site does not exist, or its tensor is no batch; or none is left.
    """
    if lenient:
        sites = tuple(site for site in sites if not isinstance(site, int) or abs(site) <= len(anatomy.stages))
    found = [None if site in (0, "input") else anatomy.site(site) for site in sites]
    if not found:
        raise SiteError(
            f"{type(anatomy.net).__name__} has none of the sites that the recipe acts at. Name modules: sites=(...)."
        )
    for site in found:
        if site is not None:
            anatomy.try_out(site)
    return tuple(None if site is None else site.name for site in found)


class Hidden(Place):
    """A random one of several sites, the same for the whole batch and on all ranks.

    Args:
        sites: see `Sites`; None for the paper's.
        paper: the paper's sites, of which those are left out that the network does not have.
    """

    network = True
    shared = True

    def __init__(self, sites: Sites | None, paper: Sites = ()) -> None:
        super().__init__()
        self.lenient = sites is None
        self.sites = named(paper if sites is None else sites)
        self.names: tuple[str | None, ...] = ()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.names = sites_of(anatomy, self.sites, lenient=self.lenient)

    def draw(self, rows: int, rng: Generator) -> int:
        """Position of the step's site in `names`, or in `sites` as long as no network is bound."""
        return int(rng.integers(len(self.names or self.sites)))

    def site(self, draws: int) -> str | None:
        return self.names[draws]

    def sites_used(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name is not None)


def named(sites: Sequence[int | str]) -> Sites:
    """The sites, of which there must be one at least.

    Raises:
        ParameterError: none is named.
    """
    if not sites:
        raise ParameterError("sites must name at least one place, e.g. (0, 1, 2); 0 is the input.")
    return tuple(sites)


def hidden_only(sites: Sites) -> Sites:
    """The sites, none of which may be the input.

    Raises:
        ParameterError: one is, or there is none.
    """
    if not sites or 0 in sites or "input" in sites:
        raise ParameterError(f"Moments change at hidden sites, such as 'stem', 1 or 'layer1'; got {sites!r}.")
    return sites


@dataclass(eq=False)
class ByPlaceDraws:
    """What both pieces drew, since the place is drawn elsewhere."""

    input: Any
    hidden: Any


class LamByPlace(Ratio):
    """One λ at the input, another at hidden sites."""

    def __init__(self, at_input: Ratio, at_hidden: Ratio) -> None:
        super().__init__()
        self.at_input = at_input
        self.at_hidden = at_hidden

    def draw(self, rows: int, rng: Generator) -> ByPlaceDraws:
        return ByPlaceDraws(self.at_input.draw(rows, rng), self.at_hidden.draw(rows, rng))

    def lam(self, draws: ByPlaceDraws, scene: Scene) -> Float[Tensor, " #r"]:
        if scene.site is None:
            return self.at_input.lam(draws.input, scene)
        return self.at_hidden.lam(draws.hidden, scene)


class ByPlace(Blend):
    """One way of mixing at the input, another at hidden sites."""

    def __init__(self, at_input: Blend, at_hidden: Blend) -> None:
        super().__init__()
        self.at_input = at_input
        self.at_hidden = at_hidden
        self.gives = at_input.gives & at_hidden.gives
        self.partners = at_hidden.partners
        self.grid = at_input.grid
        self.aligned = at_input.aligned and at_hidden.aligned
        self.by_channel = at_input.by_channel or at_hidden.by_channel
        self.shows_shares = at_input.shows_shares and at_hidden.shows_shares
        self.exact = at_input.exact and at_hidden.exact
        self.network = at_input.network or at_hidden.network

    def wants(self) -> tuple[Want, ...]:
        return (*self.at_input.wants(), *self.at_hidden.wants())

    def views(self) -> tuple[Want, ...]:
        return (*self.at_input.views(), *self.at_hidden.views())

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.at_input.build(anatomy, num_classes)
        self.at_hidden.build(anatomy, num_classes)

    def draw(self, rows: int, rng: Generator) -> ByPlaceDraws:
        return ByPlaceDraws(self.at_input.draw(rows, rng), self.at_hidden.draw(rows, rng))

    def mix(
        self,
        images: Float[Tensor, "b ..."],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: ByPlaceDraws,
        scene: Scene,
    ) -> Mix:
        if scene.site is None:
            return self.at_input.mix(images, partners, lam, draws.input, scene)
        return self.at_hidden.mix(images, partners, lam, draws.hidden, scene)
