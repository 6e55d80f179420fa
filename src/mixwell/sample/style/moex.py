"""MoEx: give an early feature map the moments of a partner's, and its label a fixed share of the partner's.

Li, Wu, Lim, Belongie, Weinberger, "On Feature Normalization and Data Augmentation", CVPR 2021, arXiv:2002.11102.

Mean and standard deviation of an early map, which normalisation throws away, say what the image looks like. MoEx
normalises the map of A and gives it the moments of B: content of A, moments of B. Equations: μ, σ → `moments`;
h_A^(B) = σ_B·(h_A - μ_A)/σ_A + μ_B → `exchange`; λ·ℓ(h, y_A) + (1-λ)·ℓ(h, y_B) with a constant λ →
`MomentExchange.targets`.

Beside a method that mixes images before the site, MoEx takes the mix's own partners, as in the authors' CutMix + MoEx:
a row is then made of A with moments of B, which is itself a mix of B and C, and has three labels. The published
"one or the other" is the switch "0.5*cutmix | 0.5*moex".

Paper and code: ImageNet trains with λ = 0.9 on every batch (`prob=0.25` beside CutMix), CIFAR with `lam=0.5,
prob=0.25`. The code's moments of the whole batch ("bn") cannot be exchanged and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Scene, Statistics
from mixwell.core.errors import IncompatibleRecipe, ParameterError, SiteError, number_in
from mixwell.core.mix import Mix, onto
from mixwell.core.places import hidden_only, sites_of
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.moments import moments, positive_moments, with_moments
from mixwell.probe import Anatomy

__all__ = ["MomentExchange", "Norm", "exchange"]

Norm = Literal["pono", "in", "ln", "gn", "gpono"]

_AXES: dict[Norm, tuple[int, ...]] = {"pono": (2,), "gpono": (2,), "in": (3, 4), "ln": (2, 3, 4), "gn": (2, 3, 4)}
"""What moments are taken over, of maps (R, groups, channels per group, h, w)."""


def exchange(
    maps: Float[Tensor, "r c h w"],
    partner: Int[Tensor, " r"],
    norm: Norm = "pono",
    groups: int = 1,
    eps: float = 1e-5,
    positive_only: bool = False,
) -> Float[Tensor, "r c h w"]:
    """Each map with its partner's moments; gradients reach both.

    Args:
        partner: the row of each row's partner.
        norm: what moments are taken over: "pono" and "gpono" the channels of a position, "in" the positions of a
            channel, "ln" and "gn" both.
        groups: equal groups of channels with moments of their own; 1 but for "gpono" and "gn".
        eps: added to the variances.
        positive_only: take the moments of positive values alone.

    Raises:
        BatchError: fewer than two values per moment.
    """
    grouped = maps.reshape(len(maps), groups, -1, *maps.shape[2:])
    mean, std = (positive_moments if positive_only else moments)(grouped, _AXES[norm], eps)
    new_mean, new_std = mean.index_select(0, partner), std.index_select(0, partner)
    return with_moments(grouped, mean, std, new_mean, new_std).flatten(1, 2)


@dataclass(eq=False)
class ExchangeDraws:
    """Whether the batch's moments are exchanged, and each row's partner where the mix says none."""

    acts: bool
    partner: np.ndarray


class MomentExchange(Statistics):
    """Exchange a map's moments, and a share of the labels with them.

    Args:
        site: a stage's number, "stem", or a module's name.
        lam: the constant label share λ of the row itself.
        prob: share of the batches in which moments are exchanged.
        norm: see `exchange`.
        groups: number of groups of "gn" and "gpono".
        channels_per_group: their size, in place of their number.
        eps: added to the variances.
        positive_only: take the moments of positive values alone.

    Raises:
        ParameterError: a value out of range, or groups where the norm has none.
    """

    borrows = True

    def __init__(
        self,
        site: int | str = "stem",
        lam: float = 0.9,
        prob: float = 1.0,
        norm: Norm = "pono",
        groups: int | None = None,
        channels_per_group: int | None = None,
        eps: float = 1e-5,
        positive_only: bool = False,
    ) -> None:
        super().__init__()
        self.site = hidden_only((site,))
        self.lam = number_in("lam", lam, 0, 1)
        self.prob = number_in("prob", prob, 0, 1)
        self.norm: Norm = norm
        self.groups, self.channels_per_group = groups, channels_per_group
        given = [number for number in (groups, channels_per_group) if number is not None]
        if len(given) != (norm in ("gn", "gpono")) or any(number < 1 for number in given):
            raise ParameterError(
                "norms 'gn' and 'gpono' take one of groups and channels_per_group, a whole number ≥ 1, and the others "
                f"neither; got norm={norm!r}, groups={groups}, channels_per_group={channels_per_group}."
            )
        self.eps = number_in("eps", eps, 0, open_low=True)
        self.positive_only = positive_only
        self.names: tuple[str, ...] = ()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.names = tuple(name for name in sites_of(anatomy, self.site) if name is not None)

    def draw(self, rows: int, rng: Generator) -> ExchangeDraws:
        return ExchangeDraws(bool(rng.random() < self.prob), rng.permutation(rows))

    def sites_used(self) -> tuple[str, ...]:
        return self.names

    def sites(self, draws: ExchangeDraws) -> tuple[str, ...]:
        return self.names if draws.acts else ()

    def change(
        self, hidden: Float[Tensor, "r c h w"], site: str, draws: ExchangeDraws, scene: Scene, mix: Mix | None
    ) -> Float[Tensor, "r c h w"]:
        partner = _partner(draws, mix, hidden)
        _check_rows(hidden, len(partner), site)
        groups = self._groups(hidden.shape[1], site)
        return exchange(hidden, partner, self.norm, groups, self.eps, self.positive_only)

    def targets(self, targets: Targets, draws: ExchangeDraws, scene: Scene, mix: Mix | None) -> Targets:
        """λ of each row's label and 1 - λ of its partner's, before or after the labels were mixed."""
        partner = _partner(draws, mix, targets.sources)
        if mix is None:
            _check_before(targets, len(partner))
            theirs, weights = partner[targets.sources], targets.weights
            soft = tokens = None
        else:
            theirs, weights = targets.sources[partner], targets.weights[partner]
            soft, tokens = (
                None if rows is None else rows[partner].lerp(rows, self.lam) for rows in (targets.soft, targets.tokens)
            )
        sources = torch.cat((targets.sources, theirs), 1)
        shares = torch.cat((self.lam * targets.weights, (1 - self.lam) * weights), 1)
        return replace(targets, sources=sources, weights=shares, soft=soft, tokens=tokens)

    def _groups(self, channels: int, site: str) -> int:
        """How many groups the channels fall into."""
        size = self.channels_per_group
        if channels % (size or self.groups or 1):
            wanted = f"groups={self.groups}" if size is None else f"channels_per_group={size}"
            raise SiteError(
                f"Site {site!r} has {channels} channels, which {wanted} does not divide. Take a divisor of {channels}."
            )
        return (self.groups or 1) if size is None else channels // size


def _partner(draws: ExchangeDraws, mix: Mix | None, like: Tensor) -> Int[Tensor, " r"]:
    """The row whose moments each row gets: the mix's partner where each row has one in the batch, else the drawn."""
    if mix is not None and mix.sources.shape[1] == 2 and len(mix.sources) == len(mix.pool) == len(draws.partner):
        return mix.sources[:, 1]
    return onto(draws.partner, like)


