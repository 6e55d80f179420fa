"""Pictures of mixes hold the pixels that were mixed."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mixwell
from mixwell import Batch, Pixels
from mixwell.report import Album, Example, album

CLASSES = tuple("abcdefg")
Net = Callable[..., nn.Module]


def made(recipe: str, cnn: Net, *, shape: tuple[int, int, int] = (3, 16, 16), rows: int = 3) -> Album:
    pixels = Pixels((0.5,) * shape[0], (0.25,) * shape[0])
    batch = Batch(pixels.normalise(torch.rand(7, *shape)), torch.arange(7), pixels)
    model = cnn(channels=shape[0])
    bound = mixwell.create(recipe, 7, pixels=pixels).bind(model, batch.images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = album(bound, model, batch, CLASSES, rows=rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    return found


def frames(example: Example) -> dict[str, np.ndarray]:
    decoded = {}
    for frame in example.frames:
        head, _, data = frame.source.partition(",")
        assert head == "data:image/png;base64"
        decoded[frame.caption] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)
    assert len(decoded) == len(example.frames)
    return decoded


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 20)])
def test_mixup_is_the_weighted_mean(cnn: Net, shape: tuple[int, int, int]) -> None:
    for example in made("mixup", cnn, shape=shape).examples:
        (_, own), (_, other) = example.shares
        seen = frames(example)
        assert list(seen) == ["image", "partner", "mask", "mix"]
        assert np.abs(own * seen["image"] + other * seen["partner"] - seen["mix"]).max() <= 1.01
        assert seen["mask"].shape == shape[1:]
        assert np.abs(seen["mask"] - 255 * own).max() <= 0.51


def test_cutmix_shows_image_and_partner_by_the_mask(cnn: Net) -> None:
    found = made("cutmix", cnn)
    for example in found.examples:
        (own, share), (other, _) = example.shares
        seen = frames(example)
        white = seen["mask"] == 255
        assert np.array_equal(seen["mix"], np.where(white[..., None], seen["image"], seen["partner"]))
        assert white.mean() == pytest.approx(share)
        assert own != other
    evenness = [min(share for _, share in example.shares) for example in found.examples]
    assert evenness == sorted(evenness, reverse=True)
    assert evenness[0] > 0.2


def test_nothing_mixed_shows_images_alone(cnn: Net) -> None:
    found = made("none", cnn)
    assert [frame.caption for example in found.examples for frame in example.frames] == ["image"] * 3
    assert [example.shares for example in found.examples] == [((name, 1.0),) for name in "abc"]
    assert found.note == "Nothing is mixed."


def test_a_mix_inside_the_network_shows_its_maps(cnn: Net) -> None:
    found = made("manifold_mixup(sites=(0, 2))", cnn)
    assert "at layer2" in found.note
    for example in found.examples:
        seen = frames(example)
        assert list(seen) == ["image", "partner", "image’s map", "partner’s map", "mixed map"]
        assert seen["mixed map"].shape == (8, 8)
        # Activations after a ReLU are not negative, so that their mean size mixes as they do.
        (_, own), (_, other) = example.shares
        expected = own * seen["image’s map"] + other * seen["partner’s map"]
        assert np.abs(expected - seen["mixed map"]).max() <= 1.01


def test_views_of_single_images(cnn: Net) -> None:
    found = made("augmix", cnn)
    for example in found.examples:
        assert list(frames(example)) == ["image", "view 1", "view 2"]
        assert len(example.shares) == 1
    changed = [np.abs(frames(example)["image"] - frames(example)["view 1"]).max() for example in found.examples]
    assert max(changed) > 1


def test_saliency_is_that_of_the_network(cnn: Net) -> None:
    for example in made("puzzlemix + decouplemix", cnn).examples:
        seen = frames(example)
        assert seen["mask"].mean() / 255 == pytest.approx(example.shares[0][1], abs=0.01)


def test_a_switch_shows_the_option_that_mixes(cnn: Net) -> None:
    assert len(made("cutmix(prob=0.2)", cnn).examples[0].frames) == 4
