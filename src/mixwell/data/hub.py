"""Data sets of the Hugging Face Hub, and of folders that `datasets` has saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.core.errors import DataError, closest
from mixwell.data.dataset import DataSet, from_datasets, statistics
from mixwell.data.optional import require
from mixwell.data.pictures import Pictures

__all__ = ["HubPictures", "hub"]

_TEST = ("test", "validation", "valid", "val")
"""What the part that is not for training is called, in the order in which it is looked for."""


class HubPictures(Pictures):
    """`Pictures` of a column of a `datasets.Dataset`.

    Args:
        table: the data set.
        column: of the images.
        targets: class ids.
        size, augment, shown: see `Pictures`.
    """

    def __init__(
        self,
        table: Any,
        column: str,
        targets: Sequence[int],
        *,
        size: int = 224,
        augment: str | None = None,
        shown: float = 1.0,
    ) -> None:
        super().__init__(list(targets), size=size, augment=augment, shown=shown)
        self.table, self.column = table, column
        self.rows = list(range(len(self.targets)))

    def read(self, index: int, side: int) -> Any:
        """An image of the column as a PIL image."""
        row = self.rows[index]
        try:
            return self.table[row][self.column].convert("RGB")
        except (OSError, AttributeError) as error:
            raise DataError(f"Row {row}, column {self.column!r}, cannot be decoded as an image ({error}).") from error

    def select(self, rows: list[int]) -> None:
        """Keep only these rows."""
        self.rows = [self.rows[row] for row in rows]


def hub(
    name: str,
    root: Path | None,
    augment: str | None,
    *,
    size: int = 224,
    shown: float = 1.0,
    config: str | None = None,
    train: str = "train",
    test: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> DataSet:
    """A data set of the Hub, or a folder that `DatasetDict.save_to_disk` wrote.

    Args:
        name: "OWNER/NAME" on the Hub, or the folder.
        root: cache of the Hub's sets; a relative folder is looked for in it, too.
        augment: of the training images.
        size: shorter side to which images are resized, and centre cropped.
        shown: share of the shorter side that test images show.
        config: configuration of the set, where it has several.
        train, test: names of its parts; the test part is the first of test, validation, valid and val.
        image, label: names of the columns; the first of images, and the first of class labels.

    Raises:
        DataError: the set cannot be loaded, has no such part or column, or labels that are no class ids.
    """
    tables = _tables(name, root, config)
    parts = [train, test or next((part for part in _TEST if part in tables), _TEST[0])]
    for part in parts:
        if part not in tables:
            option = "train" if part is parts[0] else "test"
            raise DataError(
                f"hf:{name} has no part {part!r}; {closest(part, tables)} Name it with the option {option}."
            )
    read = [tables[part] for part in parts]
    module = require("datasets", f"hf:{name}", "hf")
    image = _column(name, read[0].features, image, "image", (module.Image,))
    label = _column(name, read[0].features, label, "label", (module.ClassLabel, module.Value))
    (own, train_ids), (test_own, test_ids) = (_ids(name, table, label) for table in read)
    plain = HubPictures(read[0], image, train_ids, size=size)
    return from_datasets(
        plain.subset(np.arange(len(plain)), augment=augment),
        HubPictures(read[1], image, test_ids, size=size, shown=shown),
        pixels=statistics(plain),
        name=f"hf:{name}",
        classes=own or test_own,
    )


def _tables(name: str, root: Path | None, config: str | None) -> Mapping[str, Any]:
    """The parts of a set by name."""
    module = require("datasets", f"hf:{name}", "hf")
    for folder in (Path(name).expanduser(), (root or Path()) / name):
        if (folder / "dataset_dict.json").is_file():
            saved: Mapping[str, Any] = module.load_from_disk(str(folder))
            return saved
    try:
        loaded: Mapping[str, Any] = module.load_dataset(name, config, cache_dir=None if root is None else str(root))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"hf:{name} cannot be loaded ({type(error).__name__}: {error}). Connect to the network and correct the "
            "name as https://huggingface.co/datasets has it, or give the folder that DatasetDict.save_to_disk wrote."
        ) from error
    return loaded


def _column(name: str, features: Mapping[str, Any], asked: str | None, option: str, kinds: tuple[type, ...]) -> str:
    """The column of a kind: the one that was asked for, else the first of the kind that is named first."""
    if asked is not None:
        if asked not in features:
            raise DataError(f"hf:{name} has no column {asked!r}; {closest(asked, features)}")
        return asked
    for kind in kinds:
        found = [column for column, feature in features.items() if isinstance(feature, kind)]
        if kind is not kinds[0]:
            found = [column for column in found if column == option]
        if found:
            return found[0]
    raise DataError(
        f"hf:{name} has no column that is plainly the {option}, among {', '.join(features)}. Name it with the option "
        f"{option}."
    )


def _ids(name: str, table: Any, label: str) -> tuple[Sequence[str] | None, list[int]]:
    """Class names, if the column has them, and ids."""
    values = table[label][:]
    if wrong := next((value for value in values if isinstance(value, bool) or not isinstance(value, int)), None):
        raise DataError(f"hf:{name}: expected class ids in the column {label!r}, got {wrong!r}. Name another column.")
    return getattr(table.features[label], "names", None), values
