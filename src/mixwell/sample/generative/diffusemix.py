"""DiffuseMix: half of an image is exchanged for an edit of itself by a diffusion model, under a faint fractal.

Islam, Zaheer, Mahmood, Nandakumar, "DiffuseMix: Label-Preserving Data Augmentation with Diffusion Models", CVPR 2024,
arXiv:2405.14881.

Each training image is edited beforehand after a prompt such as "snowy" or "mosaic". One half of the edit is joined to
the other half of the image, and a fractal is blended in by a weight of 0.2. All parts are of one image, so its label
stays and the plain loss is minimised. Equations: the masks M and 1-M → `ramp`; M⊙x + (1-M)⊙e → `hybrid`;
(1-λ)·hybrid + λ·fractal with λ = 0.2 → `blended`.

Edits come from one of four places, the first that there is. A batch's `extras["edits"]`: (B, C, H, W), or (B, P, C, H,
W) for P prompts, of the images as the batch shows them. `pipeline="timbrooks/instruct-pix2pix"`, the paper's, or any
other image-to-image pipeline of diffusers, by name or folder: `mixwell prepare` (or `train`, by itself) has it edit
every image by every prompt, goes on where it was stopped, and keeps the edits in the cache, or in the folder `edits`.
The folder `edits` alone: images that were edited elsewhere, at FOLDER/PROMPT/INDEX.png, see `mixwell.data.edits`.
Without any of these, a stand-in: `mixwell.ops.looks` gives each prompt a fixed look of colours and textures. That is
arithmetic of pixels and not a diffusion model, so no result of the paper can be expected of it. An editor of one's own
is given with `recipe.options[0].alone.use(pipeline, folder)`.

Edits by position are of images without augmentation; they are cut out as the batch's `extras["crop"]` says that its
images were, which the loader gives with its own augmentations. With others, edits and images do not fit.

The paper trains on images and mixes together, which we do by leaving half of the rows as they are (`originals`): there
is one mix to each image. Edits that are nearly constant black (as a pipeline's safety filter makes them) or white are
skipped; images without another stay as they are.

Paper and code: the paper cuts sharply and takes one of four halves. The authors' code joins them by a seam of 20 of 256
pixels, with the image always on the left or above, tells the pipeline the bare prompt, and counts only white edits as
nothing: `rule="code"`. It makes a mix of every prompt (`originals=0.1` for nine). It cuts to 8 bits, which we do not.
The paper's words for prompts, its weight and that it trains on both are from memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor

from mixwell.core.artefacts import Workshop, cache_folder
from mixwell.core.axes import Scene, SelfBlend
from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, DataError, MixwellError, ParameterError, number_in
from mixwell.core.mix import onto
from mixwell.core.registry import Pieces, method
from mixwell.data.edits import EditFolder, folder_of, make_edits, nearly_constant, pipeline_of
from mixwell.data.fractals import fractals
from mixwell.ops.affine import warped
from mixwell.ops.augment import quantised
from mixwell.ops.looks import LOOKS, edited
from mixwell.sample.linear.pixmix import mixing_pictures

__all__ = ["PROMPTS", "EditDraws", "EditedHalves", "blended", "hybrid", "ramp"]

Rule = Literal["paper", "code"]

PROMPTS = tuple(LOOKS)
"""The paper's nine."""

_TOLD = {"paper": "A transformed version of image into {prompt}", "code": "{prompt}"}
_SEAM = {"paper": 0.0, "code": 20 / 256}
_HALVES = {"paper": 4, "code": 2}


def ramp(side: int, seam: int = 0) -> Float[np.ndarray, " side"]:
    """How much the edit shows along a side: 0, over the seam from 0 to 1 with both ends, 1.

    What cannot be halved is given to the last part.

    Args:
        side: pixels.
        seam: pixels of the seam, up to `side`.
    """
    first = (side - seam) // 2
    return np.concatenate((np.zeros(first), np.linspace(0, 1, seam), np.ones(side - seam - first)))


