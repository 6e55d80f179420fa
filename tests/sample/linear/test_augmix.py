"""AugMix: views between the clean image and its chains, their distribution, and the divergence of predictions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mixwell
from mixwell.core.axes import Need, Scene
from mixwell.ops.augment import OPERATIONS, augment, parameters_of, quantised
from mixwell.sample.linear.augmix import AugmentationChains, augmented, jensen_shannon

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def images_of(rows: int, height: int = 20, width: int = 28) -> torch.Tensor:
    return PIXELS.normalise(torch.randint(0, 256, (rows, 3, height, width)) / 255)


def views_of(piece: AugmentationChains, images: torch.Tensor, seed: int = 0, **changes: np.ndarray):
    draws = piece.draw(len(images), np.random.default_rng(seed))._replace(**changes)
    return piece.images(draws, Scene(mixwell.Batch(images, torch.arange(len(images)), PIXELS)))


def test_a_view_is_the_weighted_mean_of_its_own_images_chains():
    piece, images = AugmentationChains(ops=13), images_of(6)
    draws = piece.draw(6, np.random.default_rng(3))
    clean, *views = views_of(piece, images, seed=3)
    assert torch.equal(clean, images)
    assert len(views) == 2
    parameters = parameters_of(draws.operations, draws.levels, draws.flips, (20, 28))
    for view, row in np.ndindex(2, 6):
        wanted = torch.zeros(3, 20, 28, dtype=torch.float64)
        for chain in range(3):
            one = (slice(view, view + 1), slice(row, row + 1), slice(chain, chain + 1))
            made = augment(quantised(PIXELS.raw(images[row : row + 1])), draws.operations[one], parameters[one])
            wanted += draws.weights[view, row, chain] * PIXELS.normalise(made[0, 0].double() / 255)[0]
        m = draws.shares[view, row]
        torch.testing.assert_close(views[view][row].double(), (1 - m) * images[row] + m * wanted, atol=1e-5, rtol=0)


def test_without_share_the_view_is_the_clean_image():
    images = images_of(5)
    for view in views_of(AugmentationChains(), images, shares=np.zeros((2, 5))):
        assert torch.equal(view, images)


def test_views_lie_between_the_image_and_its_chains():
    images = images_of(4)
    chains = torch.randint(0, 256, (4, 3, 3, 20, 28), dtype=torch.uint8)
    weights, shares = torch.rand(4, 3, dtype=torch.float64), torch.rand(4)
    view = augmented(images, chains, weights / weights.sum(1, keepdim=True), shares, PIXELS)
    corners = torch.stack((images, *(PIXELS.normalise(chains[:, k] / 255) for k in range(3))))
    assert (view >= corners.amin(0) - 1e-5).all()
    assert (view <= corners.amax(0) + 1e-5).all()


def test_draws_are_distributed_as_the_paper_says():
    draws = AugmentationChains(severity=3).draw(4000, np.random.default_rng(1))
    taken = draws.operations >= 0
    assert (np.diff(taken.astype(int), axis=-1) <= 0).all(), "a chain does not go on after its end"
    np.testing.assert_allclose(np.bincount(taken.sum(-1).ravel(), minlength=4) / 24000, [0, *[1 / 3] * 3], atol=0.015)
    np.testing.assert_allclose(np.bincount(draws.operations[taken]) / taken.sum(), np.full(9, 1 / 9), atol=0.01)
    assert 0.1 <= draws.levels.min() < 0.11
    assert 2.99 < draws.levels.max() <= 3
    assert draws.levels.mean() == pytest.approx(1.55, abs=0.02)
    assert draws.flips.mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(draws.weights.sum(-1), 1)
    np.testing.assert_allclose(draws.weights.mean((0, 1)), np.full(3, 1 / 3), atol=0.01)
    assert draws.weights.var((0, 1)) == pytest.approx(np.full(3, 1 / 18), abs=0.004)
    assert draws.shares.var() == pytest.approx(1 / 12, abs=0.005)
    assert abs(np.corrcoef(draws.shares)[0, 1]) < 0.06, "views are independent"


def test_all_thirteen_operations_and_a_fixed_depth():
    draws = AugmentationChains(depth=5, width=2, ops=13).draw(300, np.random.default_rng(1))
    assert draws.operations.shape == (2, 300, 2, 5)
    assert set(draws.operations.ravel()) == set(range(len(OPERATIONS)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_views_have_the_images_dtype_and_layout(dtype: torch.dtype):
    images = images_of(3).to(dtype)
    before = images.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        for view in views_of(AugmentationChains(), images.contiguous(memory_format=layout)):
            assert view.dtype == dtype
            assert view.is_contiguous(memory_format=layout)
            assert view.isfinite().all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(1, 3, 7, 13), (3, 1, 32, 32), (2, 5, 1, 1)])
def test_any_batch_size_side_and_channel_count(shape: tuple[int, ...]):
    batch = mixwell.Batch(torch.rand(shape), torch.arange(shape[0]), mixwell.Pixels((0.0,), (1.0,)))
    piece = AugmentationChains(ops=13)
    for view in piece.images(piece.draw(shape[0], np.random.default_rng(0)), Scene(batch)):
        assert view.shape == shape
        assert ((view >= 0) & (view <= 1)).all()


def test_divergence_is_zero_for_equal_and_log_3_for_opposite_predictions():
    logits = torch.randn(5, 7)
    torch.testing.assert_close(jensen_shannon((logits, logits + 3, logits)), torch.zeros(5), atol=1e-6, rtol=0)
    apart = [100 * F.one_hot(torch.full((5,), k), 7).float() for k in range(3)]
    torch.testing.assert_close(jensen_shannon(apart), torch.full((5,), math.log(3)))
    between = jensen_shannon([torch.randn(50, 7) * 5 for _ in range(3)])
    assert ((between > 0) & (between < math.log(3))).all()


def test_gradients_reach_every_view_and_stay_finite_where_probabilities_vanish():
    logits = [(torch.randn(4, 6) * 200).half().requires_grad_() for _ in range(3)]
    value = jensen_shannon(logits)
    assert value.dtype == torch.float32
    value.sum().backward()
    assert all(view.grad.isfinite().all() for view in logits)
    soft = [torch.randn(4, 6, dtype=torch.float64).requires_grad_() for _ in range(3)]
    jensen_shannon(soft).sum().backward()
    assert all(view.grad.abs().sum() > 0 for view in soft)


@pytest.mark.parametrize("text", ["augmix", "augmix(jsd=false)", "augmix(ops=13, depth=2) + cutmix"])
def test_a_step_trains_a_network(cnn, text: str):
    recipe, model = mixwell.create(text, num_classes=7, pixels=PIXELS), cnn()
    optimizer = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    (turn,) = recipe.turns(model, images_of(5), torch.arange(5))
    assert ("augmix" in turn.parts) == ("jsd" not in text)
    assert turn.logits.shape == (5, 7)
    turn.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    optimizer.step()


def test_the_loss_is_cross_entropy_of_the_clean_view_and_the_weighted_divergence(cnn):
    model, images, labels = cnn().eval(), images_of(6), torch.arange(6)
    recipe = mixwell.create("augmix(weight=5)", num_classes=7, pixels=PIXELS, seed=4)
    (turn,) = recipe.turns(model, images, labels)
    clean = F.cross_entropy(model(images), labels)
    torch.testing.assert_close(turn.parts["criterion"], clean)
    torch.testing.assert_close(turn.loss, clean + turn.parts["augmix"])
    torch.manual_seed(0)
    fresh = mixwell.create("augmix(weight=10)", num_classes=7, pixels=PIXELS, seed=4)
    (double,) = fresh.turns(model, images, labels)
    torch.testing.assert_close(double.parts["augmix"], 2 * turn.parts["augmix"])


def test_one_view_needs_no_network_and_keeps_its_labels():
    images, labels = images_of(6), torch.arange(6)
    mixed, targets = mixwell.create("augmix(jsd=false)", num_classes=6, pixels=PIXELS).mix_batch(images, labels)
    assert torch.equal(targets.dense(), torch.eye(6))
    assert not torch.equal(mixed, images)
    with pytest.raises(mixwell.IncompatibleRecipe, match="augmix"):
        mixwell.create("augmix", num_classes=6, pixels=PIXELS).mix_batch(images, labels)


def test_views_are_given_only_with_the_divergence():
    assert Need.VIEWS in AugmentationChains().gives
    assert Need.VIEWS not in AugmentationChains(jsd=False).gives


@pytest.mark.parametrize(
    "text",
    ["severity=11", "severity=0", "width=0", "depth=0", "depth=-2", "alpha=0", "ops=10", "weight=-1"],
)
def test_parameters_out_of_range(text: str):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"augmix({text})")


def test_batches_it_cannot_augment(cnn):
    recipe = mixwell.create("augmix(jsd=false)", num_classes=7)
    with pytest.raises(mixwell.BatchError, match="normalised"):
        recipe.mix_batch(images_of(3), torch.arange(3))
    with pytest.raises(mixwell.BatchError, match=r"\(B, C, H, W\)"):
        recipe.mix_batch(mixwell.Batch(torch.randn(3, 8), torch.arange(3), mixwell.Pixels((0.5,), (1.0,))))
