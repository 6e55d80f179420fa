"""GridMix: every cell of a grid shows one of two images, and the network also says which class stands in each cell.

Baek, Bang, Shim, "GridMix: Strong Regularization Through Local Context Mapping", Pattern Recognition 109, 2021,
doi:10.1016/j.patcog.2020.107594.

An image is cut into n×n cells, each shown from the image or from its partner; the label follows the area. A second
classifier, used in training only, reads the last feature map cell by cell and is trained on the label of the image that
each cell came from. Equations: x̃ = M⊙x_i + (1-M)⊙x_j → `cell_mask`; y_p → `local_targets`; L = L_global + γ·Σ_p
CE(f_l(x̃)_p, y_p) → `LocalGrid`.

No official code is known. What the paper's abstract and figures leave open is read as: cells follow fair coins
(`cells="bernoulli"`), or λ ~ Beta(α, α) and round(λ·n²) random cells stay (`cells="beta"`); f_l is one linear layer on
the map averaged to n×n; γ = 1/n², which makes the local part the mean over cells.

Not to be mistaken for GridMixup (Dobrynin, github.com/IlyaDobrynin/GridMixup, 2021), which other libraries call GridMix
and cite with this paper: it shows the partner in periodic holes and has no local classifier. It is
`variant="gridmixup"`, with the defaults of its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from torch import Tensor, nn

from mixwell.core.axes import Blend, Criterion, Need, Per, Scene, Step, Term, per_of
from mixwell.core.errors import ModelError, ParameterError, number_in
from mixwell.core.mix import Mix, Partners, onto, with_rest
from mixwell.core.plain import OF_A_PAIR, Beta, Uniform
from mixwell.core.registry import Pieces, method
from mixwell.core.targets import Targets
from mixwell.ops.boxes import all_but
from mixwell.ops.cells import Lines, cells_shown, share_in_cells
from mixwell.probe import Anatomy, Want, seen_on_example

__all__ = [
    "CellMix",
    "GridCells",
    "HoleDraws",
    "LocalGrid",
    "PeriodicHoles",
    "cell_area",
    "cell_mask",
    "hole_lines",
    "local_targets",
]

Cells = Literal["bernoulli", "beta"]
Range = tuple[float, ...]


@lru_cache(maxsize=64)
def _cell_of(side: int, grid: int) -> Int[np.ndarray, " side"]:
    """The cell ⌊i·n / side⌋ of each pixel i."""
    return np.arange(side) * grid // side


def cell_mask(
    cells: Bool[np.ndarray, "#b n n"], size: tuple[int, int], like: Float[Tensor, "..."]
) -> Float[Tensor, "#b 1 h w"]:
    """The cells at the size of an image, on the device and in the dtype of `like`; 1 where a cell is True."""
    return cells_shown(cells, _lines(cells, size), like)


def cell_area(cells: Bool[np.ndarray, "#b n n"], size: tuple[int, int]) -> Float[np.ndarray, " #b"]:
    """Exact share of the pixels in the cells that are True, in fp64."""
    return share_in_cells(cells, _lines(cells, size))


def _lines(cells: Bool[np.ndarray, "b n n"], size: tuple[int, int]) -> Lines:
    """The cell of each pixel along the height and along the width."""
    return _cell_of(size[0], cells.shape[1]), _cell_of(size[1], cells.shape[2])


@dataclass(eq=False)
class CellMix(Mix):
    """A mix in the cells of a grid.

    Attributes:
        cells: (R, n, n) or (1, n, n); True where the image itself is shown.
    """

    cells: Bool[np.ndarray, "#r n n"] | None = None


class GridCells(Blend):
    """Show each cell of an n×n grid from the image or from its partner.

    Args:
        grid: n, cells along a side.
        cells: "bernoulli": each is the image's with probability p; "beta": round(λ·n²) random ones are.
        p: see there; has no effect with "beta".
        per: one choice of cells per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(self, grid: int = 4, cells: Cells = "bernoulli", p: float = 0.5, per: Per = "sample") -> None:
        super().__init__()
        self.n = int(number_in("grid", grid, 1))
        self.takes_lam = cells == "beta"
        self.p = number_in("p", p, 0, 1)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> np.ndarray:
        """(B, n, n) or (1, n, n) uniforms in [0, 1); the lowest stay with the image."""
        return rng.random((1 if self.per == "batch" else rows, self.n, self.n))

    def kept(self, draws: Float[np.ndarray, "#b n n"], lam: Float[Tensor, " #b"]) -> Bool[np.ndarray, "#b n n"]:
        """The cells that show the image itself."""
        if not self.takes_lam:
            return draws < self.p
        flat = draws.reshape(len(draws), -1)
        count = np.rint(lam.detach().cpu().double().numpy() * flat.shape[1])
        ranks = flat.argsort(1).argsort(1)
        kept: np.ndarray = ranks < count[:, None]
        return kept.reshape(-1, *draws.shape[1:])

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: np.ndarray,
        scene: Scene,
    ) -> Mix:
        cells, size = self.kept(draws, lam), (images.shape[2], images.shape[3])
        own = torch.from_numpy(cell_area(cells, size))

        def apply(x: Tensor) -> Tensor:
            return partners.under(x, cell_mask(cells, (x.shape[2], x.shape[3]), x))

        def masks(mix: Mix) -> Tensor:
            return with_rest(cell_mask(cells, size, mix.weights))

        return CellMix.of_pair(
            apply(images),
            partners,
            own,
            apply,
            lam=lam if self.takes_lam else None,
            area=own,
            make_masks=masks,
            cells=cells,
        )


