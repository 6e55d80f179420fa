"""Catch-up Mix's choice of filters and its labels, and where paper and public code differ."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Partners
from mixwell.core.places import ByPlaceDraws
from mixwell.sample.feature.catchup_mix import CatchUp, filter_norms, own_filters, relative_influence, weakest

H = torch.randn(6, 8, 5, 9) * torch.rand(6, 8, 1, 1)
PERM = torch.tensor([3, 0, 1, 2, 5, 4])
LAM = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
IMAGES, LABELS = torch.randn(6, 3, 32, 32), torch.arange(6)


def mixed(lam=LAM, hidden=H):
    """What the blend makes of a map whose rows are labelled by their numbers."""
    labels = torch.arange(len(hidden))
    scene = Scene(mixwell.Batch(hidden, labels))
    return CatchUp().mix(
        hidden, Partners.at(PERM[:, None], labels), torch.tensor(lam, dtype=torch.float64), None, scene
    )


def one_turn(text, model, seed=0):
    (turn,) = mixwell.create(text, 6, seed=seed).turns(model, IMAGES, LABELS)
    return turn


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_filter_is_the_images_or_the_partners(layout):
    mix = mixed(hidden=H.contiguous(memory_format=layout))
    own, other = ((mix.images == of).all((2, 3)) for of in (H, H[PERM]))
    assert (own ^ other).all()
    assert own.sum(1).tolist() == [int(lam * 8) for lam in LAM]
    assert torch.equal(mix.sources, torch.stack((torch.arange(6), PERM), 1))
    torch.testing.assert_close(mix.weights[:, 0], torch.tensor(LAM))


def test_what_is_kept_is_weakest_compared_with_the_partner():
    """Of all ways to keep as many filters, it keeps the least relative influence."""
    relative, kept = relative_influence(filter_norms(H), PERM), (mixed().images == H).all((2, 3))
    for row in range(6):
        count = int(kept[row].sum())
        least = min(relative[row, list(some)].sum().item() for some in combinations(range(8), count))
        assert relative[row, kept[row]].sum().item() == pytest.approx(least, abs=1e-6)


def test_relative_influence():
    swap = torch.tensor([1, 0, 3, 2, 5, 4])
    relative = relative_influence(filter_norms(H), swap)
    torch.testing.assert_close(relative, -relative[swap])
    torch.testing.assert_close(relative.sum(1), torch.zeros(6), atol=1e-6, rtol=0)
    scaled = H * torch.tensor([1, 5, 0.2, 3, 40, 1])[:, None, None, None]
    torch.testing.assert_close(relative_influence(filter_norms(scaled), swap), relative)


def test_norms_are_those_of_the_maps_and_do_not_overflow_in_fp16():
    torch.testing.assert_close(filter_norms(H), (H**2).sum((2, 3)).sqrt())
    large = torch.full((1, 1, 20, 20), 3000.0, dtype=torch.float16)
    assert filter_norms(large).item() == pytest.approx(60000)
    assert filter_norms(large.double()).dtype == torch.float64


def test_of_filters_that_compare_alike_the_first_are_kept():
    relative = torch.tensor([[0.0, 0.5, 0.0, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert weakest(relative, np.array([3])).tolist() == [[1, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert weakest(relative, np.array([0, 5])).tolist() == [[0] * 5, [1] * 5]
    assert weakest(torch.zeros(1, 40), np.array([20]))[0].tolist() == [1] * 20 + [0] * 20


def test_filters_are_counted_in_fp64():
    assert own_filters(np.array([0.29, 0.57, 1.0, 0.0]), 100).tolist() == [28, 56, 100, 0]


def test_a_lambda_below_one_filter_shows_the_partner_alone_but_is_the_label():
    mix = mixed((0.12,))
    assert torch.equal(mix.images, H[PERM])
    torch.testing.assert_close(mix.weights, torch.tensor([[0.12, 0.88]]).expand(6, 2))


def test_dead_filters_have_a_gradient():
    hidden = torch.cat((torch.zeros(6, 3, 5, 9), H), 1).requires_grad_()
    (gradient,) = torch.autograd.grad(mixed((0.5,), hidden).images.sum(), hidden)
    assert gradient.isfinite().all()
    assert gradient.sum() == hidden.numel()


def test_tensors_of_other_channels_get_the_mean_share():
    mix = mixed()
    shown = mix.apply(torch.eye(6)[:, :, None, None].expand(6, 6, 3, 4))
    kept = torch.tensor([int(lam * 8) / 8 for lam in LAM])
    torch.testing.assert_close(shown[range(6), range(6)], kept[:, None, None].expand(6, 3, 4))
    torch.testing.assert_close(shown.sum(1), torch.ones(6, 3, 4))


def test_site_0_is_cutmix_bit_for_bit(cnn):
    model = cnn(6).eval()
    turn, cut = one_turn("catchup_mix(sites=(0,))", model), one_turn("cutmix", model)
    assert torch.equal(turn.logits, cut.logits)
    assert torch.equal(turn.targets.weights, cut.targets.weights)
    assert torch.equal(turn.loss, cut.loss)


def test_the_papers_sites_as_far_as_a_network_has_them(cnn):
    small, large = cnn(6), small_resnet()
    found = [mixwell.create("catchup_mix", 6).bind(model, IMAGES).sites for model in (small, large)]
    assert found[0] == {"stem", "layer1", "layer2", "layer3"}
    assert found[1] == found[0] | {"layer4"}


def test_one_lambda_per_batch_as_in_the_public_code():
    for per, count in (("batch", 1), ("sample", 6)):
        (option,) = mixwell.create(f"catchup_mix(per={per})").options
        drawn = option.ratio.draw(6, np.random.default_rng(0))
        assert drawn.input.shape == drawn.hidden.shape == (count,)
    assert len(mixed((0.4,)).weights.unique(dim=0)) == 1


def test_the_filters_of_tokens_are_their_features(vit):
    model = vit(6).eval()
    recipe = mixwell.create("catchup_mix(sites=('blocks.0',))", 6).bind(model, IMAGES)
    (option,) = recipe.options
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    clean = model(IMAGES) is not None and seen.pop()
    draws = {option.place: 0, option.pairing: PERM.numpy(), option.blend: ByPlaceDraws(None, None)}
    draws[option.ratio] = ByPlaceDraws(None, np.full(6, 0.4))
    (turn,) = recipe.turns(model, IMAGES, LABELS, draws=mixwell.Draws(draws))
    kept, taken = ((seen[0] == of)[:, 1:].all(1) for of in (clean, clean[PERM]))
    assert (kept ^ taken).all()
    assert kept.sum(1).tolist() == [12] * 6  # ⌊0.4 · 32⌋
    norms = clean[:, 1:].norm(dim=1)
    relative = norms / norms.sum(1, keepdim=True)
    relative = relative - relative[PERM]
    assert (torch.where(kept, relative, -1).amax(1) <= torch.where(kept, 1, relative).amin(1)).all()
    torch.testing.assert_close(seen[0][:, 0], 0.4 * clean[:, 0] + 0.6 * clean[PERM, 0])
    torch.testing.assert_close(turn.targets.weights, torch.tensor([[0.4, 0.6]]).expand(6, 2))


def small_resnet():
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=6)


NETWORKS = {
    "cnn": lambda cnn, vit: cnn(6),
    "vit": lambda cnn, vit: vit(6),
    "torchvision": lambda cnn, vit: small_resnet(),
    "timm": lambda cnn, vit: timm.create_model("test_convnext", num_classes=6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_at_every_site(name, cnn, vit):
    model = NETWORKS[name](cnn, vit)
    recipe = mixwell.create("catchup_mix", 6).bind(model, IMAGES)
    (option,) = recipe.options
    assert len(option.place.names) >= 4
    for number in range(len(option.place.names)):
        option.place.draw = lambda rows, rng, number=number: number
        with torch.autocast("cpu", torch.bfloat16, enabled=name in ("cnn", "vit")):
            loss = recipe(model, IMAGES, LABELS)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        nn.Module.zero_grad(model)
