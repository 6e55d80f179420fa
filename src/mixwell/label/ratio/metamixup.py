"""MetaMixUp: each pair's λ is moved to where one step of training would help held-out images most.

Mai, Hu, Chen, Shen, Shen, "MetaMixUp: Learning Adaptive Interpolation Policy of MixUp with Meta-Learning", IEEE
Transactions on Neural Networks and Learning Systems 33(7), 2021, arXiv:1908.10059.

The network takes a virtual step on the mix, and the loss of that network on a held-out batch says in which direction
each λ should have been. λ moves there, and the real step is taken on the mix with the new λ. Equations: ŵ(λ) = w -
a·∇L(w, λ) and ∂L_v(ŵ(λ))/∂λ → `look_ahead`; λ' = clip(λ - η·∂L_v/∂λ) → `moved`.

A step costs two more forward passes and a backward pass through a backward pass. Statistics of normalisations, random
states and gradients are left as they were. Held-out images are a part of the training set that is not trained on, never
the test set: `mixwell train` keeps a tenth, and a loop of your own calls `recipe.use_data(held_out=...)`. λ must reach
the loss by a gradient, so the blend must be smooth in it.

Paper and code: no code was published. The paper's scheme of one step ahead is kept; what it leaves open is ours: λ
begins at a Beta(α, α) draw, the virtual step is as long as the real one's learning rate (`inner_lr` for another), and
slopes are scaled to a largest entry of 1 in each batch, so that η does not depend on the loss (`normalise=false` for
the plain gradient). `lookahead="classifier"` moves the last layer only, at a fraction of the cost. The semi-supervised
variant with pseudo-labels is not part of this library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixwell.core.axes import Need, Per, Ratio, Scene, per_of
from mixwell.core.errors import ParameterError, number_in
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.probe.capture import logits_of
from mixwell.sample.linear.mixup import Linear

__all__ = ["LookAhead", "Meta", "look_ahead", "moved"]

Weights = Mapping[str, Tensor]

_USUAL_LR = 0.1
"""Length of the virtual step where neither the recipe nor the loop says one; normalised slopes hardly depend on it."""


@dataclass(eq=False)
class LookAhead:
    """What a virtual step came to.

    Attributes:
        loss: on the mix, before the step.
        gradients: of that loss, by the parameter's name.
        ahead: the parameters after the step.
        held_out_loss: with those, on the held-out batch.
        slope: (B,) or (1,) its derivative by each λ.
    """

    loss: Float[Tensor, ""]
    gradients: dict[str, Tensor]
    ahead: dict[str, Tensor]
    held_out_loss: Float[Tensor, ""]
    slope: Float[Tensor, " #b"]


def look_ahead(
    lam: Float[Tensor, " #b"],
    weights: Weights,
    lr: float,
    loss: Callable[[Tensor, Weights], Tensor],
    held_out_loss: Callable[[Weights], Tensor],
) -> LookAhead:
    """Take one plain step of gradient descent on the mix, and differentiate by λ where it leads.

    Args:
        lam: where the mix stands.
        weights: the parameters that the step moves.
        lr: a, its length.
        loss: (λ, parameters) → loss on the mix; smooth in both.
        held_out_loss: parameters → loss on held-out images.
    """
    with torch.enable_grad():
        lam = lam.detach().requires_grad_()
        before = loss(lam, weights)
        gradients = torch.autograd.grad(before, list(weights.values()), create_graph=True, allow_unused=True)
        found = {
            name: torch.zeros_like(weight) if gradient is None else gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        ahead = {name: weight - lr * found[name] for name, weight in weights.items()}
        after = held_out_loss(ahead)
        (slope,) = torch.autograd.grad(after, lam, allow_unused=True)
    return LookAhead(
        before.detach(),
        {name: gradient.detach() for name, gradient in found.items()},
        {name: weight.detach() for name, weight in ahead.items()},
        after.detach(),
        torch.zeros_like(lam) if slope is None else slope,
    )


def moved(
    lam: Float[Tensor, " #b"], slope: Float[Tensor, " #b"], eta: float, normalise: bool = True
) -> Float[Tensor, " #b"]:
    """clip(λ - η·slope, 0, 1).

    Args:
        normalise: whether slopes are scaled so that the largest is 1; slopes that are all 0 stay so.
    """
    if normalise:
        slope = slope / slope.abs().max().clamp_min(torch.finfo(slope.dtype).tiny)
    return (lam - eta * slope).clamp(0, 1)


class Meta(Ratio):
    """λ from a look one step ahead.

    Args:
        alpha: λ begins at Beta(α, α).
        eta: η, how far λ moves.
        inner_lr: a, length of the virtual step; None for the learning rate of the real one.
        normalise: whether slopes are scaled to a largest entry of 1.
        every: steps from one look to the next; in between λ stays where it begins.
        lookahead: what the virtual step moves, "all" parameters or the "classifier".
        per: one λ per "sample" or per "batch".
    """

    needs = frozenset({Need.DIFFERENTIABLE, Need.SIMPLEX})
    network = True
    held_out = True

    def __init__(
        self,
        alpha: float = 1.0,
        eta: float = 0.1,
        inner_lr: float | None = None,
        normalise: bool = True,
        every: int = 1,
        lookahead: Literal["all", "classifier"] = "all",
        per: Per = "sample",
    ) -> None:
        super().__init__()
        if every < 1:
            raise ParameterError(f"every must be a whole number ≥ 1, got {every!r}.")
        self.alpha = number_in("alpha", alpha, 0, open_low=True)
        self.eta = number_in("eta", eta, 0)
        self.inner_lr = None if inner_lr is None else number_in("inner_lr", inner_lr, 0)
        self.normalise, self.every, self.lookahead = normalise, every, lookahead
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B,) or (1,) λ to begin with."""
        return rng.beta(self.alpha, self.alpha, 1 if self.per == "batch" else rows)

    def lam(self, draws: np.ndarray, scene: Scene) -> Float[Tensor, " #b"]:
        drawn = torch.from_numpy(draws)
        if scene.clock.step % self.every:
            return drawn
        assert scene.views is not None, "it is given no step without a network"
        anatomy = scene.views.probe.anatomy
        trained = {name: p for name, p in anatomy.net.named_parameters() if p.requires_grad}
        if self.lookahead == "classifier":
            trained = {name: p for name, p in trained.items() if name.rpartition(".")[0] == anatomy.classifier}
        begun = drawn.to(scene.batch.images.device, torch.promote_types(scene.batch.images.dtype, torch.float32))
        found = self._look(begun, anatomy.net, trained, scene)
        return moved(begun, found.slope, self.eta, self.normalise)

    def _look(self, lam: Tensor, net: nn.Module, trained: Weights, scene: Scene) -> LookAhead:
        """One step ahead, which leaves nothing behind: modules see copies of the network's buffers."""
        held_out, attempt, loss_of = scene.held_out, scene.attempt, scene.loss
        assert held_out is not None, "a piece that asks for held-out images got none"
        assert attempt is not None, "a recipe can try another λ"
        assert loss_of is not None, "and knows its criterion"

        def call(weights: Weights, images: Tensor) -> Tensor:
            buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
            found: Tensor = logits_of(functional_call(net, {**buffers, **weights}, (images,)))
            return found

        def on_mix(lam: Tensor, weights: Weights) -> Tensor:
            logits, targets = attempt(lam, partial(call, weights))
            return loss_of(logits, targets)

        def on_held_out(weights: Weights) -> Tensor:
            return loss_of(call(weights, kept), Targets.of(held_out.labels))

        images = scene.batch.images
        kept = held_out.images.to(images.device, images.dtype)
        rate = (scene.clock.lr or _USUAL_LR) if self.inner_lr is None else self.inner_lr
        with (
            torch.random.fork_rng([images.device] if images.is_cuda else []),
            torch.autocast(images.device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),  # compiled code has no second derivatives
            sdpa_kernel(SDPBackend.MATH),  # nor have fused kernels
        ):
            return look_ahead(lam, trained, rate, on_mix, on_held_out)


@method("metamixup", section="2.3", paper="1908.10059", venue="TNNLS 2021")
def metamixup(
    alpha: float = 1.0,
    eta: float = 0.1,
    inner_lr: float | None = None,
    normalise: bool = True,
    every: int = 1,
    lookahead: Literal["all", "classifier"] = "all",
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ begins at Beta(α, α).
    eta: η, how far λ moves along the slope of the held-out loss.
    inner_lr: length of the virtual step; by default the learning rate of the step, or 0.1 if the loop does not tell it.
    normalise: whether slopes are scaled to a largest entry of 1 in each batch.
    every: steps from one look ahead to the next.
    lookahead: what the virtual step moves, "all" parameters or the "classifier" alone.
    per: one λ per "sample" or per "batch".
    """
    return Pieces(essential=Meta(alpha, eta, inner_lr, normalise, every, lookahead, per), suggested=Linear())
