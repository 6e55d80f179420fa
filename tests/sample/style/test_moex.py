"""MoEx's invariants; where it acts and with whom, before and after other mixes."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.errors import BatchError, IncompatibleRecipe, ParameterError, SiteError
from mixwell.core.rng import Streams
from mixwell.core.targets import Targets
from mixwell.ops.moments import moments
from mixwell.sample.style.moex import ExchangeDraws, MomentExchange, exchange

IMAGES, LABELS = torch.randn(6, 3, 16, 16), torch.arange(6)
SCENE = Scene(mixwell.Batch(IMAGES, LABELS))
NORMS = pytest.mark.parametrize(
    ("norm", "groups", "over"),
    [("pono", 1, (2,)), ("in", 1, (3, 4)), ("ln", 1, (2, 3, 4)), ("gn", 2, (2, 3, 4)), ("gpono", 2, (2,))],
)


def step(text, model, seed=0):
    """The step's targets and draws."""
    recipe = mixwell.create(text, 6, seed=seed)
    (turn,) = recipe.turns(model, IMAGES, LABELS)
    (option,) = recipe.options
    return turn, option, option.draw(6, Streams(seed), 0)


def labels_of(partner, lam):
    """λ of the own label and 1 - λ of the partner's, as a matrix."""
    return lam * torch.eye(len(partner)) + (1 - lam) * torch.eye(len(partner))[partner]


@NORMS
def test_each_map_has_its_partners_moments(norm, groups, over):
    maps, partner = torch.randn(5, 8, 6, 7) * torch.rand(5, 8, 1, 1) + torch.randn(5, 8, 1, 1), torch.randperm(5)
    changed = exchange(maps, partner, norm, groups, eps=1e-12)
    found, wanted = (moments(x.unflatten(1, (groups, -1)), over) for x in (changed, maps[partner]))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@NORMS
def test_there_and_back(norm, groups, over):
    maps, partner = torch.randn(5, 8, 6, 7, dtype=torch.float64), torch.randperm(5)
    there = exchange(maps, partner, norm, groups, eps=1e-14)
    back = exchange(there, partner.argsort(), norm, groups, eps=1e-14)
    torch.testing.assert_close(back, maps, rtol=1e-6, atol=1e-6)


@NORMS
def test_own_moments_do_not_matter_but_to_who_borrows_them(norm, groups, over):
    maps, partner = torch.randn(4, 8, 6, 7, dtype=torch.float64), torch.tensor([1, 2, 3, 0])
    other = maps.clone()
    other[2] = 3 * maps[2] + 5
    before, after = (exchange(x, partner, norm, groups, eps=1e-12) for x in (maps, other))
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]])
    torch.testing.assert_close(after[1], 3 * before[1] + 5)


def test_gradients_reach_both_moments():
    maps = torch.randn(3, 4, 5, 5, requires_grad=True)
    exchange(maps, torch.tensor([1, 2, 0]))[0].square().sum().backward()
    assert maps.grad[0].abs().max() > 0
    assert maps.grad[1].abs().max() > 0
    assert maps.grad[2].abs().max() == 0


def test_moments_of_positive_values_change_the_others_too():
    maps = torch.randn(4, 8, 6, 6).relu()
    changed = exchange(maps, torch.tensor([1, 2, 3, 0]), positive_only=True)
    assert not torch.allclose(changed, exchange(maps, torch.tensor([1, 2, 3, 0])))
    assert (changed[maps == 0] != 0).float().mean() > 0.9


@pytest.mark.parametrize("lam", [0.9, 0.5, 1.0])
def test_alone_the_label_is_shared_with_the_drawn_partner(cnn, lam):
    turn, option, draws = step(f"moex(lam={lam})", cnn(6))
    torch.testing.assert_close(turn.targets.dense(), labels_of(draws[option.statistics].partner, lam))


def test_behind_cutmix_it_takes_the_boxs_partners_and_has_three_labels(cnn):
    turn, option, draws = step("cutmix + moex(lam=0.7)", cnn(6))
    partner = draws[option.pairing]
    assert not np.array_equal(partner, draws[option.statistics].partner)
    cut, _, _ = step("cutmix", cnn(6))
    torch.testing.assert_close(turn.targets.dense(), labels_of(partner, 0.7) @ cut.targets.dense())
    assert turn.targets.sources.shape == (6, 4)


def test_behind_a_mix_of_more_images_it_takes_partners_of_its_own(cnn):
    turn, option, draws = step("ricap + moex(lam=0.7)", cnn(6))
    four, _, _ = step("ricap", cnn(6))
    expected = labels_of(draws[option.statistics].partner, 0.7) @ four.targets.dense()
    torch.testing.assert_close(turn.targets.dense(), expected)


def test_before_the_mix_the_sources_bring_shared_labels(cnn):
    turn, option, draws = step("manifold_mixup(sites=(2,)) + moex(lam=0.7)", cnn(6))
    mixed, _, _ = step("manifold_mixup(sites=(2,))", cnn(6))
    expected = mixed.targets.dense() @ labels_of(draws[option.statistics].partner, 0.7)
    torch.testing.assert_close(turn.targets.dense(), expected)