def hybrid(
    image: Float[Tensor, "b c h w"],
    edit: Float[Tensor, "b c h w"],
    vertical: Bool[np.ndarray, " b"],
    flipped: Bool[np.ndarray, " b"],
    seam: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """The image on the left and its edit on the right.

    Args:
        image, edit: (B, C, H, W) pixels.
        vertical: where the image is above and the edit below.
        flipped: where both change sides.
        seam: width of the seam, as a share of the side that is cut.
    """
    height, width = image.shape[2:]
    sides = [torch.from_numpy(ramp(side, min(side, round(seam * side)))) for side in (height, width)]
    down, across = sides[0][:, None].expand(height, width), sides[1].expand(height, width)
    masks = torch.stack((across, 1 - across, down, 1 - down)).to(image.device, image.dtype)
    chosen = masks.index_select(0, onto(2 * vertical.astype(np.int64) + flipped, image))
    return torch.lerp(image, edit, chosen[:, None])


def blended(
    image: Float[Tensor, "b c h w"], fractal: Float[Tensor, "b c h w"], weight: float = 0.2
) -> Float[Tensor, "b c h w"]:
    """(1-λ)·image + λ·fractal, clipped to [0, 1].

    Args:
        image, fractal: pixels in [0, 1].
        weight: λ in [0, 1].
    """
    return torch.lerp(image, fractal, weight).clamp_(0, 1)


class EditDraws(NamedTuple):
    """What becomes of B images.

    Attributes:
        original: (B,) which stay as they are.
        prompt: (B,) in [0, 1), which edit.
        vertical: (B,) which are cut into an upper and a lower half.
        flipped: (B,) whose halves change sides.
        fractal: (B,) in [0, 1), which fractal.
    """

    original: Bool[np.ndarray, " b"]
    prompt: Float[np.ndarray, " b"]
    vertical: Bool[np.ndarray, " b"]
    flipped: Bool[np.ndarray, " b"]
    fractal: Float[np.ndarray, " b"]


class EditedHalves(SelfBlend):
    """One view of each image, half of which is exchanged for an edit of it, under a faint fractal.

    Args:
        edits: folder of edited images; None for the cache's, or for none.
        pipeline: name or folder of a pipeline of diffusers that makes them; None for none.
        prompts: what images are edited after; None for the paper's, and of a folder for all that it has.
        rule: "paper" or "code", see the module's page.
        blend_width: the seam, as a share of the side that is cut; None for the rule's.
        masks: halves to choose from, 2 or 4; None for the rule's.
        weight: λ, the fractal's.
        originals: share of the rows that stay as they are.
        size: pixels of both sides at which the pipeline edits.
        guidance, steps: of the pipeline.
        pictures, count: the fractals, as of `mixing_pictures`.

    Raises:
        ParameterError: a number is out of range, or there is no look for a prompt.
    """

    def __init__(
        self,
        edits: str | None = None,
        pipeline: str | None = None,
        prompts: tuple[str, ...] | None = None,
        rule: Rule = "paper",
        blend_width: float | None = None,
        masks: Literal[2, 4] | None = None,
        weight: float = 0.2,
        originals: float = 0.5,
        size: int = 256,
        guidance: float = 4.0,
        steps: int | None = None,
        pictures: str = "fractals",
        count: int = 1000,
    ) -> None:
        super().__init__()
        if rule not in get_args(Rule):
            raise ParameterError(f"rule must be 'paper' or 'code', got {rule!r}.")
        self.place, self.pipeline, self.prompts, self.rule = edits, pipeline, prompts, rule
        self.blend_width = number_in("blend_width", _SEAM[rule] if blend_width is None else blend_width, 0, 1)
        self.masks = _HALVES[rule] if masks is None else masks
        self.weight = number_in("weight", weight, 0, 1)
        self.originals = number_in("originals", originals, 0, 1)
        self.size = int(number_in("size", size, 8))
        self.guidance = number_in("guidance", guidance, 0)
        self.steps = None if steps is None else int(number_in("steps", steps, 1))
        self.pictures, self.count = pictures, int(number_in("count", count, 1))
        if prompts is not None and (not prompts or len({folder_of(prompt) for prompt in prompts}) < len(prompts)):
            raise ParameterError(f"prompts must be different texts, at least one, got {prompts!r}.")
        if edits is None and pipeline is None and (odd := [p for p in prompts or () if p not in LOOKS]):
            raise ParameterError(
                f"prompts: without a folder or a pipeline, images are edited by fixed looks, and there is none for "
                f"{odd[0]!r}. Take some of {', '.join(map(repr, LOOKS))}, or give edits or a pipeline."
            )
        self.cache: Path | None = None
        self.folder: EditFolder | None = None
        self._own: Callable[..., Any] | None = None

    def use(self, pipeline: Callable[..., Any], edits: str | Path) -> None:
        """Have this editor make the edits, in `prepare`.

        Args:
            pipeline: a callable with the signature of diffusers' image-to-image pipelines: prompt, image,
                guidance_scale, num_images_per_prompt, generator, and num_inference_steps if `steps` is given.
            edits: the folder that they are written to.
        """
        self._own, self.place = pipeline, str(edits)

    def prepare(self, workshop: Workshop) -> None:
        """Make the fractals, and the edits that are missing.

        Raises:
            DataError: an image of the data set has no edit, or the folder holds edits of another kind.
            ModelError: there is no such pipeline.
        """
        self.cache = workshop.folder
        first = next(iter(workshop.batches()), None)
        if first is None or first.images.ndim != 4:
            return
        if self.pictures == "fractals":
            fractals(self.count, _size_made(first.images), folder=workshop.folder, progress=workshop.progress)
        if self.pipeline is None and self._own is None:
            if self.place is not None and workshop.rows is not None and (bare := self._edits().without(workshop.rows)):
                raise DataError(
                    f"{len(bare)} of {workshop.rows} images have no edit in {self.place}, such as image {bare[0]}: "
                    f"expected {self.place}/PROMPT/{bare[0]:06d}.png."
                )
            return
        self.folder = self._made(workshop)

    def draw(self, rows: int, rng: Generator) -> EditDraws:
        original, prompt = rng.random(rows) < self.originals, rng.random(rows)
        vertical, flipped = rng.random(rows) < 0.5, (rng.random(rows) < 0.5) & (self.masks == 4)
        return EditDraws(original, prompt, vertical, flipped, rng.random(rows))

    def images(self, draws: EditDraws, scene: Scene) -> tuple[Float[Tensor, "b c h w"]]:
        """The one view; rows that stay as they are do so bit by bit.

        Raises:
            BatchError: the images have no pixel grid or no known normalisation, edits are of another shape, or the
                rows' positions are not known.
            DataError: an image has no edit in the folder.
            MixwellError: the edits have not been made.
        """
        batch = scene.batch
        if batch.images.ndim != 4:
            raise BatchError(
                f"diffusemix cuts pixel grids: expected images (B, C, H, W), got {tuple(batch.images.shape)}. Take a "
                "recipe such as mixup."
            )
        view = batch.images.clone()
        rows = np.flatnonzero(~draws.original)
        raw = batch.raw.index_select(0, onto(rows, view))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32)).clamp_(0, 1)
        edits, good = self.edits(batch, raw, rows, draws.prompt[rows])
        made = hybrid(raw, edits, draws.vertical[rows], draws.flipped[rows], self.blend_width)
        if self.weight:
            made = blended(made, self._fractals(draws.fractal[rows], made), self.weight)
        assert batch.pixels is not None, "raw pixels are known"
        made = batch.pixels.normalise(made).to(view.dtype)
        kept = view.index_select(0, onto(rows, view))
        view.index_copy_(0, onto(rows, view), torch.where(good[:, None, None, None], made, kept))
        return (view,)

    def edits(
        self,
        batch: Batch,
        raw: Float[Tensor, "b c h w"],
        rows: np.ndarray,
        points: Float[np.ndarray, " b"],
    ) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, " b"]]:
        """An edit of each image in [0, 1], and whether it is one; skipped ones are not.

        Args:
            batch: the clean batch.
            raw: the pixels of some of its rows, in [0, 1].
            rows: which.
            points: in [0, 1), which edit.
        """
        if (given := batch.extras.get("edits")) is not None:
            found = self._given(given, raw, rows, points)
        elif self.place is not None or self.pipeline is not None:
            return self._kept(batch, raw, rows, points)
        else:
            found = self._looks(raw, points)
        return found, ~nearly_constant(quantised(found), self.rule)

    def _given(self, edits: Tensor, raw: Tensor, rows: np.ndarray, points: np.ndarray) -> Tensor:
        """Edits that came with the batch."""
        if edits.ndim == 4:
            edits = edits[:, None]
        if edits.ndim != 5 or edits.shape[0] <= max(rows, default=0) or edits.shape[2:] != raw.shape[1:]:
            raise BatchError(
                f"extras['edits'] must be edits of the batch's images, {tuple(raw.shape[1:])} each, as (B, C, H, W) or "
                f"(B, P, C, H, W), got {tuple(edits.shape)}."
            )
        which = onto((points * edits.shape[1]).astype(np.int64), raw)
        found = edits[onto(rows, raw), which]
        return found.to(raw.dtype) if found.is_floating_point() else found.to(raw.dtype) / 255

    def _kept(
        self, batch: Batch, raw: Tensor, rows: np.ndarray, points: np.ndarray
    ) -> tuple[Tensor, Bool[Tensor, " b"]]:
        """Edits from the folder, cut out as the images were."""
        if batch.index is None:
            raise BatchError(
                "diffusemix finds edits in a folder by the images' positions in the data set, but the batch has no "
                "index. Give Batch(..., index=positions), or the edits as extras['edits']."
            )
        if not len(rows):
            return raw, torch.ones(0, dtype=torch.bool, device=raw.device)
        index = batch.index.cpu().numpy()[rows]
        channels, height, width = raw.shape[1:]
        skipped = partial(nearly_constant, rule=self.rule)
        found, good = self._edits().read(index, points, (channels, height, width), skipped)
        edits = found.to(raw.device, non_blocking=True).to(raw.dtype) / 255
        if (crops := batch.extras.get("crop")) is not None:
            edits = _cut(edits, crops.index_select(0, onto(rows, crops)))
        return edits, good.to(raw.device, non_blocking=True)

    def _looks(self, raw: Float[Tensor, "b c h w"], points: np.ndarray) -> Float[Tensor, "b c h w"]:
        """The stand-in for an editor."""
        prompts = self.prompts or PROMPTS
        which = (points * len(prompts)).astype(np.int64)
        found = raw.clone()
        for number in np.unique(which):
            rows = onto(np.flatnonzero(which == number), raw)
            found.index_copy_(0, rows, edited(raw.index_select(0, rows), prompts[number]))
        return found

    def _fractals(self, points: Float[np.ndarray, " b"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        channels, height, width = like.shape[1:]
        side = max(height, width)
        pictures = mixing_pictures(self.pictures, self.count, side, channels, like.device, self.cache)
        chosen = pictures.index_select(0, onto((points * len(pictures)).astype(np.int64), like)).to(like.dtype) / 255
        if height == width:
            return chosen
        return F.interpolate(chosen, (height, width), mode="bilinear", antialias=True)

    def _edits(self) -> EditFolder:
        if self.folder is None:
            if self.place is None or self.pipeline is not None or self._own is not None:
                raise MixwellError(
                    "diffusemix needs edited images, and they have not been made yet. Call recipe.prepare(batches, "
                    "data) before training, which makes those that are missing; `mixwell train` does so by itself."
                )
            self.folder = EditFolder(Path(self.place).expanduser(), self.prompts)
        return self.folder

    def _made(self, workshop: Workshop) -> EditFolder:
        """The folder with an edit of every image by every prompt."""
        first = next(iter(workshop.originals()))
        shown = hashlib.blake2b(quantised(first.raw).cpu().numpy().tobytes(), digest_size=10)
        settings = {
            "pipeline": self.pipeline or "one's own",
            "told": _TOLD[self.rule],
            "size": self.size,
            "guidance": self.guidance,
            "steps": self.steps,
            "images": shown.hexdigest(),
        }
        if self.place is None:
            digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=10).hexdigest()
            folder = (workshop.folder or cache_folder()) / f"edits-{digest}"
        else:
            folder = Path(self.place).expanduser()
        prompts = self.prompts or PROMPTS
        own = self._own
        make_edits(
            folder,
            workshop.originals,
            {prompt: _TOLD[self.rule].format(prompt=prompt) for prompt in prompts},
            (lambda: pipeline_of(str(self.pipeline), workshop.device)) if own is None else (lambda: own),
            settings,
            size=self.size,
            guidance=self.guidance,
            steps=self.steps,
            rows=workshop.rows,
            progress=workshop.progress,
        )
        return EditFolder(folder, prompts)


def _cut(edits: Float[Tensor, "b c h w"], crops: Float[Tensor, "b 5"]) -> Float[Tensor, "b c h w"]:
    """The crops of whole images, see `mixwell.data.crops`."""
    top, left, height, width, mirrored = crops.to(edits).unbind(1)
    none = torch.zeros_like(top)
    across = torch.stack((torch.where(mirrored > 0.5, -width, width), none, 2 * left + width - 1), 1)
    down = torch.stack((none, height, 2 * top + height - 1), 1)
    return warped(edits, torch.stack((across, down), 1))


def _size_made(images: Tensor) -> int:
    """Of the fractals, see `mixing_pictures`."""
    return int(2 ** max(6, (max(images.shape[2:]) - 1).bit_length()))


@method("diffusemix", section="1.9", paper="2405.14881", venue="CVPR 2024")
def diffusemix(
    edits: str | None = None,
    pipeline: str | None = None,
    prompts: tuple[str, ...] | None = None,
    rule: Rule = "paper",
    blend_width: float | None = None,
    masks: Literal[2, 4] | None = None,
    weight: float = 0.2,
    originals: float = 0.5,
    size: int = 256,
    guidance: float = 4.0,
    steps: int | None = None,
    pictures: str = "fractals",
    count: int = 1000,
) -> Pieces:
    """Args:
    edits: folder of edited images, FOLDER/PROMPT/INDEX.png; with a pipeline, where it writes them.
    pipeline: image-to-image pipeline of diffusers that edits beforehand, such as "timbrooks/instruct-pix2pix" or the
        folder of one; None for the folder's edits, or without a folder for fixed looks that stand in for an editor.
    prompts: what to edit after; None for the paper's nine, or all that a folder has.
    rule: the "paper"'s sharp cut, four halves and words around the prompt, or the "code"'s seam, two halves and bare
        prompt.
    blend_width: width of the seam, as a share of the side that is cut: 0 in the paper, 20/256 in the code.
    masks: halves that the edit may take: 4, or 2 for the right and the lower one.
    weight: the fractal's.
    originals: share of the images that stay as they are.
    size: pixels of both sides at which the pipeline edits.
    guidance: of the pipeline, how closely it follows the prompt.
    steps: of the pipeline; None for its own number.
    pictures: 'fractals' for pictures that are made, or a folder of pictures.
    count: fractals to make; has no effect with a folder.
    """
    return Pieces(
        essential=EditedHalves(
            edits,
            pipeline,
            prompts,
            rule,
            blend_width,
            masks,
            weight,
            originals,
            size,
            guidance,
            steps,
            pictures,
            count,
        )
    )
