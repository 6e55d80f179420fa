"""Contact sheets: a grid of mixes, and under each what its label says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor, nn

from mixwell.core.artefacts import Progress
from mixwell.core.errors import BatchError, ParameterError
from mixwell.gallery.act import Shown, act

__all__ = ["COLOURS", "sheet"]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A6D3B", "#777777")
"""Okabe and Ito's palette, whose colours the colour-blind tell apart, without its yellow and black."""
_PAPER, _INK = "#FFFFFF", "#24292F"
_GAP, _BAR, _FONT = 8, 20, 14
_SMALLEST = 112
"""Side in pixels to which smaller images are enlarged by a whole factor."""
_MOSAIC = 3
"""A hidden map is shown as its first 3×3 channels."""
_EMBEDDING = 8
"""An embedding is shown as its first 8×8 channels."""

Row = tuple[str, list[Image.Image]]


def sheet(
    recipes: Sequence[str],
    images: Float[Tensor, "b c h w"],
    names: Sequence[str],
    *,
    path: str | Path | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    across: bool = False,
    columns: int | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """Draw what recipes make of images, and save it if a path is given.

    A recipe is a row of mixes, each over a bar with every class's label share; rows of further views and of masks,
    coloured by source, follow where there are any, a row of saliency goes before where the recipe looks for it, and one
    of attention comes after where the labels follow what the network makes of the mix.
    What happens to hidden maps is shown as 9 channels of the images' own maps and, below, of what became of them.

    Args:
        recipes: texts, as `mixwell.create` takes them.
        images: (B, 1 or 3, H, W) floating pixels in [0, 1]; the whole batch is mixed.
        names: B names; images of the same name are of one class.
        path: file to write; its ending says the format.
        seed: of all draws.
        model: the network that recipes may look through, for images normalised to [-1, 1]; a small one, fitted to the
            images, if not given.
        across: one column per recipe and one row per image, without masks.
        columns: how many of the images to show; all if not given.
        progress: called with (what is made or trained before a recipe acts, steps done, steps in all).

    Raises:
        BatchError: the images are not pixels, or there is not one name for each.
        IncompatibleRecipe: a recipe cannot act.
    """
    if len(names) != len(images) or len(images) == 0:
        raise BatchError(f"Expected one name per image, got {len(names)} names for {len(images)} images.")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise BatchError(f"Expected images (B, 1 or 3, H, W), got {tuple(images.shape)}.")
    if columns is not None and not 1 <= columns <= len(images):
        raise ParameterError(f"columns must be 1 … {len(images)}, the number of images, got {columns}.")
    known = list(dict.fromkeys(names))
    labels = torch.tensor([known.index(name) for name in names])
    size = (images.shape[3], images.shape[2])
    zoom = -(-_SMALLEST // min(size))
    draw = _Cells((size[0] * zoom, size[1] * zoom), known)
    count = columns or len(images)

    originals = draw.mixes(images, torch.nn.functional.one_hot(labels, len(known)).float())
    rows: list[Row] = [("image" if across else "images", originals[:count])]
    for recipe in recipes:
        shown = act(recipe, images, labels, num_classes=len(known), seed=seed, model=model, progress=progress)
        found = _rows(shown, draw, across)
        rows += [(title, cells[:count]) for title, cells in found]
    if across:
        rows_of_images = [[cells[i] for _, cells in rows] for i in range(min(len(cells) for _, cells in rows))]
        picture = _grid(rows_of_images, top=[title for title, _ in rows])
    else:
        picture = _grid([cells for _, cells in rows], left=[title for title, _ in rows])
    if path is not None:
        picture.save(path, optimize=True)
    return picture


def _rows(shown: Shown, draw: _Cells, across: bool) -> list[Row]:
    """The rows of a recipe; with `across`, only that of its mixes (the last view, where it makes several)."""
    inside = {} if shown.site is None else {shown.site: shown.images[0]}
    hidden = [row for site, maps in (inside | dict(shown.moments)).items() for row in _inside(shown, site, maps, draw)]
    if across:
        return hidden[1:2] or [(shown.recipe, draw.mixes(shown.images[-1], shown.shares))]
    salient = _maps("saliency", shown.saliency, shown, draw)
    if shown.site is not None:
        return salient + hidden
    rows = salient + [
        (shown.recipe if i == 1 else f"view {i}", draw.mixes(view, shown.shares))
        for i, view in enumerate(shown.images, 1)
    ]
    if hidden:
        return [*(rows if len(shown.images) > 1 else []), *hidden]
    rows += _maps("attention", shown.attention, shown, draw)
    if shown.masks is not None and shown.classes is not None:
        rows.append(("masks", draw.masks(shown.masks, shown.classes)))
    return rows


def _maps(title: str, maps: Float[Tensor, "b h w"] | None, shown: Shown, draw: _Cells) -> list[Row]:
    """Maps as grey images, each as bright as its largest value allows; no row if there are none."""
    if maps is None:
        return []
    most = maps.amax((1, 2), keepdim=True).clamp_min(1e-30)
    return [(title, draw.mixes((maps / most)[:, None], torch.zeros(len(most), shown.shares.shape[1])))]


def _inside(shown: Shown, site: str, maps: Float[Tensor, "r d h w"], draw: _Cells) -> list[Row]:
    """What the images' own maps at a site look like, and what became of them."""
    clean = shown.clean[site]
    before, after = _mosaics(clean, maps)
    side = _side(maps)
    count = f"{side * side} of {maps.shape[1]} channels at {site}"
    labels = torch.zeros(len(clean), shown.shares.shape[1])
    return [(count, draw.mixes(before, labels)), (shown.recipe, draw.mixes(after, shown.shares))]


class _Cells:
    """Pictures of one size, with bars under them.

    Args:
        size: width and height of a picture.
        names: the classes.
    """

    def __init__(self, size: tuple[int, int], names: Sequence[str]) -> None:
        self.size = size
        self.names = names
        self.colours = [ImageColor.getrgb(COLOURS[i % len(COLOURS)])[:3] for i in range(len(names))]
        self.font = ImageFont.load_default(_FONT)

    def mixes(self, images: Float[Tensor, "r c h w"], shares: Float[Tensor, "r n"]) -> list[Image.Image]:
        """Every image over its bar."""
        cells = []
        for picture, row in zip(map(self._picture, images), shares.tolist(), strict=True):
            cell = Image.new("RGB", (self.size[0], self.size[1] + _BAR), _PAPER)
            cell.paste(picture)
            self._bar(ImageDraw.Draw(cell), row)
            cells.append(cell)
        return cells

    def masks(self, masks: Float[Tensor, "r k h w"], classes: Int[Tensor, "r k"]) -> list[Image.Image]:
        """Every pixel in the colours of its sources' classes."""
        palette = torch.tensor(self.colours, dtype=torch.float32) / 255
        return [self._picture(x) for x in torch.einsum("rkhw,rkc->rchw", masks.float(), palette[classes])]

    def _picture(self, image: Float[Tensor, "c h w"]) -> Image.Image:
        array = (image.float().clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
        picture = Image.fromarray(array.permute(1, 2, 0).contiguous().numpy())
        return picture.resize(self.size, Image.Resampling.NEAREST)

    def _bar(self, pen: ImageDraw.ImageDraw, shares: Sequence[float]) -> None:
        """A segment per class, as wide as its share; shares of more than 1 in all fill the bar."""
        whole, left, top = max(1.0, sum(shares)), 0.0, self.size[1]
        for name, colour, share in zip(self.names, self.colours, shares, strict=True):
            width = share / whole * self.size[0]
            if round(left + width) > round(left):
                pen.rectangle((round(left), top + 2, round(left + width) - 1, top + _BAR - 1), fill=colour)
            for text in (f"{name} {share:.0%}", f"{share:.0%}"):
                if pen.textlength(text, self.font) + 6 <= width:
                    pen.text((left + width / 2, top + _BAR / 2 + 1), text, fill="white", font=self.font, anchor="mm")
                    break
            left += width


def _side(maps: Float[Tensor, "r d h w"]) -> int:
    """Channels of a map that are shown in a row, and rows of them."""
    most = _MOSAIC if maps.shape[2] * maps.shape[3] > 1 else _EMBEDDING
    return min(most, int(maps.shape[1] ** 0.5))


def _mosaics(*maps: Float[Tensor, "r d h w"]) -> list[Float[Tensor, "r 1 y x"]]:
    """The first channels side by side, each channel stretched to [0, 1] over all the maps."""
    side = _side(maps[0])
    found = torch.cat([part[:, : side * side].float() for part in maps])
    low, high = found.amin((0, 2, 3), keepdim=True), found.amax((0, 2, 3), keepdim=True)
    tiles = ((found - low) / (high - low).clamp_min(1e-12)).view(len(found), side, side, *found.shape[2:])
    joined = torch.cat([torch.cat(list(line.unbind(1)), 2) for line in tiles.unbind(1)], 1)[:, None]
    ends = list(itertools.accumulate(len(part) for part in maps))
    return [joined[end - len(part) : end] for part, end in zip(maps, ends, strict=True)]


def _grid(cells: Sequence[Sequence[Image.Image]], left: Sequence[str] = (), top: Sequence[str] = ()) -> Image.Image:
    """Cells in rows of their own heights, with titles on the left or above the columns."""
    font = ImageFont.load_default(_FONT)
    width = max(cell.width for row in cells for cell in row)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lefts = [_wrapped(pen, font, text, 150) for text in left]
    tops = [_wrapped(pen, font, text, width) for text in top]
    margin = max((round(pen.textlength(line, font)) for lines in lefts for line in lines), default=-_GAP) + _GAP
    line_height = _FONT + 4
    header = max((len(lines) for lines in tops), default=0) * line_height
    heights = [max(cell.height for cell in row) for row in cells]
    columns = max(map(len, cells))
    page = Image.new(
        "RGB",
        (2 * _GAP + margin + columns * (width + _GAP) - _GAP, header + _GAP + sum(heights) + _GAP * len(heights)),
        _PAPER,
    )
    pen = ImageDraw.Draw(page)
    for i, lines in enumerate(tops):
        x = _GAP + margin + i * (width + _GAP) + width / 2
        for j, line in enumerate(lines):
            y = header - (len(lines) - j) * line_height + _GAP / 2
            pen.text((x, y), line, fill=_INK, font=font, anchor="ma")
    y = header + _GAP
    for i, (row, height) in enumerate(zip(cells, heights, strict=True)):
        for j, line in enumerate(lefts[i] if lefts else ()):
            pen.text((_GAP, y + 2 + j * line_height), line, fill=_INK, font=font)
        for j, cell in enumerate(row):
            page.paste(cell, (_GAP + margin + j * (width + _GAP), y))
        y += height + _GAP
    return page


def _wrapped(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, width: int
) -> list[str]:
    """Lines of at most `width` pixels, but for words that are longer."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
