"""tiny-imagenet, cub200 and aircraft: few pictures in the layout of their archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixwell.core.errors import DataError
from mixwell.data import Loader, load

Image = pytest.importorskip("PIL.Image")


def paint(path: Path, shade: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path, quality=100)


def shade(item) -> int:
    return round(float(item[0][0].float().mean()))


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    ids = ["n03", "n01", "n02"]
    for label, wnid in enumerate(ids):
        for number in range(4):
            paint(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 40 * label + number)
    (folder / "wnids.txt").write_text("\n".join(ids) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tsnail\nn03\tEgyptian cat\nn04\tnone\n")
    rows = []
    for number, wnid in enumerate(["n01", "n03", "n02", "n01"]):
        paint(folder / "val" / "images" / f"val_{number}.JPEG", 200 + number)
        rows.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize("inside", [False, True])
def test_tiny_imagenet(tiny, inside):
    root = tiny / "tiny-imagenet-200" if inside else tiny
    data = load("tiny-imagenet", root=root, augment="rrc-flip")
    assert (len(data.train), len(data.test), data.shape, data.num_classes) == (12, 4, (3, 64, 64), 3)
    assert data.classes == ("Egyptian cat", "goldfish, Carassius auratus", "snail")
    assert data.train.targets == [0] * 4 + [1] * 4 + [2] * 4
    assert [shade(data.train[row]) for row in range(12)] == pytest.approx(
        [40 * label + number for label in range(3) for number in range(4)], abs=2
    )
    assert data.test.targets == [1, 0, 2, 1]
    assert [shade(data.test[row]) for row in range(4)] == pytest.approx([200, 201, 202, 203], abs=2)
    batch = next(Loader(data.train, 12, pixels=data.pixels).epoch(0))
    assert batch.extras["crop"].shape == (12, 5)


def test_a_file_of_words_is_not_needed(tiny):
    (tiny / "tiny-imagenet-200" / "words.txt").unlink()
    assert load("tiny-imagenet", root=tiny).classes == ("n03", "n01", "n02")


def test_damage_of_tiny_imagenet_is_named(tiny):
    folder = tiny / "tiny-imagenet-200"
    annotations = (folder / "val" / "val_annotations.txt").read_text()
    (folder / "val" / "val_annotations.txt").write_text(annotations.replace("n02", "n09"))
    with pytest.raises(DataError, match=r"val_annotations\.txt names the class 'n09'"):
        load("tiny-imagenet", root=tiny)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")
    with pytest.raises(DataError, match=r"expected two words in every line, got 'val_0\.JPEG'"):
        load("tiny-imagenet", root=tiny)
    (folder / "val" / "val_annotations.txt").write_text(annotations.replace("val_0", "val_9"))
    with pytest.raises(DataError, match=r"expected .*val_9\.JPEG, which its lists name"):
        load("tiny-imagenet", root=tiny)
    for path in (folder / "train" / "n01" / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"expected images in .*n01/images, found none"):
        load("tiny-imagenet", root=tiny)


@pytest.fixture
def birds(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    images = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg", "002.Auklet/d.jpg", "002.Auklet/e.jpg"]
    for number, name in enumerate(images):
        paint(folder / "images" / name, 30 * number, size=(80, 60))
    parts = [1, 0, 0, 1, 1]
    lists = {
        "images.txt": images,
        "image_class_labels.txt": [1, 1, 2, 2, 2],
        "train_test_split.txt": parts,
        "classes.txt": ["001.Black footed Albatross", "002.Auklet"],
    }
    for name, values in lists.items():
        (folder / name).write_text("".join(f"{row} {value}\n" for row, value in enumerate(values, 1)))
    return tmp_path


def test_cub200(birds):
    data = load("cub200", root=birds, size=32)
    assert data.classes == ("001.Black footed Albatross", "002.Auklet")
    assert (data.train.targets, data.test.targets) == ([0, 1, 1], [0, 1])
    assert [shade(data.train[row]) for row in range(3)] == pytest.approx([0, 90, 120], abs=2)
    assert [shade(data.test[row]) for row in range(2)] == pytest.approx([30, 60], abs=2)
    (birds / "CUB_200_2011" / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="list different images"):
        load("cub200", root=birds)


def test_aircraft(tmp_path):
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    parts = {"trainval": [("0034309", "A330-200"), ("1025794", "Boeing 707")], "test": [("1514522", "Boeing 707")]}
    for number, (name, _) in enumerate(row for rows in parts.values() for row in rows):
        paint(folder / "images" / f"{name}.jpg", 60 * number)
    for part, rows in parts.items():
        (folder / f"images_variant_{part}.txt").write_text("".join(f"{name} {variant}\n" for name, variant in rows))
    (folder / "variants.txt").write_text("Boeing 707\nA330-200\n")
    data = load("aircraft", root=tmp_path, size=16)
    assert data.classes == ("Boeing 707", "A330-200")
    assert (data.train.targets, data.test.targets) == ([1, 0], [0])
    assert shade(data.test[0]) == pytest.approx(120, abs=2)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tiny-imagenet", r"wnids\.txt.*Fetch http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip"),
        ("cub200", r"images\.txt.*Fetch CUB_200_2011\.tgz from https"),
        ("aircraft", r"variants\.txt.*Fetch fgvc-aircraft-2013b\.tar\.gz from https"),
    ],
)
def test_sets_that_are_not_there_say_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path, name, wanted):
    monkeypatch.setenv("MIXWELL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{name}: expected .*{tmp_path}.*missing: {wanted}.*root= or MIXWELL_DATA"):
        load(name)


def test_test_images_show_a_share_of_the_shorter_side(tmp_path):
    """Rings of one pixel: which of them the middle of the image still shows."""
    side = 64
    distance = np.maximum(*np.abs(np.indices((side, side)) + 0.5 - side / 2)).astype(np.uint8)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(np.repeat(distance[..., None] * 4, 3, 2)).save(tmp_path / part / name / "x.png")
    data = load(f"imagefolder:{tmp_path}", size=56, test_size=28, shown=0.875)
    assert data.train[0][0].shape == (3, 56, 56)
    assert data.train[0][0].max() > 110  # all of the image
    assert data.test[0][0].shape == (3, 28, 28)
    outermost = data.test[0][0][0]
    assert int(outermost.max()) == pytest.approx(4 * 28, abs=6)  # the middle 28 of 32, of a ring of 32 pixels
    assert torch.equal(outermost, outermost.flip(0))


@pytest.mark.parametrize("shown", [0, 1.5, "most"])
def test_impossible_shares(tiny, shown):
    with pytest.raises(ValueError, match="shown must be a number"):
        load("tiny-imagenet", root=tiny, shown=shown)