def test_at_the_site_of_the_mix_it_acts_behind_it(cnn):
    turn, option, draws = step("manifold_mixup(sites=(1,)) + moex(lam=0.7, site=1)", cnn(6))
    mixed, _, _ = step("manifold_mixup(sites=(1,))", cnn(6))
    expected = labels_of(draws[option.pairing], 0.7) @ mixed.targets.dense()
    torch.testing.assert_close(turn.targets.dense(), expected)


def test_rows_of_labels_are_exchanged_behind_the_mix_only():
    piece, draws = MomentExchange(lam=0.7), ExchangeDraws(True, np.array([2, 0, 1]))
    targets = Targets.of(torch.arange(3))
    mix = mixwell.Mix(IMAGES[:3], targets.sources, targets.weights, targets.pool, torch.clone)
    targets.soft, targets.tokens = torch.rand(3, 4), torch.rand(3, 5, 4)
    after = piece.targets(targets, draws, SCENE, mix)
    torch.testing.assert_close(after.soft, 0.7 * targets.soft + 0.3 * targets.soft[[2, 0, 1]])
    torch.testing.assert_close(after.tokens, 0.7 * targets.tokens + 0.3 * targets.tokens[[2, 0, 1]])
    with pytest.raises(IncompatibleRecipe, match="makes label rows of the mix itself"):
        piece.targets(targets, draws, SCENE, None)


def test_labels_from_beyond_the_batch_cannot_be_exchanged_before_the_mix():
    targets = Targets(torch.arange(6), torch.tensor([[0, 5], [1, 3], [2, 4]]), torch.full((3, 2), 0.5))
    with pytest.raises(IncompatibleRecipe, match=r"labels of 3 images before they are mixed.*pool of 6"):
        MomentExchange().targets(targets, ExchangeDraws(True, np.arange(3)), SCENE, None)


def test_more_rows_than_partners_are_refused():
    with pytest.raises(IncompatibleRecipe, match=r"Moments of 3 images.*'layer1'.*into 6 rows"):
        MomentExchange().change(torch.randn(6, 4, 2, 2), "layer1", ExchangeDraws(True, np.arange(3)), SCENE, None)


def test_the_share_of_batches_and_of_cutmix_beside_it(cnn):
    """The authors' CutMix + MoEx: every batch is cut, and in a quarter of them moments are exchanged as well."""
    recipe = mixwell.create("cutmix + moex(prob=0.25)", 6).bind(cnn(6), IMAGES)
    (option,) = recipe.options
    drawn = [option.draw(6, Streams(0), step)[option.statistics] for step in range(2000)]
    assert np.mean([draws.acts for draws in drawn]) == pytest.approx(0.25, abs=0.04)
    assert {option.statistics.sites(draws) for draws in drawn} == {(), ("stem",)}


def test_where_it_does_not_act_nothing_changes(cnn):
    model = cnn(6).eval()
    turn, _, _ = step("cutmix + moex(prob=0)", model)
    plain, _, _ = step("cutmix", model)
    assert torch.equal(turn.logits, plain.logits)
    assert torch.equal(turn.targets.weights, plain.targets.weights)


def test_groups_by_their_number_or_size():
    maps, partner = torch.randn(6, 8, 4, 4), np.roll(np.arange(6), 1)
    draws = ExchangeDraws(True, partner)

    def changed(**options):
        return MomentExchange(**options).change(maps, "layer1", draws, SCENE, None)

    assert torch.equal(changed(norm="gn", groups=2), changed(norm="gn", channels_per_group=4))
    assert torch.equal(changed(norm="gpono", groups=1), changed(norm="pono"))
    torch.testing.assert_close(changed(norm="gn", groups=8), changed(norm="in"))
    with pytest.raises(SiteError, match="'layer1' has 8 channels, which groups=3 does not divide"):
        changed(norm="gn", groups=3)
    with pytest.raises(BatchError, match="at least 2 values, got 1"):
        changed(norm="gpono", channels_per_group=1)


@pytest.mark.parametrize(
    "text",
    ["moex(norm=gn)", "moex(groups=2)", "moex(norm=gn, groups=2, channels_per_group=2)", "moex(norm=gn, groups=0)"],
)
def test_groups_where_they_have_no_meaning(text):
    with pytest.raises(ParameterError, match="'gn' and 'gpono' take one of groups and channels_per_group"):
        mixwell.create(text)


@pytest.mark.parametrize("site", ["0", "input"])
def test_the_input_has_no_moments_to_exchange(site):
    with pytest.raises(ParameterError, match="hidden sites"):
        mixwell.create(f"moex(site={site})")


def test_class_tokens_stay_and_patches_change(vit):
    model, given = vit(6).eval(), []
    images = torch.randn(6, 3, 32, 32)
    model.blocks[0].norm1.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    model(images)
    mixwell.create("moex", 6)(model, images, LABELS).backward()
    plain, *_, changed = given  # binding tries a pass in between
    assert torch.equal(plain[:, 0], changed[:, 0])
    assert ((plain - changed)[:, 1:].abs().amax((1, 2)) > 0).float().mean() > 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("resnet10t", num_classes=6),
        lambda: torchvision.models.resnet18(num_classes=6),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=6),
    ],
    ids=["timm", "torchvision", "stages found by a pass"],
)
def test_stems_of_library_networks(make):
    model, images = make(), torch.randn(4, 3, 64, 64)
    loss = mixwell.create("moex", 6)(model, images, torch.arange(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
