"""The teacher of learned mixers: a frozen moving average of the network that is trained.

Follows the momentum encoder of AutoMix (arXiv:2103.13027, Sec. 3.3) and of the methods after it: θ_k ← m·θ_k +
(1-m)·θ_q → `ema_update`, its schedule m(t) → `momentum_at`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.clock import Clock
from mixwell.probe import Anatomy, Probe, Want
from mixwell.probe.anatomy import unwrapped
from mixwell.probe.trace import behave_like, untouched

__all__ = ["Teacher", "ema_update", "momentum_at", "second_head", "share_of_start"]


@torch.no_grad()
def ema_update(averages: Iterable[Tensor], values: Iterable[Tensor], momentum: float) -> None:
    """θ_k ← m·θ_k + (1-m)·θ_q in place, for two equally long lists of parameters."""
    torch._foreach_lerp_(list(averages), list(values), 1 - momentum)


def momentum_at(clock: Clock, start: float = 0.999, end: float = 0.999999, hold: float = 0.1) -> float:
    """m(t): `start` in the first `hold` of the training, then a cosine from `start` (t = 0) to `end` (t = total).

    The cosine counts from the first step, not from the end of the hold, so m jumps a little there, as it does in the
    authors' code. Without a known total, m stays at `start`.
    """
    if clock.total is None or clock.step < int(clock.total * hold):
        return start
    return end - (end - start) * (math.cos(math.pi * min(1.0, clock.step / clock.total)) + 1) / 2


def share_of_start(total: int, start: float = 0.999, end: float = 0.999999, hold: float = 0.1) -> float:
    """Share of its initial weights that the average holds after a training of so many steps: Π m(t).

    To half a percent of that: m is taken at no more than 1,000 places.
    """
    places = min(total, 1000)
    held = math.prod(momentum_at(Clock(place, places), start, end, hold) for place in range(places))
    return held ** (total / places) if places else 1.0


def second_head(anatomy: Anatomy) -> nn.Linear:
    """A classifier shaped like the network's, with fresh weights N(0, 0.01²) and no offset.

    Raises:
        ModelError: the network has no linear classifier.
    """
    first = anatomy.modules[anatomy.classifier]
    assert isinstance(first, nn.Linear), "a classifier is a linear layer"
    head = nn.Linear(
        first.in_features,
        first.out_features,
        first.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    nn.init.normal_(head.weight, std=0.01)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head


class Teacher(nn.Module):
    """A frozen copy of a network and of a second classifier on its backbone, which follows them slowly.

    Gradients reach its inputs, never its parameters. In training mode its BatchNorm takes the batch's statistics, and
    keeps running ones of its own.

    Args:
        anatomy: of the network; must have been bound with example images.
        head: the second classifier.
        stage: number or name of the stage whose output `features` shows; if not given, the last but one, and in a
            transformer of equal blocks the one at half depth.

    Attributes:
        net: the copy, with its own classifier.
        head: the copy of the second classifier.
        channels: of the features.

    Raises:
        ModelError: there are no example images.
        SiteError: the stage does not exist.
    """

    def __init__(self, anatomy: Anatomy, head: nn.Module, stage: int | str | None = None) -> None:
        super().__init__()
        example = anatomy.example_for("The mixer")
        self.net = copy.deepcopy(anatomy.net).requires_grad_(False)
        self.head = copy.deepcopy(head).requires_grad_(False)
        self._probe = Probe(self.net)
        site = anatomy.site(_middle_of(anatomy) if stage is None else stage)
        self._features = Want("features", site.name)
        with untouched(self.net), torch.no_grad():
            self.channels = self.features(example[:2]).shape[1]

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """The stage's map, from a whole pass without gradient, so that all running statistics follow."""
        return self._probe.run(images, wants=[self._features])[self._features]

    @torch.no_grad()
    def look(self, images: Float[Tensor, "b ..."]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b classes"]]:
        """`features`, and what the second classifier says in the same pass."""
        outputs = self._probe.run(images, wants=[self._features], head=self.head)
        return outputs[self._features], outputs.logits

    def logits(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b classes"]:
        """What the second classifier says; differentiable in the images."""
        return self._probe.run(images, head=self.head).logits

    def behave_like(self, net: nn.Module) -> None:
        """Put each module into the mode of its original: an evaluation may have come between, layers may be frozen."""
        behave_like(self.net, net)

    def follow(self, net: nn.Module, head: nn.Module, momentum: float) -> None:
        """Move all parameters towards those of the network (wrappers are looked through) and its second classifier.

        Buffers are left alone.
        """
        sources = [*unwrapped(net).parameters(), *head.parameters()]
        ema_update(self.parameters(), (parameter.detach() for parameter in sources), momentum)


def _middle_of(anatomy: Anatomy) -> int | str:
    """The last stage but one; of a transformer of equal blocks, which has no real stages, the block at half depth."""
    if anatomy.stages and set(anatomy.stages) <= set(anatomy.blocks):
        return anatomy.blocks[max(0, len(anatomy.blocks) // 2 - 1)]
    return max(1, len(anatomy.stages) - 1)
