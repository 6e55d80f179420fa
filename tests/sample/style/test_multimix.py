"""MultiMix's mixtures, the dense variant's positions, and what a step holds in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mixwell
from mixwell.core.rng import Streams
from mixwell.nets import create_net
from mixwell.sample.style import multimix as module
from mixwell.sample.style.multimix import (
    DenseMixtures,
    HullDraws,
    Mixtures,
    attended,
    attention_of,
    combined,
    dirichlet,
)

LABELS = torch.arange(4)
CPU = torch.device("cpu")


def weights_of(positions, n, rows=4, seed=0):
    return dirichlet(HullDraws(np.ones(n), seed), positions, rows, CPU)


def mix_of(blend, x, lam, labels=LABELS):
    """Mix by given λ."""
    blend.lam = lambda draws, positions, rows, device: lam
    batch = mixwell.Batch(x, labels)
    draws = HullDraws(np.ones(blend.n), 0)
    return blend.mix(x, mixwell.Partners.alone(batch), torch.full((1,), torch.nan), draws, mixwell.Scene(batch))


class Linearly(nn.Module):
    """A stage, pooling and a classifier, linear in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, images):
        return self.fc(self.layer1(images).mean((2, 3)))


def one_turn(text, model, images, lam=None, labels=LABELS):
    recipe = mixwell.create(text, 4).bind(model, images)
    if lam is not None:
        recipe.options[0].blend.lam = lambda draws, positions, rows, device: lam
    (turn,) = recipe.turns(model, images, labels)
    return turn


# What is drawn


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_weights_are_dirichlet(alpha):
    lam = dirichlet(HullDraws(np.full(3000, alpha), 1), 2, 5, CPU)
    torch.testing.assert_close(lam.sum(2), torch.ones(2, 3000))
    for row in (0, 4):
        assert stats.kstest(lam[0, :, row].numpy(), stats.beta(alpha, 4 * alpha).cdf).pvalue > 1e-4
    assert stats.pearsonr(lam[0, :, 0].numpy(), lam[1, :, 0].numpy()).pvalue > 1e-4, "positions draw their own"
    assert stats.pearsonr(lam[0, 1:, 0].numpy(), lam[0, :-1, 0].numpy()).pvalue > 1e-4, "and so do mixtures"


