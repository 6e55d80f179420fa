"""Corruptions as a whole: shapes and ranges, independence of the batch, severities, errors, the cache."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mixwell import data
from mixwell.core.errors import BatchError, ParameterError
from mixwell.evaluate import CORRUPTIONS, corrupt, corrupted, corruptions
from mixwell.evaluate.corrupting.constants import CONSTANTS, benchmark_of
from mixwell.evaluate.corrupting.frost import pictures

COLOURED = {"gaussian_noise", "shot_noise", "impulse_noise", "frost"}
"""Not the same in all channels of a grey image."""
NOT_RANDOM = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


@pytest.fixture(scope="module")
def pictured() -> Tensor:
    """A hundred 8-bit photographs of clothes, 3 equal channels of 32 pixels."""
    test = data.load("fashion-mini").test
    assert isinstance(test, data.InMemory)
    return test.images[:100].contiguous()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    return tmp_path


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_the_fifteen_are_in_their_usual_order():
    assert " ".join(CORRUPTIONS) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog "
        "brightness contrast elastic_transform pixelate jpeg_compression"
    )


@pytest.mark.parametrize("benchmark", CONSTANTS)
def test_every_benchmark_has_what_each_corruption_takes_at_five_severities(benchmark: str):
    assert list(CONSTANTS[benchmark]) == list(CORRUPTIONS)
    for name, function in corruptions._FUNCTIONS.items():
        rows = CONSTANTS[benchmark][name]
        assert [len(row) for row in rows] == [len(inspect.signature(function).parameters) - 2] * 5
        assert len(set(rows)) == 5


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 32, 32), (1, 1, 28, 28), (3, 4, 17, 50), (2, 3, 1, 1), (2, 1, 3, 2), (0, 3, 8, 8)]
)
def test_any_size_and_number_of_channels(name: str, shape: tuple[int, ...]):
    images = noise(*shape)
    before = images.clone()
    for benchmark in ("cifar-c", "imagenet-c"):
        result = corrupt(images, name, 5, constants=benchmark)
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert ((result >= 0) & (result <= 1)).all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_floating_type_and_memory_layout(name: str):
    images = (noise(2, 3, 24, 20) * 255).round() / 255
    expected = corrupt(images, name, 3)
    torch.testing.assert_close(corrupt(images.contiguous(memory_format=torch.channels_last), name, 3), expected)
    torch.testing.assert_close(corrupt(images.double(), name, 3).float(), expected, atol=1e-5, rtol=0)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = images.to(dtype)
        result = corrupt(rounded, name, 3)
        assert result.dtype == dtype
        torch.testing.assert_close(result, corrupt(rounded.float(), name, 3).to(dtype))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_its_batch(name: str, pictured: Tensor):
    images = pictured[:40].float() / 255
    whole = corrupt(images, name, 4, seed=1)
    order = torch.randperm(40)
    assert torch.equal(corrupt(images[order], name, 4, seed=1, index=order), whole[order])
    assert torch.equal(corrupt(images[39:], name, 4, seed=1, index=torch.tensor([39])), whole[39:])
    assert torch.equal(
        corrupt(images[5:12], name, 4, seed=1, index=torch.arange(5, 12, dtype=torch.int32)), whole[5:12]
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seed_and_index_decide_and_the_global_states_do_not(name: str):
    images = noise(1, 3, 20, 20).expand(2, -1, -1, -1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = corrupt(images, name, 2)
    torch.manual_seed(1)
    again = corrupt(images, name, 2)
    torch.set_rng_state(states[0])
    assert torch.equal(first, again)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # noqa: NPY002
    other = corrupt(images, name, 2, seed=1)
    assert torch.equal(first, other) == torch.equal(first[0], first[1]) == (name in NOT_RANDOM)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - COLOURED))
def test_a_grey_image_stays_grey_whether_it_has_one_channel_or_three(name: str, pictured: Tensor):
    coloured = corrupt(pictured[:10].float() / 255, name, 5)
    grey = corrupt(pictured[:10, :1].float() / 255, name, 5)
    torch.testing.assert_close(coloured, grey.expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


ODD = {
    "glass_blur": (2, 0, 4, 3),
    "motion_blur": (0, 1, 2, 4),
    "frost": (0, 1, 2, 4),
    "elastic_transform": (4, 3, 2, 1, 0),
}
"""Where CIFAR-C's constants are not monotone in squared change: glass blurs away what it shattered at severities 3 and
5, and shatters alike at 1 and 2; motion is the same at 3 and 4, but for a longer tail; frost dims more and whitens as
much at 4; elastic transforms move the whole less and its parts more."""


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_change_grows_with_severity(name: str, pictured: Tensor):
    changes = [(corrupted(pictured, name, s, cache=False) - pictured.float()).square().mean() for s in range(1, 6)]
    ordered = [float(changes[place]) for place in ODD.get(name, range(5))]
    assert ordered == sorted(ordered)
    assert ordered[-1] > 1.3 * ordered[0]


def test_size_chooses_the_constants_of_the_nearest_benchmark():
    sizes = {28: "cifar-c", 32: "cifar-c", 64: "tiny-imagenet-c", 96: "tiny-imagenet-c", 224: "imagenet-c"}
    assert {size: benchmark_of(None, size, 500) for size in sizes} == sizes
    large = noise(1, 3, 130, 131)
    assert torch.equal(corrupt(large, "contrast", 1), corrupt(large, "contrast", 1, constants="imagenet-c"))
    assert not torch.equal(corrupt(large, "contrast", 1), corrupt(large, "contrast", 1, constants="cifar-c"))


def test_frost_pictures_have_the_colour_and_contrast_of_the_photographs():
    colours = [(78, 149, 165), (198, 202, 211), (198, 202, 211), (145, 159, 172), (101, 112, 124)]
    for scale, side in ((0.2, 32), (1.0, 224)):
        found = pictures(scale)
        assert min(found.shape[2:]) >= side
        np.testing.assert_allclose(255 * found.mean((2, 3)), colours, atol=4)
        assert ((255 * found.mean(1)).flatten(1).std(1) > 8).all()
    seam = (found[..., 0] - found[..., -1]).square().mean()
    inside = (found[..., 1:] - found[..., :-1]).square().mean()
    assert seam < 2 * inside, "a picture goes on beyond its edge"


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "jpeg_compression"])
def test_a_set_is_corrupted_in_chunks_with_the_rows_as_indices(name: str, pictured: Tensor, monkeypatch):
    expected = (corrupt(pictured.float() / 255, name, 3, seed=2) * 255).round().to(torch.uint8)
    assert torch.equal(corrupted(pictured, name, 3, seed=2, cache=False), expected)
    monkeypatch.setattr(corruptions, "_CHUNK", 7 * 3 * 32 * 32)
    assert torch.equal(corrupted(pictured, name, 3, seed=2, cache=False), expected)
    assert corrupted(pictured[:0], name, 3, cache=False).shape == (0, 3, 32, 32)


def test_the_same_images_are_corrupted_once(pictured: Tensor, cache: Path, monkeypatch):
    images = pictured[:8]
    first = corrupted(images, "snow", 2)
    (file,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(corruptions, "corrupt", lambda *_, **__: pytest.fail("made anew"))
        assert torch.equal(corrupted(images.clone(), "snow", 2), first)
        assert torch.equal(corrupted(images, "snow", 2, constants="cifar-c"), first)
    others = [
        corrupted(images, "snow", 2, seed=1),
        corrupted(images, "snow", 3),
        corrupted(images, "fog", 2),
        corrupted(images.flip(0), "snow", 2),
        corrupted(images, "snow", 2, constants="imagenet-c"),
    ]
    assert len(list(cache.iterdir())) == 6
    assert not any(torch.equal(other, first) for other in others)
    monkeypatch.setattr(corruptions, "_VERSION", -1)
    corrupted(images, "snow", 2)
    assert len(list(cache.iterdir())) == 7
    assert file.exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "another"])
def test_a_damaged_file_is_made_anew(damage: str, pictured: Tensor, cache: Path):
    images = pictured[:8]
    first = corrupted(images, "fog", 1)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    at = good.index(first.numpy().tobytes())
    if damage == "another":
        torch.save({"pictures": first}, file)
    else:
        bad = {
            "flipped": good[: at + 900] + bytes([good[at + 900] ^ 1]) + good[at + 901 :],
            "truncated": good[: len(good) // 2],
            "emptied": b"",
        }[damage]
        file.write_bytes(bad)
    assert torch.equal(corrupted(images, "fog", 1), first)
    assert file.read_bytes().count(first.numpy().tobytes()) == 1
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_without_a_cache_nothing_is_kept(pictured: Tensor, cache: Path):
    corrupted(pictured[:2], "contrast", 1, cache=False)
    assert not list(cache.iterdir())


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ParameterError, "did you mean 'defocus_blur'", lambda: corrupt(IMAGES, "defocus", 1)),
        (ParameterError, "from 1 to 5, got 0", lambda: corrupt(IMAGES, "fog", 0)),
        (ParameterError, "from 1 to 5, got 6", lambda: corrupted(IMAGES.byte(), "fog", 6)),
        (ParameterError, "from 1 to 5, got True", lambda: corrupt(IMAGES, "fog", True)),
        (ParameterError, "'cifar-c', 'tiny-imagenet-c'", lambda: corrupt(IMAGES, "fog", 1, constants="cifar")),
        (BatchError, "takes uint8", lambda: corrupt(IMAGES.byte(), "fog", 1)),
        (BatchError, r"\(B, C, H, W\), got \(3, 8, 8\)", lambda: corrupt(IMAGES[0], "fog", 1)),
        (BatchError, "normalisation", lambda: corrupt(IMAGES - 0.5, "fog", 1)),
        (BatchError, "nan", lambda: corrupt(IMAGES * float("nan"), "fog", 1)),
        (BatchError, "one integer index for each of 2", lambda: corrupt(IMAGES, "fog", 1, index=torch.arange(3))),
        (BatchError, "one integer index", lambda: corrupt(IMAGES, "fog", 1, index=torch.zeros(2))),
        (BatchError, "expected uint8", lambda: corrupted(IMAGES, "fog", 1)),
    ],
)
def test_errors_say_what_was_expected(error, words, call):
    with pytest.raises(error, match=words):
        call()
