"""AugRmixAT's attack, views and loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixwell
from mixwell.sample.random.aug_rmix_at import attacked

PIXELS = mixwell.Pixels((0.5,), (0.25,))


@pytest.fixture
def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))


def test_the_attack_stays_in_its_ball_and_raises_the_loss(linear):
    raw, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5

    def loss(found):
        return F.cross_entropy(linear(found), labels)

    found = attacked(loss, raw, torch.zeros_like(raw), 8 / 255, 2 / 255, 10)
    assert (found - raw).abs().max() <= 8 / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert loss(found) > loss(raw)
    assert not found.requires_grad
    assert linear[1].weight.grad is None
    start = torch.full_like(raw, 0.01)
    assert torch.equal(attacked(loss, raw, start, steps=0), (raw + start).clamp(0, 1))


def test_the_attack_leaves_gradients_and_statistics_alone(cnn):
    """A step with the attack and one without it leave BatchNorm and gradients alike, but for what they trained on."""
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    net = cnn(7).train()
    recipe = mixwell.create("aug_rmix_at(mix=mixup, steps=3)", 7, pixels=PIXELS).bind(net, images)
    (option,) = recipe.options
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    batch = mixwell.Batch(images, labels, PIXELS)
    looks = mixwell.Views(mixwell.Probe(net, images), batch, loss=F.cross_entropy)
    scene = mixwell.Scene(batch, option.draw(6, recipe._streams, 0), looks)
    views = option.views(scene)
    assert len(views) == 3
    assert torch.equal(views[0], images)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training


def test_views_share_partners_ratio_and_label(cnn):
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    net = cnn(7)
    recipe = mixwell.create("aug_rmix_at(mix=cutmix, steps=1)", 7, pixels=PIXELS).bind(net, images)
    fed = []
    net.register_forward_pre_hook(lambda module, args: fed.append(args[0].detach()))
    (turn,) = recipe.turns(net, images, labels)
    assert [len(batch) for batch in fed] == [6, 18]
    assert turn.targets.sources.shape == (6, 2)
    clean, *_, adversarial = fed[1].chunk(3)
    inside = (images * 0.25 + 0.5).clamp(0, 1).sub(images * 0.25 + 0.5).abs().max() / 0.25  # pixels outside [0, 1]
    assert (clean - adversarial).abs().max() <= 8 / 255 / 0.25 + inside + 1e-5


def test_without_the_other_views_it_is_its_mix(cnn):
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    net = cnn(7).eval()
    alone = mixwell.create("mixup", 7, seed=1)
    views = mixwell.create("aug_rmix_at(mix=mixup, weights=(1, 0, 0), steps=1)", 7, seed=1, pixels=PIXELS)
    torch.testing.assert_close(views.bind(net, images)(net, images, labels), alone(net, images, labels))


def test_errors():
    with pytest.raises(mixwell.ParameterError, match="weights must be three numbers"):
        mixwell.create("aug_rmix_at(weights=(1, 2))")
    with pytest.raises(mixwell.IncompatibleRecipe, match="act inside the"):
        mixwell.create("aug_rmix_at", 5, pixels=PIXELS).mix_batch(torch.rand(2, 3, 8, 8), torch.arange(2))
