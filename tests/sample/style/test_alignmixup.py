"""AlignMixup's directions, what pooling leaves of them, and the traps of the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from scipy import stats
from torch import nn

import mixwell
from mixwell.core.places import ByPlaceDraws
from mixwell.core.rng import Streams
from mixwell.sample.style.alignmixup import Aligned, alignment, moved

LABELS = torch.arange(5)
PERM = np.array([2, 0, 1, 4, 3])
LAM = np.array([0.1, 0.8, 0.5, 0.3, 0.9])
BOTH = pytest.mark.parametrize("own_moves", [False, True], ids=["partner moves", "own moves"])


def maps(scale=1.0, channels=6, size=(4, 3)):
    return scale * torch.randn(5, channels, *size)


def mix_of(x, own_moves, lam=LAM, **options):
    """Row i is mixed with row PERM[i]; labels are the row numbers."""
    partners = mixwell.Partners.at(torch.from_numpy(PERM)[:, None], LABELS)
    scene = mixwell.Scene(mixwell.Batch(x, LABELS), site="hidden")
    return Aligned(**options).mix(x, partners, torch.from_numpy(lam), own_moves, scene)


def mean_of_pair(own, other, lam=LAM):
    weight = torch.from_numpy(lam).to(own.dtype).view(-1, 1, 1, 1)
    return weight * own + (1 - weight) * other


def in_hull(x, *sources):
    """Whether every feature lies between the least and the greatest of its channel in the sources."""
    points = torch.cat([source.flatten(2) for source in sources], 2)
    low, high = points.amin(2)[:, :, None, None], points.amax(2)[:, :, None, None]
    return bool(((x >= low - 1e-4) & (x <= high + 1e-4)).all())


@BOTH
def test_what_moves_takes_the_features_that_the_plan_says(own_moves):
    x = maps()
    weights = alignment(x, x[PERM]).double()
    mix = mix_of(x.double(), own_moves)
    flat = x.double().flatten(2)
    if own_moves:
        own, other = torch.einsum("bij,bci->bcj", weights, flat), flat[PERM]
    else:
        own, other = flat, torch.einsum("bij,bcj->bci", weights, flat[PERM])
    expected = mean_of_pair(own.view(x.shape), other.view(x.shape))
    torch.testing.assert_close(mix.images, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mix.weights[:, 0].double(), torch.from_numpy(LAM))


@BOTH
def test_one_end_of_lambda_is_unmoved(own_moves):
    x = maps(10.0)
    mix = mix_of(x, own_moves, np.full(5, 0.0 if own_moves else 1.0))
    assert torch.equal(mix.images, x[PERM] if own_moves else x)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_moved_partners_leave_the_pooled_mix_that_of_manifold_mixup(scale):
    x = maps(scale)
    pooled = mix_of(x, False).images.mean((2, 3))
    torch.testing.assert_close(pooled, mean_of_pair(x, x[PERM]).mean((2, 3)), rtol=1e-3, atol=1e-4 * scale)


def test_the_authors_head_cannot_tell_the_last_stage_from_manifold_mixup(cnn):
    model, images = cnn(5).eval(), torch.randn(5, 3, 32, 32)
    given = {"place": 0, "pairing": PERM, "ratio": LAM}

    def logits(text, **draws):
        (option,) = (recipe := mixwell.create(text, 5)).options
        drawn = mixwell.Draws({getattr(option, slot): value for slot, value in {**given, **draws}.items()})
        (turn,) = recipe.turns(model, images, LABELS, draws=drawn)
        return turn.logits

    for site, equal in ((-1, True), (-2, False)):
        ours = logits(f"alignmixup(sites=({site},))", blend=ByPlaceDraws(None, False))
        plain = logits(f"manifold_mixup(sites=({site},))")
        assert torch.allclose(ours, plain, atol=1e-5) == equal


def test_moved_images_differ_by_the_looseness_of_the_stop_alone():
    x = maps()
    plain = mean_of_pair(x, x[PERM]).mean((2, 3))
    loose = mix_of(x, True, eps=1.0, threshold=1.0).images.mean((2, 3))
    tight = mix_of(x, True, eps=1.0, threshold=0.0, iterations=500).images.mean((2, 3))
    torch.testing.assert_close(tight, plain, rtol=1e-4, atol=1e-4)
    assert (loose - plain).abs().max() > 1e-3


def test_rows_of_the_code_do_not_sum_to_1():
    x = maps()
    code, normalised = alignment(x, x[PERM]), alignment(x, x[PERM], normalise_rows=True)
    torch.testing.assert_close(code.sum(1), torch.ones(5, 12), rtol=1e-3, atol=0)
    assert (code.sum(2) - 1).abs().max() > 0.05
    torch.testing.assert_close(normalised.sum(2), torch.ones(5, 12))


def test_which_mixes_are_convex_combinations():
    x = maps() + 2
    assert not in_hull(mix_of(x, False, np.zeros(5)).images, x, x[PERM])
    assert in_hull(mix_of(x, False, normalise_rows=True).images, x, x[PERM])
    assert in_hull(mix_of(x, True).images, x, x[PERM])
    assert torch.equal(mix_of(x, True).images, mix_of(x, True, normalise_rows=True).images)


def test_the_order_of_the_partners_positions_does_not_matter():
    x, order = maps(), torch.randperm(12)
    shuffled = x[PERM].flatten(2)[:, :, order].view(x.shape)
    weights = alignment(x, x[PERM]), alignment(x, shuffled)
    torch.testing.assert_close(weights[1], weights[0][:, :, order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved(shuffled, weights[1]), moved(x[PERM], weights[0]), rtol=1e-3, atol=1e-4)


def test_shuffled_positions_are_found_again():
    x, order = maps(20.0, channels=32), torch.randperm(12)
    shuffled = x.flatten(2)[:, :, order].view(x.shape)
    torch.testing.assert_close(moved(shuffled, alignment(x, shuffled)), x, rtol=1e-3, atol=1e-3)


@BOTH
def test_no_gradient_passes_the_plan(own_moves):
    x = maps().requires_grad_()
    cotangent = torch.randn_like(x)
    mix = mix_of(x, own_moves)
    (ours,) = torch.autograd.grad(mix.images, x, cotangent)
    (fixed,) = torch.autograd.grad(mix.apply(x), x, cotangent)  # by the plan that is already there
    torch.testing.assert_close(ours, fixed)
    weight = torch.from_numpy(LAM).float().view(-1, 1, 1, 1)
    weights = alignment(x, x[PERM])
    if not own_moves:
        expected = weight * cotangent
        expected = expected.index_add(0, torch.from_numpy(PERM), moved((1 - weight) * cotangent, weights.mT))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@BOTH
def test_other_tensors_move_alike_on_the_same_grid_only(own_moves):
    x, same, other = maps(), maps(channels=2), maps(channels=2, size=(8, 6))
    mix, weights = mix_of(x, own_moves), alignment(x, x[PERM])
    pair = (moved(same, weights.mT), same[PERM]) if own_moves else (same, moved(same[PERM], weights))
    torch.testing.assert_close(mix.apply(same), mean_of_pair(*pair))
    torch.testing.assert_close(mix.apply(other), mean_of_pair(other, other[PERM]))


def test_one_position_is_manifold_mixup():
    x = maps(size=(1, 1))
    for own_moves in (False, True):
        torch.testing.assert_close(mix_of(x, own_moves).images, mean_of_pair(x, x[PERM]))


def test_the_coin_is_fair_and_the_sites_are_the_input_and_the_last_stage():
    recipe = mixwell.create("alignmixup", 5)
    drawn = [recipe.options[0].draw(2, Streams(0), step).of for step in range(2000)]
    option = recipe.options[0]
    coins = [draws[option.blend].hidden for draws in drawn]
    assert stats.binomtest(sum(coins), len(coins)).pvalue > 1e-4
    assert option.place.sites == (0, -1)
    lam = np.concatenate([draws[option.ratio] for draws in drawn])
    assert stats.kstest(lam, stats.beta(2, 2).cdf).pvalue > 1e-4


@BOTH
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_precisions_and_layouts(dtype, layout, own_moves):
    x = maps().to(dtype).contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        mix = mix_of(x, own_moves)
    assert mix.images.dtype == dtype
    assert mix.images.is_contiguous(memory_format=layout)
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float64: 1e-3}[dtype]
    torch.testing.assert_close(mix.images.float(), mix_of(x.float(), own_moves).images, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["cnn", "vit", "torchvision"])
def test_a_training_step(kind, cnn, vit):
    model = {"cnn": cnn, "vit": vit, "torchvision": lambda classes: torchvision.models.resnet18(num_classes=classes)}[
        kind
    ](7)
    images = torch.randn(5, 3, 32, 32)
    recipe = mixwell.create("alignmixup(sites=(-1,))", 7).bind(model, images)
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            loss = recipe(model, images, LABELS)
        loss.backward()
        assert torch.isfinite(loss)
    gradients = nn.utils.parameters_to_vector([parameter.grad for parameter in model.parameters()])
    assert torch.isfinite(gradients).all()


@pytest.mark.parametrize("wrong", ["eps=0", "iterations=0", "threshold=-1", "sites=()"])
def test_wrong_parameters(wrong):
    with pytest.raises(mixwell.ParameterError, match=wrong.partition("=")[0]):
        mixwell.create(f"alignmixup({wrong})", 7)
