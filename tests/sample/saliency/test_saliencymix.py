"""SaliencyMix: where the box lies, what it looks at, and what the label counts."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch, Pixels
from mixwell.core.errors import BatchError, ParameterError
from mixwell.core.mix import Partners
from mixwell.core.saliency import Saliency, Source
from mixwell.sample.saliency.saliencymix import FineGrainedBytes, PeakBox, peaks

PIXELS = Pixels((0.5,), (0.25,))
ROWS, SIZE = 6, (24, 40)
NEXT = torch.arange(ROWS).roll(-1)


class Given(Saliency):
    """A given map of each image of the batch; it counts how often it was asked."""

    network = True

    def __init__(self, found):
        super().__init__()
        self.found = found

    def maps(self, scene):
        return self.found


def dots(places, size=SIZE):
    """Maps that are 1 at one place and 0 elsewhere."""
    maps = torch.zeros(len(places), *size)
    for row, (y, x) in enumerate(places):
        maps[row, y, x] = 1
    return maps


def mix_of(source, images, lam, per="sample", partner=NEXT, site=None, batch_images=None):
    rows = len(images)
    labels = torch.arange(rows)
    scene = Scene(Batch(images if batch_images is None else batch_images, labels, PIXELS), site=site)
    lam = torch.as_tensor(lam, dtype=torch.float64).expand(1 if per == "batch" else rows)
    return PeakBox(source, per).mix(images, Partners.at(partner[:, None], labels), lam, None, scene)


def pictures(rows=ROWS, size=SIZE):
    return torch.randn(rows, 3, *size)


def box_by_hand(lam, centre, size):
    """The authors' algorithm."""
    box = []
    for side, c in zip(size, centre, strict=True):
        cut = int(side * np.sqrt(1 - lam))
        box += [int(np.clip(c - cut // 2, 0, side)), int(np.clip(c + cut // 2, 0, side))]
    return box


def test_the_peak_is_the_first_of_equal_ones():
    maps = torch.zeros(2, 3, 4)
    maps[0, 2, 1] = maps[0, 1, 3] = 5.0
    assert peaks(maps).tolist() == [[1, 3], [0, 0]]


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_the_box_lies_around_the_partners_peak(lam):
    places = [(0, 0), (23, 39), (12, 20), (3, 37), (20, 1), (9, 9)]
    images = pictures()
    mix = mix_of(Given(dots(places)), images, lam)
    for row, partner in enumerate(NEXT.tolist()):
        top, bottom, left, right = box_by_hand(lam, places[partner], SIZE)
        expected = images[row].clone()
        expected[:, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        assert torch.equal(mix.images[row], expected)
        pasted = (bottom - top) * (right - left) / (SIZE[0] * SIZE[1])
        torch.testing.assert_close(mix.weights[row], torch.tensor([1 - pasted, pasted]))
        assert mix.weights[row, 0] >= lam - 1e-6


def test_at_lambda_0_the_box_is_still_around_the_peak():
    """The image is not replaced as a whole: what lies beyond the border is clipped, and the label knows."""
    mix = mix_of(Given(dots([(0, 0)] * ROWS)), pictures(), 0.0)
    torch.testing.assert_close(mix.weights[:, 0], torch.full((ROWS,), 0.75))


def test_a_batch_has_one_box_around_the_first_partners_peak():
    places = [(0, 0), (12, 20), (23, 39), (3, 37), (20, 1), (9, 9)]
    mix = mix_of(Given(dots(places)), pictures(), 0.8, per="batch")
    top, bottom, left, right = box_by_hand(0.8, places[1], SIZE)
    inside = torch.zeros(SIZE)
    inside[top:bottom, left:right] = 1
    assert torch.equal(mix.masks[:, 1], inside[None])


@pytest.mark.parametrize("saliency", ["fine_grained", "spectral"])
def test_a_batch_looks_at_the_first_partner_alone(saliency, monkeypatch):
    recipe = mixwell.create(f"saliencymix(per=batch, saliency={saliency})", pixels=PIXELS)
    seen = []
    source = recipe.options[0].blend.saliency
    maps = source.maps
    monkeypatch.setattr(source, "maps", lambda scene: seen.append(scene.batch.images) or maps(scene))
    images = pictures()
    _, targets = recipe.mix_batch(images, torch.arange(ROWS))
    assert torch.equal(seen[0], images[targets.sources[:1, 1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_paper_reads_pixels_and_the_code_bytes(dtype):
    """A bright dot on a flat picture: its place is found in the pixels, in whatever precision."""
    raw = torch.full((1, 3, *SIZE), 0.1)
    raw[:, :, 4:7, 30:33] = 0.8
    images = PIXELS.normalise(raw).to(dtype)
    recipe = mixwell.create("saliencymix", pixels=PIXELS)
    found = recipe.options[0].blend.saliency.maps(Scene(Batch(images.float(), torch.arange(1), PIXELS)))
    assert found[0, 5, 31] == found.max()
    code = mixwell.create("saliencymix(pixels=float_bytes)").options[0].blend
    assert isinstance(code.saliency, FineGrainedBytes)
    assert not torch.equal(code.saliency.maps(Scene(Batch(images, torch.arange(1)))), found)


def test_normalisation_must_be_known_for_pixels_only():
    images, labels = pictures(), torch.arange(ROWS)
    with pytest.raises(BatchError, match="needs raw pixels"):
        mixwell.create("saliencymix").mix_batch(images, labels)
    for text in ("saliencymix(pixels=float_bytes)", "saliencymix(saliency=spectral)"):
        assert torch.isfinite(mixwell.create(text).mix_batch(images, labels)[0]).all()


def test_bytes_are_read_by_fine_grained_alone():
    with pytest.raises(ParameterError, match=r"got saliency='cam'\. Leave it out"):
        mixwell.create("saliencymix(pixels=float_bytes, saliency=cam)")


def test_coarse_maps_put_the_box_in_the_middle_of_a_place():
    mix = mix_of(Given(dots([(1, 3)] * ROWS, (3, 5))), pictures(), 0.75)
    rows, columns = mix.masks[0, 1].amax(1), mix.masks[0, 1].amax(0)
    assert rows.nonzero().flatten().tolist() == list(range(6, 18))  # the middle of rows 8 to 15
    assert columns.nonzero().flatten().tolist() == list(range(18, 38))  # of columns 24 to 31


def test_hidden_maps_have_the_box_in_the_same_place():
    source, images = Given(dots([(4, 30)] * ROWS)), pictures()
    hidden = torch.randn(ROWS, 8, SIZE[0] // 2, SIZE[1] // 2)
    there = mix_of(source, hidden, 0.75, site="layer2", batch_images=images)
    here = mix_of(source, images, 0.75)
    assert torch.equal(here.apply(hidden), there.images)
    assert there.masks[0, 1].nonzero().amin(0).tolist() == [0, 10]
    assert there.masks[0, 1].nonzero().amax(0).tolist() == [4, 19]


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("saliency", get_args(Source))
def test_every_source_trains(saliency, per, cnn, vit):
    model, images = vit() if "attention" in saliency else cnn(), torch.randn(ROWS, 3, 32, 32)
    recipe = mixwell.create(f"saliencymix(saliency={saliency}, per={per})", 7, pixels=PIXELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = recipe(model, images, torch.arange(ROWS))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_it_mixes_hidden_maps_and_serves_labels_by_attention(cnn, vit):
    images, labels = torch.randn(ROWS, 3, 32, 32), torch.arange(ROWS)
    for text, model in (("manifold_mixup(sites=(1, 2)) + saliencymix", cnn()), ("saliencymix + transmix", vit())):
        recipe = mixwell.create(text, 7, pixels=PIXELS)
        for _ in range(3):
            assert torch.isfinite(recipe(model, images, labels))
