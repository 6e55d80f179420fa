"""SMMix's squares, and what it adds to the loss."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mixwell
from mixwell.core.rng import Streams
from mixwell.core.targets import summed
from mixwell.sample.attention.smmix import (
    AttentionRegion,
    divergence,
    peak_windows,
    regional_means,
    regional_targets,
    sides_of,
)

PERM = np.array([3, 0, 5, 1, 2, 4])
ALWAYS = "smmix(switch_prob=1)"
ATTENTION = mixwell.Want("patch_attention", -1)


def views_of(net, images, want=ATTENTION):
    batch = mixwell.Batch(images, torch.arange(len(images)))
    return mixwell.Views(mixwell.Probe(net, images), batch, [want])


def mix_of(text, net, images, **draws):
    (option,) = mixwell.create(text, 7).bind(net, images).options
    given = {**option.draw(len(images), Streams(0), 0).of, **{getattr(option, slot): d for slot, d in draws.items()}}
    batch = mixwell.Batch(images, torch.arange(len(images)))
    views = mixwell.Views(mixwell.Probe(net, images), batch, option.view_wants)
    return option.mix(images, mixwell.Scene(batch, mixwell.Draws(given), views))


def partners_of(index, rows=6):
    return mixwell.Partners.at(torch.as_tensor(index)[:, None], torch.arange(rows))


# Windows


def test_least_and_most_attended_by_hand():
    maps = torch.ones(2, 3, 4)
    maps[0, 2, 3], maps[0, 0, 0] = 5, -3
    maps[1, 1, 2] = 2
    assert peak_windows(maps, torch.tensor([2, 1])).tolist() == [[1, 2], [1, 2]]
    assert peak_windows(-maps, torch.tensor([2, 1])).tolist() == [[0, 0], [0, 0]]
    assert peak_windows(maps, torch.tensor([2])).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.3e-5, 0.0])
def test_of_equal_windows_the_first_counts(value):
    """Also where the value has no finite binary form, and sums of it in another order differ in fp32."""
    maps = torch.full((5, 14, 11), value)
    for side in range(1, 12):
        assert (peak_windows(maps, torch.tensor([side])) == 0).all()
        assert (peak_windows(-maps, torch.tensor([side])) == 0).all()


@pytest.mark.parametrize(("grid", "low", "high"), [((14, 14), 3, 10), ((8, 8), 2, 6), ((4, 6), 1, 3), ((3, 9), 1, 2)])
def test_sides_are_uniform(grid, low, high):
    sides = sides_of(np.random.default_rng(0).random(8000), (0.25, 0.75), grid)
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    assert stats.chisquare(counts).pvalue > 1e-4


def test_sides_of_the_smallest_maps():
    points = np.array([0.0, 0.5, 0.999])
    assert sides_of(points, (0.25, 0.75), (1, 6)).tolist() == [1, 1, 1]
    assert sides_of(points, (0.25, 0.75), (2, 2)).tolist() == [1, 1, 1]


# Mixes


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_the_most_attended_square_covers_the_least_attended(per, size, vit):
    """One image at a time, from the attention that the network pays to the clean images."""
    net, images, grid = vit(size=size), torch.randn(6, 3, *size), (size[0] // 8, size[1] // 8)
    mix = mix_of(f"smmix(switch_prob=1, per={per})", net, images, pairing=PERM)
    attention = views_of(net, images)[ATTENTION].double().unflatten(1, grid)
    expected, sides = images.clone(), []
    for row, partner in enumerate(PERM):
        side = round((mix.weights[row, 1].item() * grid[0] * grid[1]) ** 0.5)
        sides.append(side)
        corners = [(i, j) for i in range(grid[0] - side + 1) for j in range(grid[1] - side + 1)]

        def total(of, corner, side=side):
            return attention[of, corner[0] : corner[0] + side, corner[1] : corner[1] + side].sum()

        least = min(corners, key=lambda corner, row=row: total(row, corner))
        most = max(corners, key=lambda corner, partner=partner: total(partner, corner))
        into, out_of = ((slice(8 * i, 8 * (i + side)), slice(8 * j, 8 * (j + side))) for i, j in (least, most))
        expected[row][:, *into] = images[partner][:, *out_of]
    assert torch.equal(mix.images, expected)
    assert mix.sources[:, 1].tolist() == PERM.tolist()
    assert (len(set(sides)) == 1) == (per == "batch" or max(sides) == 1)


def test_one_side_per_batch_and_one_per_sample(vit):
    images = torch.randn(24, 3, 64, 64)
    net = vit(size=64)
    each = mix_of(ALWAYS, net, images, blend=np.linspace(0, 1, 24, endpoint=False))
    assert sorted(set((each.weights[:, 1] * 64).round().int().tolist())) == [4, 9, 16, 25, 36]
    assert len(mix_of("smmix(switch_prob=1, per=batch)", net, images).weights.unique(dim=0)) == 1


def test_masks_origins_and_area_say_what_is_shown(vit):
    images = torch.randn(6, 3, 24, 40)
    mix = mix_of(ALWAYS, vit(size=(24, 40)), images, pairing=PERM)
    own, theirs = mix.masks.unbind(1)
    shown, taken = mix.origins.unbind(1)
    assert torch.equal(own + theirs, torch.ones_like(own))
    assert torch.equal(own, shown)
    torch.testing.assert_close(own.mean((1, 2)), mix.weights[:, 0])
    torch.testing.assert_close(taken.mean((1, 2)), mix.weights[:, 1])
    assert torch.equal(torch.where(own[:, None] == 1, mix.images, 0), torch.where(own[:, None] == 1, images, 0))
    for row, partner in enumerate(PERM):
        pasted, given = mix.images[row][:, theirs[row] == 1], images[partner][:, taken[row] == 1]
        assert torch.equal(pasted, given)


def test_other_resolutions_are_mixed_alike(vit):
    """Token maps, and what they look like enlarged."""
    mix = mix_of(ALWAYS, vit(size=(24, 40)), torch.randn(6, 3, 24, 40))
    tokens = torch.randn(6, 2, 3, 5)
    large = F.interpolate(tokens, (24, 40))
    assert torch.equal(F.interpolate(mix.apply(tokens), (24, 40)), mix.apply(large))


def test_the_class_tokens_attention_is_another_choice(vit):
    """OpenMixup's version; here for one map of 8 × 8 tokens."""
    images, net = torch.randn(6, 3, 64, 64), vit(size=64)
    mix = mix_of("smmix(switch_prob=1, saliency=attention)", net, images, blend=np.full(6, 0.5))
    want = mixwell.Want("class_attention", -1)
    least = peak_windows(-views_of(net, images, want)[want].unflatten(1, (8, 8)), torch.tensor([4]))
    corner = mix.masks[:, 1].flatten(1).argmax(1)
    assert torch.equal(8 * least, torch.stack((corner // 64, corner % 64), 1))
    other = peak_windows(-views_of(net, images)[ATTENTION].unflatten(1, (8, 8)), torch.tensor([4]))
    assert not torch.equal(least, other)


# What is added to the loss


def test_means_of_regions():
    features, masks = torch.randn(4, 5, 6, 3), (torch.rand(4, 1, 6, 3) > 0.4).float()
    masks = torch.cat((masks, 1 - masks), 1)
    means = regional_means(features, F.interpolate(masks, (24, 12)))
    for row, k in np.ndindex(4, 2):
        torch.testing.assert_close(means[row, k], features[row][:, masks[row, k] == 1].mean(1))


def test_half_a_place_counts_half():
    features = torch.tensor([[[[2.0, 8.0]]]])
    masks = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]]])
    torch.testing.assert_close(regional_means(features, masks)[0, :, 0], torch.tensor([2.0, 6.0]))


