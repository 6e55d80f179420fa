"""What the network of a run takes image files for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mixwell.core.axes import Criterion
from mixwell.core.errors import DataError, ParameterError
from mixwell.data import DataSet
from mixwell.data.folder import SUFFIXES, ImageFolder
from mixwell.data.items import unit_range
from mixwell.probe.capture import logits_of
from mixwell.train import Trained

__all__ = ["Prediction", "Predictions", "image_files", "predict", "view"]

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What an image is taken for.

    Attributes:
        path: the image.
        classes: the likeliest first.
        probabilities: of these.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predictions:
    """What came of some files.

    Attributes:
        found: one for each image that could be read, in their order.
        unread: why a file could not be read, by file.
    """

    found: list[Prediction] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)


def predict(
    net: Trained,
    paths: Iterable[str | Path],
    *,
    top: int = 3,
    batch_size: int = _BATCH,
    device: torch.device | str = "cpu",
) -> Predictions:
    """Classify image files, each as the run's test set would show it, see `view`.

    Args:
        net: of a run, see `mixwell.train.trained`.
        paths: image files, and folders, of which all images are taken.
        top: how many classes to name, at most all.
        batch_size: images in one pass.
        device: where to compute; the network is moved there.

    Raises:
        ParameterError: a number is out of range.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name} must be a whole number ≥ 1, got {value!r}.")
    done = Predictions()
    waiting: list[tuple[Path, Tensor]] = []
    predictor, classes = net.predictor.to(device).eval(), net.data.classes
    # All options of a recipe share what the user said of the criterion.
    criterion: Criterion = cast(Any, net.recipe.options[0]).criterion

    @torch.no_grad()
    def classify() -> None:
        images = net.data.pixels.normalise(unit_range(torch.stack([image for _, image in waiting])))
        logits = logits_of(predictor(net.recipe.eval_images(images.to(device))))
        likeliest = criterion.probabilities(logits).topk(min(top, len(classes)), 1)
        for (path, _), ids, shares in zip(waiting, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
            done.found.append(Prediction(path, tuple(classes[label] for label in ids), tuple(shares)))
        waiting.clear()

    for path, missing in image_files(paths):
        try:
            if missing:
                raise DataError(missing)
            waiting.append((path, view(path, net.data)))
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            done.unread[path] = str(error) or type(error).__name__
        if len(waiting) == batch_size:
            classify()
    if waiting:
        classify()
    return done


def image_files(paths: Iterable[str | Path]) -> Iterator[tuple[Path, str]]:
    """Files as they are given and the images of folders, in the order of their names, each once; with what is missing,
    or "".
    """
    seen: set[Path] = set()
    for path in map(Path, paths):
        found: Sequence[Path] = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        for file in found:
            if file not in seen:
                seen.add(file)
                yield file, "" if file.exists() else "there is no such file"
        if not found:
            yield path, f"no images in this folder, which end in {', '.join(SUFFIXES)}"


def view(path: Path, data: DataSet) -> UInt8[Tensor, "c h w"]:
    """An image file as the test set of `data` would show it: of its shape, not yet normalised.

    The shorter side is resized and the middle cropped, as of image folders. Fashion sets show 28×28 pixels in a border
    of zeros, so an image of any other size than the set's own gets that border too.

    Raises:
        DataError: it cannot be decoded, or has no fixed range.
    """
    channels, height, width = data.shape
    with Image.open(path) as file:
        if file.mode.startswith(("I", "F")):
            raise DataError(f"its mode {file.mode!r} has no fixed range; convert it to 8 bits per channel")
        border = _border(data) if file.size != (width, height) else 0
    if height != width:
        raise DataError(f"images of this run are not square, but {height}×{width}, and files are cropped to squares")
    pixels, _ = ImageFolder([path], [0], size=height - 2 * border)[0][:2]
    if channels == 1:
        grey = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
        pixels = torch.from_numpy(np.array(grey))[None]
    return F.pad(pixels, (border,) * 4)


def _border(data: DataSet) -> int:
    """Zeros around the images of a set."""
    return (data.shape[1] - 28) // 2 if data.name in ("fashion-mini", "fashion-mnist") else 0
