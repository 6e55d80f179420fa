"""Named sets: what they hold, what they are served as, and what they say when they cannot be had."""

import gzip
import struct
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

import mixwell.data
from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError
from mixwell.data import InMemory, Loader, from_datasets, load, named
from mixwell.data.idx import missing_files
from mixwell.data.sets import FASHION_FOLDER

EMBEDDED = Path(mixwell.data.__file__).parent / "fashion_mini"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 20)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_fashion_mini_counts_and_balance():
    data = load("fashion-mini")
    assert (len(data.train), len(data.test), data.num_classes) == (6000, 2000, 10)
    assert torch.bincount(data.train.labels).tolist() == [600] * 10
    assert torch.bincount(data.test.labels).tolist() == [200] * 10
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"


def test_fashion_mini_is_small_and_licensed():
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 5_000_000
    assert "Copyright (c) 2017 Zalando SE" in (EMBEDDED / "LICENSE").read_text()
    assert "tools/make_fashion_mini.py" in (EMBEDDED / "README.md").read_text()


def test_fashion_mini_default_is_the_original_with_border_and_repeated_channel():
    served, original = load("fashion-mini"), load("fashion-mini", size=28, channels=1)
    assert served.shape == (3, 32, 32)
    assert original.shape == (1, 28, 28)
    for row in (0, 1234, 5999):
        image, label = served.train[row]
        plain, plain_label = original.train[row]
        assert label == plain_label
        assert image.shape == (3, 32, 32)
        assert torch.equal(image[:, 2:30, 2:30], plain.expand(3, -1, -1))
        assert int(image.sum()) == 3 * int(plain.sum())


@pytest.mark.parametrize("options", [{"size": 30}, {"channels": 2}, {"size": 224}, {"channels": True}])
def test_fashion_refuses_other_sizes_and_channels(options):
    with pytest.raises(DataError, match=f"{next(iter(options))} must be .* or .*, got"):
        load("fashion-mini", **options)


@pytest.mark.skipif(bool(missing_files(FASHION_FOLDER)), reason=f"the full Fashion-MNIST is not in {FASHION_FOLDER}")
def test_fashion_mnist_from_debian_and_mini_is_its_part():
    full, mini = load("fashion-mnist", size=28, channels=1), load("fashion-mini", size=28, channels=1)
    assert (len(full.train), len(full.test)) == (60_000, 10_000)
    assert full.pixels == mini.pixels
    assert float(full.train.images.double().mean() / 255) == pytest.approx(full.pixels.mean[0], abs=1e-4)
    assert float(full.train.images.double().std() / 255) == pytest.approx(full.pixels.std[0], abs=1e-4)
    with np.load(EMBEDDED / "fashion_mini.npz", allow_pickle=False) as stored:
        for part in ("train", "test"):
            rows = torch.from_numpy(stored[f"{part}_rows"].astype(np.int64))
            assert len(rows.unique()) == len(rows)
            assert torch.equal(getattr(full, part).images[rows], getattr(mini, part).images)
            assert torch.equal(getattr(full, part).labels[rows], getattr(mini, part).labels)


def test_fashion_mnist_from_root(idx_folder):
    data = load("fashion-mnist", root=idx_folder, size=28, channels=1)
    assert (len(data.train), len(data.test), data.shape) == (30, 20, (1, 28, 28))
    assert data.train.labels.tolist() == [row % 10 for row in range(30)]
    expected = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    assert np.array_equal(data.train.images[:, 0].numpy(), expected)


def test_fashion_mnist_in_torchvisions_layout(idx_folder, tmp_path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in idx_folder.glob("*ubyte*"):
        path.rename(raw / path.name)
    assert len(load("fashion-mnist", root=tmp_path / "data").train) == 30


def test_fashion_mnist_is_downloaded_where_it_is_not_installed(monkeypatch, idx_folder, tmp_path):
    vision = pytest.importorskip("torchvision")

    def download(root, train, download):
        raw = Path(root) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for path in idx_folder.glob("*ubyte*"):
            path.rename(raw / path.name)

    monkeypatch.setattr("mixwell.data.sets.FASHION_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("MIXWELL_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(vision.datasets, "FashionMNIST", download)
    assert len(load("fashion-mnist").train) == 30


def test_fashion_mnist_without_files_names_the_folder_and_the_files(tmp_path):
    with pytest.raises(DataError, match=r"(?s)nowhere.*missing.*train-images-idx3-ubyte.*root="):
        load("fashion-mnist", root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-images-idx3-ubyte.gz", lambda content: content[: len(content) // 2]),
        ("t10k-labels-idx1-ubyte", lambda content: content[:-3]),
        ("t10k-labels-idx1-ubyte", lambda content: b"<html>" + content),
    ],
)
def test_damaged_idx_files(idx_folder, name, damage):
    path = idx_folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=name):
        load("fashion-mnist", root=idx_folder)