def local_targets(mix: CellMix) -> Targets:
    """The label of every cell: of the image that it shows.

    Returns:
        Targets of R·n² rows, cells row by row within each image; the sources are the image's two, with weights 1 and 0.
    """
    assert mix.cells is not None, "a mix in cells was made without cells"
    own = onto(mix.cells.astype(np.float32), mix.weights).flatten(1).expand(len(mix.sources), -1)
    sources = mix.sources.repeat_interleave(own.shape[1], 0)
    return Targets(mix.pool, sources, torch.stack((own, 1 - own), 2).flatten(0, 1))


class LocalGrid(Term):
    """Local context mapping: γ times the criterion of each cell's logits, summed over cells.

    Owns the local classifier, which exists once it is built; it is no part of the network.

    Args:
        grid: n, cells along a side.
        weight: γ ≥ 0; 1/n² if not given.
        stage: number or module name of the stage whose map is read; if not given, the last one that has a place for
            every cell.
    """

    needs = frozenset({Need.PAIR})
    network = True

    def __init__(self, grid: int = 4, weight: float | None = None, stage: int | str | None = None) -> None:
        super().__init__()
        self.n = grid
        self.weight = 1 / grid**2 if weight is None else number_in("local_weight", weight, 0)
        self.stage = stage
        self.head: nn.Linear | None = None
        self._map: Want | None = None

    def wants(self) -> tuple[Want, ...]:
        return () if self._map is None else (self._map,)

    def build(self, anatomy: Anatomy, num_classes: int | None) -> None:
        """Find the map, and make the local classifier for it.

        Raises:
            ModelError: there are no example images, or no map has a place for every cell.
            SiteError: the stage does not exist.
        """
        names = anatomy.stages if self.stage is None else (anatomy.site(self.stage).name,)
        wants = [Want("features", name) for name in names]
        seen = seen_on_example(anatomy, "The local classifier", wants)
        found = [want for want in wants if min(seen[want].shape[2:]) >= self.n]
        if not found:
            sizes = ", ".join(f"{want.site} has {seen[want].shape[2]}×{seen[want].shape[3]}" for want in wants)
            raise ModelError(
                f"The local classifier needs a feature map of at least {self.n}×{self.n} places; "
                f"{sizes or 'no stages were found'}. Take a smaller grid, larger images, or stage=... with the number "
                "of an earlier stage or the name of a module."
            )
        self._map = found[-1]
        shown = seen[self._map]
        classes = num_classes or seen.logits.shape[-1]
        self.head = nn.Linear(shown.shape[1], classes, device=shown.device, dtype=shown.dtype)

    def value(self, step: Step, targets: Targets, criterion: Criterion) -> Float[Tensor, ""]:
        assert self.head is not None, "a recipe binds before it is trained"
        assert self._map is not None, "and finds the map"
        assert isinstance(step.mix, CellMix), "only a mix in cells has local labels"
        pooled = F.adaptive_avg_pool2d(step.outputs[self._map], self.n)
        logits = self.head(pooled.flatten(2).transpose(1, 2)).flatten(0, 1)
        wanted = local_targets(step.mix)
        wanted.num_classes = targets.num_classes
        loss: Tensor = self.weight * self.n**2 * criterion(logits, wanted)
        return loss


