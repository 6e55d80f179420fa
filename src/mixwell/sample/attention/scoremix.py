"""ScoreMix: paste a window that the partner's attention favours over one that the image's attention neglects.

Stegmüller, Bozorgtabar, Spahr, Thiran, "ScoreNet: Learning Non-Uniform Attention and Augmentation for
Transformer-Based Histopathological Image Classification", WACV 2023, arXiv:2202.07570.

The network that is being trained looks at the clean batch first. A window of cells of the partner is drawn with a
probability that grows with the class token's attention in it, and shown over a window of the image, of equal size,
whose probability falls with it; the label follows the area. So what is pasted is likely to tell the class, and what is
hidden is not. Equations: sums of the windows → `mixwell.ops.windows.window_sums`; p_source ∝ R - min R, p_target ∝
max R - R → `position_chances`; height and width of the windows → `window_sides`; the mix → `AttentionBox`.

Paper and code:
- λ is the share of the image that stays, as everywhere here; the paper's is the share that is pasted. Sides are whole
  cells, so that the label's share differs from both. As in the code a window is never higher than wide, and shows at
  most about N - √N of N cells.
- The code takes the window of the partner from the place that was drawn by the image's own attention (`rule="code"`);
  the paper means the partner's (`rule="paper"`).
- The code draws one λ and one size of windows per batch (`per="batch"`); places are each image's own in both.
- Where all windows have equal sums every place is equally likely; the code then draws so for the whole batch.
- ScoreNet combines the heads of its own scorer by learnt weights; the attention here is the mean over heads. Other
  saliencies make it a method for convolutional networks, as in "scoremix(saliency=cam)".
- Cells are the places of the saliency's map, or `grid` along each side.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from mixwell.core.axes import Blend, Need, Per, Scene, per_of
from mixwell.core.errors import ParameterError
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta
from mixwell.core.registry import Pieces, method
from mixwell.core.saliency import Saliency, Source, resized, saliency_of
from mixwell.ops.boxes import kept
from mixwell.ops.windows import moved, sides_in_pixels, window_sums, windows_at
from mixwell.probe import Anatomy, Want

__all__ = ["AttentionBox", "WindowDraws", "drawn_places", "position_chances", "window_sides"]

Own = Literal["own"]
Rule = Literal["paper", "code"]


def window_sides(
    points: Float[np.ndarray, " #b"], pasted: Float[np.ndarray, " #b"], grid: tuple[int, int]
) -> Int64[np.ndarray, "b 2"]:
    """Height and width in cells of windows of m = ⌈share·N⌉ of N cells: 1 ≤ h < ⌈√m⌉ (1 for m = 1), w = ⌈m/h⌉.

    Both end at the grid; where nothing is pasted they are 0.

    Args:
        points: (B,) or (1,) uniforms in [0, 1), which tell h.
        pasted: (B,) or (1,) share that is pasted.
        grid: rows and columns of cells.
    """
    cells = np.ceil((pasted * (grid[0] * grid[1])).round(9))  # 1 - λ has lost last digits
    most = np.ceil(np.sqrt(cells)) - 1
    height = np.minimum(1 + np.floor(points * most.clip(1)), grid[0])
    width = np.minimum(np.ceil(cells / height), grid[1])
    return np.stack(np.broadcast_arrays(np.where(cells > 0, height, 0), width), 1).astype(np.int64)


def position_chances(sums: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """The probability of each window, in proportion to what it exceeds the least sum by; equal where all sums are.

    Args:
        sums: (B, h, w) sums of windows, NaN where there is none; their negatives give each what the greatest exceeds.
    """
    exists = ~sums.isnan()
    least = sums.nan_to_num(torch.inf).amin((1, 2), keepdim=True)
    above = (sums - least).nan_to_num(0)
    weights = torch.where(above.sum((1, 2), keepdim=True) > 0, above, exists.to(above.dtype))
    return weights / weights.sum((1, 2), keepdim=True)


def drawn_places(chances: Float[Tensor, "b h w"], points: Float[Tensor, " b"]) -> Int64[Tensor, "b 2"]:
    """Row and column of the place that each point in [0, 1) falls on; never one of probability 0."""
    upto = chances.flatten(1).cumsum(1)
    whole = upto[:, -1:].contiguous()
    place = torch.searchsorted(upto, points[:, None].to(upto.dtype) * whole, right=True)
    last = torch.searchsorted(upto, whole)  # rounding may leave no place beyond the greatest points
    # Among NaN there is no place at all; a network that has diverged is to fail by its loss.
    place = torch.minimum(place, last).clamp_max(upto.shape[1] - 1)[:, 0]
    return torch.stack((place // chances.shape[2], place % chances.shape[2]), 1)


class WindowDraws(NamedTuple):
    """What tells the windows; uniforms in [0, 1).

    Attributes:
        height: (B,), or (1,) for all alike.
        source, target: (B,) place of the window in the partner, and in the image.
    """

    height: Float[np.ndarray, " #b"]
    source: Float[np.ndarray, " b"]
    target: Float[np.ndarray, " b"]


class AttentionBox(Blend):
    """Show a window of the partner, likely where it is salient, over one of the image, likely where it is not.

    Args:
        saliency: where the saliency comes from.
        grid: cells along each side; "own" for the places of the saliency's map.
        rule: whether the "paper"'s or the "code"'s map tells the place in the partner: its own, or the image's.
        per: one size of windows per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}
    aligned = False

    def __init__(self, saliency: Saliency, grid: int | Own = "own", rule: Rule = "paper", per: Per = "sample") -> None:
        super().__init__()
        if grid != "own" and grid < 1:
            raise ParameterError(f"grid must be a whole number ≥ 1, or 'own' for the saliency's own, got {grid!r}.")
        self.saliency = saliency
        self.network = saliency.network
        self.cells_along = grid
        self.rule = rule
        self.per = per_of(per)

    def views(self) -> tuple[Want, ...]:
        return self.saliency.views()

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        self.saliency.build(anatomy, num_classes)

    def draw(self, rows: int, rng: Generator) -> WindowDraws:
        return WindowDraws(rng.random(1 if self.per == "batch" else rows), rng.random(rows), rng.random(rows))

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: WindowDraws,
        scene: Scene,
    ) -> Mix:
        maps = self.saliency.maps(scene)
        if self.cells_along != "own":
            maps = resized(maps, (self.cells_along, self.cells_along))
        grid, size = (maps.shape[1], maps.shape[2]), (images.shape[2], images.shape[3])
        sides = window_sides(draws.height, 1 - lam.detach().cpu().double().numpy(), grid)
        sums = window_sums(maps, onto(sides, maps))
        target = drawn_places(position_chances(-sums), onto(draws.target, maps))
        if self.rule == "paper":
            sums = window_sums(maps.index_select(0, partners.column()), onto(sides, maps))
        source = drawn_places(position_chances(sums), onto(draws.source, maps))

        def boxes(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
            return windows_at(target, sides, grid, size), windows_at(source, sides, grid, size)

        def apply(x: Tensor) -> Tensor:
            return moved(x, partners, *boxes((x.shape[2], x.shape[3])))

        def masks(mix: Mix) -> Tensor:
            return with_rest(kept(boxes(size)[0], size))

        def origins(mix: Mix) -> Tensor:
            into, out_of = (kept(box, size) for box in boxes(size))
            return torch.cat((into, 1 - out_of), 1)

        own = torch.from_numpy(1 - sides_in_pixels(sides, grid, size).prod(1) / (size[0] * size[1]))
        kinds = {"make_masks": masks, "make_origins": origins}
        return Mix.of_pair(apply(images), partners, own, apply, lam=lam, area=own, **kinds)


@method("scoremix", section="1.8", paper="2202.07570", venue="WACV 2023")
def scoremix(
    alpha: float = 1.0,
    saliency: Source = "attention",
    grid: int | Own = "own",
    rule: Rule = "paper",
    prob: float = 0.5,
    per: Per = "sample",
) -> Pieces:
    """Args:
    alpha: λ ~ Beta(α, α), the share of the cells that keep the image.
    saliency: the paper's "attention" of the class token, or another source.
    grid: cells along each side; "own" for the places of the saliency's map.
    rule: whose saliency tells what of the partner is shown: its own ("paper"), or the image's as in the authors' code.
    prob: share of the batches that are mixed.
    per: one λ and size of windows per "sample", or per "batch" as in the authors' code.
    """
    box = AttentionBox(saliency_of(saliency), grid, rule, per)
    return Pieces(essential=box, suggested=Beta(alpha, per=per), prob=prob)
