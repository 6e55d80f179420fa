"""Puzzle Mix: what a mask keeps, what transport keeps, and what is drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.batch import Batch, Pixels
from mixwell.core.errors import BatchError, ParameterError
from mixwell.core.mix import Partners
from mixwell.core.rng import Streams
from mixwell.ops.transport import transport_costs
from mixwell.sample.saliency.puzzlemix import (
    Puzzle,
    PuzzleDraws,
    block_saliency,
    block_side,
    colour_side,
    label_costs,
    moving_side,
    pixel_saliency,
    shown_of,
    transport_plan,
)

PIXELS = Pixels((0.5,), (0.25,))
ROWS = 6


def pictures(rows=ROWS, channels=3, size=(32, 32)):
    """Smooth images in [0, 1], normalised."""
    small = torch.rand(rows, channels, 4, 4)
    return PIXELS.normalise(F.interpolate(small, size=size, mode="bilinear"))


def peaks(rows=ROWS, channels=3, size=(32, 32)):
    """Gradients that are large in a few places."""
    return torch.randn(rows, channels, *size) * F.interpolate(torch.rand(rows, 1, 8, 8) ** 4, size=size)


def mix_of(puzzle, images, gradient, lam=0.5, partner=None, draws=None, labels=None):
    """One mix under a given gradient; everyone's partner is the next row."""
    rows = len(images)
    labels = torch.arange(rows) if labels is None else labels
    partner = torch.arange(rows).roll(-1) if partner is None else partner
    scene = Scene(Batch(images, labels, PIXELS), views=SimpleNamespace(gradient=lambda: gradient))
    lam = torch.full((rows,), float(lam), dtype=torch.float64)
    return puzzle.mix(images, Partners.at(partner[:, None], labels), lam, draws or PuzzleDraws(2), scene)


class Planted(nn.Module):
    """Logits whose loss has a given gradient with respect to the images, up to a factor per row."""

    def __init__(self, gradient: Tensor, classes: int) -> None:
        super().__init__()
        self.gradient, self.classes = gradient, classes
        self.bias = nn.Parameter(torch.zeros(classes))
        self.images = None

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        first = (images * self.gradient.to(images.dtype)).flatten(1).mean(1, keepdim=True)
        return F.pad(0.1 * first, (0, self.classes - 1)) + self.bias


# What the mask is


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (28, 28), (9, 5)], ids=str)
def test_without_transport_the_mask_mixes_the_pixels(labels, size):
    images = pictures(size=size)
    mix = mix_of(Puzzle(labels, transport="none"), images, peaks(size=size))
    share = mix.masks[:, :1]
    torch.testing.assert_close(mix.images, share * images + (1 - share) * images.roll(-1, 0))
    levels = torch.linspace(0, 1, labels)
    assert (share.unsqueeze(-1) - levels).abs().min(-1).values.max() < 1e-6, "a share that is no level"
    assert len(share.unique()) > 1, "nothing was cut, so the test saw nothing"
    side = block_side(size, 8)
    blocks = share.unfold(2, side, side).unfold(3, side, side).flatten(4)
    assert torch.equal(blocks.amin(4), blocks.amax(4)), "a block has several shares"
    torch.testing.assert_close(mix.masks.mean((2, 3)), mix.weights)
    torch.testing.assert_close(mix.weights.sum(1), torch.ones(ROWS))


def test_salient_blocks_of_both_survive():
    gradient = torch.full((2, 3, 32, 32), 1e-3)
    gradient[0, :, :8, :8] = 1
    gradient[1, :, 24:, 24:] = 1
    mix = mix_of(Puzzle(), pictures(2), gradient)
    assert (mix.masks[0, 0, :8, :8] == 1).all()
    assert (mix.masks[0, 0, 24:, 24:] == 0).all()
    assert (mix.masks[1, 0, :8, :8] == 0).all()
    assert (mix.masks[1, 0, 24:, 24:] == 1).all()


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_strong_prior_at_the_ends_is_one_image(lam):
    images = pictures()
    mix = mix_of(Puzzle(eta=1e3), images, peaks(), lam)
    assert torch.equal(mix.images, images if lam == 1 else images.roll(-1, 0))
    assert torch.equal(mix.weights[:, 0], torch.full((ROWS,), lam))


def test_lambda_is_only_a_prior():
    """The label follows the mask; with λ the own image's part grows, but is not λ."""
    images, gradient = pictures(40), peaks(40)
    shares = [mix_of(Puzzle(), images, gradient, lam).weights[:, 0] for lam in (0.1, 0.3, 0.7, 0.9)]
    means = [share.mean().item() for share in shares]
    assert means == sorted(means)
    assert means[0] < 0.5 < means[3]
    assert shares[0].std() > 0.01


