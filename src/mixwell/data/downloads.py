"""Data sets that torchvision reads and downloads."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError
from mixwell.data.dataset import DataSet, from_datasets
from mixwell.data.memory import InMemory
from mixwell.data.optional import require

__all__ = ["CIFAR10", "CIFAR100", "STL10", "SVHN", "Downloaded", "cache_folder", "downloaded"]

_SPLITS: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})


def cache_folder(root: Path | None) -> Path:
    """Where data sets are looked for: `root`, else $MIXWELL_DATA, else ~/.cache/mixwell."""
    return root or Path(os.environ.get("MIXWELL_DATA") or "~/.cache/mixwell").expanduser()


def downloaded(
    name: str,
    factory: Callable[..., Any],
    root: Path,
    *,
    looked: str | Path,
    parts: tuple[Mapping[str, Any], Mapping[str, Any]] = _SPLITS,
    files: str = "the files",
) -> tuple[Any, Any]:
    """Both parts of a set of torchvision, downloaded if they are not there.

    Args:
        name: of the set.
        factory: torchvision's class.
        root: folder to read and to download to.
        looked: where was looked, for errors.
        parts: what tells the factory training from test.
        files: what to put there by hand.

    Raises:
        DataError: the set is neither there nor can be downloaded.
    """
    try:
        train, test = (factory(str(root), **part, download=True) for part in parts)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        raise DataError(
            f"{name}: not found in {looked}, and it could not be downloaded ({type(error).__name__}: {error}). "
            f"Connect to the network, or put {files} there, or name their folder with root= or MIXWELL_DATA."
        ) from error
    return train, test


@dataclass(frozen=True)
class Downloaded:
    """A set of small images that torchvision reads into memory; calling it builds the `DataSet`.

    Attributes:
        name: of the set.
        factory: the name of torchvision's class.
        mean, std: of the training pixels, as commonly used.
        files: what to fetch by hand, and from where.
        labels: the attribute that holds the labels.
        parts: what tells the factory training from test.
        channels_last: whether the factory's images are (N, H, W, C).
    """

    name: str
    factory: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: str
    labels: str = "targets"
    parts: tuple[Mapping[str, Any], Mapping[str, Any]] = _SPLITS
    channels_last: bool = True

    def __call__(self, root: Path | None, augment: str | None, *, size: int | None = None) -> DataSet:
        """Read it, or download it.

        Raises:
            DataError: it is not there and cannot be downloaded, torchvision is missing, or `size` is not positive.
        """
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise DataError(f"size must be a positive number of pixels, got {size!r}.")
        factory = getattr(require("torchvision", self.name).datasets, self.factory)
        folder = cache_folder(root)
        read = downloaded(self.name, factory, folder, looked=folder, parts=self.parts, files=self.files)
        (images, labels), (test_images, test_labels) = (self._tensors(part) for part in read)
        return from_datasets(
            InMemory(images, labels, augment=augment, size=size),
            InMemory(test_images, test_labels, size=size),
            pixels=Pixels(self.mean, self.std),
            name=self.name,
            classes=getattr(read[0], "classes", None),
        )

    def _tensors(self, part: Any) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        images = torch.as_tensor(part.data)
        labels = torch.as_tensor(getattr(part, self.labels)).long()
        return (images.permute(0, 3, 1, 2) if self.channels_last else images).contiguous(), labels


_BY_NAME = ({"split": "train"}, {"split": "test"})

CIFAR10 = Downloaded(
    "cifar10",
    "CIFAR10",
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
    "cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
)
CIFAR100 = Downloaded(
    "cifar100",
    "CIFAR100",
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
    "cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
)
SVHN = Downloaded(
    "svhn",
    "SVHN",
    (0.4377, 0.4438, 0.4728),
    (0.1980, 0.2010, 0.1970),
    "train_32x32.mat and test_32x32.mat of http://ufldl.stanford.edu/housenumbers",
    labels="labels",
    parts=_BY_NAME,
    channels_last=False,
)
STL10 = Downloaded(
    "stl10",
    "STL10",
    (0.4467, 0.4398, 0.4066),
    (0.2603, 0.2566, 0.2713),
    "stl10_binary.tar.gz of https://cs.stanford.edu/~acoates/stl10",
    labels="labels",
    parts=_BY_NAME,
    channels_last=False,
)
