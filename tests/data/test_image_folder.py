"""Image folders made on the spot: one colour per class, one shade per image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from mixwell.core.errors import DataError
from mixwell.data import Loader, held_out, load
from mixwell.data.split import unaugmented

Image = pytest.importorskip("PIL.Image")

COLOURS = {"ant": (1, 0, 0), "bee": (0, 1, 0), "cat": (0, 0, 1)}


def paint(folder: Path, count: int, *, size=(40, 30), classes=tuple(COLOURS)) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colour = tuple(channel * (100 + number) for channel in COLOURS[name])
            Image.new("RGB", size, colour).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    paint(tmp_path / "train", 6)
    paint(tmp_path / "test", 2)
    return tmp_path


def test_split_folder(split_folder):
    data = load(f"imagefolder:{split_folder}", size=16)
    assert (len(data.train), len(data.test), data.num_classes) == (18, 6, 3)
    assert (data.classes, data.shape) == (("ant", "bee", "cat"), (3, 16, 16))
    for row in range(18):
        image, label = data.train[row]
        assert label == row // 6
        assert image.dtype == torch.uint8
        assert image[label].unique().tolist() == [100 + row % 6]
        assert int(image.sum()) == int(image[label].sum())


def test_val_stands_for_test_and_relative_path_is_taken_from_root(split_folder):
    (split_folder / "test").rename(split_folder / "val")
    data = load(f"imagefolder:{split_folder.name}", root=split_folder.parent, size=8)
    assert len(data.test) == 6


def test_folder_without_split_is_split_once_and_for_all(tmp_path):
    paint(tmp_path, 10)
    data, again = (load(f"imagefolder:{tmp_path}", size=8) for _ in range(2))
    assert np.bincount(data.test.targets).tolist() == [2, 2, 2]
    assert np.bincount(data.train.targets).tolist() == [8, 8, 8]
    assert not set(data.train.paths) & set(data.test.paths)
    assert data.test.paths == again.test.paths


def test_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = 200  # the centre square of a 60 × 20 picture
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        (tmp_path / part / "two").mkdir(parents=True)
        Image.fromarray(stripes).save(tmp_path / part / "one" / "wide.png")
        Image.fromarray(stripes.transpose(1, 0, 2)).save(tmp_path / part / "two" / "tall.png")
    data = load(f"imagefolder:{tmp_path}", size=20)
    assert torch.equal(data.train[0][0], torch.full((3, 20, 20), 200, dtype=torch.uint8))
    assert torch.equal(data.train[1][0], torch.full((3, 20, 20), 200, dtype=torch.uint8))
    larger = load(f"imagefolder:{tmp_path}", size=50)
    assert larger.train[0][0].shape == (3, 50, 50)
    assert int(larger.train[0][0][:, 10:40, 10:40].float().mean()) == 200


def test_other_modes_and_nested_files_are_read_as_rgb(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "grey" / "deep").mkdir(parents=True)
        Image.new("L", (9, 9), 70).save(tmp_path / part / "grey" / "deep" / "a.PNG")
        Image.new("RGBA", (9, 9), (10, 20, 30, 128)).save(tmp_path / part / "grey" / "b.png")
        (tmp_path / part / "grey" / "notes.txt").write_text("not an image")
    data = load(f"imagefolder:{tmp_path}", size=9)
    assert sorted(data.train[row][0][:, 4, 4].tolist() for row in range(len(data.train))) == [
        [10, 20, 30],
        [70, 70, 70],
    ]


def test_augmentation_only_in_training_and_not_in_what_is_held_out(split_folder):
    data = load(f"imagefolder:{split_folder}", size=16, augment="crop-flip")
    train, held = held_out(data.train, 1 / 3)
    assert (data.train.augment, data.test.augment) == ("crop-flip", None)
    assert (train.augment, held.augment) == ("crop-flip", None)
    assert (len(train), len(held)) == (12, 6)
    batch = next(Loader(train, 12, pixels=data.pixels, shuffle=False).epoch(0))
    covered = (batch.raw.sum(1) > 0.1).flatten(1).float().mean(1)
    assert len(covered.unique()) > 3  # zero borders of many widths
    plain = next(Loader(held, 6, pixels=data.pixels, shuffle=False).epoch(0))
    assert bool((plain.raw.sum(1) > 0.1).all())


@pytest.mark.parametrize("augment", ["crop-flip", "rrc-flip"])
@pytest.mark.parametrize("size", [(60, 40), (40, 60)])
def test_crops_say_where_images_of_a_folder_lie(tmp_path, augment, size):
    """A slope along either axis stays one, between the edges that the crop names in the image's middle square."""
    width, height = size
    slopes = np.zeros((height, width, 3), np.uint8)
    slopes[..., 0] = (100 + (np.arange(height) + 0.5 - height / 2) * 2)[:, None]
    slopes[..., 1] = 100 + (np.arange(width) + 0.5 - width / 2) * 2
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(10):
                Image.fromarray(slopes).save(tmp_path / part / name / f"{number}.png")
    data = load(f"imagefolder:{tmp_path}", size=32, augment=augment)
    batch = next(Loader(data.train, 20, pixels=data.pixels, seed=3).epoch(0))
    crops = batch.extras["crop"]
    assert set(crops[:, 4].tolist()) == {0, 1}
    for image, (top, left, tall, wide, mirrored) in zip(batch.raw * 255, crops.tolist(), strict=True):
        rows = 60 + 80 * (top + tall * (torch.arange(32) + 0.5) / 32)
        columns = 60 + 80 * (left + wide * (torch.arange(32) + 0.5) / 32)
        columns = columns.flip(0) if mirrored else columns
        shown = image[0] > 10  # shifted crops have black borders
        assert shown.float().mean() > 0.7
        assert ((image[0] - rows[:, None]).abs()[shown] < 3.5).all()
        assert ((image[1] - columns).abs()[shown] < 3.5).all()
    assert len(crops.unique(dim=0)) > 15
    assert "crop" not in next(Loader(data.test, 20, pixels=data.pixels).epoch(0)).extras
    plain, stored = load(f"imagefolder:{tmp_path}", size=32).train, unaugmented(Subset(data.train, [3, 1]))
    assert torch.equal(stored[0][0], plain[3][0])
    assert len(stored[1]) == 2


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"expected a folder at .*absent.*train/CLASS/IMAGE"):
        load(f"imagefolder:{tmp_path / 'absent'}")


