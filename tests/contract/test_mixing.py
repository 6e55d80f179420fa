"""Rules that every sample policy keeps, whatever network comes after it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.axes import Need
from mixwell.core.plain import Beta, Permutation
from mixwell.label.attention.tl_align import PatchBox
from mixwell.label.saliency.saliency_grafting import Grafted
from mixwell.label.saliency.snapmix import TwoBoxes
from mixwell.sample.attention.scoremix import AttentionBox
from mixwell.sample.cutting.cutmix import Box
from mixwell.sample.saliency.comixup import Comix
from mixwell.sample.saliency.saliencymix import PeakBox
from mixwell.sample.style.alignmixup import Aligned

SIZES = [(32, 32), (24, 40), (9, 5)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = list(itertools.product([1, 2, 7], SIZES, [1, 3, 4], DTYPES, LAYOUTS, ["sample", "batch"]))

ONE_PIXEL = 1 / (24 * 40) + 1e-5
"""A method may label with the λ that its masks round to whole pixels."""

WHOLE = {
    (Box, 0): np.full((7, 2), 0.5),
    (PatchBox, 0): np.full((7, 2), 0.5),
    (TwoBoxes, 0): np.tile([0.0, 0.5, 0.5, 0.5, 0.5], (7, 1)),
    (Aligned, 0): True,
    (Aligned, 1): False,
}
"""Draws under which λ = 0 shows nothing but the partner, and λ = 1 the image, for blends that have such."""


def pictures(rows, channels=3, size=(24, 40), dtype=torch.float32):
    return torch.randn(rows, channels, *size).to(dtype)


def row_numbers(rows, size):
    return torch.arange(rows, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, *size).contiguous()


def whole(policy, lam):
    """Draws of λ = 0 or 1 under which nothing of the other image shows."""
    found = [draw for (kind, at), draw in WHOLE.items() if at == lam and isinstance(policy.blend, kind)]
    return {policy.ratio: np.full(7, float(lam))} | ({policy.blend: found[0]} if found else {})


def describe(case):
    rows, size, channels, dtype, layout, per = case
    return f"{rows}x{channels}x{size[0]}x{size[1]}-{dtype}-{layout}-{per}".replace("torch.", "")


@pytest.mark.matrix(keep=60)
@pytest.mark.parametrize("case", SHAPES, ids=describe)
def test_any_shape_dtype_and_layout(act, slug, which, case):
    rows, size, channels, dtype, layout, per = case
    policy = act(slug, which, per=per)
    blend = policy.blend
    if policy.looks and dtype != torch.float32:
        pytest.skip("the precision is the network's, see test_training")
    images = pictures(rows, channels, size, dtype).contiguous(memory_format=layout)
    labels = torch.arange(rows)
    before = images.clone(), labels.clone()
    mix = policy.mix(images, labels)

    assert torch.equal(images, before[0]), "the images were modified"
    assert torch.equal(labels, before[1]), "the labels were modified"
    if blend.aligned:
        assert mix.images.shape[1:] == images.shape[1:]
    assert mix.images.dtype == dtype
    assert mix.images.is_contiguous(memory_format=layout)
    assert torch.isfinite(mix.images).all()
    assert mix.images.untyped_storage().data_ptr() != images.untyped_storage().data_ptr(), "the mix shares memory"
    assert mix.weights.dtype == torch.float32
    assert mix.weights.shape == mix.sources.shape
    assert mix.sources.min() >= 0
    assert mix.sources.max() < len(mix.pool)
    assert torch.equal(mix.pool, labels)
    assert not mix.pool.is_floating_point()
    assert torch.equal(mix.apply(images), mix.images), "apply mixes otherwise than the images were mixed"
    if Need.SIMPLEX in blend.gives:
        assert (mix.weights >= 0).all()
        torch.testing.assert_close(mix.weights.sum(1), torch.ones(len(mix.weights)))
    if Need.OWN_ROW in blend.gives:
        assert torch.equal(mix.sources[:, 0], torch.arange(rows).repeat(len(mix.sources) // rows))


@pytest.mark.matrix(keep=12)
@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last_gives_the_same_mix(act, slug, which, channels, per):
    policy = act(slug, which, per=per)
    images = pictures(7, channels)

    def mixed(images):
        torch.manual_seed(0)  # networks that are looked through may drop units
        return policy.mix(images).images

    plain, other = mixed(images), mixed(images.contiguous(memory_format=torch.channels_last))
    if policy.looks:
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-3)
    elif isinstance(policy.blend, Aligned):  # sums over places, whose order follows the memory
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(other, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_low_and_high_precision_agree_with_fp32(act, slug, which, dtype):
    policy, images = act(slug, which), pictures(7)
    if policy.looks:
        pytest.skip("the precision is the network's, see test_training")
    images = images.to(dtype)
    mix, expected = policy.mix(images), policy.mix(images.float())
    exactly = 1e-6 if policy.blend.aligned else 1e-4  # pixels that are resampled have places in fp32
    tolerance = {torch.float64: exactly, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(mix.images.float(), expected.images, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mix.weights, expected.weights)


def test_lambda_1_is_the_own_image_and_label(act, slug, which):
    policy, images = act(slug, which), pictures(7)
    if not isinstance(policy.ratio, Beta) or not policy.blend.takes_lam or not policy.blend.exact:
        pytest.skip("λ is not drawn, or a network renders the mix")
    if isinstance(policy.blend, Grafted):
        pytest.skip("only salient places are grafted, whatever λ is")
    mix = policy.mix(images, draws=policy.with_draws(7, whole(policy, 1)))
    assert torch.equal(mix.images, images)
    assert torch.equal(mix.weights, torch.eye(mix.weights.shape[1])[0].expand_as(mix.weights))


def test_lambda_0_is_the_partner(act, slug, which):
    policy, images = act(slug, which), pictures(7)
    if not isinstance(policy.ratio, Beta) or not policy.blend.takes_lam or not policy.blend.shows_shares:
        pytest.skip("λ is not drawn, or the image decides where the partner shows")
    if isinstance(policy.blend, PeakBox | AttentionBox):
        pytest.skip("the box lies around the partner's peak, and is clipped, or is never the whole image")
    mix = policy.mix(images, draws=policy.with_draws(7, whole(policy, 0)))
    tolerance = 0 if policy.blend.aligned else 1e-4  # whole images are resampled too
    torch.testing.assert_close(mix.images, images[mix.sources[:, 1]], rtol=0, atol=tolerance)
    assert torch.equal(mix.weights, torch.tensor([[0.0, 1.0]]).expand(7, 2))


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_a_batch_paired_with_itself_stays_as_it_is(act, slug, which, per):
    policy, images = act(slug, which, per=per), pictures(7)
    pairing = policy.option.pairing
    if not isinstance(pairing, Permutation) or not policy.blend.aligned or not policy.blend.exact:
        pytest.skip("partners are not drawn, or the blend moves or renders pixels")
    itself = np.arange(7) if pairing.count == 1 else np.tile(np.arange(7), (pairing.count, 1))
    mix = policy.mix(images, draws=policy.with_draws(7, {pairing: itself}))
    own = mix.sources[:, 0]
    torch.testing.assert_close(mix.images, images[own], rtol=0, atol=0 if pairing.count == 1 else 1e-6)
    assert torch.equal(mix.sources, own[:, None].expand_as(mix.sources))
    assert len(own) != 7 or torch.equal(own, torch.arange(7))


def test_label_shares_are_what_is_shown(act, slug, which):
    """Read off the image itself: every image shows its own axis of a one-hot colour space."""
    policy = act(slug, which)
    if policy.remembers or policy.blend.by_channel or not policy.blend.shows_shares:
        pytest.skip("nothing is mixed yet, channels differ in what they show, or labels follow something else")
    if isinstance(policy.blend, Comix):
        pytest.skip("in images without contrast no block is worth showing beside others")
    images = torch.eye(7)[:, :, None, None].expand(7, 7, 24, 40).contiguous()
    mix = policy.mix(images)
    shown = mix.images.mean((2, 3))
    expected = torch.zeros(len(shown), 7).scatter_add_(1, mix.sources, mix.weights)
    torch.testing.assert_close(shown, expected, atol=ONE_PIXEL, rtol=0)
    assert ((shown > 0.01) & (shown < 0.99)).any(), "nothing was mixed, so the test saw nothing"


def test_permuting_batch_and_draws_permutes_the_mix(act, slug, which):
    policy, images = act(slug, which), pictures(7)
    draws = policy.draws(7)
    by_row = all(isinstance(drawn, np.ndarray) and drawn.shape[:1] == (7,) for drawn in draws.of.values())
    if policy.looks or not by_row or not isinstance(policy.option.pairing, Permutation):
        pytest.skip("what was drawn is not one array per row, or a network looks at the batch")
    order = np.random.permutation(7)  # noqa: NPY002
    place = np.argsort(order)
    moved = {
        piece: place[drawn[order]] if piece is policy.option.pairing else drawn[order]
        for piece, drawn in draws.of.items()
        if isinstance(drawn, np.ndarray) and len(drawn) == 7
    }
    mix = policy.mix(images, draws=draws)
    other = policy.mix(images[order], torch.from_numpy(order), mixwell.Draws({**draws.of, **moved}))
    if policy.blend.exact:
        assert torch.equal(other.images, mix.images[order])
    else:  # networks made it, whose sums may depend on where a row lies
        torch.testing.assert_close(other.images, mix.images[order], rtol=1e-4, atol=1e-4)
    assert torch.equal(other.weights, mix.weights[order])
    assert torch.equal(torch.from_numpy(order)[other.sources], mix.sources[order])


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_masks_times_sources_is_the_mix(act, slug, which, per):
    policy, images = act(slug, which, per=per), pictures(7)
    mix = policy.mix(images)
    if mix.masks is None:
        assert Need.MASKS not in policy.blend.gives
        pytest.skip("the blend has no masks")
    masks = mix.masks.expand(len(mix.images), -1, *mix.masks.shape[-2:])
    torch.testing.assert_close(masks.sum(1), torch.ones(masks.shape[0], *masks.shape[-2:]))
    masks = masks.expand(-1, -1, *mix.images.shape[2:])
    if policy.blend.aligned:
        torch.testing.assert_close(mix.images, torch.einsum("rkhw,rkchw->rchw", masks, images[mix.sources]))
    if Need.MASKS in policy.blend.gives and policy.blend.shows_shares:
        torch.testing.assert_close(masks.mean((2, 3)), mix.weights, atol=ONE_PIXEL, rtol=0)


def test_an_index_map_shows_which_row_is_where(act, slug, which):
    policy = act(slug, which)
    mix = policy.mix(pictures(7))
    shown = mix.apply(row_numbers(7, (24, 40)))[:, 0]
    rows, whole = mix.sources.float(), torch.ones_like(shown)
    if not policy.blend.exact:  # images may be moved, and beyond their borders is nothing
        whole = mix.apply(torch.ones(7, 1, 24, 40))[:, 0]
    if Need.MASKS in policy.blend.gives:
        masks = mix.masks.expand(len(shown), -1, *shown.shape[1:])
        torch.testing.assert_close(shown, whole * torch.einsum("rkhw,rk->rhw", masks, rows))
    low, high = rows.min(1).values[:, None, None] * whole, rows.max(1).values[:, None, None] * whole
    assert ((shown >= low - 1e-5) & (shown <= high + 1e-5)).all()


def test_apply_serves_other_resolutions(act, slug, which):
    policy = act(slug, which)
    mix = policy.mix(pictures(7, size=(32, 48)))
    small = mix.apply(row_numbers(7, (8, 12)))
    if policy.blend.aligned:
        assert small.shape == (len(mix.images), 1, 8, 12)
    shares = mix.share(torch.eye(7))
    torch.testing.assert_close(shares.sum(1), torch.ones(len(mix.images)))


def test_one_draw_per_batch_mixes_all_rows_alike(act, slug, which):
    policy = act(slug, which)
    each_its_own = "per" in mixwell.method_of(slug).parameters and (
        policy.blend.takes_lam or not policy.blend.by_channel
    )
    if policy.looks or policy.remembers or not each_its_own:
        pytest.skip("a network looks at each image, nothing is drawn per pair, or nothing is mixed yet")
    one, each = act(slug, which, per="batch").mix(pictures(7)), act(slug, which).mix(pictures(7))
    assert len(one.weights[:7].unique(dim=0)) == 1  # of each image's first mix, where it has several
    if Need.MASKS in policy.blend.gives and policy.blend.shows_shares:  # else what shows is each image's own
        assert len(one.masks.unique(dim=0)) == 1
        assert len(each.masks.unique(dim=0)) > 1
    else:
        assert len(each.weights.unique(dim=0)) > 1


@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 11), (7, 3, 4, 6, 5)], ids=["table", "signal", "video"])
def test_blends_without_a_grid_mix_any_shape(act, slug, which, shape):
    policy, x = act(slug, which), torch.randn(shape)
    if policy.looks or which.hidden:
        pytest.skip("the shape is the network's")
    if policy.blend.grid:
        with pytest.raises(mixwell.BatchError, match=r"expected images \(B, C, H, W\), got .*take a recipe such as"):
            policy.mix(x)
        return
    mix = policy.mix(x)
    weights = mix.weights[(..., *(None,) * (x.ndim - 1))]
    torch.testing.assert_close(mix.images, (x[mix.sources] * weights).sum(1))


@pytest.mark.parametrize("kind", ["ids", "int32", "rows"])
def test_labels_keep_their_kind(act, slug, which, kind):
    labels = {"ids": torch.arange(7), "int32": torch.arange(7, dtype=torch.int32), "rows": torch.rand(7, 7)}[kind]
    mix = act(slug, which).mix(pictures(7), labels)
    targets = replace(mix.targets(), num_classes=7)
    assert targets.pool.dtype == labels.dtype
    expected = labels if kind == "rows" else torch.eye(7)
    torch.testing.assert_close(targets.dense(), torch.einsum("rk,rkc->rc", mix.weights, expected[mix.sources]))


def test_the_mix_is_differentiable_in_its_images(act, slug, which):
    policy, images = act(slug, which), pictures(7).requires_grad_()
    if not policy.blend.exact:
        pytest.skip("no gradient passes the network that renders the mix")
    mix = policy.mix(images)
    (gradient,) = torch.autograd.grad(mix.images.sum(), images)
    torch.testing.assert_close(gradient.sum(), torch.tensor(float(mix.images.numel())), rtol=1e-5, atol=0)