def test_means_of_half_precision_do_not_overflow():
    features = torch.full((1, 2, 16, 16), 3000.0, dtype=torch.float16)
    assert (regional_means(features, torch.ones(1, 1, 16, 16)) == 3000).all()


def test_regions_are_labelled_by_what_they_show(vit):
    mix = mix_of(ALWAYS, vit(), torch.randn(6, 3, 32, 32), pairing=PERM)
    rows = regional_targets(mix).dense(6)
    expected = torch.stack((torch.arange(6), torch.from_numpy(PERM)), 1).flatten()
    assert torch.equal(rows, torch.eye(6)[expected])


def test_a_region_that_shows_nothing_has_no_label_and_no_features(vit):
    mix = mix_of(ALWAYS, vit(), torch.randn(6, 3, 32, 32))
    mix.masks[2, 1], mix.masks[2, 0] = 0, 1
    assert regional_targets(mix).total.tolist() == [1, 1, 1, 1, 1, 0, *[1] * 6]
    assert (regional_means(torch.ones(6, 2, 4, 4), mix.masks)[2, 1] == 0).all()


def test_the_terms_by_hand(vit):
    """½ of both regions' cross-entropy, and the divergence from mixed logits, with label smoothing."""
    net, images, labels = vit().eval(), torch.randn(6, 3, 32, 32), torch.arange(6)
    recipe = mixwell.create(ALWAYS, 7, label_smoothing=0.1, seed=3).bind(net, images)
    (turn,) = recipe.turns(net, images, labels)
    mix = mix_of(ALWAYS, net, images, pairing=turn.targets.sources[:, 1].numpy())
    option = recipe.options[0]
    draws = option.draw(6, Streams(3), 0)
    batch = mixwell.Batch(images, labels)
    mix = option.mix(images, mixwell.Scene(batch, draws, views_of(net, images)))
    tokens = net.forward_features(mix.images)[:, 1:]
    inside = F.avg_pool2d(mix.masks[:, 1:], 8).flatten(1)[:, :, None]
    pooled = (tokens * (1 - inside)).sum(1) / (1 - inside).sum(1), (tokens * inside).sum(1) / inside.sum(1)
    head = option.terms[0].head
    fine = [
        F.cross_entropy(head(region), labels[mix.sources[:, k]], label_smoothing=0.1) for k, region in enumerate(pooled)
    ]
    torch.testing.assert_close(turn.parts["smmix/RegionalLoss"], (fine[0] + fine[1]) / 2)

    clean, share = net(images), mix.weights[:, :1]
    p = (share * clean + (1 - share) * clean[mix.sources[:, 1]]).softmax(1)
    q = net(mix.images).softmax(1)
    torch.testing.assert_close(turn.parts["smmix/Consistency"], (p * (p / q).log()).sum(1).mean())
    mixed_p = share * clean.softmax(1) + (1 - share) * clean.softmax(1)[mix.sources[:, 1]]
    assert not torch.allclose(turn.parts["smmix/Consistency"], (mixed_p * (mixed_p / q).log()).sum(1).mean())
    torch.testing.assert_close(turn.loss, sum(turn.parts.values()))


