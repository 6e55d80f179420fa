"""How accurate a network stays where parts of the images are hidden: PatchDrop.

Naseer et al., "Intriguing Properties of Vision Transformers", NeurIPS 2021, arXiv:2105.10497: random patches are
dropped. Which ones is drawn for each image (OpenMixup's tool draws one set per batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mixwell.core.rng import Streams
from mixwell.data.items import size_of
from mixwell.evaluate.metrics import classes_of
from mixwell.evaluate.subject import Progress, Subject, silent
from mixwell.probe.trace import untouched

__all__ = ["RATIOS", "occluded", "patch_drop", "patch_of"]

RATIOS = tuple(tenth / 10 for tenth in range(11))


def patch_of(size: tuple[int, int]) -> int:
    """Side of a patch in pixels: 4 for images of up to 64 pixels, 16 for larger ones."""
    return 4 if max(size) <= 64 else 16


def patch_drop(
    images: Float[Tensor, "b c h w"], order: Float[Tensor, "b p"], ratio: float, patch: int
) -> Float[Tensor, "b c h w"]:
    """Set the pixels of round(P·ratio) of each image's P patches to 0; those at the right and bottom may be cut.

    Args:
        images: normalised, so that 0 is the mean colour; not modified.
        order: (B, P) numbers; the patches with the smallest are dropped, so that more of them hold fewer.
        ratio: the share of the patches.
        patch: their side in pixels.
    """
    height, width = images.shape[2:]
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    kept = order.argsort(dim=1, stable=True).argsort(1) >= round(rows * columns * ratio)
    kept = kept.view(-1, 1, rows, columns).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images * kept[:, :, :height, :width].to(images)


def occluded(
    subject: Subject,
    *,
    ratios: Sequence[float] = RATIOS,
    draws: int = 3,
    images: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Accuracy by the share of patches that are dropped, its mean over the shares, and the side of a patch in
    pixels.

    Args:
        subject: what is evaluated.
        ratios: shares of the patches.
        draws: how often patches are drawn for each image; accuracies are means over them.
        images: how many test images, every class in proportion; None for all.
        seed: of their choice and of the patches.
        progress: called with the images done and to do.
    """
    size = subject.shape[1:]
    patch, count = patch_of(size), size_of(subject.some(images, seed), "test")
    places = math.ceil(size[0] / patch) * math.ceil(size[1] / patch)
    orders = [Streams(seed).at("occlusion", draw).random((count, places), dtype=np.float32) for draw in range(draws)]
    right, done = np.zeros(len(ratios)), 0
    with untouched(subject.net), torch.no_grad():
        for batch in subject.batches(images, seed):
            labels, here = classes_of(batch.labels), slice(done, done + len(batch))
            for number, ratio in enumerate(ratios):
                alike = round(places * ratio) in (0, places)  # whatever was drawn
                for order in orders[:1] if alike else orders:
                    dropped = patch_drop(batch.images, torch.from_numpy(order[here]), ratio, patch)
                    found = int((subject.logits(dropped).argmax(1).cpu() == labels).sum())
                    right[number] += draws * found if alike else found
            done += len(batch)
            progress(done, count)
    accuracies = (right / (count * draws)).tolist()
    mean = float(np.mean(accuracies))
    return {"ratios": list(ratios), "accuracies": accuracies, "mean": mean, "patch": patch}
