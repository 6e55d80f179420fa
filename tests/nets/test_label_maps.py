"""Label maps of a data set: made once, found again by index, and right for every crop of their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.artefacts import Workshop
from mixwell.data import InMemory, Loader, from_datasets, load
from mixwell.nets.label_maps import Annotator
from mixwell.nets.pretrained import Pretrained
from mixwell.ops.label_maps import class_maps, cropped, top_scores
from mixwell.train.prepare import prepare

PIXELS = mixwell.Pixels((0.0,), (1.0,))


class Colours(nn.Module):
    """A classifier of colours: every 2×2 pixels say how much there is of each channel."""

    def __init__(self, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.layer1 = nn.AvgPool2d(2)
        self.fc = nn.Linear(classes, classes, bias=False)
        self.fc.weight = nn.Parameter(scale * torch.eye(classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(images).mean((2, 3)))


def annotator(classes: int = 4, count: int = 5, **options) -> Annotator:
    teacher = Pretrained(owner="the test")
    teacher.use(Colours(classes, **options))
    return Annotator(teacher, "the test", count)


def batches_of(rows: int = 10, classes: int = 4, size: int = 8, start: int = 0) -> list[mixwell.Batch]:
    images = torch.rand(rows, classes, size, size, generator=torch.Generator().manual_seed(1))
    index = torch.arange(rows) + start
    return [
        mixwell.Batch(images[i], torch.arange(rows)[i] % classes, PIXELS, index[i])
        for i in ([3, 0, 1], [2], [9, 4, 5, 6, 7, 8])
    ]


def workshop(batches: list[mixwell.Batch], folder: Path, classes: int | None = 4, **options) -> Workshop:
    return Workshop(lambda: batches, "noise", num_classes=classes, folder=folder, **options)


def test_maps_are_found_again_by_index(tmp_path):
    maps, told = annotator(), []
    shop = workshop(batches_of(), tmp_path, rows=10, progress=lambda *words: told.append(words))
    maps.prepare(shop)
    assert told == [("label maps", done, 10) for done in (0, 3, 4, 10)]
    for batch in batches_of():
        found = maps.of(batch)
        logits = F.avg_pool2d(batch.images, 2)
        scores, classes = top_scores(logits, 5)
        assert torch.equal(found.scores, scores.half().float())
        assert torch.equal(found.classes, classes)
        assert found.crops is None


def test_maps_are_made_once_for_a_teacher_and_its_data(tmp_path):
    annotator().prepare(workshop(batches_of(), tmp_path))
    (file,) = tmp_path.iterdir()
    stored = torch.load(file, weights_only=True)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()} == {
        "scores": (torch.float16, (10, 3, 4, 4)),
        "classes": (torch.uint8, (10, 3, 4, 4)),
    }
    before = file.read_bytes()
    annotator().prepare(workshop(batches_of(), tmp_path, progress=lambda *words: pytest.fail("made again")))
    assert file.read_bytes() == before
    annotator(scale=2.0).prepare(workshop(batches_of(), tmp_path))
    annotator(count=1).prepare(workshop(batches_of(), tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int16), (40_000, torch.int32)])
def test_classes_are_kept_in_the_smallest_integers(tmp_path, classes, dtype):
    teacher = Pretrained(owner="the test")
    net = Colours(2)
    net.fc = nn.Linear(2, classes)
    teacher.use(net)
    maps = Annotator(teacher, "the test")
    images = torch.rand(2, 2, 4, 4)
    maps.prepare(workshop([mixwell.Batch(images, torch.arange(2), PIXELS, torch.arange(2))], tmp_path, classes))
    (file,) = tmp_path.iterdir()
    assert torch.load(file, weights_only=True)["classes"].dtype == dtype
    found = maps.of(mixwell.Batch(images, torch.arange(2), index=torch.arange(2)))
    expected = top_scores(net.fc(F.avg_pool2d(images, 2).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 5)[1]
    assert (found.classes == expected).float().mean() > 0.99  # two scores may be equal


def test_own_maps_come_first_and_the_teacher_last(tmp_path):
    maps = annotator()
    (batch, *_) = batches_of()
    crops = torch.rand(3, 5)
    own = torch.stack((torch.randn(3, 2, 6, 6), torch.randint(4, (3, 2, 6, 6)).float()), 1).half()
    found = maps.of(
        mixwell.Batch(batch.images, batch.labels, index=batch.index, extras={"label_map": own, "crop": crops})
    )
    assert torch.equal(found.scores, own[:, 0].float())
    assert torch.equal(found.classes, own[:, 1].long())
    assert found.crops is crops
    # Without index or own map, the teacher sees what the batch shows.
    maps.prepare(workshop(batches_of(), tmp_path))
    seen = maps.of(mixwell.Batch(batch.images.flip(3), batch.labels, extras={"crop": crops}))
    assert torch.equal(seen.scores, top_scores(F.avg_pool2d(batch.images.flip(3), 2), 5)[0])
    assert seen.crops is None
    kept = maps.of(mixwell.Batch(batch.images.flip(3), batch.labels, index=batch.index, extras={"crop": crops}))
    assert torch.equal(kept.scores, top_scores(F.avg_pool2d(batch.images, 2), 5)[0].half().float())
    assert kept.crops is crops


def test_batches_without_index_leave_it_to_the_teacher(tmp_path):
    maps = annotator()
    batch = mixwell.Batch(torch.rand(3, 4, 8, 8), torch.arange(3), PIXELS)
    maps.prepare(workshop([batch], tmp_path))
    assert not list(tmp_path.iterdir())
    assert maps.of(batch).scores.shape == (3, 3, 4, 4)


def test_maps_move_with_their_holder_and_are_no_part_of_its_state(tmp_path):
    maps = annotator()
    maps.prepare(workshop(batches_of(), tmp_path))
    assert not maps.state_dict()
    assert not list(maps.buffers())
    maps.double()
    assert maps.of(batches_of()[0]).scores.dtype == torch.float32
    maps.to("meta")
    assert maps._maps[0].device.type == "meta"


def test_what_is_missing_or_wrong_is_said(tmp_path):
    (batch, *_) = batches_of()
    empty = Annotator(Pretrained(owner="the test"), "the test")
    with pytest.raises(
        mixwell.MixwellError, match=r"the test needs label maps.*recipe.prepare\(batches, data\).*extras"
    ):
        empty.of(batch)
    with pytest.raises(mixwell.BatchError, match=r"must be \(3, 2, k, h, w\).*got \(3, 4, 8, 8\)"):
        empty.of(mixwell.Batch(batch.images, batch.labels, extras={"label_map": batch.images}))
    with pytest.raises(mixwell.BatchError, match=r"crop'\] must be \(3, 5\): top, left.*got \(3, 4\)"):
        empty.of(mixwell.Batch(batch.images, batch.labels, extras={"crop": torch.rand(3, 4)}))
    maps = annotator()
    maps.prepare(workshop(batches_of(), tmp_path))
    with pytest.raises(mixwell.BatchError, match="made of 10 images, got index 12"):
        maps.of(mixwell.Batch(batch.images, batch.labels, index=torch.tensor([0, 12, 3])))
    with pytest.raises(mixwell.MixwellError, match=r"each image of the data set once.*10 indices from 5 to 14"):
        annotator().prepare(workshop(batches_of(start=5), tmp_path / "other"))
    with pytest.raises(mixwell.ModelError, match="a teacher of the recipe's 9 classes, got one of 4"):
        annotator().prepare(workshop(batches_of(), tmp_path, classes=9))


def clouds(rows: int, size: tuple[int, int]) -> Tensor:
    """Smooth pictures, (N, 3, H, W) uint8."""
    coarse = torch.rand(rows, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    return (F.interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1) * 255).round().to(torch.uint8)


def in_folder(folder: Path, pictures: Tensor) -> str:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for row, picture in enumerate(pictures):
            path = folder / part / "ab"[row % 2] / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    return f"imagefolder:{folder}"


@pytest.mark.parametrize("augment", [None, "crop-flip", "rrc-flip"])
@pytest.mark.parametrize("kind", ["memory", "folder", "wide folder"])
def test_maps_are_right_for_every_crop(tmp_path, monkeypatch, augment, kind):
    """Cropped maps of whole images are what the teacher says of the crops."""
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path / "cache"))
    if kind == "memory":
        images = clouds(40, (48, 48))
        parts = (InMemory(images, torch.arange(40) % 2, augment=augment), InMemory(images, torch.arange(40) % 2))
        data = from_datasets(*parts)
    else:
        size = (48, 48) if kind == "folder" else (48, 72)
        data = load(in_folder(tmp_path / "images", clouds(40, size)), size=48, augment=augment)
    recipe = mixwell.create("tokenmix", 3, pixels=data.pixels)
    (maps,) = {module for module in recipe.modules() if isinstance(module, Annotator)}
    maps.teacher.use(Colours(3), mixwell.Pixels((0.0,) * 3, (0.2,) * 3))
    prepare(recipe, data)
    assert maps._maps is not None
    batch = next(Loader(data.train, 40, pixels=data.pixels, seed=5).epoch(0))
    assert ("crop" in batch.extras) == (augment is not None)
    shown, labels = maps.of(batch), torch.arange(40) % 3
    online = maps.of(mixwell.Batch(batch.images, batch.labels, batch.pixels))
    found = cropped(class_maps(shown.scores, shown.classes, labels), shown.crops, (12, 12))
    expected = cropped(class_maps(online.scores, online.classes, labels), None, (12, 12))
    inner = torch.ones(40, 12, 12, dtype=torch.bool)
    if augment is not None:  # shifted crops have black borders, and a map ends half a place before its image
        inner = _inside(batch.extras["crop"], 1 / 24)
    assert inner.float().mean() > 0.5
    assert (found - expected).abs()[inner].quantile(0.99) < 0.15
    assert np.corrcoef(found[inner], expected[inner])[0, 1] > 0.995
    if augment is not None:
        elsewhere = cropped(class_maps(shown.scores, shown.classes, labels), None, (12, 12))
        assert np.corrcoef(elsewhere[inner], expected[inner])[0, 1] < 0.8


def _inside(crops: Tensor, margin: float) -> Tensor:
    cells = (torch.arange(12) + 0.5) / 12
    across = torch.where(crops[:, 4:] > 0, 1 - cells, cells)
    rows, columns = crops[:, :1] + crops[:, 2:3] * cells, crops[:, 1:2] + crops[:, 3:4] * across
    half = crops[:, 2:4] / 24 + margin
    down, right = (
        (places > half[:, axis, None]) & (places < 1 - half[:, axis, None])
        for axis, places in enumerate((rows, columns))
    )
    return down[:, :, None] & right[:, None]
