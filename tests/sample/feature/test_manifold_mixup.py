"""Manifold Mixup's invariants; that its passes are those written by hand is in tests/probe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.core.rng import Streams

IMAGES, LABELS = torch.randn(6, 3, 8, 8), torch.arange(6)


def one_turn(text, model, seed=0):
    (turn,) = mixwell.create(text, 6, seed=seed).turns(model, IMAGES, LABELS)
    return turn


def test_site_0_is_mixup_bit_for_bit(cnn):
    model = cnn(6).eval()
    hidden, pixels = one_turn("manifold_mixup(sites=(0,))", model), one_turn("mixup(alpha=2.0)", model)
    assert torch.equal(hidden.logits, pixels.logits)
    assert torch.equal(hidden.loss, pixels.loss)
    assert torch.equal(hidden.targets.weights, pixels.targets.weights)


def test_in_a_linear_network_the_site_does_not_matter():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 6))
    logits = [one_turn(f"manifold_mixup(sites=({site},))", net).logits for site in ("0", "'0'", "'1'", "'2'", "'3'")]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[0], net(IMAGES))


def test_the_sites_of_a_run_are_those_that_were_named(cnn):
    model, seen = cnn(6), set()
    recipe = mixwell.create("manifold_mixup(sites=(1, 'layer3', 0))", 6).bind(model, IMAGES)
    (option,) = recipe.options
    for step in range(30):
        draws = option.draw(6, Streams(0), step)
        seen.add(option.place.site(draws[option.place]))
    assert seen == {"layer1", "layer3", None}
    assert recipe.sites == {"layer1", "layer3"}


def test_the_authors_loss_is_an_option(cnn):
    model = cnn(6).eval()
    turn = one_turn("manifold_mixup(criterion=softmax_bce)", model)
    expected = F.binary_cross_entropy(turn.logits.softmax(1), turn.targets.dense())
    torch.testing.assert_close(turn.loss, expected)
    assert expected < F.cross_entropy(turn.logits, turn.targets.dense()) / 2