def test_each_mixture_has_a_concentration_of_its_own():
    blend = mixwell.create("multimix(n=3000)", 4).options[0].blend
    draws = blend.draw(4, Streams(0).at("test", 0))
    assert stats.kstest(draws.alphas, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-4
    few, many = (dirichlet(HullDraws(np.array([0.05, 50.0]), key), 1, 4, CPU)[0].amax(1) for key in (0, 1))
    assert few[0] > few[1]
    assert many[0] > many[1]
    assert not torch.equal(few, many)
    assert torch.equal(dirichlet(draws, 1, 4, CPU), dirichlet(draws, 1, 4, CPU))


# Mixtures of embeddings


def test_every_example_alone_is_plain_training(cnn):
    model, images = cnn(4).eval(), torch.randn(4, 3, 16, 16)
    turn = one_turn("multimix(n=4)", model, images, torch.eye(4)[None])
    torch.testing.assert_close(turn.logits, model(images).detach())
    torch.testing.assert_close(turn.loss, F.cross_entropy(model(images), LABELS))


def test_mixtures_lie_in_the_hull_and_labels_follow():
    x, lam = torch.randn(4, 5), weights_of(1, 300)
    mix = mix_of(Mixtures(300, chunk=300), x, lam)
    torch.testing.assert_close(mix.images, lam[0] @ x)
    assert (mix.images >= x.amin(0) - 1e-5).all()
    assert (mix.images <= x.amax(0) + 1e-5).all()
    torch.testing.assert_close(mix.targets().dense(4), lam[0])


def test_many_mixtures_are_near_the_batchs_mean():
    """As the paper intends: of 128 examples none weighs much."""
    lam = dirichlet(HullDraws(np.full(200, 1.0), 0), 1, 128, CPU)[0]
    assert 0.03 < lam.amax(1).mean() < 0.06


def test_the_order_of_the_examples_does_not_matter():
    x, lam, order = torch.randn(4, 5), weights_of(1, 9)[0], torch.randperm(4)
    torch.testing.assert_close(combined(x[order], lam[:, order]), combined(x, lam))


# Dense mixtures


def test_dense_rows_are_what_the_equations_say():
    x, lam = torch.randn(4, 5, 2, 3), weights_of(6, 7)
    mix = mix_of(DenseMixtures(7), x, lam)
    flat, similar = x.flatten(2), torch.empty(4, 6)
    for i in range(4):
        for j in range(6):
            similar[i, j] = (flat[i, :, j] * flat[i].mean(1)).sum().clamp_min(0)
    attention = similar / similar.sum(1, keepdim=True)
    rows, weights = [], []
    for j in range(6):
        for k in range(7):
            w = lam[j, k] * attention[:, j]
            weights.append(w / w.sum() if w.sum() > 0 else lam[j, k])
            rows.append((weights[-1][:, None] * flat[:, :, j]).sum(0))
    torch.testing.assert_close(mix.images, torch.stack(rows)[:, :, None, None])
    torch.testing.assert_close(mix.weights, torch.stack(weights))
    assert torch.equal(mix.sources, LABELS.expand(42, 4))


def test_under_even_attention_the_mean_of_the_positions_is_multimix(monkeypatch):
    model, images, lam = Linearly(), torch.randn(4, 3, 6, 8), weights_of(1, 9)
    monkeypatch.setattr(module, "attention_of", lambda maps, *_: torch.full((4, 24), 1 / 24))
    dense = one_turn("multimix(n=9, variant=dense)", model, images, lam.expand(24, 9, 4))
    plain = one_turn("multimix(n=9)", model, images, lam)
    torch.testing.assert_close(dense.logits.view(24, 9, 4).mean(0), plain.logits)
    torch.testing.assert_close(dense.targets.weights[:9], plain.targets.weights)


def test_attention_of_no_similarity_is_even_and_positions_without_any_take_lambda_alone():
    maps = torch.rand(2, 3, 2, 2)
    assert torch.equal(attention_of(maps, -torch.ones(2, 3)), torch.full((2, 4), 0.25))
    lam, attention = weights_of(4, 6, rows=2), torch.tensor([[0.5, 0.5, 0, 0], [0.2, 0.8, 0, 0]])
    weights = attended(lam, attention)
    torch.testing.assert_close(weights.sum(2), torch.ones(4, 6))
    assert torch.equal(weights[2:], lam[2:])
    assert not torch.allclose(weights[:2], lam[:2])


def test_attention_counts_relative_to_the_other_examples():
    lam, attention = weights_of(6, 7), torch.rand(4, 6)
    torch.testing.assert_close(attended(lam, attention * torch.rand(6)), attended(lam, attention))
    torch.testing.assert_close(attended(lam, torch.ones(4, 6)), lam)
    order = torch.randperm(4)
    torch.testing.assert_close(attended(lam[..., order], attention[order]), attended(lam, attention)[..., order])


@pytest.mark.parametrize(("attention", "towards"), [("gap_relu", "gap"), ("gap_softmax", "gap"), ("cam_relu", "class")])
def test_what_attention_looks_at(attention, towards):
    model, images, lam = Linearly(), torch.randn(4, 3, 6, 8), weights_of(24, 5)
    turn = one_turn(f"multimix(n=5, variant=dense, attention={attention})", model, images, lam)
    maps = model.layer1(images)
    u = maps.mean((2, 3)) if towards == "gap" else model.fc.weight[LABELS]
    rule = "softmax" if attention == "gap_softmax" else "relu"
    expected = attended(lam, attention_of(maps, u, rule)).flatten(0, 1)
    torch.testing.assert_close(turn.targets.weights, expected)
    assert turn.logits.shape == (24 * 5, 4)
    rows = one_turn(f"multimix(n=5, variant=dense, attention={attention})", model, images, lam, torch.eye(4))
    torch.testing.assert_close(rows.targets.weights, expected)


def test_attention_is_constant_to_the_gradient():
    x, lam = torch.randn(4, 5, 2, 3, requires_grad=True), weights_of(6, 7)
    mix, cotangent = mix_of(DenseMixtures(7), x, lam), torch.randn(42, 5, 1, 1)
    (gradient,) = torch.autograd.grad(mix.images, x, cotangent)
    weights, by_position = mix.weights.view(6, 7, 4), cotangent.view(6, 7, 5)
    expected = torch.einsum("rnm,rnd->mdr", weights, by_position).view(x.shape)
    torch.testing.assert_close(gradient, expected)


def test_the_weights_are_held_once():
    """Of all that backward keeps, only the mix's own label shares are as many numbers as the weights."""
    x, kept = torch.randn(4, 5, 2, 3, requires_grad=True), []
    for blend, lam in ((Mixtures(50), weights_of(1, 50)), (DenseMixtures(50), weights_of(6, 50))):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            mix = mix_of(blend, x, lam)
        (weights,) = (tensor for tensor in kept if tensor.numel() == mix.weights.numel())
        assert weights.untyped_storage().data_ptr() == mix.weights.untyped_storage().data_ptr()


def test_tensors_of_another_resolution_are_averaged_to_the_positions():
    x, finer = torch.randn(4, 5, 2, 3), torch.randn(4, 1, 8, 12)
    mix = mix_of(DenseMixtures(7), x, weights_of(6, 7))
    torch.testing.assert_close(mix.apply(finer), mix.apply(F.avg_pool2d(finer, 4)))
    assert mix.apply(finer).shape == (42, 1, 1, 1)


# In networks

VARIANTS = ["multimix(n=30)", "multimix(n=30, variant=dense)", "multimix(n=30, variant=dense, attention=cam_relu)"]


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("kind", ["cnn", "vit", "timm", "torchvision"])
def test_a_training_step(kind, text, cnn, vit):
    models = {
        "vit": lambda: vit(4, class_token=False, global_pool="avg"),
        "cnn": lambda: cnn(4),
        "timm": lambda: create_net("timm/convnext_atto", 4),
        "torchvision": lambda: create_net("torchvision/resnet18", 4),
    }
    model = models[kind]()
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            turn = one_turn(text, model, images)
        assert torch.isfinite(turn.loss)
        turn.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert next(model.parameters()).grad.abs().sum() > 0


def test_dense_rows_are_refused_where_the_class_token_is_classified(vit):
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"classifies its class token.*variant='multimix'"):
        one_turn("multimix(variant=dense)", vit(4), torch.randn(4, 3, 32, 32))
    assert one_turn("multimix(n=8)", vit(4), torch.randn(4, 3, 32, 32)).logits.shape == (8, 4)


