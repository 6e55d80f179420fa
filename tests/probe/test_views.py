"""Looks at the clean batch: one pass for all questions, gradients at any site, and no trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell import Batch, Probe, Views, Want

IMAGES, LABELS = torch.randn(4, 3, 32, 32), torch.arange(4)


def views_of(model, wants=()):
    return Views(Probe(model, IMAGES), Batch(IMAGES, LABELS), wants)


def by_hand(model):
    """Logits, maps and their gradients, in evaluation mode."""
    first = model.layer1(IMAGES)
    second = model.layer2(first)
    logits = model.fc(model.layer3(second).mean((2, 3)))
    maps = {1: first, 2: second}
    gradients = torch.autograd.grad(F.cross_entropy(logits, LABELS), [*maps.values()])
    return logits, maps, dict(zip(maps, gradients, strict=True))


def test_logits_may_be_asked_for_alone(cnn):
    model = cnn(4).eval()
    views = views_of(model, wants=[Want("logits")])
    torch.testing.assert_close(views[Want("logits")], model(IMAGES).detach())
    assert torch.equal(views[Want("logits")], views.logits)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_at_hidden_sites(cnn, frozen):
    model = cnn(4).eval()
    logits, maps, gradients = by_hand(model)
    model.requires_grad_(not frozen)
    views = views_of(model)
    for site, gradient in gradients.items():
        torch.testing.assert_close(views.gradient(site), gradient)
        torch.testing.assert_close(views.features(site), maps[site].detach())
        assert not views.gradient(site).requires_grad
    torch.testing.assert_close(views.logits, logits.detach())


def test_gradients_of_patches_and_of_what_modules_are_given(vit, cnn):
    model = vit(4, depth=2).eval()
    tokens = model.blocks[0](model.norm_pre(model._pos_embed(model.patch_embed(IMAGES))))
    loss = F.cross_entropy(model.head(model.norm(model.blocks[1](tokens))[:, 0]), LABELS)
    (gradient,) = torch.autograd.grad(loss, tokens)
    shown = gradient[:, model.num_prefix_tokens :].transpose(1, 2).reshape(4, -1, 4, 4)
    torch.testing.assert_close(views_of(model).gradient(1), shown)

    net = cnn(4).eval()
    pooled = net.layer3(net.layer2(net.layer1(IMAGES))).mean((2, 3))
    (gradient,) = torch.autograd.grad(F.cross_entropy(net.fc(pooled), LABELS), pooled)
    torch.testing.assert_close(views_of(net).gradient("embedding"), gradient[:, :, None, None])


def test_what_is_declared_is_answered_by_one_pass(cnn):
    model = cnn(4).train()
    passes = []
    model.fc.register_forward_hook(lambda *_: passes.append(model.training))
    declared = [Want("gradient", "input"), Want("gradient", 2), Want("features", 1)]
    views = views_of(model, declared)
    shapes = [tuple(views[want].shape) for want in declared]
    assert shapes == [(4, 3, 32, 32), tuple(views.features(2).shape), tuple(views.features(1).shape)]
    assert passes == [False, False]  # the second for the map of stage 2, which nobody had declared


def test_a_look_leaves_no_trace(cnn):
    model = cnn(4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    views_of(model).gradient(2)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_unknown_sites_are_refused_before_training(cnn):
    with pytest.raises(mixwell.SiteError, match="Stage 9 does not exist"):
        Probe(cnn(4)).check(Want("gradient", 9))
