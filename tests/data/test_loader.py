"""The loader's promises: order, resume, shards, augmentation, normalisation, errors."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import Dataset

from mixwell.core.batch import Pixels
from mixwell.core.errors import DataError, ParameterError
from mixwell.data import InMemory, Loader, from_datasets, held_out, load
from mixwell.data.crops import crop_flip, random_crops, resized_crops
from mixwell.data.split import stratified

GREY = Pixels((0.5,), (0.25,))
RGB = Pixels((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


class Plain(Dataset):
    """Items made by a function of the row; not an InMemory set."""

    def __init__(self, count, make):
        self.count = count
        self.make = make

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


def numbered(row):
    return torch.full((1, 4, 4), row, dtype=torch.uint8), row % 3


def noisy(row):
    """What a user's random augmentation does: it draws from all three global generators."""
    return torch.full((1, 4, 4), random.random() / 3 + float(torch.rand(())) / 3 + np.random.rand() / 3), row  # noqa: NPY002


def in_memory(count, augment=None):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return InMemory(images, torch.arange(count) % 3, augment=augment)


@pytest.fixture(params=["memory", "items"])
def dataset(request):
    return in_memory(23) if request.param == "memory" else Plain(23, numbered)


def rows(batches):
    return [batch.index.tolist() for batch in batches]


def flat(batches):
    return list(chain.from_iterable(rows(batches)))


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)
        for a, b in zip(left, right, strict=True)
    )


def test_rows_stay_with_their_labels_and_index(dataset):
    for batch in Loader(dataset, 5, pixels=GREY).epoch(0):
        assert torch.equal((batch.raw[:, 0, 0, 0] * 255).round().long(), batch.index)
        assert torch.equal(batch.labels, batch.index % 3)
        assert (batch.labels.dtype, batch.images.dtype) == (torch.int64, torch.float32)
        assert batch.pixels is GREY
        assert batch.checked is False


