"""hf:NAME over folders that `datasets` has saved, and over a stand-in of the Hub."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mixwell.core.errors import DataError
from mixwell.data import Loader, held_out, load

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


def table(count, *, image="img", label="fine_label", names=("cat", "dog", "newt"), picture=None):
    rows = {
        image: [picture or Image.new("RGB", (40, 30), (10 * row, row, 100 - row)) for row in range(count)],
        "note": [f"row {row}" for row in range(count)],
        label: [row % 3 for row in range(count)],
    }
    kind = datasets.Value("int64") if names is None else datasets.ClassLabel(names=list(names))
    features = datasets.Features({image: datasets.Image(), "note": datasets.Value("string"), label: kind})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def saved(tmp_path):
    parts = datasets.DatasetDict({"train": table(12), "validation": table(6)})
    parts.save_to_disk(str(tmp_path / "saved"))
    return tmp_path


@pytest.mark.parametrize("relative", [False, True])
def test_a_saved_folder(saved, relative):
    name = "saved" if relative else str(saved / "saved")
    data = load(f"hf:{name}", root=saved if relative else None, size=16, augment="rrc-flip")
    assert (len(data.train), len(data.test), data.shape) == (12, 6, (3, 16, 16))
    assert data.classes == ("cat", "dog", "newt")
    assert data.train.targets == [row % 3 for row in range(12)]
    for row in range(6):
        image, label = data.test[row]
        assert label == row % 3
        assert image.dtype == torch.uint8
        assert [int(channel.float().mean()) for channel in image] == [10 * row, row, 100 - row]
    batch = next(Loader(data.train, 12, pixels=data.pixels, workers=1).epoch(0))
    assert torch.equal(batch.labels, batch.index % 3)
    assert torch.equal((batch.raw[:, 0, 8, 8] * 255).round().long(), batch.index * 10)
    assert batch.extras["crop"].shape == (12, 5)


def test_parts_of_it_keep_their_rows(saved):
    data = load(f"hf:{saved / 'saved'}", size=8)
    train, held = held_out(data.train, 0.25)
    seen = sorted(int(part[row][0][0, 4, 4]) for part in (train, held) for row in range(len(part)))
    assert seen == [10 * row for row in range(12)]
    for part in (train, held):
        for row in range(len(part)):
            image, label = part[row]
            assert label == int(image[0, 4, 4]) // 10 % 3


def test_the_hub_is_asked_for_the_set(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {"train": table(6), "test": table(3), "extra": table(3, names=None, label="label")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load("hf:owner/name", root=tmp_path, size=8, config="small")
    assert asked == [(("owner/name", "small"), {"cache_dir": str(tmp_path)})]
    assert data.name == "hf:owner/name"
    assert data.num_classes == 3
    assert data.pixels.mean[0] == pytest.approx(25 / 255, abs=0.01)


def test_columns_and_parts_may_be_named(monkeypatch):
    def load_dataset(*arguments, **options):
        plain = table(6, image="photo", label="species", names=None)
        return {"all": plain, "new": plain}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"no part 'train'; .*Name it with the option train"):
        load("hf:owner/name")
    with pytest.raises(DataError, match=r"no part 'test'; .*Name it with the option test"):
        load("hf:owner/name", train="all")
    with pytest.raises(DataError, match="no column that is plainly the label, among photo, note, species"):
        load("hf:owner/name", train="all", test="new")
    with pytest.raises(DataError, match="no column 'specie'; did you mean 'species'"):
        load("hf:owner/name", train="all", test="new", label="specie")
    with pytest.raises(DataError, match="expected class ids in the column 'note', got 'row 0'"):
        load("hf:owner/name", train="all", test="new", label="note")
    data = load("hf:owner/name", train="all", test="new", label="species", image="photo", size=8)
    assert data.classes == ("0", "1", "2")


def test_a_column_that_is_no_image(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": table(6), "test": table(3)})
    with pytest.raises(DataError, match=r"Row \d, column 'note', cannot be decoded"):
        load("hf:owner/name", image="note")


@pytest.mark.parametrize("error", [ConnectionError("no route"), FileNotFoundError("no such set"), ValueError("config")])
def test_a_set_that_cannot_be_had_says_what_to_do(monkeypatch, error):
    def load_dataset(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=rf"hf:owner/name cannot be loaded .*{error}.*save_to_disk"):
        load("hf:owner/name")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"mixwell\[hf\]"):
        load("hf:owner/name")


def test_test_images_show_a_share_of_the_shorter_side(monkeypatch):
    """Rings of one pixel, of which the middle 24 of 32 are shown."""
    distance = np.maximum(*np.abs(np.indices((32, 32)) + 0.5 - 16)).astype(np.uint8)
    rings = Image.fromarray(np.repeat(distance[..., None] * 8, 3, 2))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: dict.fromkeys(("train", "test"), table(3, picture=rings))
    )
    data = load("hf:owner/name", size=24, shown=0.75)
    assert int(data.test[0][0].max()) == 8 * 11
    assert int(data.train[0][0].max()) > 8 * 14
