"""What must never be trained on silently, checked without a host sync per step."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, ParameterError

__all__ = ["Validate", "check_images", "check_labels", "validate_of"]

Validate = Literal["sampled", "always"]

_IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def validate_of(value: str) -> Validate:
    """`value` as "sampled" or "always".

    Raises:
        ParameterError: anything else.
    """
    if value in get_args(Validate):
        return cast(Validate, value)
    raise ParameterError(f"validate must be 'sampled' (first batch and every 100th) or 'always', got {value!r}.")


def check_images(images: object, values: bool) -> None:
    """Shape and dtype; with `values` also that all are finite (one reduction, one host sync).

    Raises:
        BatchError: not a floating tensor (B, ...), empty, or not finite.
    """
    if not isinstance(images, Tensor):
        raise BatchError(f"images must be a tensor (B, C, H, W), got {type(images).__name__}. Stack the images first.")
    if not images.is_floating_point():
        raise BatchError(
            f"images must be floating and normalised, got {images.dtype}. Convert them first, "
            "e.g. images.float() / 255, then subtract the mean and divide by the std."
        )
    if images.ndim < 2 or images.shape[0] == 0:
        raise BatchError(f"images must be (B, ...) with at least one row, got shape {tuple(images.shape)}.")
    if values and images.numel() and not all(torch.isfinite(end) for end in torch.aminmax(images.detach())):
        raise BatchError("images contain NaN or infinite values. Check the loader and the normalisation (a std of 0?).")


def check_labels(batch: Batch, num_classes: int | None, values: bool, *, rows_sum_to_1: bool) -> None:
    """Length, shape and dtype; with `values` (or wherever the labels are on the host) also the range of class ids.

    Raises:
        BatchError: labels that do not belong to the images, are float ids, or are out of range.
    """
    labels = batch.labels
    if not isinstance(labels, Tensor):
        raise BatchError(f"labels must be a tensor, got {type(labels).__name__}.")
    if labels.ndim == 0 or labels.shape[0] != len(batch):
        raise BatchError(
            f"images and labels must have the same length, got {len(batch)} images and labels {tuple(labels.shape)}."
        )
    if labels.is_floating_point():
        _check_rows(labels, num_classes, values or labels.device.type == "cpu", rows_sum_to_1)
        return
    if labels.dtype not in _IDS or labels.ndim != 1:
        raise BatchError(
            f"labels must be (B,) integer class ids or (B, C) floating rows, got {labels.dtype} {tuple(labels.shape)}. "
            "Use labels.long() for ids, labels.float() for one-hot or multi-hot rows."
        )
    if batch.checked or not (values or labels.device.type == "cpu"):
        return
    least, most = torch.aminmax(labels)
    low, high = int(least), int(most)
    if low < 0 or (num_classes is not None and high >= num_classes):
        top = "" if num_classes is None else f", {num_classes - 1}]"
        raise BatchError(
            f"class ids must lie in [0{top or ', ...)'}, got {low} to {high}. Check num_classes and the label encoding."
        )


def _check_rows(labels: Tensor, num_classes: int | None, values: bool, rows_sum_to_1: bool) -> None:
    if num_classes is None:
        return
    if labels.ndim != 2:
        raise BatchError(
            f"floating labels must be rows (B, {num_classes}), got shape {tuple(labels.shape)}. "
            "If they are class ids, use labels.long()."
        )
    if labels.shape[1] != num_classes:
        raise BatchError(f"label rows must have {num_classes} columns, got {labels.shape[1]}. Check num_classes.")
    if not values:
        return
    low, high = torch.aminmax(labels)
    if not (low >= 0 and high <= 1):
        raise BatchError(f"label rows must lie in [0, 1], got {float(low):g} to {float(high):g}.")
    if rows_sum_to_1 and not torch.allclose(
        labels.sum(1).float(), torch.ones(len(labels), device=labels.device), atol=1e-2
    ):
        raise BatchError(
            "label rows must sum to 1 for cross-entropy. For multi-label targets give criterion='bce' to "
            "mixwell.create."
        )
