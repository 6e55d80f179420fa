"""SuperpixelGridCut, -Mean and -Mix: whole superpixels change, and the label follows the area."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.core.rng import Streams
from mixwell.ops.superpixels import superpixels
from mixwell.sample.cutting.superpixel_grid import SameClass, SuperpixelFill, SuperpixelMix, kept

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
BLACK = PIXELS.normalise(torch.zeros(1, 3, 1, 1))
VARIANTS = ["cut", "mean", "mix"]


def pictures(rows: int = 6, size: tuple[int, int] = (24, 40)) -> torch.Tensor:
    return PIXELS.normalise(torch.rand(rows, 3, *size))


def regions(rows: int = 6, size: tuple[int, int] = (24, 40)) -> torch.Tensor:
    """Label maps of one's own, in which superpixels are scattered over the image."""
    return torch.randint(0, 15, (rows, *size))


def shown_by(text: str, images: torch.Tensor, segments: torch.Tensor | None = None, **changes: np.ndarray):
    """What a recipe makes of a batch: images and, if it mixes, the mix."""
    (option,) = mixwell.create(f"superpixel_grid({text})", pixels=PIXELS).options
    extras = {} if segments is None else {"superpixels": segments}
    batch = mixwell.Batch(images, torch.arange(len(images)), PIXELS, extras=extras)
    given = {getattr(option, slot): drawn for slot, drawn in changes.items()}
    scene = mixwell.Scene(batch, mixwell.Draws({**option.draw(len(images), Streams(0), 0).of, **given}))
    if option.blend is None:
        return option.alone.images(scene.draws[option.alone], scene)[0], None
    mix = option.mix(images, scene)
    return mix.images, mix


def filling(variant: str, images: torch.Tensor, segments: torch.Tensor, perm: np.ndarray) -> torch.Tensor:
    if variant == "cut":
        return BLACK.expand_as(images)
    if variant == "mix":
        return images[perm]
    means = torch.empty_like(images)
    for row in range(len(images)):
        for label in segments[row].unique():
            inside = segments[row] == label
            means[row, :, inside] = images[row][:, inside].mean(1, keepdim=True)
    return means


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("given", [False, True], ids=["slic", "maps"])
def test_superpixels_change_as_a_whole_or_not_at_all(variant, given):
    images, draws, perm = pictures(), np.random.default_rng(0).random((6, 40)), np.array([3, 0, 5, 1, 2, 4])
    segments = regions() if given else superpixels(PIXELS.raw(images), 20)
    changes = {"pairing": perm, "blend": draws} if variant == "mix" else {"alone": draws}
    shown, _ = shown_by(f"variant={variant}, n_segments=20", images, regions_or_none(segments, given), **changes)
    fill = filling(variant, images, segments, perm)
    for row in range(6):
        for label in segments[row].unique().tolist():
            inside = segments[row] == label
            if draws[row, label] < 0.4:
                torch.testing.assert_close(shown[row][:, inside], fill[row][:, inside], atol=1e-5, rtol=0)
            else:
                assert torch.equal(shown[row][:, inside], images[row][:, inside])


def regions_or_none(segments: torch.Tensor, given: bool) -> torch.Tensor | None:
    return segments if given else None


def test_a_superpixel_is_the_images_own_not_the_partners():
    images = pictures()
    segments = superpixels(PIXELS.raw(images), 20)
    _, mix = shown_by("n_segments=20", images)
    for row in range(6):
        for label in segments[row].unique():
            assert len(mix.masks[row, 0][segments[row] == label].unique()) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_ratio_0_changes_nothing(variant):
    images = pictures()
    assert torch.equal(shown_by(f"variant={variant}, ratio=0", images)[0], images)


def test_ratio_1_changes_everything():
    images, perm = pictures(), np.roll(np.arange(6), 1)
    assert torch.equal(shown_by("variant=cut, ratio=1", images)[0], BLACK.expand_as(images))
    mixed, mix = shown_by("ratio=1", images, pairing=perm)
    assert torch.equal(mixed, images[perm])
    assert mix.weights.tolist() == [[0, 1]] * 6
    means, _ = shown_by("variant=mean, ratio=1, n_segments=1", images)
    torch.testing.assert_close(means, images.mean((2, 3), keepdim=True).expand_as(images), atol=1e-5, rtol=0)


