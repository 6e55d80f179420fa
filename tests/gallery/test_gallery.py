"""What the gallery draws is what the recipe did."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

import mixwell
from mixwell.gallery import act, sheet
from mixwell.gallery.act import needs_network
from mixwell.probe import Probe, Want

NAMES = ["cat", "dog", "owl", "fox"]


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32)


def shown(text, images, **options):
    return act(text, images, torch.arange(4), num_classes=4, **options)


def test_mixup_is_mixed_by_its_shares(images):
    got = shown("mixup", images, seed=3)
    torch.testing.assert_close(got.images[0], torch.einsum("rn,nchw->rchw", got.shares, images))
    assert got.masks is None, "constant masks show nothing"
    assert got.site is None


def test_masks_say_which_pixels_are_shown(images):
    got = shown("cutmix", images, seed=3)
    rebuilt = torch.einsum("rkhw,rkchw->rchw", got.masks, images[got.classes])
    torch.testing.assert_close(got.images[0], rebuilt)
    torch.testing.assert_close(torch.einsum("rkhw,rk->r", got.masks, torch.ones(4, 2)) / 32**2, torch.ones(4))


def test_equal_seeds_mix_alike_and_others_do_not(images):
    first, again, other = (shown("cutmix", images, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images[0], again.images[0])
    assert not torch.equal(first.images[0], other.images[0])


def test_the_label_is_that_of_the_training_pass(images, vit):
    """TransMix shares labels by attention, so they are not those of the areas."""
    model = vit(classes=4)
    text = "cutmix + transmix"
    got = shown(text, images, seed=3, model=model)
    recipe = mixwell.create(text, 4, seed=3)
    (turn,) = recipe.turns(model, images * 2 - 1, torch.arange(4))
    torch.testing.assert_close(got.shares, turn.targets.dense())
    assert not torch.allclose(got.shares, shown("cutmix", images, seed=3).shares)


def test_carried_labels_are_shown_with_the_last_class_attention(images, vit):
    model = vit(classes=4)
    got = shown("tl_align", images, seed=3, model=model)
    want = Want("class_attention")
    with torch.no_grad():
        row = Probe(model.eval(), images).run(got.images[0] * 2 - 1, wants=[want])[want]
    torch.testing.assert_close(got.attention.flatten(1), row)
    assert (got.attention.flatten(1).std(1) > 0).all()


def test_without_a_class_token_there_is_no_attention_to_show(images, vit):
    assert shown("tl_align", images, model=vit(classes=4, class_token=False, global_pool="avg")).attention is None
    assert shown("tl_align + manifold_mixup(sites=(1,))", images, model=vit(classes=4)).attention is None


def test_hidden_maps_are_named(images):
    got = shown("manifold_mixup(sites=(1,))", images)
    assert got.site == "layer1"
    assert got.images[0].shape[1] == 16


def test_further_views_are_shown(images):
    got = shown("augmix", images)
    assert len(got.images) == 3
    assert torch.allclose(got.images[0], images, atol=1e-6)
    assert not torch.allclose(got.images[1], images, atol=1e-2)


@pytest.mark.matrix(keep=16)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("slug", mixwell.methods())
def test_every_method_can_be_drawn(images, slug, monkeypatch):
    monkeypatch.setattr(importlib.import_module("mixwell.gallery.act"), "_RENDERING", 30)
    try:
        got = shown(slug, images)
    except mixwell.IncompatibleRecipe:
        got = shown(f"cutmix + {slug}", images)
    assert torch.isfinite(got.images[0]).all()


def test_nothing_is_touched(images, cnn, global_random_states):
    model, before = cnn(classes=4), images.clone()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    states = global_random_states()
    shown("puzzlemix", images, model=model)
    assert global_random_states() == states
    assert torch.equal(images, before)
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_recipes_that_look_through_a_network_get_one():
    assert not needs_network(mixwell.create("k_mixup + cutmix", 4))
    assert needs_network(mixwell.create("puzzlemix", 4))
    assert needs_network(mixwell.create("manifold_mixup", 4))


def test_a_sheet_is_saved_as_it_is_returned(images, tmp_path):
    picture = sheet(["mixup", "cutmix"], images, NAMES, path=tmp_path / "sheet.png", columns=3)
    from PIL import Image

    with Image.open(tmp_path / "sheet.png") as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(picture))


def test_a_row_holds_the_mix_and_its_bar(images):
    """The pixels of the mix stand in the sheet, and the bar's colours cover it by the shares."""
    size, bar, gap = 128, 20, 8
    got = shown("mixup", images, seed=3)
    pixels = np.asarray(sheet(["mixup"], images, NAMES, seed=3, across=True))
    left = gap + size + gap
    top = next(y for y in range(60) if (pixels[y, gap] != 255).any())
    cell = pixels[top : top + size : 4, left : left + size : 4]
    expected = (got.images[0][0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(cell, expected)
    edge = pixels[top + size + bar - 1, left : left + size]
    runs = 1 + int((edge[1:] != edge[:-1]).any(1).sum())
    assert runs == int((got.shares[0] * size >= 1).sum())


def test_images_of_one_name_are_one_class(images):
    picture = np.asarray(sheet(["mixup"], images, ["cat"] * 4, across=True))
    bars = {tuple(colour) for colour in picture[picture.shape[0] - 8 - 1, 8 : 8 + 128]}
    assert len(bars) == 1


def test_gray_images_and_columns(images):
    wide = sheet(["cutmix"], images[:, :1], NAMES)
    narrow = sheet(["cutmix"], images[:, :1], NAMES, columns=2)
    assert wide.width - narrow.width == 2 * (128 + 8)
    assert wide.height == narrow.height


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 2 - 1, "in \\[0, 1\\]"),
        (lambda x: (x * 255).byte(), "floating"),
        (lambda x: x[:3], "one name per image"),
        (lambda x: x[:, :2], "1 or 3"),
        (lambda x: x[0], "one name per image"),
    ],
)
def test_what_cannot_be_drawn_is_refused(images, change, message):
    with pytest.raises(mixwell.BatchError, match=message):
        sheet(["mixup"], change(images), NAMES)


def test_too_many_columns_are_refused(images):
    with pytest.raises(mixwell.ParameterError, match="columns"):
        sheet(["mixup"], images, NAMES, columns=5)
