"""Maps of class scores: the highest few at each place, and what a crop of the image shows of them.

A crop is five numbers, as in `mixwell.data.crops`: top, left, height and width as shares of the image, and 1 if it is
mirrored. A cell of the crop is the mean of bilinear samples, ⌈places per cell⌉ along each axis, taken where RoIAlign
takes them (He et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870), on maps whose places are pixels' centres. Beyond the
map all scores are 0. RoIAlign is linear and separable, so two small matrices per image do it for any number of classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

__all__ = ["class_maps", "cropped", "line_weights", "merged", "token_scores", "top_scores"]


def top_scores(
    logits: Float[Tensor, "b c h w"], count: int
) -> tuple[Float[Tensor, "b k h w"], Integer[Tensor, "b k h w"]]:
    """The highest scores at each place, and their classes; at least one class of several is left out.

    Scores are logits above the mean (of exponentials) of those that are left out. They are ≥ 0, and a softmax over them
    and 0 for all others gives these classes the shares that the softmax over all logits does.
    """
    classes = logits.shape[1]
    found = logits.topk(max(1, min(count, classes - 1)), 1)
    if classes == 1:
        return found.values, found.indices
    rest = logits.scatter(1, found.indices, -torch.inf).logsumexp(1, keepdim=True)
    return found.values - (rest - math.log(classes - found.values.shape[1])), found.indices


def class_maps(
    scores: Float[Tensor, "b k h w"], classes: Integer[Tensor, "b k h w"], labels: Tensor
) -> Float[Tensor, "b h w"]:
    """The score of each image's own class at each place, 0 where it is not among the highest; fp32.

    Args:
        labels: (B,) class ids, or (B, C) rows, which weight the classes' scores.
    """
    if labels.is_floating_point():
        rows, places = labels.float(), classes.long().flatten(1)
        owned = rows.gather(1, places).view(classes.shape)
    else:
        owned = (classes == labels[:, None, None, None]).float()
    return (scores.float() * owned).sum(1)


def line_weights(
    start: Float[Tensor, " b"], extent: Float[Tensor, " b"], size: int, count: int
) -> Float[Tensor, "b count size"]:
    """How much each of `size` places along an axis counts in each of `count` cells of a crop.

    Args:
        start, extent: the crop, as shares of the axis; an extent is at most 1, and at least one place is shown.
        size: places of the map.
        count: cells.
    """
    length = (extent.float() * size).clamp_min(1)
    samples = (length / count).ceil()
    most = math.ceil(size / count)
    number = torch.arange(most, device=start.device)
    within = (number + 0.5) / samples[:, None]
    cells = torch.arange(count, device=start.device)[:, None] + within[:, None]
    at = (start.float() * size - 0.5)[:, None, None] + cells * (length / count)[:, None, None]
    counts = (number < samples[:, None])[:, None] & (at >= -1) & (at <= size)
    away = at.clamp(0, size - 1)[..., None] - torch.arange(size, device=start.device)
    hats = (1 - away.abs()).clamp_min(0) * counts[..., None]  # bilinear weights
    return hats.sum(2) / samples[:, None, None]


def _both_axes(
    rows: int,
    crops: Float[Tensor, "b 5"] | None,
    places: tuple[int, int],
    size: tuple[int, int],
    device: torch.device,
    *,
    swapped: bool,
) -> tuple[Float[Tensor, "b y h"], Float[Tensor, "b x w"]]:
    """The weights of the map's rows and columns in those of a crop, or of the whole image."""
    if crops is None:
        crops = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0], device=device).expand(rows, 5)
    first, second = (1, 0) if swapped else (0, 1)
    down = line_weights(crops[:, first], crops[:, first + 2], places[0], size[0])
    across = line_weights(crops[:, second], crops[:, second + 2], places[1], size[1])
    return down, torch.where(crops[:, 4, None, None] > 0, across.flip(1), across)


def cropped(
    maps: Float[Tensor, "b h w"],
    crops: Float[Tensor, "b 5"] | None,
    size: tuple[int, int],
    *,
    swapped: bool = False,
) -> Float[Tensor, "b y x"]:
    """What the crop of each image shows of its map, in fp32.

    Args:
        maps: (B, h, w) of whole images.
        crops: (B, 5); None for whole images.
        size: rows and columns of cells.
        swapped: take the crop's rows for columns, and its columns for rows.
    """
    with torch.autocast(maps.device.type, enabled=False):
        places = (maps.shape[1], maps.shape[2])
        down, across = _both_axes(len(maps), crops, places, size, maps.device, swapped=swapped)
        return down @ maps.float() @ across.mT


def token_scores(
    scores: Float[Tensor, "b k h w"],
    classes: Integer[Tensor, "b k h w"],
    crops: Float[Tensor, "b 5"] | None,
    size: tuple[int, int],
    *,
    swapped: bool = False,
) -> tuple[Float[Tensor, "b n e"], Int[Tensor, "b n e"]]:
    """What each cell of a crop shows of the scores of all classes: E scores, and the class that each belongs to.

    Classes that are not named have score 0. A class is named once; where there are fewer than E, further scores are 0.

    Args:
        scores, classes: (B, k, h, w) the highest scores of whole images.
        crops, size, swapped: as for `cropped`; cells are numbered row by row.
    """
    places = (scores.shape[2], scores.shape[3])
    down, across = _both_axes(len(scores), crops, places, size, scores.device, swapped=swapped)
    (rows, row_weights), (columns, column_weights) = _window(down), _window(across)
    at = rows[:, :, None, :, None] * places[1] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    cells, count = at.flatten(3).flatten(1, 2), scores.shape[1]  # (B, N, places of a cell)
    index = cells.flatten(1)[:, None].expand(-1, count, -1)

    def seen(values: Tensor) -> Tensor:
        return values.flatten(2).gather(2, index).view(len(values), count, *cells.shape[1:])

    shown = seen(scores).float() * weights.flatten(3).flatten(1, 2)[:, None]
    return merged(shown.permute(0, 2, 3, 1).flatten(2), seen(classes).permute(0, 2, 3, 1).flatten(2).long())


def _window(weights: Float[Tensor, "b n p"]) -> tuple[Int[Tensor, "b n m"], Float[Tensor, "b n m"]]:
    """The few neighbouring places that count in a cell, and how much."""
    count, size = weights.shape[1:]
    width = min(size, math.ceil(size / count) + 1)
    first = (weights > 0).int().argmax(2).clamp_max(size - width)
    places = first[:, :, None] + torch.arange(width, device=weights.device)
    return places, weights.gather(2, places)


def merged(
    scores: Float[Tensor, "*b e"], classes: Int[Tensor, "*b e"]
) -> tuple[Float[Tensor, "*b e"], Int[Tensor, "*b e"]]:
    """The scores of equal classes summed up: each class stands once, and behind the last one all scores are 0."""
    ordered, order = classes.sort(-1)
    slot = F.pad((ordered[..., 1:] != ordered[..., :-1]).long().cumsum(-1), (1, 0))
    sums = torch.zeros_like(scores).scatter_add_(-1, slot, scores.gather(-1, order))
    return sums, torch.zeros_like(classes).scatter_(-1, slot, ordered)
