"""Lazy looks at the clean batch through the network: everything a recipe declared is met by one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixwell.core.batch import Batch
from mixwell.probe.capture import Outputs, Probe, Want
from mixwell.probe.trace import untouched

__all__ = ["Views"]


class Views:
    """What pieces may know about the clean batch before it is mixed.

    The first question runs one pass in evaluation mode that answers all questions the recipe declared; it leaves no
    trace.

    Args:
        probe: the network's probe.
        batch: the clean batch.
        wants: everything that the recipe's pieces declared.
        loss: (logits, labels) → scalar, whose gradient `gradient` gives; mean cross-entropy if not given.
    """

    def __init__(
        self,
        probe: Probe,
        batch: Batch,
        wants: Iterable[Want] = (),
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        self.probe = probe
        self.batch = batch
        self.wants = frozenset(wants)
        self.loss = loss
        self._outputs: Outputs | None = None

    @property
    def logits(self) -> Float[Tensor, "b c"]:
        """(B, C) logits of the clean batch, detached."""
        return self._answers().logits

    def gradient(self) -> Float[Tensor, "b ..."]:
        """Gradient of the clean batch's loss with respect to its images, shaped like them."""
        return self[Want("gradient", "input")]

    def features(self, site: int | str) -> Float[Tensor, "b c h w"]:
        """The site's map of the clean batch, detached."""
        return self[Want("features", site)]

    def class_attention(self, block: int = -1) -> Float[Tensor, "b n"]:
        """Attention of the class token to each patch of the clean batch."""
        return self[Want("class_attention", block)]

    def __getitem__(self, want: Want) -> Tensor:
        if want not in self._answers().seen:
            self.wants |= {want}
            self._outputs = None
        return self._answers()[want]

    def _answers(self) -> Outputs:
        if self._outputs is None:
            self._outputs = self._look()
        return self._outputs

    def _look(self) -> Outputs:
        gradient = Want("gradient", "input")
        needed = gradient in self.wants
        with untouched(self.probe.net), torch.set_grad_enabled(needed):
            images = self.batch.images.detach().requires_grad_(needed)
            outputs = self.probe.run(images, wants=self.wants - {gradient})
            if needed:
                loss = self.loss(outputs.logits.float(), self.batch.labels)
                (outputs.seen[gradient],) = torch.autograd.grad(loss, images)
        seen = {want: tensor.detach() for want, tensor in outputs.seen.items()}
        return Outputs(outputs.logits.detach(), seen)
