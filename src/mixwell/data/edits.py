"""Edited images, made beforehand by an image-to-image pipeline, and the folder that they lie in.

    FOLDER/PROMPT/INDEX.png

PROMPT is the prompt with everything but letters, digits and underscores made a hyphen (`folder_of`), INDEX the image's
position in the data set, with or without leading zeros: edits/watercolor-art/000017.png. Other image formats are read
too. An image needs at least one edit, not one for every prompt.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mixwell.core.artefacts import Progress
from mixwell.core.batch import Batch
from mixwell.core.errors import DataError, ModelError, ParameterError
from mixwell.core.rng import key_of
from mixwell.data.folder import SUFFIXES
from mixwell.data.optional import require
from mixwell.ops.augment import quantised

__all__ = ["EditFolder", "folder_of", "make_edits", "nearly_constant", "pipeline_of"]

_AT_ONCE = 4
"""Images that a pipeline edits in one call."""
_KEPT = 2**29
"""Bytes of pictures that a folder keeps in memory."""


def folder_of(prompt: str) -> str:
    """The name of a prompt's folder.

    Raises:
        ParameterError: there is no letter or digit in it.
    """
    name = re.sub(r"\W+", "-", prompt).strip("-")
    if not name:
        raise ParameterError(f"A prompt needs letters or digits, got {prompt!r}.")
    return name


def nearly_constant(pictures: UInt8[Tensor, "b c h w"], rule: str = "paper") -> Bool[Tensor, " b"]:
    """Whether more than 90% of a picture's pixels are black, or more than 90% white.

    Grey levels up to 5 of 255 from an end count as that end. By the rule "code" only 255 does, and black does not.
    """
    grey = pictures.float().mean(1)
    if rule == "code":
        return (grey == 255).flatten(1).float().mean(1) > 0.9
    ends = torch.stack((grey <= 5, grey >= 250))
    return (ends.flatten(2).float().mean(2) > 0.9).any(0)


# Reading


class EditFolder:
    """The edits in a folder, decoded as they are asked for; the first half gigabyte of them stays in memory.

    Args:
        folder: where they lie.
        prompts: whose edits to take; None for all that there are.

    Attributes:
        names: the prompts' folders.

    Raises:
        DataError: there is no such folder, or no edit in it.
    """

    def __init__(self, folder: Path, prompts: Sequence[str] | None = None) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise DataError(f"No folder {folder}. Expected edited images at {folder}/PROMPT/INDEX.png.")
        if prompts is None:
            self.names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
        else:
            self.names = [folder_of(prompt) for prompt in prompts]
        self._files = [_files_in(folder / name) for name in self.names]
        if bare := [name for name, files in zip(self.names, self._files, strict=True) if not files]:
            raise DataError(
                f"No edited images in {', '.join(str(folder / name) for name in bare)}. Expected files INDEX.png, such "
                "as 000017.png, for the images' positions in the data set."
            )
        if not self.names:
            raise DataError(f"No edited images in {folder}. Expected them at {folder}/PROMPT/INDEX.png.")
        self._kept: dict[tuple[Path, tuple[int, ...]], Tensor] = {}
        self._bytes = 0

    def without(self, rows: int) -> list[int]:
        """Which of the first images of a data set have no edit."""
        return [row for row in range(rows) if not any(row in files for files in self._files)]

    def read(
        self,
        index: Int[np.ndarray, " b"],
        points: Float[np.ndarray, " b"],
        shape: tuple[int, int, int],
        skipped: Callable[[Tensor], Tensor] = nearly_constant,
    ) -> tuple[UInt8[Tensor, "b c h w"], Bool[Tensor, " b"]]:
        """One edit of each image, and whether it has one that is not skipped.

        Args:
            index: positions in the data set.
            points: in [0, 1), which of the image's edits; where that one is skipped, the next that is not.
            shape: channels, height and width of the pictures.
            skipped: says of (1, C, H, W) whether it is.

        Raises:
            DataError: an image has no edit, or one cannot be decoded.
        """
        rows = index.tolist()
        if bare := [row for row in rows if not any(row in files for files in self._files)]:
            names = f"{bare[0]} (and {len(bare) - 1} more of this batch)" if len(bare) > 1 else str(bare[0])
            raise DataError(
                f"Image {names} has no edit in {self.folder}: expected {self.folder}/PROMPT/{bare[0]:06d}.png. Add it, "
                "or let `mixwell prepare` make what is missing, with a pipeline and this folder as edits."
            )

        def one(row: int, point: float) -> tuple[Tensor, bool]:
            found = [files[row] for files in self._files if row in files]
            first = int(point * len(found))
            for path in (*found[first:], *found[:first]):
                picture = self._picture(path, shape)
                if not skipped(picture[None]):
                    return picture, True
            return picture, False

        with ThreadPoolExecutor() as pool:
            pictures, good = zip(*pool.map(one, rows, points.tolist()), strict=True)
        return torch.stack(pictures), torch.tensor(good)

    def _picture(self, path: Path, shape: tuple[int, int, int]) -> UInt8[Tensor, "c h w"]:
        if (kept := self._kept.get((path, shape))) is not None:
            return kept
        pil = require("PIL.Image", "A folder of edited images")
        try:
            with pil.open(path) as file:
                image = file.convert("L" if shape[0] == 1 else "RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be decoded as an image ({error}). Repair or remove the file.") from error
        if image.size != (shape[2], shape[1]):
            image = image.resize((shape[2], shape[1]), pil.Resampling.BICUBIC)
        picture = torch.from_numpy(np.array(image)).view(*image.size[::-1], -1).permute(2, 0, 1)
        picture = picture[torch.arange(shape[0]) % len(picture)].contiguous()
        if self._bytes < _KEPT:
            self._kept[path, shape] = picture
            self._bytes += picture.numel()
        return picture


def _files_in(folder: Path) -> dict[int, Path]:
    """The edits of one prompt by the image's position."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries]
    return {int(path.stem): path for path in paths if path.suffix.lower() in SUFFIXES and path.stem.isdecimal()}