def test_train_without_test(tmp_path):
    paint(tmp_path / "train", 1)
    with pytest.raises(DataError, match="has train/ but no test nor val/"):
        load(f"imagefolder:{tmp_path}")


def test_test_without_train(tmp_path):
    paint(tmp_path / "val", 1)
    with pytest.raises(DataError, match="has val/ but no train/"):
        load(f"imagefolder:{tmp_path}")


def test_differing_classes(tmp_path):
    paint(tmp_path / "train", 1)
    paint(tmp_path / "test", 1, classes=("ant", "bee"))
    with pytest.raises(DataError, match="only in train: cat"):
        load(f"imagefolder:{tmp_path}")


def test_class_without_images(split_folder):
    (split_folder / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"No images in .*dog"):
        load(f"imagefolder:{split_folder}")


def test_folder_without_classes(tmp_path):
    with pytest.raises(DataError, match="one folder per class"):
        load(f"imagefolder:{tmp_path}")


def test_too_few_images_to_split(tmp_path):
    paint(tmp_path, 1)
    with pytest.raises(DataError, match=r"too few images \(3\)"):
        load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_impossible_size(split_folder, size):
    with pytest.raises(DataError, match="size must be a positive number of pixels"):
        load(f"imagefolder:{split_folder}", size=size)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_named(split_folder, workers):
    data = load(f"imagefolder:{split_folder}", size=8)
    (split_folder / "train" / "bee" / "03.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"03\.png cannot be decoded"):
        list(Loader(data.train, 18, pixels=data.pixels, workers=workers).epoch(0))
