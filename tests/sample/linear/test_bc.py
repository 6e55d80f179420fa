"""Between-class learning: who meets whom, how loud the mix is, and what its loss is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mixwell
from mixwell.sample.linear.bc import KullbackLeibler, OtherClass, deviation, loudness_ratio, other_class, zero_mean

PLUS = "bc(variant='bc+')"
CLASSES = torch.tensor([4, 0, 4, 2, 0, 4, 1])


def images(rows=7, spread=True):
    """Without their mean, each with a contrast of its own."""
    contrast = torch.linspace(0.2, 3, rows) if spread else torch.ones(rows)
    return zero_mean(torch.randn(rows, 3, 9, 5)) * contrast.view(-1, 1, 1, 1)


def plus_mix(x, partner, lam):
    """BC+ of a batch under given partners and ratios."""
    (option,) = mixwell.create("bc(variant='bc+', zero_mean=false)").options
    partners = mixwell.Partners.at(partner[:, None], torch.arange(len(x)))
    return option.blend.mix(x, partners, lam, None, mixwell.Scene(mixwell.Batch(x, torch.arange(len(x)))))


def test_no_pair_is_of_one_class():
    recipe = mixwell.create("bc", 7)
    for _ in range(50):
        targets = recipe.mix_batch(images(), CLASSES)[1]
        own, other = targets.classes.T
        assert torch.equal(own, CLASSES)
        assert (own != other).all()


def test_partners_are_uniform_over_the_rows_of_other_classes():
    rng, counts = np.random.default_rng(0), np.zeros((7, 7))
    piece, scene = OtherClass(), mixwell.Scene(mixwell.Batch(images(), CLASSES))
    for _ in range(2000):
        partner = piece.partners(piece.draw(7, rng), scene).column()
        counts[np.arange(7), partner.numpy()] += 1
    admissible = (CLASSES[:, None] != CLASSES).numpy()
    assert (counts[~admissible] == 0).all()
    for row, allowed in zip(counts, admissible, strict=True):
        assert stats.chisquare(row[allowed]).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_every_row_of_another_class_has_a_key(dtype):
    for key in range(12):
        partner = other_class(CLASSES.to(dtype), torch.full((7,), key))
        assert (CLASSES[partner] != CLASSES).all()
        counts = (CLASSES[:, None] != CLASSES).sum(1)
        assert torch.equal(partner, other_class(CLASSES.to(dtype), key + counts))


@pytest.mark.parametrize("recipe", ["bc", PLUS, "bc(variant='bc+', zero_mean=false)"])
def test_without_another_class_the_images_stay(recipe):
    x = images()
    mixed, targets = mixwell.create(recipe, 7).mix_batch(x, torch.full((7,), 3))
    torch.testing.assert_close(mixed, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(targets.dense(), F.one_hot(torch.full((7,), 3), 7).float())


def test_label_rows_count_by_their_largest_entry():
    rows = F.one_hot(CLASSES, 7).float() * 0.9 + 0.1 / 7
    ids, soft = (mixwell.create("bc", 7, seed=3).mix_batch(images(), labels)[1] for labels in (CLASSES, rows))
    assert torch.equal(ids.sources, soft.sources)


@pytest.mark.parametrize("labels", [torch.rand(7), torch.rand(7, 1)], ids=["numbers", "column"])
def test_labels_without_classes_are_refused(labels):
    with pytest.raises(mixwell.BatchError, match="bc pairs images of different classes: expected class ids"):
        mixwell.create("bc").mix_batch(images(), labels)


def test_ratio_is_uniform():
    (option,) = mixwell.create("bc").options
    assert stats.kstest(option.ratio.draw(4000, np.random.default_rng(1)), "uniform").pvalue > 1e-4


def test_shares_of_loudness_are_the_ratio():
    r, own, other = torch.rand(3, 50, dtype=torch.float64) * torch.tensor([[0.98], [1], [5]]) + 0.01
    p = loudness_ratio(r, own, other)
    torch.testing.assert_close(p * own / ((1 - p) * other), r / (1 - r))
    torch.testing.assert_close(p, 1 / (1 + own / other * (1 - r) / r))
    torch.testing.assert_close(loudness_ratio(r, own, own), r)


def test_ratios_that_the_papers_fraction_divides_by_zero_for():
    r = torch.tensor([0.0, 1.0, 0.3, 0.3, 0.3, 0.0, 1.0])
    own = torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0, 0.0, 1.0])
    other = torch.tensor([2.0, 2.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    assert loudness_ratio(r, own, other).tolist() == pytest.approx([0, 1, 0.3, 1, 0, 0, 1])


def test_deviation_has_the_number_of_values_in_the_denominator():
    """torch.std divides by one less unless told otherwise."""
    x = images()
    torch.testing.assert_close(deviation(x), x.flatten(1).std(1, correction=0))
    assert not torch.allclose(deviation(x), x.flatten(1).std(1), rtol=1e-3)


def test_plus_is_the_papers_equation():
    x, partner, lam = images(), torch.arange(7).roll(2), torch.rand(7, dtype=torch.float64)
    mix = plus_mix(x, partner, lam)
    sigma = x.flatten(1).std(1, correction=0)
    p = (1 / (1 + sigma / sigma[partner] * (1 - lam) / lam)).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(mix.images, (p * x + (1 - p) * x[partner]) / (p**2 + (1 - p) ** 2).sqrt())


def test_the_label_is_the_ratio_that_was_drawn_not_the_one_of_loudness():
    lam = torch.rand(7, dtype=torch.float64)
    mix = plus_mix(images(), torch.arange(7).roll(2), lam)
    torch.testing.assert_close(mix.weights, torch.stack((lam, 1 - lam), 1).float())


def test_plus_keeps_the_energy_of_equally_loud_waves():
    """Two sines of different frequency are uncorrelated; plain mixing at ½ halves their energy."""
    wave = torch.arange(256.0) * 2 * torch.pi / 256
    x = torch.stack([torch.sin(frequency * wave) for frequency in (3, 5, 7, 11)])[:, None]
    mix = plus_mix(x, torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.5))
    torch.testing.assert_close(mix.images.square().mean((1, 2)), x.square().mean((1, 2)))
    plain = (
        mixwell.create("bc")
        .options[0]
        .blend.mix(
            x,
            mixwell.Partners.at(torch.tensor([[1], [2], [3], [0]]), torch.arange(4)),
            torch.full((4,), 0.5),
            None,
            mixwell.Scene(mixwell.Batch(x, torch.arange(4))),
        )
    )
    torch.testing.assert_close(plain.images.square().mean((1, 2)), x.square().mean((1, 2)) / 2)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_ends_of_the_ratio_are_the_images(lam):
    x, partner = images(), torch.arange(7).roll(3)
    mix = plus_mix(x, partner, torch.full((7,), lam))
    torch.testing.assert_close(mix.images, x if lam else x[partner])


def test_plus_mixes_any_aligned_tensor_with_the_weights_of_the_images():
    x, partner = images(), torch.arange(7).roll(2)
    mix = plus_mix(x, partner, torch.rand(7))
    shares = mix.apply(torch.eye(7))
    rebuilt = torch.einsum("rb,bchw->rchw", shares, x)
    torch.testing.assert_close(mix.images, rebuilt)
    torch.testing.assert_close(shares.square().sum(1), torch.ones(7))
    assert mix.masks is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_plus_in_other_precisions(dtype):
    """Half precision could not hold the sum of squares of a large image."""
    x = images(6).repeat(1, 1, 20, 20) * 5
    given = x.to(dtype).contiguous(memory_format=torch.channels_last)
    mixed, expected = (mixwell.create(PLUS, 6).mix_batch(i, torch.arange(6))[0] for i in (given, x))
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float64: 1e-3, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    torch.testing.assert_close(mixed.float(), expected, rtol=tolerance, atol=tolerance)


def test_plus_sees_every_image_without_its_mean_also_at_evaluation():
    x = images() + torch.arange(7.0).view(-1, 1, 1, 1)
    recipe, given = mixwell.create(PLUS, 7), mixwell.create("bc(variant='bc+', zero_mean=false)", 7)
    torch.testing.assert_close(recipe.eval_images(x), images_without_mean := zero_mean(x))
    assert float(images_without_mean.mean((1, 2, 3)).abs().max()) < 1e-5
    assert given.eval_images(x) is x
    assert mixwell.create("bc", 7).eval_images(x) is x
    mixed, again = recipe.mix_batch(x, CLASSES)[0], given.mix_batch(images_without_mean, CLASSES)[0]
    assert torch.equal(mixed, again)


def test_the_loaders_zero_mean_is_the_authors():
    """Subtracting the mean before or after the division by equal channel stds differs by that scale alone."""
    raw, pixels = torch.rand(7, 3, 9, 5), mixwell.Pixels((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    theirs = mixwell.Pixels((0.1, 0.0, -0.1), (0.2, 0.2, 0.2)).normalise(zero_mean(raw))
    torch.testing.assert_close(zero_mean(pixels.normalise(raw)), theirs)


def test_plus_cannot_leave_batches_as_evaluation_does_not_see_them():
    with pytest.raises(mixwell.ParameterError, match=r"prob=0.5 would leave some .* zero_mean=false"):
        mixwell.create("bc(variant='bc+', prob=0.5)")
    assert mixwell.create("bc(variant='bc+', prob=0.5, zero_mean=false)").weights == [0.5, 0.5]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_divergence(smoothing):
    targets = mixwell.create("bc", 7).mix_batch(images(), CLASSES)[1]
    logits = torch.randn(7, 7, requires_grad=True)
    criterion = KullbackLeibler()
    criterion.smoothing = smoothing
    loss, wanted = criterion(logits, targets), targets.dense(smoothing=smoothing)
    torch.testing.assert_close(loss, F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean"))
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, F.cross_entropy(logits, wanted))]
    torch.testing.assert_close(*gradients)


def test_the_divergence_is_0_where_the_network_gives_the_label():
    targets = mixwell.Targets(CLASSES, torch.tensor([[0, 1], [3, 3], [5, 6]]), torch.tensor([[0.3, 0.7]] * 3), 5)
    sure = targets.dense().clamp_min(1e-30).log()
    torch.testing.assert_close(KullbackLeibler().rows(sure, targets), torch.zeros(3), atol=1e-6, rtol=0)
    assert (KullbackLeibler().rows(torch.randn(3, 5), targets) > 0).all()


def test_class_weights_weight_both_parts_of_the_divergence():
    targets = mixwell.create("bc", 7).mix_batch(images(), CLASSES)[1]
    weights, criterion, logits = torch.linspace(0.5, 2, 7), KullbackLeibler(), torch.randn(7, 7)
    criterion.class_weights = weights
    wanted = targets.dense()
    each = F.kl_div(logits.log_softmax(1), wanted, reduction="none") * weights
    torch.testing.assert_close(criterion(logits, targets), each.sum() / (wanted @ weights).sum())


def test_a_step_of_plus_trains(cnn):
    model, recipe = cnn(), mixwell.create(PLUS, 7)
    loss = recipe(model, images(), CLASSES)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