class HoleDraws(NamedTuple):
    """Where GridMixup's holes are; each (B,), or (1,) for all alike.

    Attributes:
        holes: along the crop's width.
        hole_aspect: height / width of a hole.
        crop_area: of the crop, as a share of the image's.
        crop_aspect: height / width of the crop.
        row, column: place of the crop, in [0, 1).
    """

    holes: Int[np.ndarray, " #b"]
    hole_aspect: Float[np.ndarray, " #b"]
    crop_area: Float[np.ndarray, " #b"]
    crop_aspect: Float[np.ndarray, " #b"]
    row: Float[np.ndarray, " #b"]
    column: Float[np.ndarray, " #b"]


def hole_lines(
    lam: Float[np.ndarray, " #b"], draws: HoleDraws, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "#b h"], Float[np.ndarray, "#b w"]]:
    """The rows and columns of GridMixup's holes, 1 inside; a hole is where both are 1.

    A crop is tiled with patches, and each patch has a hole of √(1-λ) of its sides in its top-left corner, at least one
    pixel and at most one less than the patch. Where the authors' code would fail, values are clipped: the crop to the
    image, the number of holes to half the crop's width.

    Args:
        lam: (B,) or (1,) share that is to stay.
        draws: the crop and its holes.
        size: height and width of the image.
    """
    height, width = size
    crop_width = np.floor(np.sqrt(np.floor(height * width * draws.crop_area) / draws.crop_aspect))
    crop_height = np.floor(crop_width * draws.crop_aspect).clip(1, height)
    crop_width = crop_width.clip(1, width)
    patch_width = np.ceil(crop_width / draws.holes.clip(1, np.maximum(crop_width // 2, 1)))
    patch_height = np.floor(patch_width * draws.hole_aspect).clip(1)
    lines = []
    for side, crop, patch, place in (
        (height, crop_height, patch_height, draws.row),
        (width, crop_width, patch_width, draws.column),
    ):
        hole = np.minimum(np.floor(patch * np.sqrt(1 - lam)).clip(1), patch - 1)
        inside = np.arange(side) - np.floor((side - crop) * place)[:, None]
        in_hole = (inside >= 0) & (inside < crop[:, None]) & (inside % patch[:, None] < hole[:, None])
        lines.append(in_hole.astype(np.float32))
    return lines[0], lines[1]


class PeriodicHoles(Blend):
    """Keep the image, show its partner in the periodic holes of GridMixup.

    Args:
        holes: least and greatest number of holes along the crop's width.
        hole_aspect, crop_area, crop_aspect: least and greatest values, as `HoleDraws`.
        per: one grid of holes per "sample" or per "batch".
    """

    gives = OF_A_PAIR | {Need.MASKS}

    def __init__(
        self,
        holes: tuple[int, ...] = (20, 20),
        hole_aspect: Range = (1.0, 1.0),
        crop_area: Range = (1.0, 1.0),
        crop_aspect: Range = (1.0, 1.0),
        per: Per = "sample",
    ) -> None:
        super().__init__()
        low, high = _range("holes", holes, 1)
        self.holes = int(low), int(high)
        self.hole_aspect = _range("hole_aspect", hole_aspect)
        self.crop_area = _range("crop_area", crop_area, high=1)
        self.crop_aspect = _range("crop_aspect", crop_aspect)
        self.per = per_of(per)

    def draw(self, rows: int, rng: Generator) -> HoleDraws:
        count = 1 if self.per == "batch" else rows
        return HoleDraws(
            rng.integers(*self.holes, count, endpoint=True),
            rng.uniform(*self.hole_aspect, count),
            rng.uniform(*self.crop_area, count),
            rng.uniform(*self.crop_aspect, count),
            rng.random(count),
            rng.random(count),
        )

    def mix(
        self,
        images: Float[Tensor, "b c h w"],
        partners: Partners,
        lam: Float[Tensor, " #b"],
        draws: HoleDraws,
        scene: Scene,
    ) -> Mix:
        kept = lam.detach().cpu().double().numpy()

        def keep(lines: tuple[np.ndarray, np.ndarray], like: Tensor) -> Tensor:
            rows, columns = (onto(line, like).to(like.dtype) for line in lines)
            return all_but(rows, columns)

        def apply(x: Tensor) -> Tensor:
            return partners.under(x, keep(hole_lines(kept, draws, (x.shape[2], x.shape[3])), x))

        lines = hole_lines(kept, draws, (images.shape[2], images.shape[3]))
        own = torch.from_numpy(1 - lines[0].mean(1, dtype=np.float64) * lines[1].mean(1, dtype=np.float64))

        def masks(mix: Mix) -> Tensor:
            return with_rest(keep(lines, mix.weights))

        return Mix.of_pair(apply(images), partners, own, apply, lam=lam, area=own, make_masks=masks)


def _range(name: str, given: Range, low: float = 0.0, high: float = float("inf")) -> tuple[float, float]:
    """The least and the greatest value of a range; at least `low`, or more than 0."""
    if len(given) != 2 or given[0] > given[1]:
        raise ParameterError(f"{name} must be (least, greatest), two numbers in order, got {given!r}.")
    ends = [number_in(name, end, low, high, open_low=low == 0) for end in given]
    return ends[0], ends[1]


@method("gridmix", section="1.3", paper="doi:10.1016/j.patcog.2020.107594", venue="Pattern Recognition 2021")
def gridmix(
    variant: Literal["gridmix", "gridmixup"] = "gridmix",
    grid: int = 4,
    cells: Cells = "bernoulli",
    p: float = 0.5,
    alpha: float | None = None,
    local_weight: float | None = None,
    stage: int | str | None = None,
    holes: tuple[int, ...] = (20, 20),
    hole_aspect: Range = (1.0, 1.0),
    crop_area: Range = (1.0, 1.0),
    crop_aspect: Range = (1.0, 1.0),
    prob: float = 1.0,
    per: Per = "sample",
) -> Pieces:
    """Args:
    variant: "gridmix", the paper's, or "gridmixup", another method that goes by the same name; what follows belongs to
        the first up to `stage`, and from `holes` on to the second.
    grid: n, cells along a side.
    cells: "bernoulli" draws for each cell whose it is, "beta" draws how many are the image's.
    p: probability that a cell is the image's, with cells="bernoulli".
    alpha: λ ~ Beta(α, α), with cells="beta" (1 if not given) and of "gridmixup" (U(0.1, 0.9) if not given).
    local_weight: weight γ of the local loss, a sum over cells; 1/n² if not given.
    stage: number or module name of the stage that the local classifier reads; if not given, the last one whose map has
        a place for every cell.
    holes: least and greatest number of holes along the crop's width.
    hole_aspect: least and greatest height / width of a hole.
    crop_area: least and greatest area of the crop with the holes, as a share of the image's.
    crop_aspect: least and greatest height / width of the crop.
    prob: share of the batches that are mixed.
    per: one choice of cells, or of λ and holes, per "sample" or per "batch".
    """
    if variant == "gridmixup":
        ratio = Uniform(0.1, 0.9, per) if alpha is None else Beta(alpha, per=per)
        return Pieces(PeriodicHoles(holes, hole_aspect, crop_area, crop_aspect, per), ratio, prob)
    blend = GridCells(grid, cells, p, per)
    ratio = Beta(1.0 if alpha is None else alpha, per=per)
    return Pieces((blend, LocalGrid(blend.n, local_weight, stage)), ratio, prob)