@pytest.mark.parametrize("saliency", ["cam", "spectral"])
def test_clean_logits_are_of_the_network_before_the_step(saliency, cnn):
    """Also where nothing else is seen of the clean batch: the pass over the mix moves BatchNorm's statistics."""
    net, images = cnn().train(), 3 * torch.randn(6, 3, 32, 32) + 1
    with torch.no_grad():
        clean = copy.deepcopy(net).eval()(images)
    recipe = mixwell.create(f"smmix(switch_prob=1, saliency={saliency})", 7, seed=1).bind(net, images)
    (turn,) = recipe.turns(net, images, torch.arange(6))
    mixed = summed(clean, turn.targets.sources, turn.targets.weights)
    torch.testing.assert_close(turn.parts["smmix/Consistency"], divergence(turn.logits, mixed))


def test_weights_of_the_terms(vit):
    net, images = vit().eval(), torch.randn(6, 3, 32, 32)

    def parts(text):
        (turn,) = (
            mixwell.create(f"smmix(switch_prob=1, {text})", 7).bind(net, images).turns(net, images, torch.arange(6))
        )
        return turn.parts

    one, other = parts("fine_weight=1"), parts("fine_weight=3, consistency_weight=0.5")
    torch.testing.assert_close(other["smmix/RegionalLoss"], 3 * one["smmix/RegionalLoss"])
    torch.testing.assert_close(other["smmix/Consistency"], 0.5 * one["smmix/Consistency"])


