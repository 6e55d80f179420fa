"""What processing does to images: contrast, elastic transforms, pixelation, JPEG compression."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mixwell.data.optional import require
from mixwell.evaluate.corrupting.draws import Draws
from mixwell.evaluate.corrupting.resample import along, box_matrix, gaussian_matrix
from mixwell.ops.augment import quantised

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate", "sampled"]

Images = Float[Tensor, "b c h w"]

_TRUNCATE = 3.0


def contrast(images: Images, draws: Draws, kept: float) -> Images:
    """Shrink the distance of all pixels to the mean of their channel."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * kept + mean


def elastic_transform(images: Images, draws: Draws, strength: float, sigma: float, shift: float) -> Images:
    """Move three points of the image at random, affinely, then every pixel by smooth noise.

    All lengths are shares of the shorter side.

    Args:
        images: of any number of channels.
        draws: of this corruption and severity.
        strength: the smooth noise is uniform in ±strength, before
        sigma: the deviation of the Gaussian that makes it smooth.
        shift: the three points move by up to this much along either axis.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    moved = sampled(images, *_moved_back(draws.uniform("points", 3, 2) * 2 - 1, height, width, shift * side))
    if not strength:
        return moved
    noise = draws.uniform("noise", 2, height, width) * 2 - 1
    rows, columns = (gaussian_matrix(size, sigma * side, truncate=_TRUNCATE, reflect=True) for size in (height, width))
    away = along(along(noise, rows, 2), columns, 3) * (strength * side)
    down = torch.arange(height, device=images.device)[:, None] + away[:, 1]
    right = torch.arange(width, device=images.device) + away[:, 0]
    return sampled(moved, right, down, edges=True)


def _moved_back(
    move: Float[Tensor, "b 3 2"], height: int, width: int, reach: float
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """Where (x, y) each pixel comes from under the affine map that moves the corners of a triangle as told."""
    device = move.device
    middle = torch.tensor([width // 2, height // 2], device=device)
    half = max(1, min(height, width) // 3)
    before = middle + half * torch.tensor([[1, 1], [1, -1], [-1, -1]], device=device)
    after = before + move.double() * reach
    one = after.new_ones(len(move), 3, 1)
    back = torch.linalg.solve(torch.cat((after, one), 2), before.double().expand_as(after))[..., None, None]
    row = torch.arange(height, device=device)[:, None]
    column = torch.arange(width, device=device)
    x, y = (column * back[:, 0, axis] + row * back[:, 1, axis] + back[:, 2, axis] for axis in (0, 1))
    return x, y


def sampled(
    images: Images, x: Float[Tensor, "b h w"], y: Float[Tensor, "b h w"], *, edges: bool = False
) -> Float[Tensor, "b c h w"]:
    """Read images bilinearly at pixel coordinates.

    What lies outside is mirrored about the middles of the outermost pixels, or about their outer `edges`.
    """
    height, width = images.shape[2:]
    if edges:
        x, y = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    else:
        x, y = x / max(width - 1, 1) * 2 - 1, y / max(height - 1, 1) * 2 - 1
    grid = torch.stack((x, y), -1).to(images)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=not edges)


def pixelate(images: Images, draws: Draws, share: float) -> Images:
    """Shrink both sides to this share by Pillow's BOX filter and enlarge them again."""
    for dim in (2, 3):
        size = images.shape[dim]
        small = max(1, int(size * share))
        images = along(images, box_matrix(small, size) @ box_matrix(size, small), dim)
    return images


def jpeg_compression(images: Images, draws: Draws, quality: float) -> Images:
    """Compress and decompress by Pillow's libjpeg; three channels are a colour image, any other number are grey images.

    Raises:
        DataError: Pillow, which brings the codec, is not installed.
    """
    pil = require("PIL.Image", "The corruption jpeg_compression")
    pixels = quantised(images).cpu()
    pixels = pixels.permute(0, 2, 3, 1) if images.shape[1] == 3 else pixels.flatten(0, 1)

    def coded(image: np.ndarray) -> np.ndarray:
        file = BytesIO()
        pil.fromarray(image).save(file, "JPEG", quality=int(quality))
        return np.asarray(pil.open(file))

    # The codec takes one image at a time, 0.1 ms for 32 pixels. Its steps done in torch for the whole batch, with a
    # floating-point cosine transform, took as long, and left 4 to 13 % of the pixels at other grey levels.
    levels = torch.from_numpy(np.stack([coded(image) for image in pixels.contiguous().numpy()]))
    levels = levels.permute(0, 3, 1, 2) if images.shape[1] == 3 else levels.view(images.shape)
    return levels.to(images) / 255
