"""What augment_options add to a set: least area of crops, RandAugment, random erasing; sets served at another size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError, ParameterError
from mixwell.data import InMemory, Loader, held_out, load
from mixwell.data.crops import random_crops, resized
from mixwell.data.split import unaugmented
from mixwell.data.varied import Varied, varied

PIXELS = Pixels((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def memory(count=12, side=16, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return InMemory(images, torch.arange(count) % 3, **options)


def read(dataset, epoch=0, **options):
    batches = list(Loader(dataset, 5, pixels=PIXELS, **options).epoch(epoch))
    order = torch.cat([batch.index for batch in batches]).argsort()
    images = torch.cat([batch.raw for batch in batches])[order]
    labels = torch.cat([batch.labels for batch in batches])[order]
    crops = torch.cat([batch.extras["crop"] for batch in batches])[order] if "crop" in batches[0].extras else None
    return (images * 255).round(), labels, crops


@pytest.mark.parametrize("least", [0.08, 0.5, 0.8])
def test_crops_are_no_smaller_than_the_least_area(least):
    crops = random_crops(np.random.default_rng(0).random((20_000, 4)), np.zeros(20_000, bool), least).astype(float)
    area = crops[:, 2] * crops[:, 3]
    assert least - 1e-6 < area.min() < least + 0.01
    assert area.max() > 0.99
    assert abs(area.mean() - (1 + least) / 2) < 0.01


def test_the_least_area_reaches_the_batches_of_every_set(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            pil.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    for data in (
        load("digits", augment="rrc-flip", augment_options={"least_area": 0.9}),
        load(f"imagefolder:{tmp_path}", size=16, augment="rrc-flip", augment_options={"least_area": 0.9}),
    ):
        batch = next(Loader(data.train, 300, pixels=data.pixels).epoch(0))
        area = batch.extras["crop"][:, 2] * batch.extras["crop"][:, 3]
        assert area.min() >= 0.9 - 1e-6
        train, _ = held_out(data.train, 0.2)
        crops = next(Loader(train, 300, pixels=data.pixels).epoch(0)).extras["crop"]
        assert (crops[:, 2] * crops[:, 3]).min() >= 0.9 - 1e-6


@pytest.mark.parametrize("augment", [None, "crop-flip", "rrc-flip"])
def test_images_are_served_at_another_size(augment):
    small, large = memory(augment=augment), memory(augment=augment, size=32)
    assert large[3][0].shape == (3, 32, 32)
    assert torch.equal(large[3][0], torch.from_numpy(resized(small[3][0][None].numpy(), 32)[0]))
    images, labels, crops = read(large)
    assert images.shape == (12, 3, 32, 32)
    plain, plain_labels, plain_crops = read(small)
    assert torch.equal(labels, plain_labels)
    assert (crops is None) == (augment is None)
    if crops is not None:
        assert torch.equal(crops, plain_crops)
    if augment != "rrc-flip":
        assert torch.equal(images, torch.from_numpy(resized(plain.to(torch.uint8).numpy(), 32)).float())
    assert large.unaugmented()[0][0].shape == (3, 32, 32)
    assert held_out(large, 0.5)[1][0][0].shape == (3, 32, 32)


def test_a_resized_crop_at_another_size_shows_the_same_place():
    slope = (torch.arange(16) * 16).to(torch.uint8).expand(200, 3, 16, 16).contiguous()
    dataset = InMemory(slope, torch.zeros(200, dtype=torch.int64), augment="rrc-flip", size=48)
    images, _, crops = read(dataset)
    for image, (_, left, _, wide, mirrored) in zip(images, crops.tolist(), strict=True):
        columns = 256 * (left + wide * (torch.arange(48) + 0.5) / 48) - 8
        columns = columns.flip(0) if mirrored else columns
        inner = (columns > 8) & (columns < 232)
        assert ((image[0, 24] - columns).abs()[inner] < 1.2).all()


@pytest.mark.parametrize("augment", [None, "crop-flip", "rrc-flip"])
def test_without_policy_and_erasing_images_are_those_of_the_set(augment):
    below = memory(augment=augment)
    images, labels, crops = read(Varied(below, "", 0.0, PIXELS))
    assert torch.equal(labels, below.labels)
    if augment is None:
        assert torch.equal(images, below.images.float())
    else:
        words = torch.zeros(12, 4, dtype=torch.int64).numpy().view(np.uint64)
        assert crops.shape == below.rows(np.arange(12), words)[2]["crop"].shape
        assert len(crops.unique(dim=0)) > 8


OPTIONS = {"randaugment": "rand-m9-mstd0.5-inc1", "erase": 0.5}


@pytest.mark.parametrize("augment", [None, "rrc-flip"])
def test_what_is_drawn_is_keyed_by_row_and_epoch(augment):
    dataset = varied(memory(24, augment=augment), OPTIONS, PIXELS, "noise")
    images, _, crops = read(dataset)
    again, _, crops_again = read(dataset, workers=1, shuffle=False)
    assert torch.equal(images, again)
    assert (crops is None and crops_again is None) or torch.equal(crops, crops_again)
    assert not torch.equal(images, read(dataset, epoch=1)[0])
    assert not torch.equal(images, read(dataset, seed=1)[0])
    changed = (images != dataset.dataset.images.float()).flatten(1).any(1)
    assert changed.sum() > 12


def test_erasing_replaces_a_box_by_noise_in_its_share_of_the_images():
    grey = torch.full((600, 3, 32, 32), 200, dtype=torch.uint8)
    dataset = varied(InMemory(grey, torch.zeros(600, dtype=torch.int64)), {"erase": 0.25}, PIXELS, "grey")
    images, _, _ = read(dataset)
    erased = (images != 200).any(1)
    hit = erased.flatten(1).any(1)
    assert abs(float(hit.float().mean()) - 0.25) < 5 * (0.25 * 0.75 / 600) ** 0.5
    for box in erased[hit]:
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        tall, wide = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert 0.01 < tall * wide / 1024 < 0.4
        assert box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float().mean() > 0.9
    noise = images.permute(1, 0, 2, 3)[:, erased] / 255
    assert torch.allclose(noise.mean(1), torch.tensor(PIXELS.mean), atol=0.02)
    assert ((images == 200) | erased[:, None]).all()


def test_randaugment_keeps_labels_and_uses_the_policys_strength():
    below = memory(60, side=32)
    weak, labels, _ = read(varied(below, {"randaugment": "rand-m1-n1-inc1"}, PIXELS, "noise"))
    strong, _, _ = read(varied(below, {"randaugment": "rand-m10-n2-inc1"}, PIXELS, "noise"))
    assert torch.equal(labels, below.labels)
    assert (strong - below.images).abs().mean() > (weak - below.images).abs().mean()


def test_held_out_and_stored_images_are_plain():
    dataset = varied(memory(24, augment="crop-flip"), OPTIONS, PIXELS, "noise")
    train, held = held_out(dataset, 0.25)
    assert isinstance(train, Varied)
    assert (len(train), len(held), train.augment) == (18, 6, "crop-flip")
    assert isinstance(held, InMemory)
    assert held.augment is None
    assert torch.equal(unaugmented(dataset)[5][0], dataset.dataset.images[5])
    assert torch.equal(unaugmented(Subset(dataset, [7]))[0][0], dataset.dataset.images[7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"randaugmant": "rand-m9"}, "augment_options has no 'randaugmant'; it takes least_area, randaugment, erase"),
        ({"randaugment": "m9"}, "randaugment='m9' is no policy of timm"),
        ({"randaugment": "rand-zz"}, "randaugment='rand-zz' is no policy of timm"),
        ({"erase": 1.5}, r"erase must be a number in \[0, 1\]"),
        ({"least_area": 0.0}, r"least_area must be a number in \(0, 1\]"),
        ({"least_area": 0.5}, "least_area is for augment 'rrc-flip', not 'crop-flip'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ParameterError, match=message):
        load("digits", augment="crop-flip" if "0.5" in str(options) else "rrc-flip", augment_options=options)


def test_grey_images_are_refused():
    with pytest.raises(DataError, match="3 channels, got 1"):
        load("digits", channels=1, augment_options={"erase": 0.5})
    with pytest.raises(DataError, match="custom augments its images itself"):
        varied(Subset(memory(), [0]), {"erase": 0.5}, PIXELS, "custom")