# Making


def pipeline_of(name: str, device: torch.device) -> Callable[..., Any]:
    """A pipeline of diffusers, by its name on the hub or the folder that it was downloaded to.

    With an Euler ancestral scheduler; in half precision on a GPU.

    Raises:
        DataError: diffusers is not installed.
        ModelError: there is no such pipeline.
    """
    diffusers = require("diffusers", "An image-to-image pipeline", extra="diffusion")
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(name)
    except Exception as error:  # whatever the library raises where there is none
        raise ModelError(
            f"pipeline: {name!r} cannot be loaded: {error}. Give the folder of a pipeline of diffusers, or a folder of "
            "images that were edited elsewhere as edits."
        ) from error
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    moved: Callable[..., Any] = pipeline.to(device, torch.float16 if device.type == "cuda" else torch.float32)
    return moved


def make_edits(
    folder: Path,
    originals: Callable[[], Iterable[Batch]],
    prompts: Mapping[str, str],
    pipeline: Callable[[], Callable[..., Any]],
    settings: Mapping[str, Any],
    *,
    size: int = 256,
    guidance: float = 4.0,
    steps: int | None = None,
    rows: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Edit every image by every prompt that it has no edit of yet.

    Each edit is written when it is done, under another name until it is whole, so that a call that was stopped is
    taken up by the next. Its noise depends on the image's position and the prompt alone.

    Args:
        folder: where edits go, see this module's page.
        originals: called for a pass over the images without augmentation, with their index and normalisation.
        prompts: what the pipeline is told, by prompt.
        pipeline: called once, if anything is to be made: gives a callable with the signature of diffusers' image-to-
            image pipelines.
        settings: what the edits depend on, as JSON values; a folder holds edits of one such setting.
        size: pixels of both sides at which images are edited. Edits are kept at the images' own size.
        guidance: of the pipeline.
        steps: of the pipeline; None for its own number.
        rows: how many images there are, if that is known.
        progress: told ("edited images", edits done, edits in all).

    Raises:
        DataError: the folder holds edits of other settings; images without index, or not of 1 or 3 channels; the
            pipeline gives other than one image for each.
    """
    rows = sum(len(batch) for batch in originals()) if rows is None else rows
    there = {prompt: set(_files_in(folder / folder_of(prompt))) for prompt in prompts}
    done, total = sum(map(len, there.values())), rows * len(prompts)
    _claim(folder, settings)
    if done >= total:
        return
    progress("edited images", done, total)
    edit = pipeline()
    for prompt, text in prompts.items():
        place = folder / folder_of(prompt)
        place.mkdir(parents=True, exist_ok=True)
        for batch in originals():
            index = _index_of(batch)
            missing = [at for at, row in enumerate(index) if row not in there[prompt]]
            for start in range(0, len(missing), _AT_ONCE):
                part = missing[start : start + _AT_ONCE]
                images = [_pil_of(picture) for picture in quantised(batch.raw[part]).cpu()]
                seeds = [key_of("edit", prompt, index[at]) >> 1 for at in part]
                made = _edited(edit, images, text, seeds, size, guidance, steps)
                for at, image, original in zip(part, made, images, strict=True):
                    _write(image.convert("RGB").resize(original.size), place / f"{index[at]:06d}.png")
                done += len(part)
                progress("edited images", done, total)


def _edited(
    pipeline: Callable[..., Any],
    images: list[Any],
    text: str,
    seeds: list[int],
    size: int,
    guidance: float,
    steps: int | None,
) -> list[Any]:
    made = pipeline(
        prompt=[text] * len(images),
        image=[image.resize((size, size)) for image in images],
        guidance_scale=guidance,
        num_images_per_prompt=1,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **({} if steps is None else {"num_inference_steps": steps}),
    ).images
    if len(made) != len(images):
        raise DataError(f"The pipeline must give one image for each, got {len(made)} for {len(images)}.")
    return list(made)


def _index_of(batch: Batch) -> list[int]:
    if batch.index is None:
        raise DataError(
            "Edited images are kept by the images' positions in the data set, but these batches have none. Give batches"
            " with an index."
        )
    found: list[int] = batch.index.tolist()
    return found


def _pil_of(picture: UInt8[Tensor, "c h w"]) -> Any:
    pil = require("PIL.Image", "Editing images")
    if len(picture) not in (1, 3):
        raise DataError(f"Images of 1 or 3 channels can be edited, got {tuple(picture.shape)}.")
    return pil.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _write(image: Any, path: Path) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    image.save(part, format="png")
    part.replace(path)


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in the folder what its edits depend on, or see that it is the same."""
    note, wanted = folder / "edits.json", json.loads(json.dumps(settings))
    if note.is_file():
        found = json.loads(note.read_text())
        if differing := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
            told = ", ".join(f"{name} {found.get(name)!r}, now {wanted.get(name)!r}" for name in differing)
            raise DataError(f"The edits in {folder} were made otherwise: {told}. Give another folder as edits.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = note.with_name(f"{note.name}.{os.getpid()}.part")
    part.write_text(json.dumps(wanted, indent=1) + "\n")
    part.replace(note)