def test_the_prior_is_binomial():
    """Levels by how often a block of three coins of chance λ shows the own image, λ first."""
    free = np.zeros((1, 1, 1))
    costs = label_costs(free, free, np.array([0.3]), 2.0, 4)[0, 0, 0]
    np.testing.assert_allclose(costs, -2 * np.log(stats.binom(3, 0.3).pmf([3, 2, 1, 0]) + 1e-8))


def test_the_size_of_a_gradient_does_not_matter():
    images, gradient = pictures(), peaks()
    scaled = gradient * torch.logspace(-3, 3, ROWS)[:, None, None, None]
    mix = mix_of(Puzzle(), images, gradient)
    assert torch.equal(mix_of(Puzzle(), images, scaled).masks, mix.masks)


def test_a_batch_paired_with_itself_stays_as_it_is():
    images = pictures()
    mix = mix_of(Puzzle(transport="none"), images, peaks(), partner=torch.arange(ROWS))
    assert torch.equal(mix.images, images)


def test_images_without_gradient_have_flat_saliency():
    saliency = block_saliency(pixel_saliency(torch.zeros(2, 3, 8, 8)), 2)
    torch.testing.assert_close(saliency, torch.full((2, 4, 4), 1 / 16))
    assert torch.isfinite(mix_of(Puzzle(), pictures(), torch.zeros(ROWS, 3, 32, 32)).images).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saliency_is_squared_in_fp32(dtype):
    """1e-4 squared is 0 in fp16."""
    gradient = torch.full((1, 3, 4, 4), 1e-4).to(dtype)
    assert pixel_saliency(gradient).dtype == torch.float32
    torch.testing.assert_close(pixel_saliency(gradient), gradient[:, 0].float())


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(BatchError, match=r"gradient of the clean batch's loss .* is not finite"):
        mix_of(Puzzle(), pictures(), torch.full((ROWS, 3, 32, 32), torch.nan))


def test_pixels_outside_their_range_still_mix():
    """Their colours can differ by more than 1, so that neighbours would gain by disagreeing."""
    mix = mix_of(Puzzle(beta=1e3, gamma=1.0), 100 * torch.randn(ROWS, 3, 32, 32), peaks())
    assert torch.isfinite(mix.images).all()


# Sizes


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((32, 32), [16, 8, 4, 2]),
        ((224, 224), [112, 56, 28, 14]),
        ((28, 28), [14, 7, 4, 2]),
        ((24, 40), [8, 8, 4, 2]),
        ((9, 5), [1, 1, 1, 1]),
    ],
    ids=str,
)
def test_block_sides(size, sides):
    assert [block_side(size, blocks) for blocks in (2, 4, 8, 16)] == sides


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(BatchError, match=r"about 4 .* 37×41 only divides into squares of 1 pixels\. Resize or crop"):
        block_side((37, 41), 4)


def test_moving_blocks_divide_the_masks_blocks():
    assert [moving_side((32, 32), side, 4) for side in (16, 8, 4, 2)] == [4, 4, 4, 2]
    assert [moving_side((32, 32), side, -1) for side in (16, 8, 4, 2)] == [16, 8, 4, 2]
    assert [moving_side((224, 224), side, 4) for side in (112, 56, 28, 14)] == [14, 14, 14, 14]
    assert [colour_side(14, 4), colour_side(3, 4), colour_side(16, 4)] == [2, 3, 4]


# Transport


def test_transport_keeps_the_label_and_only_moves_blocks():
    images, gradient = pictures(), peaks()
    still, moved = (
        mix_of(Puzzle(labels=2, transport=how, t_eps=0.05), images, gradient) for how in ("none", "iterative")
    )
    assert torch.equal(moved.masks, still.masks)
    assert torch.equal(moved.weights, still.weights)
    assert not torch.equal(moved.images, still.images), "nothing moved, so the test saw nothing"

    def blocks(x):
        return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    shown, sources = blocks(moved.images), torch.stack((blocks(images), blocks(images.roll(-1, 0))), 1)
    own = blocks(moved.masks[:, :1])[:, :, 0] == 1
    for row in range(ROWS):
        for place in range(shown.shape[1]):
            found = (sources[row, 0 if own[row, place] else 1] == shown[row, place]).all(1)
            assert found.sum() == 1, "a place shows no block of the image that the mask names"


@pytest.mark.parametrize("eps", [0.8, 0.05])
def test_exact_transport_costs_no_more(eps):
    """The known difference: the iteration may drop a displaced block; over all places the assignment is cheaper."""
    saliency = block_saliency(pixel_saliency(peaks(20)), 4)
    shown = (torch.rand(20, 8, 8) > 0.5).float()
    costs = transport_costs(saliency, shown > 0, eps)
    exact = transport_plan(saliency, shown, eps, "exact").flatten(1)
    assert torch.equal(exact.sort(1).values, torch.arange(64).expand(20, 64))
    stay = torch.arange(64).expand(20, 64)
    total, unmoved = (costs.gather(1, plan[:, None]).sum((1, 2)) for plan in (exact, stay))
    assert (total <= unmoved + 1e-5).all()
    assert (total < unmoved - 1e-3).any()


