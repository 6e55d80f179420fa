"""Manifold Mixup: mixup of the activations of a randomly chosen layer.

Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio, "Manifold Mixup: Better Representations by Interpolating
Hidden States", ICML 2019, arXiv:1806.05236.

Each step draws one of a few layers, the input among them, runs the clean batch up to it, mixes the activations there,
and runs the rest of the network on the mixture. Gradients reach both sources. Equations: layer k ~ S → `Hidden.draw`;
Mix_λ(g_k(x), g_k(x')) → `mixwell.sample.linear.mixup.linear`.

Paper and code: the paper minimises soft cross-entropy, the authors' code binary cross-entropy of the softmax
probabilities averaged over classes (`criterion="softmax_bce"`), a loss about log C times smaller. The code draws one λ
per batch (`per="batch"`).
"""

from __future__ import annotations

from typing import Literal

from numpy.random import Generator

from mixwell.core.axes import Per, Place
from mixwell.core.criteria import criterion_of
from mixwell.core.errors import ParameterError
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.probe import Anatomy
from mixwell.sample.linear.mixup import Linear

__all__ = ["Hidden"]


class Hidden(Place):
    """A random one of several sites, the same for the whole batch and on all ranks.

    Args:
        sites: stage numbers (0 is the input, 1 the first stage's output) or module names.
    """

    network = True
    shared = True

    def __init__(self, sites: tuple[int | str, ...]) -> None:
        super().__init__()
        if not sites:
            raise ParameterError("sites must name at least one place, e.g. (0, 1, 2); 0 is the input.")
        self.sites = sites
        self.names: tuple[str | None, ...] = ()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        found = [None if site in (0, "input") else anatomy.site(site) for site in self.sites]
        for site in found:
            if site is not None:
                anatomy.try_out(site)
        self.names = tuple(None if site is None else site.name for site in found)

    def draw(self, rows: int, rng: Generator) -> int:
        """Position of the step's site in `sites`."""
        return int(rng.integers(len(self.sites)))

    def site(self, draws: int) -> str | None:
        return self.names[draws]

    def sites_used(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name is not None)


@method("manifold_mixup", section="1.2", paper="1806.05236", venue="ICML 2019")
def manifold_mixup(
    alpha: float = 2.0,
    sites: tuple[int | str, ...] = (0, 1, 2),
    criterion: Literal["cross_entropy", "softmax_bce"] = "cross_entropy",
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α); the paper takes 2 on CIFAR and SVHN, 0.2 on Tiny-ImageNet.
    sites: stage numbers (0 is the input) or module names, one of which is drawn per batch.
    criterion: the paper's "cross_entropy" or the authors' code's "softmax_bce".
    prob: share of the batches that are mixed.
    per: one λ per "sample" or per "batch".
    """
    suggested = (Linear(), Beta(alpha, per=per), criterion_of(criterion))
    return Pieces(essential=Hidden(sites), suggested=suggested, prob=prob)
