"""The idx format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mixwell.core.errors import DataError

__all__ = ["SPLITS", "missing_files", "read_idx", "read_split"]

SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _locate(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def missing_files(folder: Path) -> list[str]:
    """Names of the four files that `folder` lacks, each with or without `.gz`."""
    return [name for names in SPLITS.values() for name in names if _locate(folder, name) is None]


def read_idx(path: Path) -> UInt8[np.ndarray, ...]:
    """Read one idx file of unsigned bytes, gzipped if its name ends in `.gz`.

    Raises:
        DataError: the file is damaged or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}). Fetch the file again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path}: expected an idx file of unsigned bytes, got one starting with {content[:4]!r}.")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    offset = 4 + 4 * content[3]
    if len(content) - offset != math.prod(shape):
        raise DataError(
            f"{path} is damaged: its header promises {shape}, which is {math.prod(shape)} bytes, "
            f"but {len(content) - offset} follow. Fetch the file again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, " n"]]:
    """Images and class ids of one split.

    Raises:
        DataError: a file is missing or damaged, or there is not one label per image.
    """
    paths = [_locate(folder, name) for name in SPLITS[split]]
    if paths[0] is None or paths[1] is None:
        raise DataError(f"Expected the files {' and '.join(SPLITS[split])} (or .gz) in {folder}; not found.")
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder}: expected (N, H, W) images and N labels for {split}, got {images.shape} and {labels.shape}."
        )
    return images, labels