def test_exact_and_iterative_agree_on_flat_saliency():
    saliency, shown = torch.full((9, 8, 8), 1 / 64), (torch.rand(9, 8, 8) > 0.5).float()
    exact, iterative = (transport_plan(saliency, shown, 0.8, how) for how in ("exact", "iterative"))
    assert torch.equal(exact[shown > 0], iterative[shown > 0])


# Draws


def test_every_number_of_blocks_is_as_likely():
    puzzle, streams = Puzzle(), Streams(0)
    taken = [puzzle.draw(4, streams.at("blend", step)).choice for step in range(4000)]
    assert stats.chisquare(np.bincount(taken, minlength=4)).pvalue > 1e-4


def test_noise_comes_at_its_rate_for_each_image_alone():
    puzzle, streams = Puzzle(adv_p=0.3), Streams(1)
    noisy = np.array([puzzle.draw(4, streams.at("blend", step)).noisy for step in range(4000)])
    for one in noisy.T:
        assert stats.binomtest(int(one.sum()), 4000, 0.3).pvalue > 1e-4
    assert stats.fisher_exact(stats.contingency.crosstab(*noisy.T)[1]).pvalue > 1e-4
    assert not np.array(Puzzle().draw(4, streams.at("blend", 0)).noisy).any()


# In a recipe


def test_a_recipe_mixes_by_its_networks_gradient():
    images, gradient, labels = pictures(), peaks(), torch.tensor([1, 2, 3, 1, 2, 3])
    net = Planted(gradient, 4)
    recipe = mixwell.create("puzzlemix(per=batch)", 4, pixels=PIXELS)
    (option,) = recipe.options
    partner = np.roll(np.arange(ROWS), -1)
    given = {option.pairing: partner, option.ratio: np.array([0.5]), option.blend: PuzzleDraws(2)}
    (turn,) = recipe.turns(net, images, labels, draws=mixwell.Draws(given))
    expected = mix_of(Puzzle(), images, gradient, labels=labels)
    assert torch.equal(net.images, expected.images)
    assert torch.equal(turn.targets.weights, expected.weights)
    dense = F.one_hot(labels, 4) * expected.weights[:, :1] + F.one_hot(labels[partner], 4) * expected.weights[:, 1:]
    torch.testing.assert_close(turn.targets.dense(), dense)
    torch.testing.assert_close(turn.loss, F.binary_cross_entropy(turn.logits.softmax(1), dense))


@pytest.mark.parametrize("noisy", [(True, False), (False, True), (True, True)], ids=str)
def test_noise_is_bounded_and_only_where_it_was_drawn(noisy):
    images, labels = pictures(), torch.arange(ROWS)
    net = Planted(peaks(), 7)
    recipe = mixwell.create("puzzlemix(transport=none, labels=2, eta=0.01)", 7, pixels=PIXELS)
    (option,) = recipe.options
    given = {option.pairing: np.roll(np.arange(ROWS), -1), option.ratio: np.full(ROWS, 0.5)}

    def mixed(strength, key=5):
        draws = {**given, option.blend: PuzzleDraws(2, noisy, key, strength)}
        list(recipe.turns(net, images, labels, draws=mixwell.Draws(draws)))
        return net.images

    clean, noise = mixed(0.0), mixed(1.0) - mixed(0.0)
    own = (clean == images).all(1)
    assert own.any()
    assert not own.all()
    in_pixels = 0.25 * noise.abs().amax(1)
    assert in_pixels.max() <= 10 / 255 + 1e-5
    assert (in_pixels[own].max() > 1e-3) == noisy[0]
    assert (in_pixels[~own].max() > 1e-3) == noisy[1]
    assert (0.25 * mixed(1.0) + 0.5).min() >= -1e-5
    assert (0.25 * mixed(1.0) + 0.5).max() <= 1 + 1e-5
    assert torch.equal(mixed(1.0), mixed(1.0))
    assert not torch.equal(mixed(1.0), mixed(1.0, key=6))