def test_mean_keeps_the_channels_means_and_is_idempotent():
    images, segments = pictures(), regions()
    draws = np.random.default_rng(1).random((6, 40))
    once, _ = shown_by("variant=mean, n_segments=20", images, segments, alone=draws)
    twice, _ = shown_by("variant=mean, n_segments=20", once, segments, alone=draws)
    assert not torch.equal(once, images)
    torch.testing.assert_close(once.mean((2, 3)), images.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(twice, once, atol=1e-5, rtol=0)


def test_the_label_of_a_mix_is_its_area():
    images = pictures()
    images_of_rows = torch.arange(6.0)[:, None, None, None].expand(6, 1, 24, 40)
    _, mix = shown_by("n_segments=20", images, pairing=np.roll(np.arange(6), 1))
    own = (mix.apply(images_of_rows)[:, 0] == torch.arange(6.0)[:, None, None]).float().mean((1, 2))
    torch.testing.assert_close(mix.weights, torch.stack((own, 1 - own), 1))
    assert len(own.unique()) > 1


def test_hidden_maps_and_label_maps_show_one_image_at_each_place():
    _, mix = shown_by("n_segments=20", pictures(), pairing=np.roll(np.arange(6), 1))
    small = mix.apply(torch.arange(6.0)[:, None, None, None].expand(6, 2, 6, 10))
    assert small.shape == (6, 2, 6, 10)
    assert all(set(small[row].unique().tolist()) <= {row, (row - 1) % 6} for row in range(6))


def test_superpixels_are_chosen_with_probability_r_each_on_its_own():
    piece = mixwell.create("superpixel_grid(ratio=0.3, n_segments=20)").options[0].blend
    draws = piece.draw(2000, np.random.default_rng(2))
    chosen = 1 - kept(draws, 0.3, torch.arange(40).view(1, 5, 8).expand(2000, -1, -1)).view(2000, 40).numpy()
    assert min(stats.binomtest(int(count), 2000, 0.3).pvalue for count in chosen.sum(0)) > 1e-4
    number = chosen.sum(1)
    assert abs(number.var() / (40 * 0.3 * 0.7) - 1) < 0.15
    assert abs(np.corrcoef(chosen[:, 0], chosen[:, 1])[0, 1]) < 0.09


def test_labels_beyond_the_draws_take_them_from_the_start():
    segments = torch.arange(12).view(1, 3, 4)
    stays = kept(np.array([[0.1, 0.9, 0.5, 0.3, 0.8]]), 0.4, segments)
    assert stays.flatten().tolist() == [0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1]


def test_the_blur_is_the_papers_or_scaled_with_the_image(monkeypatch):
    seen = []

    def watched(raw, count, sigma, compactness):
        seen.append((count, sigma, compactness))
        return superpixels(raw, count, sigma, compactness)

    monkeypatch.setattr("mixwell.sample.cutting.superpixel_grid.superpixels", watched)
    for text in ("", "sigma=scaled, n_segments=30", "sigma=0.7, compactness=20"):
        shown_by(text, pictures(size=(48, 60)))
    assert seen == [(100, 5.0, 10.0), (30, 0.5, 10.0), (100, 0.7, 20.0)]


def test_pixels_are_cut_before_normalisation():
    """Superpixels do not depend on how images were normalised, and black is black in pixels.

    Pixels and normalisations are such that nothing is rounded: of two superpixels that are nearly as like, rounding
    would choose.
    """
    raw = torch.randint(256, (4, 3, 24, 40)) / 256
    shown = []
    for pixels in (mixwell.Pixels((0.5, 0.25, 0.75), (0.25, 0.5, 0.125)), mixwell.Pixels((0.0,), (1.0,))):
        recipe = mixwell.create("superpixel_grid(variant=cut, n_segments=20)", 4, pixels=pixels)
        shown.append(pixels.raw(recipe.mix_batch(pixels.normalise(raw), torch.arange(4))[0]))
    torch.testing.assert_close(*shown, atol=1e-5, rtol=0)
    assert (shown[1] == 0).any()


# Pairs of one class


def test_partners_are_of_the_same_class_and_never_the_image_itself():
    labels = torch.tensor([5, 2, 5, 5, 2, 9, 5])
    counts = np.zeros((7, 7))
    for seed in range(600):
        piece = SameClass()
        scene = mixwell.Scene(mixwell.Batch(torch.zeros(7, 1), labels))
        partner = piece.partners(piece.draw(7, np.random.default_rng(seed)), scene).column()
        assert torch.equal(labels[partner], labels)
        assert sorted(partner.tolist()) == list(range(7))
        counts[np.arange(7), partner] += 1
    assert counts[5, 5] == 600, "the only one of its class stays alone"
    assert counts.diagonal().sum() == 600
    others = counts[[0, 2, 3, 6]][:, [0, 2, 3, 6]]
    for row in range(4):
        assert stats.chisquare(np.delete(others[row], row)).pvalue > 1e-4


def test_same_class_keeps_hard_labels():
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    recipe = mixwell.create("superpixel_grid(same_class=true, n_segments=20)", 3, pixels=PIXELS)
    images = pictures()
    mixed, targets = recipe.mix_batch(images, labels)
    torch.testing.assert_close(targets.dense(), torch.eye(3)[labels])
    assert not torch.equal(mixed[:5], images[:5])
    assert torch.equal(mixed[5], images[5])
    with pytest.raises(mixwell.BatchError, match="class id"):
        mixwell.create("superpixel_grid(same_class=true)", 3, pixels=PIXELS).mix_batch(images, torch.eye(3)[labels])
    with pytest.raises(mixwell.ParameterError, match="same_class"):
        mixwell.create("superpixel_grid(variant=mean, same_class=true)")


# In a training


@pytest.mark.parametrize("text", ["", "variant=cut", "variant=mean", "same_class=true"])
def test_a_step_trains_a_network(cnn, text):
    model, recipe = cnn(), mixwell.create(f"superpixel_grid({text})", 7, pixels=PIXELS)
    loss = recipe(model, pictures(5), torch.arange(5))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_cut_and_mean_keep_labels_and_go_before_a_mix():
    images = pictures()
    for variant in ("cut", "mean"):
        recipe = mixwell.create(f"superpixel_grid(variant={variant}, n_segments=20)", 6, pixels=PIXELS)
        shown, targets = recipe.mix_batch(images, torch.arange(6))
        assert torch.equal(targets.dense(), torch.eye(6))
        assert not torch.equal(shown, images)
        both = mixwell.create(f"superpixel_grid(variant={variant}) + cutmix", 6, pixels=PIXELS)
        assert both.mix_batch(images, torch.arange(6))[1].sources.shape == (6, 2)
        assert isinstance(both.options[0].alone, SuperpixelFill)
    assert isinstance(mixwell.create("superpixel_grid").options[0].blend, SuperpixelMix)


def test_batches_it_cannot_cut():
    images, labels = pictures(3), torch.arange(3)
    for variant in VARIANTS:
        recipe = mixwell.create(f"superpixel_grid(variant={variant})", 3)
        with pytest.raises(mixwell.BatchError, match="normalised"):
            recipe.mix_batch(images, labels)
        maps = mixwell.Batch(images, labels, PIXELS, extras={"superpixels": torch.zeros(3, 24, 39, dtype=torch.int64)})
        with pytest.raises(mixwell.BatchError, match=r"shape \(3, 24, 40\).*got torch.int64 of shape \(3, 24, 39\)"):
            recipe.mix_batch(maps)
    with pytest.raises(mixwell.BatchError, match=r"\(B, C, H, W\)"):
        mixwell.create("superpixel_grid(variant=cut)", 3, pixels=PIXELS).mix_batch(torch.randn(3, 3), labels)
    with pytest.raises(mixwell.BatchError, match="black"):
        mixwell.create("superpixel_grid(variant=cut)", 3).mix_batch(
            mixwell.Batch(images, labels, extras={"superpixels": regions(3)})
        )


@pytest.mark.parametrize("text", ["n_segments=0", "ratio=1.1", "sigma=-1", "sigma=large", "compactness=0", "prob=2"])
def test_parameters_out_of_range(text):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"superpixel_grid({text})")
