"""torchvision's transforms of batches: the same constructors and calls, and recipes in their place."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

import mixwell
from mixwell.compat.torchvision import CutMix, MixUp, Mixwell

ROWS = 6
IDS = torch.arange(float(ROWS))


def told_apart(*shape):
    """Each row is all of its own number, as its label is."""
    return IDS.view(-1, *(1,) * len(shape)).expand(ROWS, *shape).contiguous()


def shown(images):
    return images.double().flatten(1).mean(1).float()


@pytest.mark.parametrize("ours", [MixUp, CutMix])
def test_the_same_distribution_of_labels_as_torchvision(ours):
    """λ as it is in the labels: drawn, or realised by the box; partners are random in place of neighbours."""
    images, labels = told_apart(3, 16, 12), torch.arange(ROWS)
    drawn = {}
    for name, transform in (
        ("theirs", getattr(v2, ours.__name__)(alpha=0.7, num_classes=ROWS)),
        ("ours", ours(alpha=0.7, num_classes=ROWS, seed=0)),
    ):
        torch.manual_seed(0)
        made = [transform(images, labels)[1] for _ in range(300)]
        # The most common own share of a batch: rows that meet themselves have 1.
        drawn[name] = torch.stack([targets[labels, labels] for targets in made]).min(1).values.double().numpy()
    assert stats.ks_2samp(drawn["theirs"], drawn["ours"]).pvalue > 1e-4


@pytest.mark.parametrize(
    "transform",
    [MixUp(num_classes=ROWS), CutMix(num_classes=ROWS), Mixwell("0.5*mixup | 0.5*(bc + cutmix)", num_classes=ROWS)],
)
def test_labels_say_what_pixels_show(transform):
    for _ in range(10):
        images, targets = transform(told_apart(3, 16, 16), torch.arange(ROWS))
        assert type(images) is torch.Tensor
        assert targets.shape == (ROWS, ROWS)
        torch.testing.assert_close(shown(images), targets @ IDS)


TREES = {
    "pair": (lambda x, y: (x, y), lambda t: t[0], lambda t: t[1]),
    "dict": (lambda x, y: {"name": "a", "LABELS": y, "image": x}, lambda t: t["image"], lambda t: t["LABELS"]),
    "nested": (
        lambda x, y: [{"views": (x, 3)}, {"my_label": y, "weight": torch.ones(ROWS)}],
        lambda t: t[0]["views"][0],
        lambda t: t[1]["my_label"],
    ),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("image", [tv_tensors.Image, torch.Tensor], ids=["image", "tensor"])
def test_any_pytree(name, image):
    made, images_of, labels_of = TREES[name]
    given = made(
        told_apart(3, 16, 16).as_subclass(image) if image is not torch.Tensor else told_apart(3, 16, 16),
        torch.arange(ROWS),
    )
    found = MixUp(num_classes=ROWS, seed=0)(given)
    assert type(found) is type(given)
    assert type(images_of(found)) is image
    torch.testing.assert_close(shown(images_of(found)), labels_of(found) @ IDS)
    assert not torch.equal(images_of(found), images_of(given))
    if name == "nested":
        assert found[0]["views"][1] == 3
        assert torch.equal(found[1]["weight"], torch.ones(ROWS))
    assert torch.equal(labels_of(given), torch.arange(ROWS))


def test_a_getter_of_labels():
    sample = {"x": told_apart(3, 16, 16), "y": torch.arange(ROWS)}
    found = Mixwell("cutmix", num_classes=ROWS, labels_getter=lambda sample: sample["y"])(sample)
    torch.testing.assert_close(shown(found["x"]), found["y"] @ IDS)
    with pytest.raises(mixwell.BatchError, match="labels were not found"):
        MixUp(num_classes=ROWS)(sample)
    with pytest.raises(mixwell.BatchError, match="must return the very tensor"):
        MixUp(num_classes=ROWS, labels_getter=lambda sample: sample["y"].clone())(sample)
    with pytest.raises(mixwell.ParameterError, match="Mixing needs labels"):
        MixUp(num_classes=ROWS, labels_getter=None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_labels_that_are_rows(dtype):
    rows = torch.eye(ROWS, dtype=dtype)
    images, targets = CutMix(seed=0)(told_apart(3, 16, 16), rows)
    torch.testing.assert_close(shown(images), targets @ IDS)
    with pytest.raises(mixwell.BatchError, match="number of classes"):
        CutMix(seed=0)(told_apart(3, 16, 16), torch.arange(ROWS))


def test_masks_and_further_images_are_mixed_alike():
    sample = {
        "image": tv_tensors.Image(told_apart(3, 16, 16)),
        "mask": tv_tensors.Mask(told_apart(16, 16).long()),
        "depth": tv_tensors.Image(told_apart(1, 8, 8).to(torch.uint8)),
        "labels": torch.arange(ROWS),
    }
    found = CutMix(num_classes=ROWS, seed=0, per="sample")(sample)
    assert [type(found[key]) for key in ("image", "mask", "depth")] == [
        tv_tensors.Image,
        tv_tensors.Mask,
        tv_tensors.Image,
    ]
    assert found["mask"].dtype is torch.int64
    assert torch.equal(found["mask"], found["image"][:, 0].long())
    assert found["depth"].dtype is torch.uint8
    assert set(found["depth"].unique().tolist()) <= set(range(ROWS))
    soft = {
        **sample,
        "mask": tv_tensors.Mask(torch.nn.functional.one_hot(told_apart(16, 16).long()).movedim(-1, 1).float()),
    }
    found = MixUp(num_classes=ROWS, seed=0)(soft)
    torch.testing.assert_close(found["mask"][:, :, 3, 5].as_subclass(torch.Tensor), found["labels"])
    with pytest.raises(mixwell.BatchError, match="Mix one-hot maps"):
        MixUp(num_classes=ROWS, seed=0)(sample)


def test_what_cannot_be_mixed_says_so():
    labels, image = torch.arange(ROWS), tv_tensors.Image(told_apart(3, 32, 32))
    mask = tv_tensors.Mask(told_apart(32, 32).long())
    alone = Mixwell("superpixel_grid(variant=mean)", num_classes=ROWS, pixels=mixwell.Pixels((0.0,), (1.0,)))
    with pytest.raises(mixwell.IncompatibleRecipe, match="superpixel_grid changes each image by itself"):
        alone({"image": tv_tensors.Image(torch.rand(ROWS, 3, 32, 32)), "mask": mask, "labels": labels})
    boxes = tv_tensors.BoundingBoxes(torch.rand(ROWS, 4), format="XYXY", canvas_size=(32, 32))
    with pytest.raises(mixwell.BatchError, match="BoundingBoxes cannot be mixed"):
        MixUp(num_classes=ROWS)({"image": image, "boxes": boxes, "labels": labels})
    with pytest.raises(mixwell.BatchError, match="PIL images cannot be mixed"):
        MixUp(num_classes=ROWS)(Image.new("RGB", (4, 4)), labels)
    with pytest.raises(mixwell.BatchError, match="Expected a batch"):
        MixUp(num_classes=ROWS)(torch.rand(3, 32, 32), labels)
    with pytest.raises(mixwell.BatchError, match="No images were found"):
        MixUp(num_classes=ROWS)({"labels": labels})
    with pytest.raises(mixwell.IncompatibleRecipe, match="manifold_mixup act inside the network"):
        Mixwell("manifold_mixup", num_classes=ROWS)
    with pytest.raises(mixwell.BatchError, match="same length"):
        MixUp(num_classes=ROWS)(told_apart(3, 8, 8)[:4], labels)


@pytest.mark.parametrize("transform", [MixUp(num_classes=ROWS, seed=0), CutMix(num_classes=ROWS, seed=0)])
def test_videos(transform):
    """All frames of a video are mixed alike."""
    video = tv_tensors.Video(told_apart(4, 3, 16, 16))
    found, targets = transform(video, torch.arange(ROWS))
    assert type(found) is tv_tensors.Video
    assert found.shape == video.shape
    assert (found == found[:, :1]).all()
    torch.testing.assert_close(shown(found.as_subclass(torch.Tensor)), targets @ IDS)


def test_bytes_stay_bytes():
    images = torch.randint(0, 256, (ROWS, 3, 16, 16), dtype=torch.uint8)
    found, _ = CutMix(num_classes=ROWS, seed=0)(images, torch.arange(ROWS))
    assert found.dtype is torch.uint8
    assert (found[:, None] == images[None]).all(2).any(1).all(), "every pixel is of one of the images"
    assert Mixwell("saliencymix", num_classes=ROWS)(images, torch.arange(ROWS))[0].dtype is torch.uint8


def test_among_torchvisions_own_in_workers():
    """As torchvision's documentation shows: one of several, in the collate_fn."""
    choice = v2.RandomChoice([CutMix(num_classes=ROWS), MixUp(num_classes=ROWS)])
    data = TensorDataset(told_apart(3, 16, 16).repeat(8, 1, 1, 1), torch.arange(ROWS).repeat(8))

    def collate(samples):
        return choice(*default_collate(samples))

    loader = DataLoader(data, batch_size=12, shuffle=True, num_workers=2, collate_fn=collate)
    epochs = [[(shown(images), targets) for images, targets in loader] for _ in range(2)]
    for images, targets in epochs[0]:
        torch.testing.assert_close(images, targets @ IDS)
    drawn = [tuple(targets.max(1).values.tolist()) for epoch in epochs for _, targets in epoch]
    assert len(set(drawn)) == len(drawn)


def test_its_numbers():
    images, labels = told_apart(3, 16, 16), torch.arange(ROWS)
    torch.manual_seed(1)
    first = MixUp(num_classes=ROWS)
    torch.manual_seed(1)
    second, third = MixUp(num_classes=ROWS), MixUp(num_classes=ROWS, seed=7)
    drawn = [transform(images, labels)[1] for transform in (first, second, copy.deepcopy(third), third)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])
    assert "mixup(alpha=1.0, per='batch')" in repr(third)
