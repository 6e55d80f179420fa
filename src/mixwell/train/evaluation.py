"""How good a network is on clean images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error

from mixwell.data import Loader
from mixwell.probe.capture import logits_of
from mixwell.probe.trace import untouched

__all__ = ["Evaluation", "evaluate"]

BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    accuracy: share of the images whose class is the arg-max.
    nll: mean cross-entropy, in nats.
    ece: expected calibration error with 15 bins of equal width.
    """

    accuracy: float
    nll: float
    ece: float


def evaluate(
    net: nn.Module,
    loader: Loader,
    accelerator: Accelerator | None = None,
    *,
    images: Callable[[Tensor], Tensor] = lambda images: images,
    channels_last: bool = False,
) -> Evaluation:
    """Evaluate `net` on every row of `loader`, each counted once over all processes. Label rows count as their largest
    class.

    Args:
        net: images → logits; its mode and buffers stay as they are.
        loader: not shuffled, with this process's rank.
        accelerator: says where and in which precision; a plain one if not given.
        images: what is done to the images first.
    """
    accelerator = accelerator or Accelerator()
    rows = [torch.zeros(0, 4, device=accelerator.device)]
    with untouched(net), torch.no_grad(), accelerator.autocast():
        for batch in loader.epoch(0):
            batch = batch.to(accelerator.device, channels_last=channels_last)
            rows.append(_rows(logits_of(net(images(batch.images))), batch.labels))
    mine = accelerator.pad_across_processes(torch.cat(rows))
    everyone = accelerator.gather(mine).cpu()
    confidence, correct, nll, present = everyone.double().T
    there = present > 0  # rows of padding are zeros
    if not bool(torch.isfinite(everyone).all()):
        return Evaluation(float("nan"), float("nan"), float("nan"))
    ece = binary_calibration_error(confidence[there], correct[there].long(), n_bins=BINS, norm="l1")
    return Evaluation(float(correct[there].mean()), float(nll[there].mean()), float(ece))


def _rows(logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, "b 4"]:
    """Confidence, whether it was right, cross-entropy, and 1 for each image."""
    with torch.autocast(logits.device.type, enabled=False):
        log_p = logits.float().log_softmax(1)
    top, guess = log_p.max(1)
    classes = labels.argmax(1) if labels.ndim == 2 else labels
    nll = -(labels * log_p).sum(1) if labels.ndim == 2 else -log_p.gather(1, labels[:, None])[:, 0]
    # Rounding may leave exp(log p) just above 1.
    return torch.stack((top.exp().clamp(max=1), (guess == classes).float(), nll, torch.ones_like(nll)), 1)
