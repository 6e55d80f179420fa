"""Lazy looks at the clean batch through the network: everything a recipe declared is met by one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixwell.core.batch import Batch
from mixwell.probe.anatomy import Anatomy
from mixwell.probe.cam import class_activation
from mixwell.probe.capture import Edit, Outputs, Probe, Want
from mixwell.probe.trace import untouched

__all__ = ["Views", "seen_on_example"]


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

    def gradient(self, site: int | str = "input") -> Float[Tensor, "b ..."]:
        """Gradient of the clean batch's loss with respect to its images, or to a site's map; shaped like them."""
        return self[Want("gradient", site)]

    def features(self, site: int | str) -> Float[Tensor, "b c h w"]:
        """The site's map of the clean batch, detached."""
        return self[Want("features", site)]

    def class_attention(self, block: int = -1) -> Float[Tensor, "b n"]:
        """Attention of the class token to each patch of the clean batch."""
        return self[Want("class_attention", block)]

    def patch_attention(self, block: int = -1) -> Float[Tensor, "b n"]:
        """Attention that each patch of the clean batch receives from the patches."""
        return self[Want("patch_attention", block)]

    def cam(self) -> Float[Tensor, "b h w"]:
        """Class activation map of each row's own label: what every place of the last stage adds to the class's logit.

        (B, h, w) fp32, detached, bias included; label rows weight the classes' maps.

        Raises:
            ModelError: the classifier does not take the last stage's channels.
        """
        return class_activation(self.probe.anatomy, self.features(-1), self.batch.labels)

    def __getitem__(self, want: Want) -> Tensor:
        if self._outputs is None or want not in self._outputs.seen:
            self.wants |= {want}
            self._outputs = None
        return self._answers()[want]

    def _answers(self) -> Outputs:
        if self._outputs is None:
            self._outputs = self._look()
        return self._outputs

    def _look(self) -> Outputs:
        gradients = [want for want in self.wants if want.kind == "gradient"]
        maps: dict[Want, Tensor] = {}

        def keep(want: Want) -> Edit:
            def edit(hidden: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
                maps[want] = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
                return maps[want].clone(), prefix  # the network may go on in place

            return edit

        with untouched(self.probe.net), torch.set_grad_enabled(bool(gradients)):
            images = self.batch.images.detach()
            edits: dict[str, Edit] = {}
            for want in gradients:
                if want.site == "input":
                    maps[want] = images = images.requires_grad_()
                else:
                    edits[self.probe.anatomy.site(want.site).name] = keep(want)
            outputs = self.probe.run(images, wants=self.wants - {Want("logits"), *gradients}, edits=edits)
            outputs.seen[Want("logits")] = outputs.logits
            if gradients:
                loss = self.loss(outputs.logits.float(), self.batch.labels)
                found = torch.autograd.grad(loss, [maps[want] for want in gradients])
                outputs.seen.update(zip(gradients, found, strict=True))
        seen = {want: tensor.detach() for want, tensor in outputs.seen.items()}
        return Outputs(outputs.logits.detach(), seen)


def seen_on_example(anatomy: Anatomy, what: str, wants: Iterable[Want]) -> Outputs:
    """A pass over the example images that leaves no trace, for a piece that is built for the network's maps.

    Args:
        what: the piece, as the subject of the message.

    Raises:
        ModelError: there are no example images.
        SiteError: a site does not exist.
    """
    example = anatomy.example_for(what)
    with untouched(anatomy.net), torch.no_grad():
        return Probe(anatomy.net, example).run(example, wants=wants)
