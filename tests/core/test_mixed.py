"""Tensors beside the images, mixed as the images were."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.core.axes import Blend, SelfBlend

PIXELS = mixwell.Pixels((0.5,), (0.25,))
LABELS = torch.arange(6)


def images(rows=6, size=(24, 40)):
    return torch.randn(rows, 3, *size)


@pytest.mark.parametrize(
    "recipe", ["mixup", "cutmix", "fmix", "ricap", "smoothmix", "0.5*mixup | 0.5*cutmix", "stackmix"]
)
def test_the_images_themselves_come_out_again(recipe):
    made, x = mixwell.create(recipe, 6), images()
    for _ in range(3):
        mixed = made.mixed(x, LABELS)
        assert torch.equal(mixed.apply(x), mixed.images)


def test_maps_of_class_ids_stay_class_ids_where_pixels_are_copied():
    maps = torch.randint(5, (6, 24, 40))
    mixed = mixwell.create("cutmix", 6).mixed(images(), LABELS)
    found = mixed.apply(maps)
    assert found.dtype == maps.dtype
    own, other = (maps[mixed.mix.sources[:, k]] for k in (0, 1))
    shown = mixed.mix.masks[:, 0].expand_as(maps) == 1
    assert torch.equal(found, torch.where(shown, own, other))
    assert 0 < shown.float().mean() < 1
    assert torch.equal(mixed.apply(maps[:, None] > 2), (found > 2)[:, None])


def test_maps_of_class_ids_have_nothing_in_between():
    maps = torch.randint(5, (6, 24, 40))
    mixed = mixwell.create("mixup", 6).mixed(images(), LABELS)
    with pytest.raises(mixwell.BatchError, match=r"between those of a tensor of torch.int64.*one_hot"):
        mixed.apply(maps)
    soft = mixed.apply(F.one_hot(maps, 5).movedim(-1, 1).float())
    torch.testing.assert_close(soft.sum(1), torch.ones(6, 24, 40))


def test_other_resolutions():
    x = images()
    depth = F.avg_pool2d(x[:, :1], 2)
    mixed = mixwell.create("mixup", 6).mixed(x, LABELS)
    torch.testing.assert_close(mixed.apply(depth), F.avg_pool2d(mixed.images[:, :1], 2))
    assert mixwell.create("cutmix", 6).mixed(x, LABELS).apply(depth).shape == depth.shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 24, 40), "one row for each of the batch's 6 images"), ((6, 4), r"images' grid.*mixed.mix.share\(x\)")],
)
def test_tensors_that_are_not_aligned(shape, message):
    mixed = mixwell.create("cutmix", 6).mixed(images(), LABELS)
    with pytest.raises(mixwell.BatchError, match=message):
        mixed.apply(torch.rand(shape))
    assert mixed.mix.share(torch.rand(6, 4)).shape == (6, 4)


def test_signals_have_another_grid():
    signals = torch.randn(6, 2, 50)
    mixed = mixwell.create("mixup", 6).mixed(signals, LABELS)
    torch.testing.assert_close(mixed.apply(signals.square()).shape, signals.shape)


@pytest.mark.parametrize("slug", mixwell.methods())
def test_every_method_repeats_or_refuses(slug, cnn, vit):
    """In a training step too; who renders images, changes them one by one or mixes inside the network, says so."""
    try:
        recipe = mixwell.create(slug, 6, pixels=PIXELS)
    except mixwell.IncompatibleRecipe:
        recipe = mixwell.create(f"cutmix + {slug}", 6, pixels=PIXELS)
    x = torch.randn(6, 3, 32, 32)
    batch = mixwell.Batch(x, LABELS, PIXELS)
    recipe.prepare(lambda: [batch], "noise of mixed").use_data(train=lambda: [batch], held_out=lambda: [batch])
    net = vit(6) if recipe.needs_tokens else cnn(6)
    recipe.bind(net, x)
    recipe.before_epoch(net, mixwell.Clock(1, epoch=1))
    *_, turn = recipe.turns(net, batch)
    mixed = turn.mixed
    option = recipe.options[0]
    parts = [part for part in option.modules() if isinstance(part, SelfBlend | Blend)]
    if mixed.refusal:
        assert mixed.images.shape[1:] != x.shape[1:] or any(
            isinstance(part, SelfBlend) or not part.repeats or part.hidden for part in parts
        )
        with pytest.raises(mixwell.IncompatibleRecipe, match=r"itself|renders|network"):
            mixed.apply(x)
    else:
        torch.testing.assert_close(mixed.apply(x), mixed.images)
        assert mixed.apply(x[:, 0]).ndim == 3


def test_refusals():
    for text, message in (
        ("augmix + cutmix", "augmix changes each image by itself"),
        ("stackmix(superpixel_grid(variant=cut))", "changes each image by itself"),
        ("stylemix", "stylemix renders its mixes"),
    ):
        option = mixwell.create(text, 6, pixels=PIXELS).options[0]
        assert message.split()[-1] in option.unrepeatable


# Images that are to be ignored


def test_ignored_images_are_not_there(cnn):
    x, labels = images(), torch.tensor([0, -100, 2, 3, -100, 5])
    kept = labels != -100
    net = cnn(6).eval()
    for text in ("none", "mixup", "cutmix + decouplemix"):
        found = mixwell.create(text, 6, ignore_index=-100)(net, x, labels)
        torch.testing.assert_close(found, mixwell.create(text, 6)(net, x[kept], labels[kept]))
    plain = mixwell.create("none", 6, ignore_index=-100)(net, x, labels)
    torch.testing.assert_close(plain, F.cross_entropy(net(x), labels, ignore_index=-100))


def test_extras_and_index_of_ignored_images_go_too():
    batch = mixwell.Batch(images(), torch.tensor([0, 9, 2, 3, 9, 5]), None, torch.arange(6), {"d": torch.arange(6)})
    found = mixwell.create("mixup", 6, ignore_index=9)._batch(batch, None)
    assert found.index.tolist() == found.extras["d"].tolist() == [0, 2, 3, 5]


def test_nothing_left_and_label_rows():
    recipe = mixwell.create("mixup", 6, ignore_index=-1)
    with pytest.raises(mixwell.BatchError, match="Every label of the batch is ignore_index=-1"):
        recipe.mix_batch(images(), torch.full((6,), -1))
    with pytest.raises(mixwell.BatchError, match="goes with class ids"):
        recipe.mix_batch(images(), torch.eye(6))
    with pytest.raises(mixwell.ParameterError, match="ignore_index must be a whole number"):
        mixwell.create("mixup", 6, ignore_index=0.5)


# Regression


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_squared_error_of_mixed_numbers(cnn, shape):
    numbers, x = torch.randn(shape), images()
    width = shape[1] if len(shape) > 1 else 1
    recipe = mixwell.create("mixup", criterion="mse")
    (turn,) = recipe.turns(cnn(width).eval(), x, numbers)
    wanted = turn.mixed.mix.share(numbers)
    torch.testing.assert_close(turn.loss, F.mse_loss(turn.logits.view_as(wanted), wanted))


def test_class_ids_are_no_numbers(cnn):
    with pytest.raises(mixwell.BatchError, match="criterion='mse' is for numbers, got class ids"):
        mixwell.create("mixup", criterion="mse")(cnn(6), images(), LABELS)
    with pytest.raises(mixwell.BatchError, match="outputs must have the shape of the targets"):
        mixwell.create("mixup", criterion="mse")(cnn(6), images(), torch.rand(6, 2))
