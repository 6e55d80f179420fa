"""MixPro's cells, and labels that follow the attention as far as the prediction is right."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from scipy import stats

import mixwell
from mixwell.conformance import GivenLogits
from mixwell.label.attention.mixpro import cells_along, kept_cells, patch_of, resemblance
from mixwell.ops.tokens import token_shares
from mixwell.probe import Anatomy

ROWS = 6
LABELS = torch.arange(ROWS)


def pictures(size=(32, 32), rows=ROWS):
    return torch.randn(rows, 3, *size)


def turn_of(text, net, images, **options):
    """The turn of a recipe that always mixes."""
    (turn,) = mixwell.create(text, 7, **options).bind(net, images).turns(net, images, LABELS)
    return turn


def mix_of(text, size=(32, 32), rows=ROWS, net=None, **draws):
    images, labels = pictures(size, rows), torch.arange(rows)
    recipe = mixwell.create(text, rows)
    if net is not None:
        recipe.bind(net, images)
    option = recipe.options[0]
    drawn = option.draw(rows, mixwell.core.rng.Streams(0), 0)
    drawn.of.update({getattr(option, slot): value for slot, value in draws.items()})
    return images, option.mix(images, mixwell.Scene(mixwell.Batch(images, labels), drawn))


# Cells


def test_cells_along_a_side():
    assert cells_along(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cells_along(10, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert cells_along(10, 4, patch=2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert cells_along(10, 4, patch=2, rule="code").tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert cells_along(3, 4).tolist() == [0, 1, 2]


def test_the_papers_cells_and_those_of_patches_of_16():
    """56 pixels of 224 are whole patches of 14, not of 16, of which a cell then has three or four."""
    for patch in (1, 14, 56):
        assert np.bincount(cells_along(224, 4, patch)).tolist() == [56] * 4
    assert np.bincount(cells_along(224, 4, 16)).tolist() == [64, 48, 64, 48]
    assert np.bincount(cells_along(224, 4, 16, "code")).tolist() == [64, 64, 64, 32]


@pytest.mark.parametrize("rule", ["paper", "code"])
@pytest.mark.parametrize("side", [5, 32, 33, 224])
@pytest.mark.parametrize("patch", [1, 4, 7, 16])
@pytest.mark.parametrize("count", [1, 3, 4, 14])
def test_no_patch_is_cut(side, patch, count, rule):
    cells = cells_along(side, count, patch, rule)
    assert (np.diff(cells) >= 0).all()
    assert cells.max() < count
    assert all(len(set(cells[start : start + patch])) == 1 for start in range(0, side, patch))


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("patch", [1, 4])
def test_cells_differ_by_one_patch_at_most(count, patch):
    sizes = np.bincount(cells_along(patch * 10, count, patch))
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= patch


@pytest.mark.parametrize(("lam", "count"), [(0.0, 0), (1e-9, 1), (0.5, 8), (0.51, 9), (15 / 16, 15), (1.0, 16)])
def test_the_image_keeps_the_first_cells_rounded_up(lam, count):
    order = np.random.default_rng(0).random((50, 4, 4))
    kept = kept_cells(order, np.array([lam]))
    assert (kept.sum((1, 2)) == count).all()
    if 0 < count < 16:
        assert all(each[cells].max() < each[~cells].min() for each, cells in zip(order, kept, strict=True))


def test_each_row_has_its_own_lambda_and_each_cell_is_kept_as_often():
    lam = np.tile([0.25, 0.75], 2000)
    kept = kept_cells(np.random.default_rng(1).random((4000, 4, 4)), lam)
    assert (kept.sum((1, 2)) == lam * 16).all()
    for share in (0.25, 0.75):
        for times in kept[lam == share].sum(0).flat:
            assert stats.binomtest(int(times), 2000, share).pvalue > 1e-5


def test_every_cell_shows_one_image_and_the_label_counts_them():
    images, mix = mix_of("mixpro(pal=false)")
    own = (mix.images == images).all(1)
    other = (mix.images == images[mix.sources[:, 1]]).all(1)
    assert (own | other).all()
    moved = mix.sources[:, 0] != mix.sources[:, 1]
    cells = own.unflatten(2, (4, 8)).unflatten(1, (4, 8))
    assert (cells == cells[:, :, :1, :, :1]).all()
    torch.testing.assert_close(mix.weights[moved, 0], own.float().mean((1, 2))[moved])
    torch.testing.assert_close(mix.weights * 16, (mix.weights * 16).round())


def test_unequal_cells_are_counted_in_pixels_and_by_the_code_in_cells():
    order = np.arange(16.0).reshape(1, 4, 4)  # 4 cells: the first row of cells
    same = {"ratio": np.array([0.25]), "blend": order}
    _, paper = mix_of("mixpro(pal=false, patch=4, per=batch)", (40, 40), **same)
    _, code = mix_of("mixpro(pal=false, patch=4, per=batch, rule=code)", (40, 40), **same)
    assert paper.masks[0, 0].sum() == 12 * 40  # 3 of 10 patches
    assert code.masks[0, 0].sum() == 12 * 40
    torch.testing.assert_close(paper.weights[:, 0], torch.full((ROWS,), 0.3))
    torch.testing.assert_close(code.weights[:, 0], torch.full((ROWS,), 0.25))
    assert code.area.tolist() == [0.3]


def test_the_code_has_one_lambda_per_batch_and_cells_for_each_image():
    _, mix = mix_of("mixpro(pal=false, per=batch, masks=sample)", ratio=np.array([0.5]))
    assert len(mix.weights.unique(dim=0)) == 1
    assert len(mix.masks.unique(dim=0)) == ROWS


# Patches of the network


def test_the_networks_patches_are_found(vit, cnn):
    assert patch_of(Anatomy(vit(size=(24, 40)), pictures((24, 40)))) == (8, 8)
    assert patch_of(Anatomy(cnn())) == (1, 1)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=24, depths=(1, 1))
    assert patch_of(Anatomy(swin, pictures((64, 64)))) == (4, 4)


def test_cells_keep_the_networks_patches_whole_unless_others_are_given(vit):
    """Ten patches of 4 along a side: cells of 10 pixels would cut them."""
    net = vit(ROWS, size=40, patch_size=4)
    for text, patch in (("mixpro", 4), ("mixpro(patch=10)", 10), ("mixpro(pal=false)", 4)):
        _, mix = mix_of(text, (40, 40), net=net)
        mask = mix.masks[:, 0].unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
        assert (mask == mask[:, :, :1, :, :1]).all()
        assert len(mask[:, :, 0, 0, 0].unique(dim=0)) > 1


def test_an_unbound_recipe_knows_no_patches_and_a_bound_one_needs_images(vit):
    _, mix = mix_of("mixpro(pal=false)", (40, 40))
    torch.testing.assert_close(mix.weights * 16, (mix.weights * 16).round())
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"MaskMix is built for .*Call recipe.bind\(model, example="):
        mixwell.create("mixpro", 7).bind(vit())
    mixwell.create("mixpro(patch=8)", 7).bind(vit())


def test_hidden_maps_have_the_cells_of_the_image(vit):
    """Token maps of 10 × 10 places are mixed as the patches are."""
    _, mix = mix_of("mixpro", (40, 40), net=vit(ROWS, size=40, patch_size=4))
    places = torch.arange(ROWS * 100.0).view(ROWS, 1, 10, 10)
    pixels = places.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(mix.apply(places), mix.apply(pixels)[:, :, ::4, ::4])


# Labels


def test_alpha_is_1_for_the_label_itself_and_in_between_else():
    labels = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, np.log(3.0), -50.0], [-50.0, 0.0, -50.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(resemblance(logits, labels), torch.tensor([1.0, 0.0, 3**-0.5]), atol=1e-6, rtol=1e-6)


def test_labels_by_hand(vit):
    net, images = vit().eval(), pictures()
    (turn,) = mixwell.create("gridmix + mixpro", 7, seed=5).bind(net, images).turns(net, images, LABELS)
    (area,) = mixwell.create("gridmix", 7, seed=5).bind(net, images).turns(net, images, LABELS)
    assert torch.equal(turn.targets.sources, area.targets.sources)
    option = mixwell.create("gridmix", 7, seed=5).options[0]
    mix = option.mix(
        images, mixwell.Scene(mixwell.Batch(images, LABELS), option.draw(ROWS, mixwell.core.rng.Streams(5), 0))
    )
    want = mixwell.Want("class_attention", -1)
    with torch.no_grad():
        outputs = mixwell.Probe(net).run(mix.images, wants=[want])
    shares = token_shares(mix.masks, outputs[want])[:, 0]
    for row in range(ROWS):
        label = area.targets.dense()[row] * 0.9 + 0.1 / 7
        prediction = outputs.logits[row].softmax(0)
        alpha = label @ prediction / (label.norm() * prediction.norm())
        expected = alpha * shares[row] + (1 - alpha) * mix.weights[row, 0]
        torch.testing.assert_close(turn.targets.weights[row, 0], expected, rtol=1e-4, atol=1e-5)


HOSTS = ["resizemix", "fmix", "cutmix", "saliencymix(saliency=gradient)", "ricap", "mixpro(prob=1)"]


@pytest.mark.parametrize("host", HOSTS)
def test_it_labels_any_mix_with_masks(vit, host):
    text = host if host.startswith("mixpro") else f"{host} + mixpro"
    turn = turn_of(text, vit(), pictures())
    weights = turn.targets.weights
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(ROWS))
    assert not weights.requires_grad
    turn.loss.backward()
    assert torch.isfinite(turn.loss)


def test_beside_another_mix_nothing_is_switched():
    (option,) = mixwell.create("cutmix + mixpro").options
    assert [type(piece).__name__ for piece in (option.blend, option.label)] == ["Box", "ProgressiveAttention"]
    assert mixwell.create("cutmix + mixpro(prob=0.4)").weights == pytest.approx([0.4, 0.3, 0.3])


def test_the_three_mixes_of_the_paper():
    recipe = mixwell.create("mixpro(mixup_alpha=0.3, cutmix_alpha=0.6, per=batch)")
    assert recipe.weights == [0.5, 0.25, 0.25]
    names = [(type(option.blend).__name__, type(option.label).__name__) for option in recipe.options]
    assert names == [("MaskMix", "ProgressiveAttention"), ("Linear", "Shares"), ("Box", "Shares")]
    assert [(option.ratio.alpha, option.ratio.per) for option in recipe.options] == [
        (1.0, "batch"),
        (0.3, "batch"),
        (0.6, "batch"),
    ]


def test_shares_lie_between_area_and_attention_and_smoothing_is_part_of_alpha(vit):
    net, images = vit().eval(), pictures()
    given = {"seed": 2}
    area = turn_of("mixpro(pal=false, prob=1)", net, images, **given).targets
    sharp, smooth = (
        turn_of(f"mixpro(prob=1, smoothing={epsilon})", net, images, **given).targets.weights[:, 0]
        for epsilon in (0.0, 0.9)
    )
    assert not torch.equal(sharp, area.weights[:, 0])
    # A network that knows nothing predicts all classes alike, and so resembles smoothed labels more.
    assert ((smooth - area.weights[:, 0]).abs() >= (sharp - area.weights[:, 0]).abs()).all()


def test_the_codes_gradient_passes_through_alpha(vit):
    """Equal losses and labels, other gradients."""
    net, images = vit().eval(), pictures()
    found = {}
    for detach in (True, False):
        turn = turn_of(f"mixpro(prob=1, detach={detach})", net, images, seed=3)
        net.zero_grad()
        turn.loss.backward()
        found[detach] = turn.loss.detach(), turn.targets.weights, net.head.weight.grad.clone()
    torch.testing.assert_close(found[True][0], found[False][0])
    torch.testing.assert_close(found[True][1], found[False][1].detach())
    assert not found[True][1].requires_grad
    assert found[False][1].requires_grad
    assert not torch.allclose(found[True][2], found[False][2], rtol=1e-3)


def test_label_rows_are_labels_too(vit):
    net, images = vit().eval(), pictures()
    (ids,) = mixwell.create("mixpro(prob=1)", 7).bind(net, images).turns(net, images, LABELS)
    (rows,) = mixwell.create("mixpro(prob=1)", 7).bind(net, images).turns(net, images, torch.eye(7)[LABELS])
    torch.testing.assert_close(ids.targets.weights, rows.targets.weights)
    torch.testing.assert_close(ids.loss, rows.loss)


# What it refuses


def test_without_a_class_token_labels_follow_the_area(cnn, vit):
    images = pictures()
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"mixpro: .*has no self-attention"):
        mixwell.create("mixpro", 7).bind(cnn(), images)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=24, depths=(1, 1), num_classes=7
    )
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"mixpro: .*attends within windows"):
        mixwell.create("mixpro", 7).bind(swin, pictures((64, 64)))
    pooled = vit(class_token=False, global_pool="avg")
    with pytest.raises(mixwell.IncompatibleRecipe, match=r"mixpro: .*class token"):
        mixwell.create("mixpro", 7).bind(pooled, images)
    for net, x in ((cnn(), images), (swin, pictures((64, 64))), (pooled, images)):
        loss = mixwell.create("mixpro(pal=false, prob=1)", 7).bind(net, x)(net, x, LABELS)
        loss.backward()
        assert torch.isfinite(loss)


def test_what_it_refuses():
    with pytest.raises(mixwell.IncompatibleRecipe, match="mixup does not give"):
        mixwell.create("mixup + mixpro")
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the label"):
        mixwell.create("transmix + mixpro")
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide the blend"):
        mixwell.create("cutmix + mixpro(pal=false)")
    with pytest.raises(mixwell.ParameterError, match=r"with pal=false there is none\. Leave it out"):
        mixwell.create("mixpro(pal=false, detach=false)")
    for text in ("cells=0", "patch=0", "smoothing=1.0", "mixup_alpha=0", "cutmix_alpha=-1"):
        with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
            mixwell.create(f"mixpro({text})")


def test_labels_by_area_need_no_network():
    images = pictures((24, 40))
    net = GivenLogits(torch.zeros(ROWS, 7))
    assert torch.isfinite(mixwell.create("mixpro(pal=false, prob=1)", 7)(net, images, LABELS))
    mixed, targets = mixwell.create("mixpro(pal=false, prob=1)", 7).mix_batch(images, LABELS)
    assert mixed.shape == images.shape
    assert len(targets) == ROWS
