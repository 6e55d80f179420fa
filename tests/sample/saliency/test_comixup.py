"""Co-Mixup: what outputs show, how they share the inputs, and what each term of the objective does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, ParameterError
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.probe import Views
from mixwell.sample.saliency.comixup import (
    Arrangement,
    Comix,
    ComixDraws,
    Settings,
    compatibility,
    in_parts,
    peak_distances,
    peaks,
    shown_sources,
    told_apart,
)


class Given(Views):
    """Views that know nothing but one gradient."""

    def __init__(self, gradient):
        self.given = gradient

    def gradient(self, site="input"):
        return self.given


def peaked(rows, channels=3, size=(32, 32)):
    """Gradients that are large in a few places."""
    return torch.randn(rows, channels, *size) * F.interpolate(torch.rand(rows, 1, 8, 8) ** 4, size=size)


def mix_of(comix, images, gradient, draws=None, labels=None):
    labels = torch.arange(len(images)) if labels is None else labels
    batch = Batch(images, labels)
    draws = comix.draw(len(images), np.random.default_rng(0)) if draws is None else draws
    scene = Scene(batch, views=Given(gradient))
    return comix.mix(images, Partners.alone(batch), torch.full((1,), torch.nan), draws, scene)


def arranged(rng, settings=None, parts=1, m=6, n=4, sizes=None, omega=0.001, costs=None, first=None, eta=0.05):
    """An arrangement of random inputs after all rounds."""
    costs = -rng.dirichlet(np.full(n * n, 0.5), (parts, m)).reshape(parts, m, n, n) if costs is None else costs
    sizes = np.full(parts, m) if sizes is None else sizes
    matrix = compatibility(peak_distances(rng.integers(0, 25, (parts, m, 2)).astype(float), sizes), sizes, omega)
    first = (rng.random((parts, m, n, n)) * sizes[:, None, None, None]).astype(int) if first is None else first
    prior = rng.dirichlet(np.full(m, 2.0), parts)
    arrangement = Arrangement(costs, prior, eta, matrix, first, sizes, settings or Settings())
    arrangement.run()
    return arrangement


# What outputs show


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (28, 28)], ids=str)
def test_the_masks_mix_the_pixels(size):
    images = torch.randn(13, 3, *size)
    mix = mix_of(Comix(part=5), images, peaked(13, size=size))
    shown = torch.einsum("rkhw,rkchw->rchw", mix.masks, images[mix.sources])
    torch.testing.assert_close(mix.images, shown)
    torch.testing.assert_close(mix.masks.mean((2, 3)), mix.weights)
    torch.testing.assert_close(mix.weights.sum(1), torch.ones(13))
    assert set(mix.masks.unique().tolist()) == {0.0, 0.5, 1.0}, "no halves or nothing mixed, so the test saw nothing"
    assert ((mix.weights > 0).sum(1) > 1).any()


def test_outputs_show_rows_of_their_own_part():
    mix = mix_of(Comix(part=5), torch.randn(13, 3, 32, 32), peaked(13))
    own = torch.arange(13) // 5
    assert torch.equal(mix.sources // 5, own[:, None].expand_as(mix.sources))


def test_parts_do_not_touch():
    images, gradient, comix = torch.randn(12, 3, 32, 32), peaked(12), Comix(part=6)
    draws = comix.draw(12, np.random.default_rng(1))
    together = mix_of(comix, images, gradient, draws)
    for part in (slice(0, 6), slice(6, 12)):
        given = ComixDraws(draws.blocks, draws.prior[part], draws.first[part])
        assert torch.equal(mix_of(comix, images[part], gradient[part], given).images, together.images[part])


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_a_last_part_may_be_small(rows):
    images = torch.randn(5 + rows, 3, 32, 32)
    mix = mix_of(Comix(part=5), images, peaked(5 + rows))
    assert torch.isfinite(mix.images).all()
    if rows in (1, 6):
        torch.testing.assert_close(mix.images[-1], images[-1])


def test_a_label_map_is_mixed_as_the_images_are():
    images, small = torch.randn(8, 3, 32, 32), torch.randn(8, 2, 8, 8, dtype=torch.float64)
    mix = mix_of(Comix(), images, peaked(8))
    up = mix.apply(small.repeat_interleave(4, 2).repeat_interleave(4, 3))
    torch.testing.assert_close(mix.apply(small), up[:, :, ::4, ::4])
    odd = mix.apply(torch.arange(8.0)[:, None, None, None].expand(8, 1, 7, 5))
    assert odd.shape == (8, 1, 7, 5)
    assert torch.isfinite(odd).all()


def test_gradients_reach_both_sources():
    images = torch.randn(8, 3, 32, 32, requires_grad=True)
    mix = mix_of(Comix(), images, peaked(8))
    (given,) = torch.autograd.grad(mix.images.sum(), images)
    shown = torch.zeros(8, 32, 32).index_add_(0, mix.sources.flatten(), mix.masks.flatten(0, 1))
    torch.testing.assert_close(given, shown[:, None].expand(8, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_mix_has_the_images_dtype_and_layout(dtype):
    images = torch.randn(6, 3, 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    mix = mix_of(Comix(), images, peaked(6).to(dtype))
    assert mix.images.dtype == dtype
    assert mix.images.is_contiguous(memory_format=torch.channels_last)


def test_the_size_of_a_gradient_does_not_matter():
    images, gradient = torch.randn(8, 3, 32, 32), peaked(8)
    scaled = gradient * torch.logspace(-3, 3, 8)[:, None, None, None]
    assert torch.equal(mix_of(Comix(), images, scaled).masks, mix_of(Comix(), images, gradient).masks)


def test_images_without_gradient_still_mix():
    """All peaks coincide and no block is salient: nothing becomes NaN."""
    mix = mix_of(Comix(), torch.randn(8, 3, 32, 32), torch.zeros(8, 3, 32, 32))
    assert torch.isfinite(mix.images).all()
    torch.testing.assert_close(mix.weights.sum(1), torch.ones(8))


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(BatchError, match=r"saliency of the clean batch is not finite"):
        mix_of(Comix(), torch.randn(4, 3, 32, 32), torch.full((4, 3, 32, 32), torch.nan))


def test_salient_blocks_of_two_survive():
    gradient = torch.full((2, 3, 32, 32), 1e-3)
    gradient[0, :, :16] = 1
    gradient[1, :, 16:] = 1
    mix = mix_of(Comix(), torch.eye(2)[:, :, None, None].expand(2, 2, 32, 32).contiguous(), gradient)
    assert torch.equal(mix.images[0, 0, :16], torch.ones(16, 32))
    assert torch.equal(mix.images[0, 1, 16:], torch.ones(16, 32))


# What the objective asks for


def test_shares_are_none_half_or_all_and_sum_to_one():
    done = arranged(np.random.default_rng(0), parts=3, m=7, sizes=np.array([7, 7, 4]))
    real = done.shares[(np.arange(7) < done.sizes[:, None])]
    assert set(np.unique(real)) == {0.0, 0.5, 1.0}
    np.testing.assert_array_equal(real.sum(3), 1)
    assert not done.shares[2, 4:].any(), "an output that does not exist shows something"
    assert not done.shares[2, :, :, :, 4:].any(), "an input that does not exist is shown"
    np.testing.assert_array_equal(done.used, done.shares.sum((1, 2, 3)))


def test_no_halves_in_the_first_round():
    done = arranged(np.random.default_rng(1), Settings(niter=1))
    assert set(np.unique(done.shares)) == {0.0, 1.0}


def test_order_of_inputs_does_not_matter():
    rng, order = np.random.default_rng(2), np.random.default_rng(3).permutation(6)
    costs = -rng.dirichlet(np.full(16, 0.5), (1, 6)).reshape(1, 6, 4, 4)
    found, prior = rng.random((1, 6, 2)), rng.dirichlet(np.full(6, 2.0), 1)
    first, sizes = rng.integers(0, 6, (1, 6, 4, 4)), np.array([6])
    matrix = compatibility(peak_distances(found, sizes), sizes, 0.1)
    once = Settings(niter=1)  # later rounds rank inputs of equal count by their number
    straight = Arrangement(costs, prior, 0.05, matrix, first, sizes, once)
    other = Arrangement(
        costs[:, order], prior[:, order], 0.05, matrix[:, order][:, :, order], order.argsort()[first], sizes, once
    )
    for one in (straight, other):
        one.run()
    np.testing.assert_array_equal(other.shares, straight.shares[..., order])


def test_without_penalty_all_outputs_are_alike():
    done = arranged(np.random.default_rng(4), Settings(gamma=0.0, resolve=False))
    np.testing.assert_array_equal(done.shares, np.broadcast_to(done.shares[:, :1], done.shares.shape))


def test_the_penalty_spreads_the_inputs():
    """The second input is a little better everywhere, and with a penalty still not everywhere."""
    costs = np.full((1, 6, 4, 4), -1 / 16)
    costs[:, 1] -= 0.01
    loose, tight = (
        arranged(np.random.default_rng(5), Settings(gamma=gamma, resolve=False), costs=costs, eta=0.0).used[0]
        for gamma in (0.0, 1.0)
    )
    assert loose[1] == 96
    assert tight.max() <= 2 * 16


def test_strong_smoothness_leaves_one_input_per_output():
    done = arranged(np.random.default_rng(6), Settings(beta=100.0, niter=1))
    assert (done.shares.any((2, 3)).sum(2) == 1).all()


def test_rounds_lower_the_objective():
    falls = [arranged(np.random.default_rng(seed)).objectives for seed in range(5)]
    assert all(objectives[-1] < objectives[0] for objectives in falls)


def test_the_objective_counts_saliency_edges_and_common_inputs():
    costs, first = np.zeros((1, 2, 2, 2)), np.array([[[[0, 0], [0, 1]], [[0, 0], [0, 0]]]])
    costs[0, 1, 1, 1] = -5.0
    matrix, sizes = np.eye(2)[None], np.array([2])
    start = Arrangement(costs, np.full((1, 2), 0.5), 0.0, matrix, first, sizes, Settings(beta=4.0, gamma=0.4))
    # Two edges between different inputs, each a squared distance of 2; inputs shared by both outputs 3 · 4 · 2 times.
    assert start.objective()[0] == pytest.approx(-5 + 1.0 / 2 * 4 + 0.1 * 24)


def test_equal_outputs_are_kept_apart():
    shares = np.zeros((1, 3, 2, 2, 3))
    shares[0, :2, :, :, 0] = shares[0, :2, :, :, 2] = 0.5
    shares[0, 2, :, :, 1] = 1.0
    np.testing.assert_array_equal(told_apart(shares.any((2, 3))), [[[1, 0, 0], [0, 0, 1], [0, 0, 0]]])


def test_only_the_last_round_tells_outputs_apart():
    """Two outputs of two inputs that both show both: resolving charges each for another one."""
    costs = np.full((1, 2, 2, 2), -0.25)
    costs[0, 0, 0], costs[0, 1, 1] = -0.3, -0.3
    quiet = Settings(gamma=0.01, beta=0.01, tau=10.0)
    for rounds, charged in ((1, False), (2, True)):
        done = arranged(np.random.default_rng(7), quiet._replace(niter=rounds), m=2, n=2, costs=costs, eta=0.0)
        assert done.discouraged.any() == charged
    off = quiet._replace(niter=2, resolve=False)
    assert not arranged(np.random.default_rng(7), off, m=2, n=2, costs=costs, eta=0.0).discouraged.any()


def test_paper_and_code_mask_different_sides():
    """The known difference: the code weights what is over the threshold, the paper takes A ρ there."""
    sizes, matrix = np.array([2]), np.array([[[0.8, 0.3], [0.1, 0.9]]])
    found = {}
    for rule in ("paper", "code"):
        settings = Settings(gamma=2.0, tau=0.5, rule=rule)
        start = Arrangement(
            np.zeros((1, 2, 2, 2)),
            np.full((1, 2), 0.5),
            0.0,
            matrix,
            np.array([[[[0, 0], [0, 0]]] * 2]),
            sizes,
            settings,
        )
        found[rule] = start.excess(np.array([0]), np.zeros((1, 2)))[0]
    # A ρ = (6.4, 0.8) with ρ = (8, 0) and τ = 2; 2γ = 1.
    np.testing.assert_allclose(found["paper"], [6.4, 0.0])
    np.testing.assert_allclose(found["code"], [6.4, 0.8])


def test_the_soft_penalty_counts_what_is_too_much():
    settings = Settings(gamma=2.0, tau=0.5, penalty="soft")
    first = np.array([[[[0, 0], [0, 0]]] * 2])
    start = Arrangement(
        np.zeros((1, 2, 2, 2)), np.full((1, 2), 0.5), 0.0, np.eye(2)[None], first, np.array([2]), settings
    )
    np.testing.assert_allclose(start.excess(np.array([0]), np.array([[4.0, 0.0]]))[0], [2.0, 0.0])


def test_an_output_that_shows_two_may_show_both_by_halves():
    start = arranged(np.random.default_rng(8), Settings(niter=1), m=4, n=2)
    start.shares[0, 1] = 0
    start.shares[0, 1, :, :, 1], start.shares[0, 1, :, 0, 1], start.shares[0, 1, :, 0, 3] = 1, 0, 1
    choices = start.choices(np.array([0]), 1, halves=True)
    known = np.flatnonzero(choices.costs.max((0, 1, 2)) < 1e5)
    assert len(known) == 5
    np.testing.assert_array_equal(choices.shares[0, known[4]], [0, 0.5, 0, 0.5])
    np.testing.assert_array_equal(choices.table[0, known[4], :4], [1, 0.25, 1, 0.25])
    mean = choices.costs[..., [1, 3]].mean(3)
    np.testing.assert_allclose(choices.costs[..., known[4]], mean - 5e-4)


# Peaks and parts


def test_peaks_are_where_the_most_salient_square_begins():
    saliency = torch.zeros(2, 32, 24)
    saliency[0, 10:18, 3:11], saliency[1, 24:, 16:] = 1, 1
    assert peaks(saliency).tolist() == [[10, 3], [24, 16]]
    assert peaks(torch.rand(2, 5, 3)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("size", [(32, 32), (8, 20), (5, 30)], ids=str)
def test_squares_are_of_eight_pixels_or_what_there_is(size):
    saliency = torch.rand(20, *size)
    pooled = F.avg_pool2d(saliency[:, None], (min(size[0], 8), 8), stride=1)[:, 0]
    at = np.unravel_index(pooled.flatten(1).argmax(1).numpy(), pooled.shape[1:])
    assert peaks(saliency).tolist() == np.stack(at, 1).tolist()


def test_compatibility_is_of_mean_one_and_finite():
    found = np.random.default_rng(9).integers(0, 20, (2, 5, 2)).astype(float)
    found[1] = 7
    sizes = np.array([5, 3])
    matrix = compatibility(peak_distances(found, sizes), sizes, 0.2)
    assert (matrix[0] - 0.8 * np.eye(5)).sum() == pytest.approx(0.2 * 5)
    np.testing.assert_array_equal(matrix[1], 0.8 * np.eye(5))


def test_parts_are_consecutive_rows():
    parts = in_parts(np.arange(1.0, 8.0)[:, None], 3)
    np.testing.assert_array_equal(parts[..., 0], [[1, 2, 3], [4, 5, 6], [7, 0, 0]])


def test_sources_are_ordered_by_what_is_shown():
    shares = np.zeros((2, 3, 1, 4, 3))
    shares[0, 0, 0, :, 2], shares[0, 0, 0, 0] = 1, [0, 1, 0]
    shares[0, 1, ..., 1] = shares[0, 2, ..., 0] = shares[1, 0, ..., 0] = 1
    sources, blocks = shown_sources(shares, 4)
    np.testing.assert_array_equal(sources, [[2, 1], [1, 1], [0, 0], [3, 3]])
    np.testing.assert_array_equal(blocks.mean((2, 3)), [[0.75, 0.25], [1, 0], [1, 0], [1, 0]])


# Draws


def test_the_prior_is_dirichlet_and_every_input_as_likely_at_first():
    streams, comix = Streams(0), Comix(alpha=2.0)
    drawn = [comix.draw(5, streams.at("blend", step)) for step in range(1000)]
    prior = np.stack([draws.prior / draws.prior.sum() for draws in drawn])
    assert stats.kstest(prior[:, 0], stats.beta(2, 8).cdf).pvalue > 1e-4
    first = np.concatenate([(5 * draws.first).astype(int).ravel() for draws in drawn])
    assert stats.chisquare(np.bincount(first, minlength=5)).pvalue > 1e-4


def test_every_number_of_blocks_is_as_likely():
    streams, comix = Streams(1), Comix(blocks=-1)
    blocks = np.array([comix.draw(1, streams.at("blend", step)).blocks for step in range(2000)])
    assert stats.chisquare([(blocks == count).sum() for count in (2, 4, 8, 16)]).pvalue > 1e-4


# In a recipe


def smooth(rows, channels=3, size=(32, 32)):
    return F.interpolate(torch.randn(rows, channels, 4, 4), size=size, mode="bilinear")


@pytest.mark.parametrize(
    "text",
    ["", "clean_lam=0.0", "criterion=cross_entropy", "blocks=8", "penalty=soft", "part=4", "saliency=cam", "rule=code"],
)
def test_a_step_trains(cnn, text):
    model, images, labels = cnn(), smooth(7), torch.arange(7)
    recipe = mixwell.create(f"comixup({text})", 7)
    for _ in range(2):
        loss = recipe(model, images, labels)
        assert torch.isfinite(loss)
        model.zero_grad()
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_shapes_and_layouts_train(cnn, size, rows):
    model = cnn(7, 4).to(memory_format=torch.channels_last)
    images = smooth(rows, 4, size).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    assert torch.isfinite(mixwell.create("comixup(part=3)", 7)(model, images, torch.arange(rows)))
    assert torch.equal(images, before)


def test_autocast_and_transformers_train(vit):
    with torch.autocast("cpu", torch.bfloat16):
        loss = mixwell.create("comixup", 7)(vit(), smooth(5), torch.arange(5))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("source", ["fine_grained", "spectral"])
def test_saliency_without_a_network_serves_loaders(source):
    recipe = mixwell.create(f"comixup(saliency={source}, clean_lam=0.0)", 7, pixels={"mean": (0.5,), "std": (0.25,)})
    images, targets = recipe.mix_batch(smooth(6), torch.arange(6))
    assert torch.isfinite(images).all()
    torch.testing.assert_close(targets.dense().sum(1), torch.ones(6))


@pytest.mark.parametrize(("criterion", "factor"), [("softmax_bce", 2 / 7), ("cross_entropy", 1.0)])
def test_the_clean_loss_is_as_large_as_the_codes(cnn, criterion, factor):
    model, images, labels = cnn().eval(), smooth(6), torch.arange(6)
    losses = [
        mixwell.create(f"comixup(criterion={criterion}, clean_lam={weight})", 7)(model, images, labels)
        for weight in (0.5, 0.0)
    ]
    torch.testing.assert_close(losses[0] - losses[1], 0.5 * factor * F.cross_entropy(model(images), labels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part=0", "part must be a number"),
        ("blocks=0", r"blocks must be in \[1, 32\], or -1"),
        ("beta=-1.0", "beta must be a number"),
        ("niter=0", "niter must be a number"),
        ("alpha=0.0", "alpha must be a number"),
        ("omega=1.5", r"omega must be a number in \[0, 1\]"),
        ("penalty=none", "penalty must be 'hard' or 'soft'"),
        ("rule=mine", "rule must be 'paper' or 'code'"),
    ],
)
def test_parameters_out_of_range(text, message):
    with pytest.raises(ParameterError, match=message):
        mixwell.create(f"comixup({text})", 7)