def test_class_attention_needs_the_classifiers_width(cnn):
    with pytest.raises(mixwell.ModelError, match=r"rows of 16 numbers, but the site's maps have 8 channels.*gap_relu"):
        one_turn("multimix(variant=dense, attention=cam_relu, site=1)", cnn(4), torch.randn(4, 3, 16, 16))


@pytest.mark.parametrize("wrong", ["n=0", "alpha=(0.0, 1.0)", "alpha=(2.0, 1.0)", "alpha=(1.0,)"])
def test_wrong_parameters(wrong):
    with pytest.raises(mixwell.ParameterError, match=wrong.partition("=")[0]):
        mixwell.create(f"multimix({wrong})", 4)


@pytest.mark.parametrize("variant", ["multimix", "dense"])
def test_weights_are_drawn_in_chunks_of_mixtures(variant):
    """Every chunk from a key of its own: equal ones would repeat, and the last may be shorter."""
    images = torch.randn(6, 4, 3, 2)
    batch = mixwell.Batch(images, torch.arange(6))

    def weights(chunk):
        (option,) = mixwell.create(f"multimix(n=10, variant={variant}, chunk={chunk})", 6).options
        asked, drawn = [], option.blend.lam
        option.blend.lam = lambda draws, *rest: asked.append(len(draws.alphas)) or drawn(draws, *rest)
        mix = option.mix(images, mixwell.Scene(batch, option.draw(6, Streams(0), 0)))
        assert asked == [chunk] * (10 // chunk) + [10 % chunk] * (10 % chunk > 0)
        return mix.weights

    found = weights(4)
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))
    assert len(found.unique(dim=0)) == len(found)
    assert found.shape == weights(10).shape
    with pytest.raises(mixwell.ParameterError, match="chunk must be a whole number"):
        mixwell.create("multimix(chunk=0)", 6)
