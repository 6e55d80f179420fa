"""Which pictures of a folder a gallery shows, and how."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mixwell
from mixwell.core.errors import DataError
from mixwell.gallery import photographs, read_pictures


@pytest.fixture
def write(tmp_path):
    """`write("cat/a.png", (255, 0, 0))`: a picture of one colour, 40 wide and 60 high, below a folder."""

    def make(name, colour=(255, 0, 0), mode="RGB", size=(40, 60), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path, **options)
        return path

    return make


def colours(found):
    return [tuple(round(value * 255) for value in image.mean((1, 2)).tolist()) for image in found.images]


def test_images_of_the_folder_itself_are_a_class_each(write, tmp_path):
    write("b.png", (0, 255, 0))
    write("a.PNG", (255, 0, 0))
    write("deeper/c.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = read_pictures(tmp_path, size=32)
    assert found.labels == ("a", "b")
    assert colours(found) == [(255, 0, 0), (0, 255, 0)]
    assert found.images.shape == (2, 3, 32, 32)
    assert found.skipped == {}


def test_files_of_one_stem_keep_their_endings(write, tmp_path):
    write("a.png")
    write("a.bmp")
    assert read_pictures(tmp_path, size=32).labels == ("a.bmp", "a.png")


def test_folders_are_classes_and_all_are_shown_before_one_is_shown_twice(write, tmp_path):
    for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/deep/1.png", "owl/1.png"):
        write(name)
    (tmp_path / "empty").mkdir()
    assert read_pictures(tmp_path, size=32, count=4).labels == ("cat", "cat", "dog", "owl")
    assert read_pictures(tmp_path, size=32, count=16).labels == ("cat", "cat", "cat", "dog", "owl")


def test_of_many_classes_some_are_taken_evenly(write, tmp_path):
    for place in range(8):
        write(f"class {place}/1.png")
    assert read_pictures(tmp_path, size=32, count=4).labels == ("class 0", "class 2", "class 4", "class 6")


def test_what_cannot_be_read_is_named_and_replaced(write, tmp_path):
    for place in range(4):
        write(f"{place}.png")
    (tmp_path / "0.png").write_bytes(b"nothing")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:-30])
    write("2.tif", 1000, "I")
    found = read_pictures(tmp_path, size=32, count=2)
    assert found.labels == ("2.png", "3.png")
    assert {path.name for path in found.skipped} == {"0.png", "1.png", "2.tif"}
    assert "no fixed range" in found.skipped[tmp_path / "2.tif"]


def test_the_middle_is_shown_upright_and_on_white(write, tmp_path):
    pixels = np.zeros((60, 180, 3), np.uint8)
    pixels[:, 60:120] = (10, 20, 30)
    pixels[:30, 60:120] = (200, 100, 50)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    write("b.png", (255, 0, 0, 0), "RGBA")
    upright, clear = read_pictures(tmp_path, size=32).images
    assert (upright[:, :8] * 255).mean((1, 2)).round().tolist() == [10, 20, 30]
    assert (upright[:, -8:] * 255).mean((1, 2)).round().tolist() == [200, 100, 50]
    assert bool((clear == 1).all())


@pytest.mark.parametrize("size", [0, 31, 36, 520])
def test_sizes_are_limited(write, tmp_path, size):
    with pytest.raises(mixwell.ParameterError, match="multiple of 8 from 32 to 512"):
        read_pictures(tmp_path, size=size)


def test_folders_without_two_images(write, tmp_path):
    with pytest.raises(mixwell.ParameterError, match="2 … 16"):
        read_pictures(tmp_path, count=1)
    with pytest.raises(DataError, match="found none at"):
        read_pictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found 0"):
        read_pictures(tmp_path)
    write("a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"found 1 .*b\.png"):
        read_pictures(tmp_path)


def test_photographs_come_with_scikit_image(monkeypatch):
    pytest.importorskip("skimage")
    found = photographs(3, size=64)
    assert found.labels == ("astronaut", "cat", "coffee")
    assert found.images.shape == (3, 3, 64, 64)
    assert len(torch.unique(found.images.flatten(1), dim=0)) == 3
    with pytest.raises(mixwell.ParameterError, match="4 photographs"):
        photographs(5)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(DataError, match=r"mixwell\[vision\]"):
        photographs()
