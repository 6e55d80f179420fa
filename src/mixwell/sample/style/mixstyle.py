"""MixStyle: mix the channel moments of early maps with a partner's, and leave the labels alone.

Zhou, Yang, Qiao, Xiang, "Domain Generalization with MixStyle", ICLR 2021, arXiv:2104.02008.

Mean and standard deviation of each channel in early layers describe a style, or domain; mixed between images, they make
styles that no image has. Equations: μ(x), σ(x) → `mixwell.ops.moments.moments`, detached; γ_mix, β_mix and
MixStyle(x) = γ_mix·(x - μ)/σ + β_mix → `restyle`.

Each site draws on its own whether it acts, its partners and its λ. Partners: a random permutation (`mode="random"`);
the other half of a batch whose halves are two domains (`mode="crossdomain"`); or any image of another domain
(`mode="domain"`), with the domains' ids in `Batch.extras["domain"]`. An image that has no partner keeps its style.

Paper and code: the code's halves need an even batch; here an odd one's first half is one larger, and the surplus image
takes a random partner of the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Scene, Statistics
from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, number_in
from mixwell.core.mix import Mix, onto
from mixwell.core.places import Sites, hidden_only, sites_of
from mixwell.core.registry import Pieces, method
from mixwell.ops.moments import moments, with_moments
from mixwell.probe import Anatomy

__all__ = ["MixStyle", "Mode", "across_halves", "in_blocks", "of_other_domains", "restyle"]

Mode = Literal["random", "crossdomain", "domain"]


def restyle(
    maps: Float[Tensor, "r c h w"], partner: Int[Tensor, " r"], lam: Float[Tensor, " r"], eps: float = 1e-6
) -> Float[Tensor, "r c h w"]:
    """Each map with λ of its own channel moments and 1 - λ of its partner's; no gradient flows through moments.

    Args:
        partner: the row of each row's partner.
        lam: λ in [0, 1].
        eps: added to the variances.

    Raises:
        BatchError: maps of one position.
    """
    with torch.no_grad():
        mean, std = moments(maps, (2, 3), eps)
        own = lam.to(mean.device, mean.dtype)[:, None, None, None]
        new_mean, new_std = (moment.index_select(0, partner).lerp(moment, own) for moment in (mean, std))
    return with_moments(maps, mean, std, new_mean, new_std)


def across_halves(first: Int64[np.ndarray, " f"], second: Int64[np.ndarray, " s"]) -> Int64[np.ndarray, " b"]:
    """Partners in the other half: the rows of each half in reverse order, taken at the given positions.

    Args:
        first: of each row of the first half, a position in the second.
        second: of each row of the second half, a position in the first.
    """
    rows = len(first) + len(second)
    return np.concatenate((rows - 1 - first, len(first) - 1 - second))


def of_other_domains(domains: Int[Tensor, " b"], points: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """A row of another domain for each row, uniform among them; the row itself where there is none.

    Args:
        domains: id of each row's domain.
        points: uniform in [0, 1).
    """
    ranked, order = domains.sort(stable=True)
    start = torch.searchsorted(ranked, domains)
    inside = torch.searchsorted(ranked, domains, right=True) - start
    others = len(domains) - inside
    # Rounded products may reach the number of others, which no place has.
    place = (points * others).long().minimum(others - 1).clamp_min(0)
    place = place + inside * (place >= start)  # past the row's own domain
    own = torch.arange(len(domains), device=domains.device)
    return torch.where(others > 0, order[place.clamp_max(len(domains) - 1)], own)


@dataclass(eq=False)
class StyleDraws:
    """What each site drew.

    Attributes:
        acts: (S,) whether it mixes styles.
        lam: (S, B).
        partner: (S, B) rows, or in mode "domain" uniforms in [0, 1) that choose them.
    """

    acts: np.ndarray
    lam: np.ndarray
    partner: np.ndarray


class MixStyle(Statistics):
    """Mix the channel moments of maps at some sites.

    Args:
        sites: stage numbers or modules' names, each of which draws for itself.
        alpha: λ ~ Beta(α, α), per image.
        prob: share of the batches in which a site acts.
        mode: who is a partner: see the module.
        eps: added to the variances.
    """

    def __init__(
        self, sites: Sites = (1, 2), alpha: float = 0.1, prob: float = 0.5, mode: Mode = "random", eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.named = hidden_only(sites)
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.prob = number_in("prob", prob, 0, 1)
        self.mode: Mode = mode
        self.eps = number_in("eps", eps, 0, open_low=True)
        self.order: dict[str, int] = {}

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        names = sites_of(anatomy, self.named)
        self.order = {name: which for which, name in enumerate(names) if name is not None}

    def draw(self, rows: int, rng: Generator) -> StyleDraws:
        count = len(self.named)
        acts = rng.random(count) < self.prob
        lam = rng.beta(self.alpha, self.alpha, (count, rows))
        if self.mode == "domain":
            return StyleDraws(acts, lam, rng.random((count, rows)))
        partner = _halves if self.mode == "crossdomain" else Generator.permutation
        return StyleDraws(acts, lam, np.stack([partner(rng, rows) for _ in range(count)]))

    def sites_used(self) -> tuple[str, ...]:
        return tuple(self.order)

    def sites(self, draws: StyleDraws) -> tuple[str, ...]:
        return tuple(name for name, which in self.order.items() if draws.acts[which])

    def change(
        self, hidden: Float[Tensor, "r c h w"], site: str, draws: StyleDraws, scene: Scene, mix: Mix | None
    ) -> Float[Tensor, "r c h w"]:
        which, size = self.order[site], len(hidden)
        lam, drawn = np.resize(draws.lam[which], size).astype(np.float32), draws.partner[which]
        if self.mode == "domain":
            domains = _domains_of(scene.batch)
            rows = onto(np.arange(size) % len(domains), hidden)
            partner = of_other_domains(domains[rows], onto(np.resize(drawn, size).astype(np.float32), hidden))
        else:
            partner = onto(in_blocks(drawn, size), hidden)
        return restyle(hidden, partner, onto(lam, hidden), self.eps)


def in_blocks(partner: Int64[np.ndarray, " b"], rows: int) -> Int64[np.ndarray, " r"]:
    """Partners of R rows, by the partners of B: the same in each block of B rows, for a mix that makes more or fewer.

    Rows of a last, smaller block partner among themselves.
    """
    blocks, left = divmod(rows, len(partner))
    whole = np.arange(blocks)[:, None] * len(partner) + partner
    return np.concatenate((whole.ravel(), rows - left + partner[:left].argsort().argsort()))


def _halves(rng: Generator, rows: int) -> Int64[np.ndarray, " b"]:
    """A random bijection between the halves of a batch, as far as they are equal."""
    small, surplus = rows // 2, rows % 2
    if not small:
        return np.arange(rows)
    first = np.concatenate((rng.permutation(small), rng.integers(small, size=surplus)))
    return across_halves(first, rng.permutation(small + surplus)[:small])


def _domains_of(batch: Batch) -> Int[Tensor, " b"]:
    """The domain of each image.

    Raises:
        BatchError: the batch does not say, or not by one whole number per image.
    """
    domains = batch.extras.get("domain")
    if domains is None:
        got = f"extras of {sorted(batch.extras)}" if batch.extras else "no extras"
    elif domains.shape != (len(batch),) or domains.is_floating_point():
        got = f"{domains.dtype} of shape {tuple(domains.shape)}"
    else:
        return domains
    raise BatchError(
        f"mixstyle(mode=domain) needs the domain of each image: expected extras={{'domain': ids}} in the Batch, with "
        f"{len(batch)} integers; got {got}. Without ids take mode=random."
    )


@method("mixstyle", section="1.6", paper="2104.02008", venue="ICLR 2021", gate="")
def mixstyle(
    alpha: float = 0.1, sites: Sites = (1, 2), mode: Mode = "random", eps: float = 1e-6, prob: float = 0.5
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the share of an image's own moments; 0.1, and 0.3 in the re-identification code.
    sites: stage numbers or module names; the paper takes (1, 2, 3) on PACS, (1, 2) on Office-Home.
    mode: partners from a "random" permutation, from the other half of a batch of two domains ("crossdomain"), or of
        another "domain" as told by the ids in `Batch.extras["domain"]`.
    eps: added to the variances.
    prob: share of the batches in which a site acts, drawn by each site.
    """
    return Pieces(essential=MixStyle(sites, alpha, prob, mode, eps))
