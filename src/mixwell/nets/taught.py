"""What methods with a learned mixer share: a mixer that learns while the classifier learns from its mixes.

After AutoMix (Liu et al., "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
arXiv:2103.13027): every step mixes two batches. One carries a gradient to the mixer, and a slow copy of the network
judges it (`Lesson`); the other carries none, and the network learns from it (`TaughtMix`). Labels follow the shares
that were drawn, not the area (`DrawnShares`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixwell.core.axes import Blend, Label, Scene, Step
from mixwell.core.clock import Clock
from mixwell.core.errors import number_in
from mixwell.core.mix import Mix
from mixwell.core.targets import Targets
from mixwell.nets.mixblock import Mixer
from mixwell.nets.teacher import Teacher, momentum_at, second_head, share_of_start
from mixwell.probe import Anatomy

__all__ = ["DrawnShares", "Lesson", "TaughtBlend", "TaughtMix", "masks_for"]

_HELD = 0.05
"""Share of the initial weights that the teacher may hold at the end."""
_TIMES = 30
"""A teacher which follows by a thirtieth of the training holds about 1e-6 of its initial weights at the end."""


def masks_for(masks: Float[Tensor, "r k h w"], x: Float[Tensor, "r _ _h _w"]) -> Float[Tensor, "r k _h _w"]:
    """Masks of the images' size, averaged to the size of `x` if it has another."""
    size = x.shape[-2:]
    return masks if masks.shape[-2:] == size else F.interpolate(masks, size, mode="area")


@dataclass(frozen=True, eq=False)
class Lesson:
    """The mixed batch that the mixer learns from.

    Attributes:
        images: (B, C, H, W), with a graph to the mixer.
        targets: the labels, by the drawn shares.
        judge: images → logits of the teacher's mixed classifier; None in steps where it does not judge.
    """

    images: Float[Tensor, "b c h w"]
    targets: Targets
    judge: Callable[[Tensor], Tensor] | None


@dataclass(eq=False)
class TaughtMix(Mix):
    """A mix by a mixer that is being trained.

    Attributes:
        shares: (R, K) drawn share of each source, or (1, K) for all rows.
        lesson: what the mixer learns from in this step.
    """

    shares: Float[Tensor, "#r k"] | None = None
    lesson: Lesson | None = None


class TaughtBlend(Blend):
    """Show what a learned mixer chooses of each image.

    Owns the mixer, a classifier for mixed images and the teacher, which exist once it is built.

    Args:
        mixer: channels of the features → mixer.
        stage: number or name of the stage whose features the mixer sees; None for the last but one (of a ViT: the
            block at half depth).
        momentum, final_momentum, hold: of the teacher, see `momentum_at`.
    """

    network = True
    hidden = False

    def __init__(
        self,
        mixer: Callable[[int], Mixer],
        stage: int | str | None = None,
        momentum: float = 0.999,
        final_momentum: float = 0.999999,
        hold: float = 0.1,
    ) -> None:
        super().__init__()
        self.make_mixer = mixer
        self.stage = stage
        self.momentum = number_in("momentum", momentum, 0, 1)
        self.final_momentum = number_in("final_momentum", final_momentum, self.momentum, 1)
        self.hold = number_in("hold", hold, 0, 1)
        self.mixer: Mixer
        self.mixed_head: nn.Linear | None = None
        self.teacher: Teacher | None = None

    def mixed_classifier(self) -> nn.Module | None:
        """The second head, which `build` made."""
        return self.mixed_head

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.mixed_head = second_head(anatomy)
        self.teacher = Teacher(anatomy, self.mixed_head, self.stage)
        self.mixer = self.make_mixer(self.teacher.channels).to(self.mixed_head.weight.device)

    def teacher_in(self, scene: Scene) -> Teacher:
        """The teacher, in the mode of the scene's network."""
        assert self.teacher is not None, "a recipe binds before it mixes"
        if scene.views is not None:
            self.teacher.behave_like(scene.views.probe.net)
        return self.teacher

    def after_step(self, net: nn.Module, clock: Clock) -> None:
        if clock.step == 0 and clock.total is not None:
            self._warn_if_short(clock.total)
        if self.teacher is not None and self.mixed_head is not None:
            self.teacher.follow(net, self.mixed_head, momentum_at(clock, self.momentum, self.final_momentum, self.hold))

    def _warn_if_short(self, total: int) -> None:
        """Say so if the training is too short for the teacher to become the network's average."""
        held = share_of_start(total, self.momentum, self.final_momentum, self.hold)
        if held <= _HELD:
            return
        gap = min(1.0, _TIMES / total)
        warnings.warn(
            f"This training of {total} steps is too short for momentum={self.momentum:g}: the moving average that is "
            f"evaluated will still hold {held:.0%} of its initial weights. Take momentum={1 - gap:.4g}, "
            f"final_momentum={1 - gap / 1000:.7g}.",
            stacklevel=2,
        )

    def predictor(self, model: nn.Module) -> nn.Module | None:
        """The teacher with its clean classifier."""
        return None if self.teacher is None else self.teacher.net


class DrawnShares(Label):
    """Label shares as they were drawn, whatever area was realised; of the mixes of a `TaughtBlend`."""

    def targets(self, step: Step) -> Targets:
        assert isinstance(step.mix, TaughtMix), "only a learned mix keeps the shares that were drawn"
        assert step.mix.shares is not None, "a learned mix was made without shares"
        return step.mix.targets(step.mix.shares.expand_as(step.mix.weights))
