"""Data sets of pictures in files, with lists that say which are for training and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError
from mixwell.data.dataset import DataSet, from_datasets
from mixwell.data.downloads import cache_folder
from mixwell.data.folder import SUFFIXES, ImageFolder

__all__ = ["IMAGENET_PIXELS", "aircraft", "cub200", "tiny_imagenet"]

IMAGENET_PIXELS = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_Files = tuple[Sequence[Path], Sequence[int]]


def tiny_imagenet(root: Path | None, augment: str | None, *, size: int = 64, shown: float = 1.0) -> DataSet:
    """Tiny-ImageNet: 200 classes, 100,000 + 10,000 images of 64 pixels; the validation images are the test set.

    Raises:
        DataError: it is not there, or damaged.
    """
    folder = _there(
        "tiny-imagenet",
        root,
        "tiny-imagenet-200",
        ("wnids.txt", "train", "val/val_annotations.txt"),
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip, and unpack it",
    )
    ids = _lines(folder / "wnids.txt")
    words = dict(_pairs(folder / "words.txt", "\t")) if (folder / "words.txt").is_file() else {}
    numbers = {wnid: label for label, wnid in enumerate(ids)}
    paths: list[Path] = []
    targets: list[int] = []
    for wnid, label in numbers.items():
        images = folder / "train" / wnid / "images"
        found = sorted(path for path in images.glob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"tiny-imagenet: expected images in {images}, found none. Unpack the archive again.")
        paths += found
        targets += [label] * len(found)
    annotations = _pairs(folder / "val" / "val_annotations.txt", "\t")
    test = [folder / "val" / "images" / name for name, _ in annotations]
    labels = [_number(numbers, wnid.split("\t")[0], folder / "val" / "val_annotations.txt") for _, wnid in annotations]
    classes = [words.get(wnid, wnid) for wnid in ids]
    return _set("tiny-imagenet", (paths, targets), (test, labels), classes, augment, size, shown)


def cub200(root: Path | None, augment: str | None, *, size: int = 224, shown: float = 1.0) -> DataSet:
    """CUB-200-2011: 200 species of birds, 5,994 + 5,794 photographs.

    Raises:
        DataError: it is not there, or damaged.
    """
    lists = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    folder = _there(
        "cub200",
        root,
        "CUB_200_2011",
        (*lists, "images"),
        "CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011, and unpack it",
    )
    names, labels, parts = (dict(_pairs(folder / name, " ")) for name in lists[:3])
    if names.keys() != labels.keys() or names.keys() != parts.keys():
        raise DataError(f"cub200: {', '.join(lists[:3])} of {folder} list different images. Unpack the archive again.")
    classes = [name for _, name in _pairs(folder / "classes.txt", " ")]

    def part(which: str) -> _Files:
        rows = [row for row in names if parts[row] == which]
        return [folder / "images" / names[row] for row in rows], [int(labels[row]) - 1 for row in rows]

    return _set("cub200", part("1"), part("0"), classes, augment, size, shown)


def aircraft(root: Path | None, augment: str | None, *, size: int = 224, shown: float = 1.0) -> DataSet:
    """FGVC-Aircraft: 100 variants of aircraft, 6,667 + 3,333 photographs; training and validation part together.

    Raises:
        DataError: it is not there, or damaged.
    """
    lists = ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt")
    folder = _there(
        "aircraft",
        root,
        "fgvc-aircraft-2013b/data",
        (*lists, "images"),
        "fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, and unpack it",
    )
    classes = _lines(folder / lists[0])
    numbers = {name: label for label, name in enumerate(classes)}

    def part(name: str) -> _Files:
        rows = _pairs(folder / name, " ")
        files = [folder / "images" / f"{image}.jpg" for image, _ in rows]
        return files, [_number(numbers, variant, folder / name) for _, variant in rows]

    return _set("aircraft", part(lists[1]), part(lists[2]), classes, augment, size, shown)


def _set(
    name: str, train: _Files, test: _Files, classes: Sequence[str], augment: str | None, size: int, shown: float
) -> DataSet:
    if missing := next((path for path in (train[0][0], test[0][0]) if not path.is_file()), None):
        raise DataError(f"{name}: expected {missing}, which its lists name; not found. Unpack the archive again.")
    return from_datasets(
        ImageFolder(*train, size=size, augment=augment),
        ImageFolder(*test, size=size, shown=shown),
        pixels=IMAGENET_PIXELS,
        name=name,
        classes=classes,
    )


def _there(name: str, root: Path | None, archive: str, wanted: Sequence[str], fetch: str) -> Path:
    """The set's folder: the archive's own below the data folder, or the data folder itself.

    Raises:
        DataError: there is none; says what to fetch.
    """
    base = cache_folder(root)
    for folder in (base / archive, base):
        if all((folder / part).exists() for part in wanted):
            return folder
    missing = [part for part in wanted if not (base / archive / part).exists()]
    raise DataError(
        f"{name}: expected {', '.join(wanted)} in {base / archive}; missing: {', '.join(missing)}. Fetch {fetch} in "
        f"{base}, or name another folder with root= or MIXWELL_DATA."
    )


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _pairs(path: Path, separator: str) -> list[tuple[str, str]]:
    """Each line's first word and what follows it.

    Raises:
        DataError: a line has only one part.
    """
    found = [line.split(separator, 1) for line in _lines(path)]
    if bad := next((row for row in found if len(row) != 2), None):
        raise DataError(f"{path} is damaged: expected two words in every line, got {bad[0]!r}. Fetch it again.")
    return [(first, second.strip()) for first, second in found]


def _number(numbers: dict[str, int], name: str, path: Path) -> int:
    if name not in numbers:
        raise DataError(f"{path} names the class {name!r}, which the list of classes lacks. Fetch the set again.")
    return numbers[name]
