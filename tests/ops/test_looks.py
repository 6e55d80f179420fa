"""Looks after the words of a prompt: of any image, always the same, and told apart."""

from __future__ import annotations

import pytest
import torch

import mixwell
from mixwell.ops.looks import LOOKS, edited


@pytest.mark.parametrize("prompt", LOOKS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_size_keep_their_shape_and_range(prompt: str, channels: int):
    for size in ((1, 1), (1, 7), (9, 5), (40, 24)):
        images = torch.rand(2, channels, *size)
        kept = images.clone()
        made = edited(images, prompt)
        assert made.shape == images.shape
        assert made.amin() >= 0
        assert made.amax() <= 1
        assert torch.equal(images, kept)
        torch.testing.assert_close(edited(images.double(), prompt).float(), made, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", LOOKS)
def test_a_look_is_always_the_same_and_each_images_own(prompt: str, global_random_states):
    images, before = torch.rand(4, 3, 20, 28), global_random_states()[:2]  # the checker of shapes draws from Python's
    made = edited(images, prompt)
    assert global_random_states()[:2] == before
    assert torch.equal(edited(images, prompt), made)
    torch.testing.assert_close(edited(images[2:3], prompt), made[2:3])


def test_looks_differ_from_the_image_and_from_each_other():
    down, across = torch.linspace(0, 1, 48)[:, None], torch.linspace(0, 1, 48)
    image = torch.stack((down.expand(48, 48), across.expand(48, 48), (down + across) / 2))[None]
    pictures = torch.cat([image, *(edited(image, prompt) for prompt in LOOKS)]).flatten(1)
    apart = torch.cdist(pictures, pictures, p=1) / pictures.shape[1]
    assert (apart + torch.eye(len(pictures))).amin() > 0.04


def test_tiles_have_one_colour_each():
    made = edited(torch.rand(1, 3, 24, 24), "mosaic")
    assert (made.unflatten(3, (12, 2)).unflatten(2, (12, 2)).diff(dim=3) == 0).all()


def test_an_unknown_look_is_told():
    with pytest.raises(mixwell.ParameterError, match=r"no look 'snow'; did you mean 'snowy'"):
        edited(torch.rand(1, 3, 4, 4), "snow")