def test_no_divergence_from_itself():
    logits = torch.randn(5, 7)
    assert divergence(logits, logits + 3).abs() < 1e-6
    assert divergence(logits.half() * 1000, logits.half() * 999).isfinite()


def test_mixup_batches_have_the_label_alone(vit):
    net, images = vit(), torch.randn(6, 3, 32, 32)
    recipe = mixwell.create("smmix(switch_prob=0.0, mixup_alpha=0.3)", 7).bind(net, images)
    assert [type(option.blend).__name__ for option in recipe.options] == ["AttentionRegion", "Linear"]
    (turn,) = recipe.turns(net, images, torch.arange(6))
    assert set(turn.parts) == {"criterion"}
    assert recipe.options[1].ratio.alpha == 0.3


def test_one_look_at_the_clean_batch_in_evaluation_mode(vit):
    net, images = vit(drop_rate=0.3).train(), torch.randn(6, 3, 32, 32)
    recipe = mixwell.create(ALWAYS, 7).bind(net, images)
    modes = []
    handle = net.register_forward_hook(lambda module, *_: modes.append(module.training))
    recipe(net, images, torch.arange(6))
    handle.remove()
    assert modes == [False, True]


# Networks and recipes


@pytest.mark.parametrize("saliency", ["cam", "gradient", "activation", "spectral"])
def test_other_saliencies_train_convolutional_networks(saliency, cnn):
    net, images, labels = cnn(), torch.randn(6, 3, 32, 32), torch.arange(6)
    recipe = mixwell.create(f"smmix(switch_prob=1, saliency={saliency})", 7).bind(net, images)
    head = recipe.options[0].terms[0].head
    optimiser, before = torch.optim.SGD(recipe.parameter_groups(net), lr=0.1), head.weight.clone()
    for _ in range(3):
        optimiser.zero_grad()
        loss = recipe(net, images, labels)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
        optimiser.step()
    assert not torch.allclose(head.weight, before)


@pytest.mark.parametrize(
    "text",
    [
        f"{ALWAYS} + transmix",
        f"{ALWAYS} + decouplemix",
        f"{ALWAYS} + snapmix(saliency=attention)",
        f"k_mixup(k=4) + {ALWAYS}",
        f"manifold_mixup(sites=(1, 2)) + {ALWAYS}",
        f"manifold_mixup(sites=('embedding',)) + {ALWAYS}",
    ],
)
def test_it_acts_with_others(text, vit):
    net, images = vit(), torch.randn(6, 3, 32, 32)
    recipe = mixwell.create(text, 7, pixels=mixwell.Pixels((0.5,), (0.25,))).bind(net, images)
    for _ in range(3):
        (turn,) = recipe.turns(net, images, torch.arange(6))
        turn.loss.backward()
        assert torch.isfinite(turn.loss)
        assert "smmix/RegionalLoss" in turn.parts


def test_what_cannot_act_is_refused(cnn):
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"smmix: .* has no self-attention"):
        mixwell.create("smmix", 7).bind(cnn(), images)
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the blend"):
        mixwell.create("smmix + cutmix", 7)


def test_a_single_place_is_refused(vit):
    net, images = vit(patch_size=32), torch.randn(4, 3, 32, 32)
    recipe = mixwell.create(ALWAYS, 7).bind(net, images)
    with pytest.raises(mixwell.ModelError, match=r"a single place.*larger images, smaller patches"):
        recipe(net, images, torch.arange(4))


@pytest.mark.parametrize("scale", [(0.25,), (0.5, 1.0), (0.75, 0.25), (-0.1, 0.5)], ids=str)
def test_wrong_scales(scale):
    with pytest.raises(mixwell.ParameterError):
        AttentionRegion(scale=scale)