def test_idx_with_another_number_of_labels(idx_folder):
    write_idx(idx_folder / "train-labels-idx1-ubyte", np.arange(29) % 10)
    with pytest.raises(DataError, match=r"expected \(N, H, W\) images and N labels for train"):
        load("fashion-mnist", root=idx_folder)


def test_digits():
    data, again = load("digits"), load("digits", size=8, channels=1)
    assert (len(data.train), len(data.test), data.shape) == (1400, 397, (3, 32, 32))
    assert again.shape == (1, 8, 8)
    assert torch.equal(data.train.labels, again.train.labels)
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    whole = torch.bincount(torch.from_numpy(sklearn.target))
    held = torch.bincount(data.test.labels)
    assert (held - whole * 397 / 1797).abs().max() < 1
    # At its own size a digit is the original's 0 … 16 scaled to 0 … 255, and the two parts hold every image once.
    stored = np.concatenate([again.train.images.numpy(), again.test.images.numpy()])[:, 0]
    original = np.round(sklearn.images / 16 * 255)
    assert sorted(image.tobytes() for image in stored) == sorted(image.astype(np.uint8).tobytes() for image in original)
    mean, std = again.pixels.mean[0], again.pixels.std[0]
    assert float(again.train.images.double().mean() / 255) == pytest.approx(mean, abs=1e-6)
    assert float((again.train.images.double() / 255).std(correction=0)) == pytest.approx(std, abs=1e-6)


class FakeCifar:
    classes: tuple[str, ...] = tuple("abcdefghij")

    def __init__(self, root, train, download):
        assert download
        count = 20 if train else 10
        rows = np.arange(count, dtype=np.uint8)[:, None, None, None]
        self.data = np.broadcast_to(rows * 4 + np.arange(3, dtype=np.uint8), (count, 32, 32, 3)).copy()
        self.targets = [row % 10 for row in range(count)]


