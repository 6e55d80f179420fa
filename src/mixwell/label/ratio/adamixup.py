"""AdaMixUp: one network learns how far two images may be mixed before the mix looks like a real image of another class.

Guo, Mao, Zhang, "MixUp as Locally Linear Out-Of-Manifold Regularization", AAAI 2019, arXiv:1809.02499.

A policy network π sees each pair and gives a region [a, a + b] of (0, 1), from which λ is drawn. A second head φ on the
classifier's backbone tells real images from mixes, and everything minimises the sum of both losses together: where φ
fails, a mix intrudes on the real images' manifold, and π learns to keep away from there. Equations: (a, b, c) = the
softmax of π → `region`; λ = a + u·b → `lam_in`; π's input → `policy_input`; the intrusion loss → `Intrusion`.

π has the architecture of the network that is trained, with weights of its own, and two linear layers in place of its
classifier. Only half of the batch is mixed; the classifier sees those mixes and the same images clean, and φ sees the
mixes against the whole batch. Another blend that is smooth in λ mixes the whole batch, at the input or at a hidden
site.

Paper and code: the authors' code shows π raw pixels where the classifier sees normalised ones; ours shows both the
same. Mixing more than two images by Dirichlet policies, which the paper describes, is in neither its code nor its main
results, and not here.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Blend, Criterion, Need, Ratio, Scene, Step, Term
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix, Partners, onto
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.noise import uniform_noise
from mixwell.probe import Anatomy, Edit, Probe
from mixwell.probe.trace import behave_like
from mixwell.sample.linear.mixup import linear

__all__ = ["HalfLinear", "Intrusion", "Policy", "PolicyDraws", "PolicyLam", "lam_in", "policy_input", "region"]

_HIDDEN = 100
"""Width between π's two linear layers."""

_SPREAD = 1e-3
"""Deviation of the last layers' first weights, so that λ begins as (1 + u) / 3."""


