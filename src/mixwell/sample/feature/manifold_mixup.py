"""Manifold Mixup: mixup of the activations of a randomly chosen layer.

Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio, "Manifold Mixup: Better Representations by Interpolating
Hidden States", ICML 2019, arXiv:1806.05236.

Each step draws one of a few layers, the input among them, runs the clean batch up to it, mixes the activations there,
and runs the rest of the network on the mixture. Gradients reach both sources. Equations: layer k ~ S →
`mixwell.core.places.Hidden`; Mix_λ(g_k(x), g_k(x')) → `mixwell.sample.linear.mixup.linear`.

Paper and code: the paper minimises soft cross-entropy, the authors' code binary cross-entropy of the softmax
probabilities averaged over classes (`criterion="softmax_bce"`), a loss about log C times smaller. The code draws one λ
per batch (`per="batch"`).
"""

from __future__ import annotations

from typing import Literal

from mixwell.core.axes import Per
from mixwell.core.criteria import criterion_of
from mixwell.core.places import Hidden, Sites
from mixwell.core.plain import Beta
from mixwell.core.registry import Pieces, method
from mixwell.sample.linear.mixup import Linear


@method("manifold_mixup", section="1.2", paper="1806.05236", venue="ICML 2019")
def manifold_mixup(
    alpha: float = 2.0,
    sites: Sites = (0, 1, 2),
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
