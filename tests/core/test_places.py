"""Places: which sites a recipe acts at, and pieces that differ between the input and hidden maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import Generator, Philox

import mixwell
from mixwell import Batch, Draws, Scene
from mixwell.core.axes import Need
from mixwell.core.mix import Partners
from mixwell.core.places import ByPlace, ByPlaceDraws, Hidden, LamByPlace, sites_of
from mixwell.core.plain import Beta
from mixwell.probe import Anatomy
from mixwell.sample.cutting.cutmix import Box
from mixwell.sample.linear.mixup import Linear

IMAGES = torch.randn(6, 3, 16, 16)


def scene_at(site):
    return Scene(Batch(IMAGES, torch.arange(6)), Draws(), site=site)


def rng():
    return Generator(Philox(3))


def test_sites_by_number_and_name(cnn):
    anatomy = Anatomy(cnn())
    assert sites_of(anatomy, (0, "input", "stem", 1, -1, "layer2.0", "embedding")) == (
        None,
        None,
        "stem",
        "layer1",
        "layer3",
        "layer2.0",
        "embedding",
    )


def test_the_papers_sites_as_far_as_the_network_has_them(cnn):
    place = Hidden(None, paper=(0, "stem", 1, 2, 3, 4))
    place.build(Anatomy(cnn()), 7)
    assert place.names == (None, "stem", "layer1", "layer2", "layer3")
    assert place.sites_used() == ("stem", "layer1", "layer2", "layer3")
    drawn = {place.site(place.draw(6, generator)) for generator in [rng()] for _ in range(200)}
    assert drawn == set(place.names)


def test_sites_that_were_asked_for_are_not_left_out(cnn):
    with pytest.raises(mixwell.SiteError, match="Stage 4 does not exist"):
        Hidden((1, 4)).build(Anatomy(cnn()), 7)
    with pytest.raises(mixwell.SiteError, match="SmallCNN has none of the sites"):
        Hidden(None, paper=(4, 5)).build(Anatomy(cnn()), 7)
    with pytest.raises(mixwell.ParameterError, match="at least one place"):
        Hidden(())


def test_each_place_has_its_own_blend_and_ratio():
    blend, ratio = ByPlace(Box(), Linear()), LamByPlace(Beta(1.0), Beta(2.0, per="batch"))
    assert blend.gives == Box.gives & Linear.gives
    assert Need.MASKS not in blend.gives
    assert blend.grid
    drawn, lams = blend.draw(6, rng()), ratio.draw(6, rng())
    assert isinstance(drawn, ByPlaceDraws)
    partners = Partners.at(torch.arange(6).roll(1)[:, None], torch.arange(6))
    for site, inner, own, lam in (
        (None, blend.at_input, drawn.input, lams.input),
        ("layer1", blend.at_hidden, drawn.hidden, lams.hidden),
    ):
        scene = scene_at(site)
        found = ratio.lam(lams, scene)
        assert np.array_equal(found.numpy(), lam)
        mix = blend.mix(IMAGES, partners, found, drawn, scene)
        expected = inner.mix(IMAGES, partners, found, own, scene)
        assert torch.equal(mix.images, expected.images)
        assert torch.equal(mix.weights, expected.weights)


def test_looks_of_both_blends_are_declared():
    class Looking(Linear):
        network = True

        def views(self):
            return (mixwell.Want("features", 1),)

    assert ByPlace(Box(), Looking()).views() == (mixwell.Want("features", 1),)
    assert ByPlace(Box(), Looking()).network
    assert not ByPlace(Box(), Linear()).network