def region(logits: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """(a, b, c) > 0 that sum to 1: where the region begins, how wide it is, and what is left above it."""
    return logits.softmax(1)


def lam_in(abc: Float[Tensor, "n 3"], u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """a + u·b, for u in [0, 1]."""
    return abc[:, 0] + u.to(abc) * abc[:, 1]


def policy_input(own: Float[Tensor, "n ..."], other: Float[Tensor, "n ..."], key: int) -> Float[Tensor, "n ..."]:
    """(m₁⊙x₁ + m₂⊙x₂)/2 with weights per pixel from a standard normal cut at ±2, which depend on the key alone."""
    uniform = uniform_noise(key, (2, *own.shape), own.device)
    tail = 0.5 * (1 + torch.erf(torch.tensor(-2.0 / 2**0.5))).item()
    weights = torch.special.ndtri(tail + (1 - 2 * tail) * uniform).clamp(-2, 2).to(own.dtype)
    found: Tensor = (weights[0] * own + weights[1] * other) / 2
    return found


class Policy(nn.Module):
    """π: a network like the one that is trained, with fresh weights and another head.

    Args:
        anatomy: of the network.

    Raises:
        ModelError: the network has no linear classifier.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        first = anatomy.modules[anatomy.classifier]
        assert isinstance(first, nn.Linear), "a classifier is a linear layer"
        self.net = copy.deepcopy(anatomy.net).requires_grad_(True)
        for module in self.net.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.net.get_submodule(anatomy.classifier).requires_grad_(False)  # the head stands in its place
        self.head = _head(first, _HIDDEN, 3)
        self._probe = Probe(self.net)

    def forward(self, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n 3"]:
        """Logits of (a, b, c)."""
        return self._probe.run(images, head=self.head).logits


def _head(classifier: nn.Linear, hidden: int, outside: int) -> nn.Sequential:
    """Two linear layers in the place of a classifier."""
    device, dtype = classifier.weight.device, classifier.weight.dtype
    first = nn.Linear(classifier.in_features, hidden, device=device, dtype=dtype)
    last = nn.Linear(hidden, outside, device=device, dtype=dtype)
    nn.init.normal_(last.weight, std=_SPREAD)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, last)


class PolicyDraws(NamedTuple):
    """Attributes:
    key: of the weights in π's input.
    u: (B,) uniform in [0, 1).
    """

    key: int
    u: Float[np.ndarray, " b"]


class PolicyLam(Ratio):
    """λ from the region that a policy network gives each pair; the network exists once the piece is built."""

    needs = frozenset({Need.DIFFERENTIABLE, Need.SIMPLEX})
    network = True

    def __init__(self) -> None:
        super().__init__()
        self.policy: nn.Module | None = None

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.policy = Policy(anatomy)

    def draw(self, rows: int, rng: Generator) -> PolicyDraws:
        return PolicyDraws(int(rng.integers(2**62)), rng.random(rows))

    def lam(self, draws: PolicyDraws, scene: Scene) -> Float[Tensor, " n"]:
        """λ with a graph to the policy, for the pairs that the blend mixes."""
        assert self.policy is not None, "a recipe binds before it mixes"
        assert scene.partners is not None, "pairs are known before λ"
        if isinstance(self.policy, Policy) and scene.views is not None:
            behave_like(self.policy.net, scene.views.probe.net)
        own = scene.batch.images[: scene.pairs].detach()
        other = scene.partners().of(scene.batch.images.detach())[: scene.pairs]
        abc = region(self.policy(policy_input(own, other, draws.key)).float())
        return lam_in(abc, onto(draws.u[: scene.pairs], abc))


class HalfLinear(Blend):
    """The weighted means of the batch's first half with their partners, and the same images as they are.

    A batch of one is mixed too.
    """

    gives = frozenset({Need.PAIR, Need.SIMPLEX, Need.DIFFERENTIABLE})
    grid = False

    def pairs(self, rows: int) -> int:
        return max(1, rows // 2)

    def mix(
        self, images: Float[Tensor, "b ..."], partners: Partners, lam: Float[Tensor, " #n"], draws: None, scene: Scene
    ) -> Mix:
        count = self.pairs(len(images))
        lam = lam if len(lam) == 1 else lam[:count]
        half = Partners(partners.sources[:count], partners.pool)
        shares = half.shares(lam)
        clean = torch.stack((half.sources[:, 0],) * 2, 1)
        one = torch.tensor([1.0, 0.0], device=shares.device).expand_as(shares)

        def apply(x: Tensor) -> Tensor:
            return torch.cat((linear(x[:count], half.of(x), lam), x[:count]))

        def masks(mix: Mix) -> Tensor:
            return mix.weights[:, :, None, None]

        return Mix(
            apply(images),
            torch.cat((half.sources, clean)),
            torch.cat((shares, one)),
            partners.pool,
            apply,
            lam=torch.cat((lam.expand(count), torch.ones_like(lam).expand(count))),
            make_masks=masks,
        )


class Intrusion(Term):
    """Cross-entropy of a head that tells real images from mixes.

    Owns the head, which exists once it is built: two linear layers on what the network's classifier is given.

    Args:
        weight: of the loss.
    """

    needs = frozenset({Need.PAIR})
    network = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = number_in("intrusion_weight", weight, 0)
        self.head: nn.Module | None = None

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        first = anatomy.modules[anatomy.classifier]
        assert isinstance(first, nn.Linear), "a classifier is a linear layer"
        self.head = _head(first, first.out_features, 2)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        scene, count = step.scene, step.scene.pairs
        assert scene.views is not None, "a step goes through a network"
        images, mixed = scene.batch.images, step.mix.images[:count]
        if scene.site is None:
            logits = self._told(scene.views.probe, torch.cat((images, mixed)))
        else:
            whole = step.mix

            def insert(hidden: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
                return whole.images, None if prefix is None else whole.share(prefix)

            fake = self._told(scene.views.probe, images, {scene.site: insert})
            logits = torch.cat((self._told(scene.views.probe, images), fake[:count]))
        real = (torch.arange(len(logits), device=logits.device) < len(images)).long()
        loss: Tensor = self.weight * F.cross_entropy(logits.float(), real)
        return loss

    def _told(self, probe: Probe, images: Tensor, edits: dict[str, Edit] | None = None) -> Tensor:
        return probe.run(images, edits=edits, head=self.head).logits


@method("adamixup", section="2.3", paper="1809.02499", venue="AAAI 2019")
def adamixup(intrusion_weight: float = 1.0) -> Pieces:
    """Args:
    intrusion_weight: of the loss that tells mixes from real images.
    """
    return Pieces(essential=(PolicyLam(), Intrusion(intrusion_weight)), suggested=HalfLinear())