@pytest.mark.parametrize(
    "text", ["", "clean_lam=1.0", "adv_p=1.0", "transport=exact", "criterion=cross_entropy", "labels=4"]
)
def test_a_step_trains(cnn, text):
    model, images, labels = cnn(), pictures(7), torch.arange(7)
    recipe = mixwell.create(f"puzzlemix({text})", 7, pixels=PIXELS)
    for _ in range(3):
        loss = recipe(model, images, labels)
        assert torch.isfinite(loss)
        model.zero_grad()
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("rows", [1, 5])
def test_shapes_and_layouts_train(cnn, size, channels, rows):
    model = cnn(7, channels).to(memory_format=torch.channels_last)
    images = pictures(rows, channels, size).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    recipe = mixwell.create("puzzlemix", 7, pixels=PIXELS)
    for _ in range(4):
        assert torch.isfinite(recipe(model, images, torch.arange(rows)))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_mix_has_the_images_dtype_and_layout(dtype):
    images = pictures().to(dtype).contiguous(memory_format=torch.channels_last)
    mix = mix_of(Puzzle(t_eps=0.05), images, peaks().to(dtype))
    assert mix.images.dtype == dtype
    assert mix.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mix.apply(images), mix.images)


@pytest.mark.parametrize(("criterion", "factor"), [("softmax_bce", 2 / 7), ("cross_entropy", 1.0)])
def test_the_clean_loss_is_as_large_as_the_codes(cnn, criterion, factor):
    model, images, labels = cnn().eval(), pictures(), torch.arange(ROWS)
    losses = [
        mixwell.create(f"puzzlemix(criterion={criterion}, clean_lam={weight})", 7, pixels=PIXELS)(model, images, labels)
        for weight in (0.5, 0.0)
    ]
    expected = 0.5 * factor * F.cross_entropy(model(images), labels)
    torch.testing.assert_close(losses[0] - losses[1], expected)


def test_batches_that_are_not_mixed_have_no_clean_loss_besides(cnn):
    recipe = mixwell.create("puzzlemix(clean_lam=1.0, prob=0.5)", 7, pixels=PIXELS)
    mixed, plain = recipe.options
    assert (len(mixed.terms), len(plain.terms)) == (1, 0)


@pytest.mark.parametrize("other", ["transmix", "decouplemix"])
def test_others_take_its_masks_and_weights(vit, cnn, other):
    model = vit() if other == "transmix" else cnn()
    loss = mixwell.create(f"puzzlemix + {other}", 7, pixels=PIXELS)(model, pictures(), torch.arange(ROWS))
    assert torch.isfinite(loss)


def test_unknown_normalisation_is_refused(cnn):
    with pytest.raises(BatchError, match="needs raw pixels"):
        mixwell.create("puzzlemix", 7)(cnn(), pictures(), torch.arange(ROWS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels=5", "labels must be 2 or 3 or 4, got 5"),
        ("gamma=1.5", r"gamma must be a number in \[0, 1\], got 1.5"),
        ("block_nums=(0, 2)", r"block_nums must be whole numbers in \[1, 32\], at least one, got \(0, 2\)"),
        ("t_eps=0", "To leave blocks in place take transport='none'"),
        ("t_size=0", "t_size must be ≥ 1, or -1 for the blocks of the mask, got 0"),
        ("transport=best", "transport must be 'iterative' or 'exact' or 'none', got 'best'"),
    ],
)
def test_parameters_out_of_range(text, message):
    with pytest.raises(ParameterError, match=message):
        mixwell.create(f"puzzlemix({text})", 7)


def test_what_is_seen_of_a_source_is_where_its_blocks_came_from():
    """The block that goes to a shown place counts where it lay; a block that is seen nowhere does not."""
    shares = torch.zeros(1, 4, 8)
    shares[0, :2, :2] = 1.0  # the first of 2 × 4 places is shown, and the last by half
    shares[0, 2:, 6:] = 0.5
    plan = torch.tensor([[[6, 1, 2, 3], [4, 5, 0, -1]]])
    seen = shown_of(shares, plan)
    expected = torch.zeros(1, 4, 8)
    expected[0, 2:, 4:6] = 1.0
    expected[0, 2:, 6:] = 0.5
    assert torch.equal(seen, expected)
    stays = torch.arange(8).view(1, 2, 4)
    assert torch.equal(shown_of(shares, stays), shares)


@pytest.mark.parametrize("transport", ["iterative", "none"])
def test_origins_follow_the_transport(transport, cnn):
    text = f"puzzlemix(transport={transport}, beta=0.0, t_eps=0.01, block_nums=(4,))"
    images = torch.rand(4, 3, 32, 32) * torch.rand(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    option = mixwell.create(text, 7, pixels=Pixels((0.0,), (1.0,))).options[0]
    batch = Batch(images, torch.arange(4), Pixels((0.0,), (1.0,)))
    views = mixwell.Views(mixwell.Probe(cnn()), batch, option.view_wants)
    mix = option.mix(images, Scene(batch, option.draw(4, Streams(0), 0), views))
    assert option.blend.aligned == (transport == "none")
    assert mix.origins.shape == mix.masks.shape
    assert torch.equal(mix.origins, mix.masks) == (transport == "none")
    assert (mix.origins >= 0).all()
    assert (mix.origins <= 1).all()
