"""timm's Mixup: the same behaviour in distribution as timm's own, and recipes in its place."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm.data
import torch
from scipy import stats
from torch.utils.data import DataLoader

import mixwell
from mixwell.compat.timm import FastCollateMixup, Mixup, boxes_between_limits

CLASSES = 6
SHAPE = (6, 2, 16, 12)


def told_apart(rows=6):
    """Each row is all of its own number, as its label is."""
    images = torch.arange(float(rows))[:, None, None, None].expand(rows, *SHAPE[1:]).contiguous()
    return images, torch.arange(rows)


def seen(mixup, steps=250, rows=6):
    """Per step and row: its own label share, and whether its pixels were cut or blended."""
    images, labels = told_apart(rows)
    own, cut, blended = [], [], []
    for _ in range(steps):
        mixed, targets = mixup(images.clone(), labels)
        own.append(targets[torch.arange(rows), labels])
        moved = (mixed != images).flatten(1)
        whole = (mixed == images.flip(0)).flatten(1)
        cut.append(((moved & whole).any(1) & ~(moved & ~whole).any(1)) & ~(moved.all(1)))
        blended.append((moved & ~whole).any(1))
    return torch.stack(own).double(), torch.stack(cut).double(), torch.stack(blended).double()


SETTINGS = {
    "mixup": {"mixup_alpha": 0.8},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "switch": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.7, "switch_prob": 0.3, "label_smoothing": 0.0},
    "minmax": {"cutmix_minmax": (0.2, 0.8), "mixup_alpha": 0.0, "label_smoothing": 0.2},
    "uncorrected": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "correct_lam": False},
}


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_distributions_as_timm(name, mode):
    options = {**SETTINGS[name], "mode": mode, "num_classes": CLASSES}
    np.random.seed(0)  # noqa: NPY002 (timm's draws)
    theirs, ours = seen(timm.data.Mixup(**options)), seen(Mixup(**options, seed=1))
    cuts, blends = (kind.mean() > 0.1 for kind in theirs[1:])
    assert (cuts, blends) == (name != "mixup", name in ("mixup", "switch"))
    # One draw per step is looked at, so that draws are independent.
    assert stats.ks_2samp(theirs[0][:, 0], ours[0][:, 0]).pvalue > 1e-4
    for their, our in zip(theirs, ours, strict=True):
        spread = (their.mean(1).var() + our.mean(1).var()).div(len(their)).sqrt()
        assert abs(their.mean() - our.mean()) <= 5 * spread + 1e-6


def test_pairs_share_lam_and_elements_do_not():
    images, labels = told_apart()
    for mode, shared in (("batch", 1), ("pair", 3), ("elem", 6)):
        _, targets = Mixup(1.0, mode=mode, label_smoothing=0.0, num_classes=CLASSES, seed=0)(images, labels)
        own = targets[labels, labels]
        assert len(own.unique()) == shared
        assert torch.equal(own, own.flip(0)) == (mode != "elem")


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_labels_say_what_pixels_show(mode, rows):
    """Also in odd batches, whose middle row meets itself; the input stays as it is."""
    images, labels = told_apart(rows)
    mixup = Mixup(0.8, 1.0, mode=mode, label_smoothing=0.0, num_classes=CLASSES, seed=0)
    for _ in range(30):
        mixed, targets = mixup(images, labels)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(6.0))
        torch.testing.assert_close(targets.sum(1), torch.ones(rows))
    assert torch.equal(images, told_apart(rows)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_labels_are_smoothed_to_timms_values(smoothing):
    images, labels = torch.randn(SHAPE), torch.tensor([0, 3, 3, 1, 5, 2])
    mixup = Mixup(label_smoothing=smoothing, num_classes=CLASSES, seed=0)
    plain = Mixup(label_smoothing=0.0, num_classes=CLASSES, seed=0)
    lam = plain(images, labels)[1][0, 0].item()  # the first row's partner has another label
    wanted = timm.data.mixup.mixup_target(labels, CLASSES, lam, smoothing)
    torch.testing.assert_close(mixup(images, labels)[1], wanted)
    mixup.mixup_enabled = False
    mixed, targets = mixup(images, labels)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(labels, CLASSES, 1.0, smoothing))


def test_several_labels_are_smoothed_towards_one_half():
    images, labels = torch.randn(SHAPE), (torch.rand(6, CLASSES) < 0.5).float()
    for recipe in (None, "mixup"):
        mixup = Mixup(num_classes=CLASSES, multi_label=True, recipe=recipe, seed=0)
        plain = Mixup(num_classes=CLASSES, multi_label=True, recipe=recipe, label_smoothing=0.0, seed=0)
        torch.testing.assert_close(mixup(images, labels)[1], plain(images, labels)[1] * 0.9 + 0.05)


def test_boxes_between_limits_lie_inside_and_reach_both():
    draws = np.random.default_rng(0).random((4000, 4))
    top, bottom, left, right = boxes_between_limits((0.25, 0.75), draws, (16, 12)).T
    assert min(top.min(), left.min()) == 0
    assert (bottom.max(), right.max()) == (16, 12)
    assert set(bottom - top) == set(range(4, 12))
    assert set(right - left) == set(range(3, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_keep_their_type_and_layout(dtype):
    images, labels = torch.randn(SHAPE).to(dtype, memory_format=torch.channels_last), torch.arange(6)
    mixed, targets = Mixup(0.8, 1.0, mode="elem", num_classes=CLASSES, seed=0)(images, labels)
    assert (mixed.dtype, targets.dtype) == (dtype, torch.float32)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_numbers_are_its_own(global_random_states):
    torch.manual_seed(3)
    images, labels = told_apart()
    first, second = (Mixup(num_classes=CLASSES) for _ in range(2))
    before = global_random_states()
    drawn = [first(images, labels)[1] for _ in range(3)]
    assert global_random_states() == before
    assert [torch.equal(second(images, labels)[1], targets) for targets in drawn] == [True] * 3
    assert not torch.equal(drawn[0], drawn[1])
    torch.manual_seed(4)
    assert not torch.equal(Mixup(num_classes=CLASSES)(images, labels)[1], drawn[0])


@pytest.mark.parametrize("recipe", ["fmix", "resizemix", "0.5*k_mixup(k=2) | 0.5*none", "saliencymix", "puzzlemix"])
def test_any_recipe_without_a_network(recipe):
    images, labels = torch.rand(5, 3, 32, 32), torch.arange(5)
    if recipe == "puzzlemix":
        with pytest.raises(
            mixwell.IncompatibleRecipe, match=r"puzzlemix act inside .* loss = recipe\(model, images, lab"
        ):
            Mixup(recipe=recipe, num_classes=CLASSES)
        return
    pixels = mixwell.Pixels((0.1,) * 3, (0.7,) * 3)
    mixup = Mixup(recipe=recipe, num_classes=CLASSES, label_smoothing=0.0, seed=2, pixels=pixels)
    mixed, targets = mixup(images, labels)
    wanted = mixwell.create(recipe, CLASSES, seed=2, pixels=pixels).mix_batch(images, labels)
    assert torch.equal(mixed, wanted[0])
    torch.testing.assert_close(targets, wanted[1].dense())


def test_recipes_that_are_made_already():
    images, labels = told_apart()
    recipe = mixwell.create("cutmix", CLASSES, seed=5)
    mixed, targets = Mixup(num_classes=CLASSES, recipe=recipe)(images, labels)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert not torch.equal(mixed, images)
    with pytest.raises(mixwell.ParameterError, match="num_classes=7, but the recipe is made for 6"):
        Mixup(num_classes=7, recipe=recipe)
    with pytest.raises(mixwell.ParameterError, match="Say these to mixwell"):
        Mixup(num_classes=CLASSES, recipe=recipe, seed=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "fmix", "prob": 0.5}, "prob would have no effect"),
        ({"recipe": "fmix", "mode": "elem", "cutmix_minmax": (0.2, 0.8)}, "cutmix_minmax and mode would have no"),
        ({"mode": "half"}, "mode must be one of batch, pair, elem, got 'half'"),
        ({"prob": 1.5}, "prob must be"),
        ({"cutmix_minmax": (0.8, 0.2)}, "cutmix_minmax must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"pixels": mixwell.Pixels((0.5,), (0.5,))}, "pixels are for recipes"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(mixwell.ParameterError, match=said):
        Mixup(num_classes=CLASSES, **options)


def test_bad_batches_are_refused():
    images, labels = told_apart()
    with pytest.raises(mixwell.ParameterError, match="nothing to do"):
        Mixup(0.0, num_classes=CLASSES)(images, labels)
    with pytest.raises(mixwell.BatchError, match="class ids must lie in"):
        Mixup(num_classes=5)(images, labels)
    with pytest.raises(mixwell.BatchError, match="CutMix needs images"):
        Mixup(0.0, 1.0, num_classes=CLASSES)(torch.randn(6, 8), labels)
    assert Mixup(num_classes=CLASSES)(torch.randn(6, 8), labels)[0].shape == (6, 8)


# The collating form


def samples(rows=6, kind=np.uint8):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (3, 32, 32)).astype(kind), i) for i in range(rows)]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("rows", [5, 6])
def test_bytes_in_and_bytes_out(mode, rows):
    collate = FastCollateMixup(0.8, 1.0, mode=mode, label_smoothing=0.0, num_classes=CLASSES, seed=0)
    images = torch.from_numpy(np.stack([image for image, _ in samples(rows)])).double()
    made = 3 if mode == "half" else rows
    for _ in range(10):
        mixed, targets = collate(samples(rows))
        assert (mixed.dtype, mixed.shape, targets.shape) == (torch.uint8, (made, 3, 32, 32), (made, CLASSES))
        low, high = (f(images, images.flip(0))[:made] for f in (torch.minimum, torch.maximum))
        assert (mixed >= low - 0.5).all()
        assert (mixed <= high + 0.5).all()
        mean = torch.einsum("rk,kchw->rchw", targets[:, :rows].double(), images).mean()
        assert abs(mixed.double().mean() - mean) < 1


def test_recipes_collate_too():
    mixed, targets = FastCollateMixup(recipe="saliencymix", num_classes=CLASSES, seed=0)(samples(5))
    assert (mixed.dtype, mixed.shape, targets.shape) == (torch.uint8, (5, 3, 32, 32), (5, CLASSES))
    plain = FastCollateMixup(recipe="none", num_classes=CLASSES, seed=0)(samples(5))[0]
    assert torch.equal(plain, torch.from_numpy(np.stack([image for image, _ in samples(5)])))
    with pytest.raises(mixwell.BatchError, match="takes uint8 images"):
        FastCollateMixup(num_classes=CLASSES)(samples(5, np.float32))


def test_timms_loader_takes_it_and_switches_it_off():
    collate = FastCollateMixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES, seed=0)
    loader = timm.data.loader.PrefetchLoader(
        DataLoader(samples(), batch_size=3, collate_fn=collate, num_workers=1), device=torch.device("cpu")
    )
    mixed = torch.cat([targets for _, targets in loader])
    assert (mixed > 0.05).sum() > 6
    assert loader.mixup_enabled
    loader.mixup_enabled = False
    assert not collate.mixup_enabled
    targets = torch.cat([targets for _, targets in loader])
    torch.testing.assert_close(targets, timm.data.mixup.mixup_target(torch.arange(6), CLASSES, 1.0, 0.1))


def test_it_is_sent_to_workers():
    images, labels = told_apart()
    mixup = Mixup(num_classes=CLASSES, seed=4)
    copy = pickle.loads(pickle.dumps(mixup))
    assert torch.equal(copy(images, labels)[1], mixup(images, labels)[1])
    assert isinstance(mixup, timm.data.Mixup)