def test_order_depends_on_seed_and_epoch_only(dataset):
    orders = {
        (seed, epoch): rows(Loader(dataset, 5, pixels=GREY, seed=seed).epoch(epoch))
        for seed in (0, 1, -1)
        for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 6
    used = Loader(dataset, 5, pixels=GREY)
    list(used.epoch(1))
    assert rows(used.epoch(0)) == orders[0, 0]
    for order in orders.values():
        assert sorted(chain.from_iterable(order)) == list(range(23))


def test_order_is_pinned():
    # numpy guarantees Philox's bit stream, so this order is part of what a seed means.
    assert rows(Loader(in_memory(10), 10, pixels=GREY, seed=7).epoch(3)) == [[8, 4, 0, 9, 3, 2, 1, 5, 6, 7]]


def test_epochs_start_anywhere(dataset):
    loader = Loader(dataset, 5, pixels=GREY, seed=3)
    whole = list(loader.epoch(2))
    for start in range(len(loader) + 1):
        assert same(whole[start:], list(loader.epoch(2, start)))


def test_without_shuffling_the_order_is_the_sets_own(dataset):
    assert flat(Loader(dataset, 5, pixels=GREY, shuffle=False).epoch(4)) == list(range(23))


@pytest.mark.parametrize("world", [2, 3])
def test_training_shards_are_equal_and_cover(dataset, world):
    shards = [Loader(dataset, 3, pixels=GREY, rank=rank, world=world) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    seen = [flat(shard.epoch(0)) for shard in shards]
    assert {len(part) for part in seen} == {-(-23 // world)}
    padding = world * len(seen[0]) - 23
    # The order wraps around: rows come once but for the first ones, which pad.
    assert sorted(chain.from_iterable(seen)) == sorted(
        [*range(23), *flat(Loader(dataset, 3, pixels=GREY).epoch(0))[:padding]]
    )


@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_shards_are_disjoint_and_cover(dataset, world):
    seen = []
    for rank in range(world):
        loader = Loader(dataset, 4, pixels=GREY, shuffle=False, rank=rank, world=world)
        batches = rows(loader.epoch(0))
        assert len(batches) == len(loader)
        seen += chain.from_iterable(batches)
    assert sorted(seen) == list(range(23))


def test_ranks_together_see_the_batches_of_one_process(dataset):
    one = rows(Loader(dataset, 6, pixels=GREY).epoch(0))
    two = [rows(Loader(dataset, 3, pixels=GREY, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
    for batch, (left, right) in zip(one[:3], list(zip(*two, strict=True))[:3], strict=True):
        assert sorted(batch) == sorted(left + right)


def test_more_ranks_than_rows():
    small = Plain(2, numbered)
    shards = [flat(Loader(small, 4, pixels=GREY, rank=rank, world=5).epoch(0)) for rank in range(5)]
    assert [len(shard) for shard in shards] == [1] * 5
    evaluation = [Loader(small, 4, pixels=GREY, shuffle=False, rank=rank, world=5) for rank in range(5)]
    assert [len(loader) for loader in evaluation] == [1, 1, 0, 0, 0]
    assert list(evaluation[4].epoch(0)) == []


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"), [(10, False, [10, 10, 3]), (10, True, [10, 10]), (64, False, [23])]
)
def test_last_batch(dataset, batch_size, drop_last, sizes):
    loader = Loader(dataset, batch_size, pixels=GREY, drop_last=drop_last)
    assert [len(batch) for batch in loader.epoch(0)] == sizes
    assert len(loader) == len(sizes)


def test_no_batch_at_all(dataset):
    with pytest.raises(DataError, match="leaves no batch of 64 from the 23 rows"):
        Loader(dataset, 64, pixels=GREY, drop_last=True)


def test_normalisation_of_every_kind_of_image():
    pil = pytest.importorskip("PIL.Image")
    pixels = torch.arange(4 * 3 * 5 * 7, dtype=torch.uint8).view(4, 3, 5, 7)
    expected = (pixels.double() / 255 - torch.tensor(RGB.mean).view(3, 1, 1)) / torch.tensor(RGB.std).view(3, 1, 1)
    kinds = {
        "memory": InMemory(pixels, torch.arange(4)),
        "uint8": Plain(4, lambda row: (pixels[row], row)),
        "float": Plain(4, lambda row: (pixels[row].float() / 255, row)),
        "double": Plain(4, lambda row: (pixels[row].double() / 255, np.int32(row))),
        "PIL": Plain(4, lambda row: (pil.fromarray(pixels[row].permute(1, 2, 0).numpy()), torch.tensor(row))),
    }
    for kind, dataset in kinds.items():
        batch = next(Loader(dataset, 4, pixels=RGB, shuffle=False).epoch(0))
        assert batch.images.dtype == torch.float32, kind
        assert torch.allclose(batch.images.double(), expected, atol=1e-5), kind
        assert batch.labels.tolist() == [0, 1, 2, 3], kind


def test_grey_and_palette_pil_images():
    pil = pytest.importorskip("PIL.Image")
    grey = Plain(2, lambda row: (pil.new("L", (3, 2), 51), row))
    assert next(Loader(grey, 2, pixels=GREY).epoch(0)).raw.unique().tolist() == pytest.approx([0.2])
    palette = Plain(
        2, lambda row: (pil.new("RGB", (3, 2), (51, 102, 153)).convert("P", palette=pil.Palette.ADAPTIVE), row)
    )
    batch = next(Loader(palette, 2, pixels=RGB).epoch(0))
    assert batch.raw[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    deep = Plain(2, lambda row: (pil.new("I;16", (3, 2), 300), row))
    with pytest.raises(DataError, match="mode 'I;16' have no fixed range"):
        next(Loader(deep, 2, pixels=GREY).epoch(0))


def test_repeated_channel_gets_each_channels_normalisation():
    grey = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    repeated = next(Loader(InMemory(grey.expand(-1, 3, -1, -1), torch.arange(5)), 5, pixels=RGB, seed=1).epoch(0))
    copied = next(Loader(InMemory(grey.repeat(1, 3, 1, 1), torch.arange(5)), 5, pixels=RGB, seed=1).epoch(0))
    assert same([repeated], [copied])


def test_extras_are_stacked_beside_the_images():
    dataset = Plain(6, lambda row: (*numbered(row), {"domain": row * 10, "map": torch.full((2, 2), float(row))}))
    batch = next(Loader(dataset, 4, pixels=GREY).epoch(0))
    assert torch.equal(batch.extras["domain"], batch.index * 10)
    assert torch.equal(batch.extras["map"][:, 1, 1], batch.index.float())


def test_users_augmentation_is_keyed_not_drawn():
    dataset = Plain(12, noisy)
    inline = list(Loader(dataset, 4, pixels=GREY, seed=5).epoch(1))
    assert same(inline, list(Loader(dataset, 4, pixels=GREY, seed=5, workers=2).epoch(1)))
    assert same(inline[2:], list(Loader(dataset, 4, pixels=GREY, seed=5, workers=2).epoch(1, start=2)))
    by_row = {
        row: value
        for batch in inline
        for row, value in zip(batch.index.tolist(), batch.images[:, 0, 0, 0].tolist(), strict=True)
    }
    assert len(set(by_row.values())) == 12
    shard = Loader(dataset, 4, pixels=GREY, seed=5, rank=1, world=2).epoch(1)
    assert all(
        value == by_row[row]
        for batch in shard
        for row, value in zip(batch.index.tolist(), batch.images[:, 0, 0, 0].tolist(), strict=True)
    )
    for other in (Loader(dataset, 12, pixels=GREY, seed=5).epoch(2), Loader(dataset, 12, pixels=GREY, seed=6).epoch(1)):
        batch = next(other)
        assert all(
            value != by_row[row]
            for row, value in zip(batch.index.tolist(), batch.images[:, 0, 0, 0].tolist(), strict=True)
        )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["memory", "items"])
def test_global_generators_are_left_alone(kind, workers):
    dataset = in_memory(12, augment="crop-flip") if kind == "memory" else Plain(12, noisy)
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    undisturbed = list(Loader(dataset, 4, pixels=GREY, workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    disturbed = []
    for batch in Loader(dataset, 4, pixels=GREY, workers=workers).epoch(0):
        disturbed.append(batch)
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert same(undisturbed, disturbed)


def test_generators_are_restored_after_an_error():
    def fail(row):
        torch.rand(3)
        raise OSError("disk gone")

    before = torch.get_rng_state()
    with pytest.raises(OSError, match="disk gone"):
        next(Loader(Plain(3, fail), 3, pixels=GREY).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_crop_flip_is_a_crop_of_the_padded_image_mirrored_or_not():
    images = np.arange(3 * 2 * 16 * 8, dtype=np.int64).reshape(3, 2, 16, 8) + 1
    top, left, flip = np.array([0, 2, 4]), np.array([2, 1, 0]), np.array([False, False, True])
    out = crop_flip(images, top, left, flip)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (1, 1)))  # an eighth of 16 and of 8
    for row in range(3):
        expected = padded[row, :, top[row] : top[row] + 16, left[row] : left[row] + 8]
        assert np.array_equal(out[row], expected[..., ::-1] if flip[row] else expected)
    centred = crop_flip(images, np.full(3, 2), np.full(3, 1), np.zeros(3, dtype=bool))
    assert np.array_equal(centred, images)


def test_crop_flip_of_a_batch_is_uniform_and_keyed_by_row_and_epoch():
    count = 20_000
    # Two marked pixels of one row tell where the crop was and whether it was mirrored.
    images = torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 7], images[:, 0, 8, 8] = 100, 200
    dataset = InMemory(images, torch.zeros(count, dtype=torch.int64), augment="crop-flip")

    def read(epoch, **options):
        batch = next(Loader(dataset, count, pixels=GREY, **options).epoch(epoch))
        order = batch.index.argsort()
        return (batch.raw[:, 0] * 255).round()[order], batch.index[order]

    seen, _ = read(0, shuffle=False)
    place = (seen == 100).flatten(1).int().argmax(1)
    after = (seen == 200).flatten(1).int().argmax(1)
    mirrored = after < place
    assert abs(float(mirrored.float().mean()) - 0.5) < 5 * 0.5 / count**0.5
    shift = torch.where(mirrored, 15 - place % 16, place % 16)
    cells = torch.bincount((10 - place // 16) * 5 + (9 - shift), minlength=25)
    expected = count / 25
    assert len(cells) == 25
    assert float(((cells - expected) ** 2 / expected).sum()) < 65  # χ² with 24 degrees of freedom, p ≈ 1e-5
    again, _ = read(0)
    assert torch.equal(seen, again)
    assert not torch.equal(seen, read(1)[0])
    assert not torch.equal(seen, read(0, seed=1)[0])
    shard, rows_of_shard = read(0, rank=1, world=2)
    assert torch.equal(shard, seen[rows_of_shard])
    assert torch.equal(dataset[5][0], images[5])


def test_crops_say_where_shifted_images_lie():
    """Read off the image itself: each pixel shows its own row and column."""
    height, width = 16, 24
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")) + 1
    images = torch.from_numpy(place.astype(np.uint8)).expand(50, 2, height, width).contiguous()
    dataset = InMemory(images, torch.zeros(50, dtype=torch.int64), augment="crop-flip")
    batch = next(Loader(dataset, 50, pixels=GREY).epoch(0))
    shown = (batch.raw * 255).round()
    crops = batch.extras["crop"]
    assert crops.dtype == torch.float32
    for image, (top, left, tall, wide, mirrored) in zip(shown, crops.tolist(), strict=True):
        assert (tall, wide) == (1, 1)
        row = torch.arange(height) + round(top * height)
        column = torch.arange(width) + round(left * width)
        column = column.flip(0) if mirrored else column
        inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
        assert torch.equal(image[0], torch.where(inside, row[:, None] + 1.0, 0.0))
        assert torch.equal(image[1], torch.where(inside, column + 1.0, 0.0))
    assert len(crops[:, :2].unique(dim=0)) > 10
    assert 10 < crops[:, 4].sum() < 40


@pytest.mark.parametrize("size", [(32, 32), (40, 20)])
def test_crops_say_where_resized_images_lie(size):
    """A slope along either axis stays one, between the edges that the crop names."""
    height, width = size
    down = (torch.arange(height) + 0.5)[:, None].expand(size) * (240 / height)
    across = (torch.arange(width) + 0.5).expand(size) * (240 / width)
    images = torch.stack((down, across)).round().to(torch.uint8).expand(200, 2, *size).contiguous()
    dataset = InMemory(images, torch.zeros(200, dtype=torch.int64), augment="rrc-flip")
    batch = next(Loader(dataset, 200, pixels=GREY).epoch(0))
    crops, slack = batch.extras["crop"], 1.2 + 120 / torch.tensor(size)  # rounding, and half a pixel at the border
    for image, (top, left, tall, wide, mirrored) in zip(batch.raw * 255, crops.tolist(), strict=True):
        rows = 240 * (top + tall * (torch.arange(height) + 0.5) / height)
        columns = 240 * (left + wide * (torch.arange(width) + 0.5) / width)
        columns = columns.flip(0) if mirrored else columns
        assert ((image[0] - rows[:, None]).abs() < slack[0]).all()
        assert ((image[1] - columns).abs() < slack[1]).all()
        inner = ((rows > 10) & (rows < 230))[:, None] & (columns > 10) & (columns < 230)
        assert ((image[0] - rows[:, None]).abs()[inner] < 1.2).all()
        assert ((image[1] - columns).abs()[inner] < 1.2).all()


def test_resized_crops_have_the_areas_shapes_and_places_that_they_should():
    count = 20_000
    crops = random_crops(np.random.default_rng(0).random((count, 4)), np.zeros(count, dtype=bool)).astype(float)
    top, left, height, width, _ = crops.T
    assert (crops[:, :4] >= 0).all()
    assert (top + height <= 1 + 1e-6).all()
    assert (left + width <= 1 + 1e-6).all()
    area, stretch = height * width, np.log(width / height)
    assert stats.kstest(area, stats.uniform(0.08, 0.92).cdf).pvalue > 1e-4
    small = area < 0.75
    assert stats.kstest(stretch[small], stats.uniform(-np.log(4 / 3), 2 * np.log(4 / 3)).cdf).pvalue > 1e-4
    assert (np.abs(stretch) <= -np.log(area) + 1e-5).all()
    for low, side in ((top, height), (left, width)):
        assert stats.kstest(low[side < 0.99] / (1 - side[side < 0.99]), "uniform").pvalue > 1e-4


def test_a_crop_of_all_is_the_image_and_mirrored_its_mirror_image():
    images = np.random.default_rng(1).integers(256, size=(2, 3, 9, 7), dtype=np.uint8)
    found = resized_crops(images, np.array([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], np.float32))
    assert np.array_equal(found[0], images[0])
    assert np.array_equal(found[1], images[1, ..., ::-1])


@pytest.mark.parametrize("augment", ["crop-flip", "rrc-flip"])
def test_crops_are_keyed_by_row_and_epoch(augment):
    images = torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8)
    dataset = InMemory(images, torch.arange(40), augment=augment)

    def crops(epoch, **options):
        batches = list(Loader(dataset, 16, pixels=GREY, **options).epoch(epoch))
        found = torch.cat([batch.extras["crop"] for batch in batches])
        return found[torch.cat([batch.index for batch in batches]).argsort()]

    assert torch.equal(crops(0), crops(0, shuffle=False))
    assert not torch.equal(crops(0), crops(1))
    assert not torch.equal(crops(0), crops(0, seed=1))
    mirrored = crops(0)[:, 4]
    assert set(mirrored.tolist()) == {0, 1}


def test_resume_in_an_augmented_epoch():
    data = load("fashion-mini", augment="crop-flip")
    train, _ = held_out(data.train, 0.9)
    loader = Loader(train, 128, pixels=data.pixels, seed=11)
    assert same(list(loader.epoch(3))[2:], list(Loader(train, 128, pixels=data.pixels, seed=11).epoch(3, start=2)))


def test_two_epochs_at_once():
    loader = Loader(Plain(8, numbered), 4, pixels=GREY, workers=1)
    expected = rows(loader.epoch(0)), rows(loader.epoch(1))
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert (rows(left for left, _ in pairs), rows(right for _, right in pairs)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda row: (torch.zeros(1, 4, 4), float(row)), r"integer class id.* got torch.float32 \(\)"),
        (lambda row: (torch.zeros(1, 4, 4), torch.tensor(1.0)), "integer class id"),
        (lambda row: (torch.zeros(1, 4, 4), True), "integer class id"),
        (lambda row: (torch.zeros(1, 4, 4), "cat"), "integer class id.* got str 'cat'"),
        (lambda row: (torch.zeros(1, 4, 4), None), "integer class id.* got NoneType"),
        (lambda row: (torch.zeros(1, 4, 4 + row), row), "Expected images of one shape and dtype in a batch"),
        (
            lambda row: (torch.zeros(1, 4, 4, dtype=(torch.uint8, torch.float32)[row % 2]), row),
            "of one shape and dtype",
        ),
        (lambda row: (torch.zeros(4, 4), row), r"got torch.float32 \(4, 4\)"),
        (lambda row: (torch.zeros(1, 4, 4, dtype=torch.int64), row), "Expected an image as uint8 tensor"),
        (lambda row: ([[0.0]], row), "Expected an image as uint8 tensor .* got list"),
        (lambda row: (torch.full((1, 4, 4), -2.0), row), r"pixels in \[0, 1\], got values in \[-2, -2\].*Normalize"),
        (lambda row: (torch.full((1, 4, 4), 255.0), row), r"got values in \[255, 255\]"),
        (lambda row: (torch.full((1, 4, 4), float("nan")), row), r"got values in \[nan, nan\]"),
        (lambda row: (torch.zeros(1, 4, 4), torch.rand(2 + row % 2)), "Expected labels of one shape"),
        (lambda row: torch.zeros(1, 4, 4), "Expected items"),
        (lambda row: (torch.zeros(1, 4, 4), row, row), "Expected items"),
        (
            lambda row: (torch.zeros(1, 4, 4), row, {"a": 1} if row else {}),
            r"same extras for every sample, got \['a'\]",
        ),
    ],
)
def test_items_that_are_not_what_they_should_be(make, message):
    with pytest.raises(DataError, match=message):
        list(Loader(Plain(4, make), 4, pixels=GREY).epoch(0))


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": 2.0}, {"world": 0}, {"rank": 2, "world": 2}, {"rank": -1}, {"workers": -1}],
)
def test_numbers_out_of_range(options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        Loader(in_memory(4), **{"batch_size": 2, "pixels": GREY, **options})


def test_epoch_and_start_out_of_range(dataset):
    loader = Loader(dataset, 5, pixels=GREY)
    with pytest.raises(ParameterError, match="epoch must be >= 0"):
        loader.epoch(-1)
    with pytest.raises(ParameterError, match=r"start must be one of 0 … 5 batches, got 6"):
        loader.epoch(0, 6)


def test_sets_without_length_or_rows():
    with pytest.raises(DataError, match="map-style"):
        Loader(iter([]), 2, pixels=GREY)
    with pytest.raises(DataError, match="at least one sample"):
        Loader(Plain(0, numbered), 2, pixels=GREY)


def test_held_out_is_stratified_disjoint_and_fixed():
    dataset = InMemory(
        torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2),
        torch.tensor([0] * 50 + [1] * 30 + [2] * 20),
        augment="crop-flip",
    )
    train, held = held_out(dataset, 0.2, seed=4)
    assert isinstance(train, InMemory)
    assert isinstance(held, InMemory)
    assert (train.augment, held.augment) == ("crop-flip", None)
    assert torch.bincount(held.labels).tolist() == [10, 6, 4]
    ids = [part.images[:, 0, 0, 0].tolist() for part in (train, held)]
    assert sorted(ids[0] + ids[1]) == list(range(100))
    assert held_out(dataset, 0.2, seed=4)[1].images[:, 0, 0, 0].tolist() == ids[1]
    assert held_out(dataset, 0.2, seed=5)[1].images[:, 0, 0, 0].tolist() != ids[1]


def test_held_out_of_other_sets_keeps_their_items():
    train, held = held_out(Plain(30, numbered), 0.1)
    assert (len(train), len(held)) == (27, 3)
    assert sorted(label for _, label in held) == [0, 1, 2]
    data = from_datasets(train, held)
    assert data.num_classes == 3


def test_held_out_keeps_a_repeated_channel_unstored():
    train, held = held_out(load("fashion-mini").train, 0.1)
    assert (train.images.stride(1), held.images.stride(1)) == (0, 0)
    assert torch.bincount(held.labels).tolist() == [60] * 10


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "half"])
def test_held_out_share_out_of_range(share):
    with pytest.raises(ParameterError, match="share must be a number"):
        held_out(in_memory(9), share)


def test_held_out_that_leaves_nothing():
    with pytest.raises(DataError, match="leaves nothing held out"):
        held_out(in_memory(9), 0.01)
    with pytest.raises(DataError, match="leaves nothing to train on"):
        held_out(in_memory(9), 1)


@pytest.mark.parametrize(
    ("sizes", "count", "picked"), [((10, 10, 10), 4, 4), ((1, 1, 8), 5, 5), ((1, 1, 1), 2, 0), ((7, 2, 1), 9, 7)]
)
def test_stratified_picks_in_proportion_and_empties_no_class(sizes, count, picked):
    labels = np.repeat([3, 5, 9], sizes)
    rest, rows_picked = stratified(labels, count, seed=0)
    assert sorted([*rest, *rows_picked]) == list(range(len(labels)))
    assert len(rows_picked) == picked
    assert set(labels[rest]) == {3, 5, 9}
    for label, size in zip((3, 5, 9), sizes, strict=True):
        share = size * count / len(labels)
        assert (labels[rows_picked] == label).sum() <= min(share // 1 + 1, size - 1)
