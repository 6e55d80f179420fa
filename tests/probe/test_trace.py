"""A probe leaves no trace: buffers, gradients, modes and random states are as before, whatever it looked at."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixwell import Batch, Probe, Views, Want
from mixwell.probe.trace import untouched

IMAGES, LABELS = torch.randn(4, 3, 32, 32), torch.arange(4)

LOOKS = {
    "logits": lambda views: views.logits,
    "gradient": lambda views: views.gradient(),
    "features": lambda views: views.features(2),
    "all": lambda views: (views.logits, views.features(1), views.gradient(), views.features("layer3")),
}


def freeze_some(model):
    """Mixed modes and frozen parts, as in fine-tuning."""
    model.train()
    model.layer1.eval()
    model.layer1.requires_grad_(False)


MODES = {"train": nn.Module.train, "eval": nn.Module.eval, "mixed": freeze_some}


def state_of(model):
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "versions": [tensor._version for tensor in (*model.parameters(), *model.buffers())],
        "modes": [module.training for module in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    assert before["values"].keys() == after["values"].keys()
    assert all(torch.equal(before["values"][name], after["values"][name]) for name in before["values"])
    for one, other in zip(before["gradients"], after["gradients"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    for key in ("versions", "modes", "wanted", "hooks"):
        assert before[key] == after[key], key
    assert torch.equal(before["random"], after["random"])


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("look", LOOKS)
def test_a_cnn_with_batchnorm_and_dropout(cnn, look, mode, with_gradients):
    model = cnn()
    MODES[mode](model)
    if with_gradients:
        F.cross_entropy(model(IMAGES), LABELS).backward()
    before = state_of(model)
    LOOKS[look](Views(Probe(model), Batch(IMAGES, LABELS)))
    assert_same(before, state_of(model))
    assert IMAGES.grad is None
    assert not IMAGES.requires_grad


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_transformer_with_dropout(vit, mode):
    model = vit(proj_drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.3)
    MODES[mode](model)
    before = state_of(model)
    views = Views(Probe(model), Batch(IMAGES, LABELS))
    views.class_attention(), views.gradient(), views.features(1)
    assert_same(before, state_of(model))


def test_views_are_those_of_the_network_in_evaluation_mode(cnn):
    model = cnn().train()
    views = Views(Probe(model), Batch(IMAGES, LABELS))
    logits, features, gradient = views.logits, views.features(2), views.gradient()
    model.eval()
    images = IMAGES.clone().requires_grad_()
    expected = model(images)
    torch.testing.assert_close(logits, expected.detach())
    torch.testing.assert_close(features, model.layer2(model.layer1(IMAGES)).detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(F.cross_entropy(expected, LABELS), images)[0])
    assert not any(seen.requires_grad for seen in (logits, features, gradient))


def test_one_pass_answers_all_that_was_declared(cnn):
    model, passes = cnn(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    wants = {Want("features", 1), Want("features", 2), Want("gradient", "input")}
    views = Views(Probe(model), Batch(IMAGES, LABELS), wants)
    assert not passes, "nothing is computed before it is asked for"
    views.logits, views.features(1), views.features(2), views.gradient()
    assert len(passes) == 1


def test_features_are_what_the_site_gave_even_if_it_is_overwritten(cnn):
    """The ReLU after the BatchNorm works in place."""
    model = cnn().eval()
    seen = Views(Probe(model), Batch(IMAGES, LABELS)).features("layer1.1")
    torch.testing.assert_close(seen, model.layer1[1](model.layer1[0](IMAGES)).detach())
    assert (seen < 0).any()


def test_looking_under_autocast_does_not_cut_later_gradients(cnn):
    """Weights that autocast cached without a graph must not be used by the training pass."""
    model = cnn()
    with torch.autocast("cpu", torch.bfloat16):
        _ = Views(Probe(model), Batch(IMAGES, LABELS)).logits
        loss = F.cross_entropy(model(IMAGES), LABELS)
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "weight" in name
    )


def test_a_probe_inside_a_probe_keeps_the_outer_one(cnn):
    model = cnn().eval()
    probe = Probe(model)

    def edit(hidden, prefix):
        inner = probe.run(IMAGES, wants=[Want("features", 1)])
        assert inner[Want("features", 1)].shape == hidden.shape
        return hidden * 0, prefix

    outer = probe.run(IMAGES, edits={"layer1": edit}, wants=[Want("features", 2)])
    torch.testing.assert_close(outer[Want("features", 2)], model.layer2(torch.zeros(4, 8, 32, 32)))


def test_an_error_in_a_pass_leaves_no_trace_either(cnn):
    model = cnn().train()
    before = state_of(model)
    views = Views(Probe(model), Batch(IMAGES, LABELS), loss=lambda logits, labels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        views.gradient()
    assert_same(before, state_of(model))


@pytest.mark.parametrize("training", [True, False])
def test_training_passes_may_run_untouched_too(cnn, training):
    model = cnn().eval()
    before = state_of(model)
    with untouched(model, training=training):
        assert model.training == training
        model(IMAGES)
    after = state_of(model)
    before.pop("versions"), after.pop("versions")
    assert all(torch.equal(before["values"][name], after["values"][name]) for name in before["values"])
    assert before["modes"] == after["modes"]
    assert torch.equal(before["random"], after["random"])
