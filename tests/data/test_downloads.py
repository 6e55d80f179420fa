"""svhn, stl10 and CIFAR in the formats of their files, read by torchvision."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from mixwell.core.errors import DataError
from mixwell.data import load
from mixwell.data.crops import resized

vision = pytest.importorskip("torchvision")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def numbered(count: int, side: int) -> np.ndarray:
    """(N, 3, side, side) bytes that tell image, channel, row and column apart."""
    image, channel, row, column = np.indices((count, 3, side, side))
    return ((image * 11 + channel * 60 + row * 3 + column) % 256).astype(np.uint8)


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Few images as the .mat files hold them: rows, columns, channels, images; the digit 0 is labelled 10."""
    split_list = {}
    for split, count in (("train", 12), ("test", 11)):
        path = tmp_path / f"{split}_32x32.mat"
        labels = np.arange(1, count + 1) % 10
        savemat(path, {"X": numbered(count, 32).transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        split_list[split] = ["http://nowhere.invalid", path.name, md5(path)]
    monkeypatch.setattr(vision.datasets.SVHN, "split_list", split_list)
    return tmp_path


def test_svhn(svhn):
    data = load("svhn", root=svhn, augment="crop-flip")
    assert (len(data.train), len(data.test), data.shape, data.num_classes) == (12, 11, (3, 32, 32), 10)
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert np.array_equal(data.train.images.numpy(), numbered(12, 32))
    assert (data.train.augment, data.test.augment) == ("crop-flip", None)


def test_svhn_that_is_damaged_is_fetched_again_and_says_where_it_is(svhn, monkeypatch):
    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    (svhn / "test_32x32.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"svhn: not found in .*train_32x32\.mat and test_32x32\.mat of http"):
        load("svhn", root=svhn)


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Few images as the binaries hold them: images, channels, columns, rows; labels from 1."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    lists = {}
    for split, count in (("train", 10), ("test", 12)):
        (folder / f"{split}_X.bin").write_bytes(numbered(count, 96).transpose(0, 1, 3, 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
        lists[split] = [[name, md5(folder / name)] for name in (f"{split}_X.bin", f"{split}_y.bin")]
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    monkeypatch.setattr(vision.datasets.STL10, "train_list", lists["train"])
    monkeypatch.setattr(vision.datasets.STL10, "test_list", lists["test"])
    return tmp_path


def test_stl10(stl10):
    data = load("stl10", root=stl10)
    assert (len(data.train), len(data.test), data.shape, data.num_classes) == (10, 12, (3, 96, 96), 10)
    assert data.train.labels.tolist() == list(range(10))
    assert data.classes[7] == "monkey"
    assert np.array_equal(data.test.images.numpy(), numbered(12, 96))


def test_downloaded_sets_are_served_at_any_size(stl10):
    data = load("stl10", root=stl10, size=48)
    assert data.shape == (3, 48, 48)
    assert data.test[0][0].shape == (3, 48, 48)
    smaller = torch.from_numpy(resized(data.test.images[:1].numpy(), 48)[0])
    assert torch.equal(data.test[0][0], smaller)
    for size in (0, 32.0, True):
        with pytest.raises(DataError, match="size must be a positive number of pixels"):
            load("stl10", root=stl10, size=size)


@pytest.mark.parametrize(
    ("name", "files"),
    [("stl10", r"stl10_binary\.tar\.gz of https://cs\.stanford\.edu"), ("cifar100", r"cifar-100-python\.tar\.gz of")],
)
def test_sets_that_are_not_there_say_what_to_fetch(monkeypatch, tmp_path, name, files):
    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=rf"{name}: not found in .*no network.*put {files}.* there, or name"):
        load(name, root=tmp_path)


def test_missing_torchvision_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(DataError, match=r"mixwell\[train\]"):
        load("svhn", root=tmp_path)


def test_labels_are_whole_numbers(svhn):
    assert load("svhn", root=svhn).test.labels.dtype == torch.int64