def test_cifar_is_served_channels_first(monkeypatch, tmp_path):
    vision = pytest.importorskip("torchvision")
    monkeypatch.setattr(vision.datasets, "CIFAR10", FakeCifar)
    data = load("cifar10", root=tmp_path, augment="crop-flip")
    assert (data.shape, data.num_classes, data.classes) == ((3, 32, 32), 10, FakeCifar.classes)
    assert isinstance(data.train, InMemory)
    assert (data.train.augment, data.test.augment) == ("crop-flip", None)
    assert data.train[7][0][:, 0, 0].tolist() == [28, 29, 30]


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no network"), RuntimeError("File not found or corrupted.")], ids=["url", "runtime"]
)
def test_cifar_that_cannot_be_downloaded(monkeypatch, tmp_path, error):
    vision = pytest.importorskip("torchvision")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(vision.datasets, "CIFAR100", fail)
    monkeypatch.setenv("MIXWELL_DATA", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cifar100: not found in .*cache.*MIXWELL_DATA"):
        load("cifar100")


@pytest.mark.parametrize(
    ("name", "module"), [("digits", "sklearn.datasets"), ("cifar10", "torchvision")], ids=["sklearn", "torchvision"]
)
def test_missing_package_names_the_extra(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"mixwell\[train\]"):
        load(name)


@pytest.mark.parametrize("name", ["fashion_mini", "imagefolder", "imagefolder:", "digits:8", "mnist"])
def test_unknown_names(name):
    with pytest.raises(DataError, match=f"Unknown data set '{name}'"):
        load(name)


def test_named_lists_what_load_knows():
    embedded = {"digits", "fashion-mini", "fashion-mnist"}
    small = {"cifar10", "cifar100", "stl10", "svhn"}
    files = {"aircraft", "cub200", "hf:NAME", "imagefolder:PATH", "tiny-imagenet"}
    assert set(named()) == embedded | small | files


def test_unknown_options_and_augmentation():
    with pytest.raises(DataError, match="digits has no option 'sise'; it takes size, channels"):
        load("digits", sise=32)
    with pytest.raises(DataError, match="augment must be None, 'crop-flip' or 'rrc-flip', got 'flip'"):
        load("fashion-mini", augment="flip")


class Listed(Dataset):
    """Items from a list, labels not exposed."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def coloured(count, classes=4, dtype=torch.uint8):
    """Images whose channels have different, known statistics."""
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 6, 5, generator=generator) * torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1)
    images = (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images
    return Listed([(image, row % classes) for row, image in enumerate(images)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_from_datasets_infers_classes_shape_and_pixels(dtype):
    train = coloured(300, dtype=dtype)
    data = from_datasets(train, coloured(20, dtype=dtype))
    assert (data.num_classes, data.classes, data.shape, data.name) == (4, ("0", "1", "2", "3"), (3, 6, 5), "custom")
    everything = torch.stack([image for image, _ in train.items]).double() / (255 if dtype == torch.uint8 else 1)
    assert data.pixels.mean == pytest.approx(everything.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert data.pixels.std == pytest.approx(everything.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    batch = next(Loader(data.train, 300, pixels=data.pixels).epoch(0))
    assert torch.allclose(batch.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(batch.images.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_from_datasets_takes_exposed_labels_of_subsets_without_reading():
    class Unreadable(Listed):
        targets = (0, 1, 2, 3, 7)

        def __getitem__(self, index):
            if index:
                raise AssertionError("read although its targets say it all")
            return torch.zeros(1, 4, 4, dtype=torch.uint8), 0

    train = Subset(Unreadable([None] * 5), [0, 1, 2])
    test = Subset(Unreadable([None] * 5), [0, 4])
    assert from_datasets(train, test, pixels=Pixels((0.5,), (0.5,))).num_classes == 8


def test_from_datasets_with_soft_rows():
    images, rows = torch.rand(6, 3, 4, 4), torch.softmax(torch.randn(6, 5), dim=1)
    data = from_datasets(TensorDataset(images, rows), TensorDataset(images, rows))
    assert data.num_classes == 5
    batch = next(Loader(data.train, 6, pixels=data.pixels, shuffle=False).epoch(0))
    assert torch.equal(batch.labels, rows)


def test_from_datasets_names_of_classes():
    train, test = coloured(8), coloured(8)
    train.classes = list("wxyz")
    assert from_datasets(train, test).classes == tuple("wxyz")
    assert from_datasets(train, test, classes=("a", "b", "c", "d")).classes == tuple("abcd")
    test.classes = list("wxyq")
    with pytest.raises(DataError, match="only in train: z; only in test: q"):
        from_datasets(train, test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "expected labels of 3 classes, got 4"),
        ({"classes": ["a", "b"]}, "expected labels of 2 classes, got 4"),
        ({"classes": ["a", "b"], "num_classes": 4}, "Expected 4 class names for num_classes=4, got 2"),
    ],
)
def test_from_datasets_refuses_labels_outside_the_classes(options, message):
    images = torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8)
    memory = InMemory(images, torch.arange(8) % 4)
    with pytest.raises(DataError, match=message):
        from_datasets(memory, memory, **options)


def test_from_datasets_refuses_negative_ids():
    memory = InMemory(torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8), torch.tensor([-1, 0, 1]))
    with pytest.raises(DataError, match="class ids >= 0, got -1"):
        from_datasets(memory, memory)


def test_from_datasets_refuses_empty_streams_and_constant_images():
    good = coloured(8)
    with pytest.raises(DataError, match="test: expected at least one sample"):
        from_datasets(good, Listed([]))
    with pytest.raises(DataError, match="map-style"):
        from_datasets(SimpleNamespace(), good)
    flat = InMemory(torch.full((4, 1, 4, 4), 9, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(DataError, match=r"constant.*pixels=Pixels"):
        from_datasets(flat, flat)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 1, 4, 4), torch.arange(4), "expected uint8 images"),
        (torch.zeros(4, 4, 4, dtype=torch.uint8), torch.arange(4), "expected uint8 images"),
        (torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4.0), "expected 4 integer class ids"),
        (torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(5), "expected 4 integer class ids"),
    ],
)
def test_in_memory_refuses(images, labels, message):
    with pytest.raises(DataError, match=message):
        InMemory(images, labels)