def _check_rows(hidden: Float[Tensor, "r c h w"], rows: int, site: str) -> None:
    """See that the map has the rows that partners were drawn for.

    Raises:
        IncompatibleRecipe: a mix before the site made more or fewer rows than the batch has.
    """
    if len(hidden) != rows:
        raise IncompatibleRecipe(
            f"Moments of {rows} images change at site {site!r}, but the images were mixed into {len(hidden)} rows "
            "before. Mix them into as many rows, as cutmix does, or behind the site."
        )


def _check_before(targets: Targets, rows: int) -> None:
    """See that labels can be exchanged before they are mixed.

    Raises:
        IncompatibleRecipe: the mixed labels do not say what they are made of, or are not of this batch alone.
    """
    if targets.soft is not None or targets.tokens is not None:
        raise IncompatibleRecipe(
            "moex exchanges labels where it exchanges moments, before the maps are mixed, but the label piece of this "
            "recipe makes label rows of the mix itself. Mix at a site before moex's, such as the input."
        )
    if len(targets.pool) != rows:
        raise IncompatibleRecipe(
            f"moex exchanges the labels of {rows} images before they are mixed, but the mix has sources from a pool of "
            f"{len(targets.pool)}. Mix at a site before moex's, such as the input."
        )


@method("moex", section="1.6", paper="2002.11102", venue="CVPR 2021", gate="")
def moex(
    lam: float = 0.9,
    site: int | str = "stem",
    norm: Norm = "pono",
    groups: int | None = None,
    channels_per_group: int | None = None,
    positive_only: bool = False,
    eps: float = 1e-5,
    prob: float = 1.0,
) -> Pieces:
    """Args:
    lam: constant label share of the image that gives the content; the paper takes 0.9 on ImageNet, 0.5 on CIFAR.
    site: "stem" (what the first stage is given), a stage's number, or a module's name.
    norm: moments over the channels of each position ("pono"), the positions of each channel ("in"), both ("ln"), or
        both or the channels within groups of channels ("gn", "gpono").
    groups: number of groups of "gn" and "gpono".
    channels_per_group: their size, in place of their number.
    positive_only: take moments of positive values alone, for sites behind a ReLU.
    eps: added to the variances.
    prob: share of the batches in which moments are exchanged; 0.25 on CIFAR and beside cutmix.
    """
    return Pieces(essential=MomentExchange(site, lam, prob, norm, groups, channels_per_group, eps, positive_only))
