"""What of each source's own image a mix shows, in the place that it has there: `Mix.origins`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell import Batch, Scene
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.sample.cutting.recursive_mix import BoxDraws, History
from mixwell.sample.ksample.cut_thumbnail import visible_origins

ROWS = 5
SIZE = (24, 40)

ALIGNED = ["cutmix", "cutmix(per=batch)", "dcutmix", "fmix", "gridmix", "hmix_gmix", "mixup", "smoothmix"]
MOVING = [
    *("resizemix", "resizemix(per=batch)", "resizemix(interpolation='nearest-size')", "ricap", "ricap(per=batch)"),
    *("ricap(variant=mosaic)", "cut_thumbnail", "cut_thumbnail(per=batch)", "stackmix", "stackmix(cutmix, axis=width)"),
    "cut_thumbnail(variant=multiple, size=(0.5, 0.75), label=area)",
    *("scoremix(saliency=spectral)", "scoremix(saliency=spectral, grid=7)"),
]

REACH = {"resizemix": 15, "cut_thumbnail": 1}
"""How far from a pixel that a smaller copy takes those may lie that it stands for."""


def mix_of(text, seed=0, ratio=None):
    option, images = mixwell.create(text, ROWS).options[0], torch.randn(ROWS, 2, *SIZE)
    draws = option.draw(ROWS, Streams(seed), 0)
    if ratio is not None:
        draws.of[option.ratio] = ratio
    return option.mix(images, Scene(Batch(images, torch.arange(ROWS)), draws))


def coordinates():
    """Every pixel has a number of its own: its image's, row and column."""
    return torch.arange(float(ROWS * SIZE[0] * SIZE[1]), dtype=torch.float64).view(ROWS, 1, *SIZE)


def full(mix):
    return mix.origins.expand(len(mix.images), mix.sources.shape[1], *SIZE)


@pytest.mark.parametrize("text", ALIGNED)
def test_where_pixels_stay_in_their_places_origins_are_the_masks(text):
    mix = mix_of(text)
    assert mix.origins is mix.masks


@pytest.mark.parametrize("text", MOVING)
def test_index_maps_show_what_origins_say(text):
    """Pixels that the mix shows have origin 1 and no others have, up to those that a smaller copy leaves out."""
    reach = REACH.get(text.partition("(")[0], 0)
    for seed in range(4):
        mix = mix_of(text, seed)
        shown, origins = mix.apply(coordinates()).long(), full(mix)
        assert set(origins.unique().tolist()) <= {0.0, 1.0}
        for row in range(ROWS):
            seen = torch.zeros(ROWS * SIZE[0] * SIZE[1])
            seen[shown[row].flatten()] = 1
            seen = seen.view(ROWS, *SIZE)
            said = torch.zeros(ROWS, *SIZE)
            for source, origin in zip(mix.sources[row].tolist(), origins[row], strict=True):
                said[source] = torch.maximum(said[source], origin)
            assert (said >= seen).all()
            near = F.max_pool2d(seen[:, None], 2 * reach + 1, 1, reach)[:, 0]
            assert (said <= near).all()


@pytest.mark.parametrize("text", ["resizemix", "cut_thumbnail", "stackmix", "ricap(variant=stitch)"])
def test_of_an_image_that_is_shown_whole_all_is_seen(text):
    assert (full(mix_of(text))[:, 1:] == 1).all()


def test_a_thumbnail_is_whole_and_the_image_around_it_is_not():
    mix = mix_of("resizemix")
    own, partner = full(mix).mean((2, 3)).unbind(1)
    torch.testing.assert_close(own, mix.weights[:, 0])
    assert (partner == 1).all()


def test_an_empty_thumbnail_shows_nothing_of_the_partner():
    mix = mix_of("resizemix", ratio=np.zeros(ROWS))
    assert torch.equal(full(mix), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(ROWS, 2, *SIZE))


def test_what_a_later_thumbnail_hides_is_not_seen():
    boxes = [np.array([[0, 12, 0, 20]]), np.array([[0, 12, 10, 30]])]  # the second hides the right half of the first
    free, first, second = visible_origins(boxes, SIZE)[0]
    assert free.sum() == 24 * 40 - 12 * 30
    assert (first[:, :20] == 1).all()
    assert (first[:, 20:] == 0).all()
    assert (second == 1).all()


def test_shares_of_images_that_were_mixed_before_they_were_stacked():
    mix = mix_of("stackmix(mixup)")
    torch.testing.assert_close(full(mix).mean((2, 3)), 2 * mix.weights)


def test_of_the_batch_before_all_is_seen():
    """Rows without one show themselves alone."""
    (option,) = mixwell.create("recursive_mix", ROWS).options
    blend, images = option.blend, torch.randn(ROWS, 2, *SIZE)
    scene = Scene(Batch(images, torch.arange(ROWS)))
    partners = Partners.alone(scene.batch)
    draws = BoxDraws(np.full(ROWS, 0.3), np.full((ROWS, 2), 0.5))
    plain = blend.mix(images, partners, torch.ones(1), draws, scene)
    assert torch.equal(plain.origins, plain.masks)
    blend.history = History(images[:3], torch.eye(ROWS)[:3], torch.eye(ROWS)[:3], 0)
    mix = blend.mix(images, partners, torch.ones(1), draws, scene)
    assert torch.equal(full(mix)[:, 0], mix.masks[:, 0])
    assert full(mix)[:, 1].mean((1, 2)).tolist() == [1, 1, 1, 0, 0]
