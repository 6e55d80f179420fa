"""PixMix: sums and products against their formulas, whole views against a loop, and the distribution of the draws."""

import numpy as np
import pytest
import torch
from PIL import Image

import mixwell
from mixwell.core.axes import Scene
from mixwell.ops.augment import augment, parameters_of, quantised
from mixwell.sample.linear.pixmix import PixMixDraws, PixMixRounds, add, mixing_pictures, multiply

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path_factory.getbasetemp() / "pixmix"))


def piece_of(**changes) -> PixMixRounds:
    return PixMixRounds(**{"count": 12, **changes})


def images_of(rows: int, height: int = 20, width: int = 28) -> torch.Tensor:
    return PIXELS.normalise(torch.randint(0, 256, (rows, 3, height, width)) / 255)


def scene_of(images: torch.Tensor, pixels: mixwell.Pixels = PIXELS) -> Scene:
    return Scene(mixwell.Batch(images, torch.arange(len(images)), pixels))


def view_of(piece: PixMixRounds, images: torch.Tensor, draws: PixMixDraws) -> torch.Tensor:
    (view,) = piece.images(draws, scene_of(images))
    return view


def drawn(piece: PixMixRounds, rows: int, seed: int = 0, **changes: np.ndarray) -> PixMixDraws:
    return piece.draw(rows, np.random.default_rng(seed))._replace(**changes)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def test_a_view_is_made_as_the_algorithm_says_image_by_image():
    piece, images = piece_of(), images_of(24)
    draws = drawn(piece, 24, 5)
    pictures = mixing_pictures("fractals", 12, 32, 3, images.device)
    view = PIXELS.raw(view_of(piece, images, draws))
    for row in range(24):
        raw = PIXELS.raw(images[row : row + 1])

        def copy(slot: int, row: int = row, raw: torch.Tensor = raw) -> np.ndarray:
            one = (slice(row, row + 1), slice(slot, slot + 1))
            operation, level, flip = (
                array[one][None, :, :, None] for array in (draws.operations, draws.levels, draws.flips)
            )
            made = augment(quantised(raw), operation, parameters_of(operation, level, flip, (20, 28)))
            return made[0, 0, 0].double().numpy() / 255

        top, left = int(draws.corner[row, 0] * 13), int(draws.corner[row, 1] * 5)
        picture = pictures[int(draws.picture[row] * 12), :, top : top + 20, left : left + 28].double().numpy() / 255
        wanted = copy(0) if draws.copied[row, 0] else raw[0].double().numpy().clip(0, 1)
        for turn in range(draws.rounds[row]):
            source = copy(turn + 1) if draws.copied[row, turn + 1] else picture
            a, b = float(draws.a[row, turn]), float(draws.b[row, turn])
            if draws.multiplied[row, turn]:
                wanted = (2 * wanted) ** a * np.maximum(2 * source, 1e-37) ** b / 2
            else:
                wanted = (a * (2 * wanted - 1) + b * (2 * source - 1) + 1) / 2
            wanted = wanted.clip(0, 1)
        np.testing.assert_allclose(view[row].numpy(), wanted, atol=1e-5)


def test_an_image_without_round_and_copy_is_untouched():
    piece, images = piece_of(), images_of(6)
    draws = drawn(piece, 6)
    draws.rounds[:3], draws.copied[:3, 0] = 0, False
    draws.rounds[3:] = 4
    view = view_of(piece, images, draws)
    assert torch.equal(view[:3], images[:3])
    assert all(not torch.equal(view[row], images[row]) for row in range(3, 6))
    draws.rounds[:] = 0
    draws.copied[:, 0] = False
    assert torch.equal(view_of(piece, images, draws), images)


def test_sums_and_products_with_nothing_are_the_image():
    x, s = torch.rand(3, 2, 5, 7), torch.rand(3, 2, 5, 7)
    for rule in (add, multiply):
        torch.testing.assert_close(rule(x, s, numbers(1, 1, 1), numbers(0, 0, 0)), x)
        torch.testing.assert_close(rule(x, x, numbers(0.5, 0.3, 1.4), numbers(0.5, 0.7, -0.4)), x)


def test_black_times_black_stays_black_and_black_divides_to_white():
    black, grey = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    assert torch.equal(multiply(black, black, numbers(1.2), numbers(-0.9)), black)
    assert (multiply(grey, black, numbers(1.2), numbers(-0.9)) > 1).all()


@pytest.mark.parametrize("beta", [3.0, 0.01])
def test_views_are_finite_and_in_range(beta: float):
    piece, images = piece_of(beta=beta, k=9), images_of(40)
    images[:20] = PIXELS.normalise(torch.zeros(1, 3, 1, 1))
    for seed in range(5):
        draws = drawn(piece, 40, seed, picture=np.zeros(40))
        raw = PIXELS.raw(view_of(piece, images, draws))
        assert torch.isfinite(raw).all()
        assert raw.min() > -1e-5
        assert raw.max() < 1 + 1e-5


def test_draws_are_distributed_as_the_paper_says():
    draws = piece_of().draw(8000, np.random.default_rng(1))
    np.testing.assert_allclose(np.bincount(draws.rounds) / 8000, np.full(5, 1 / 5), atol=0.02)
    np.testing.assert_allclose(np.bincount(draws.operations.ravel()) / 40000, np.full(13, 1 / 13), atol=0.01)
    np.testing.assert_allclose(draws.copied.mean(0), np.full(5, 0.5), atol=0.03)
    np.testing.assert_allclose(draws.multiplied.mean(0), np.full(4, 0.5), atol=0.03)
    assert 0.1 <= draws.levels.min() < 0.11
    assert 2.99 < draws.levels.max() <= 3
    inverse = draws.b < 0
    assert inverse.mean() == pytest.approx(0.5, abs=0.02)
    assert (draws.a[inverse] >= 1).all()
    assert (draws.a[~inverse] <= 1).all()
    for a_or_b, mean in ((draws.a[inverse] - 1, 1 / 4), (draws.a[~inverse], 3 / 4), (abs(draws.b), 1 / 4)):
        assert a_or_b.mean() == pytest.approx(mean, abs=0.01)
        assert a_or_b.var() == pytest.approx(3 / 80, abs=0.003)
    assert abs(np.corrcoef(draws.a[inverse], draws.b[inverse])[0, 1]) < 0.03


def test_nine_operations():
    assert set(piece_of(ops=9).draw(300, np.random.default_rng(1)).operations.ravel()) == set(range(9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_views_have_the_images_dtype_and_layout(dtype: torch.dtype):
    piece, images = piece_of(), images_of(7).to(dtype)
    before, views = images.clone(), []
    for layout in (torch.contiguous_format, torch.channels_last):
        view = view_of(piece, images.contiguous(memory_format=layout), drawn(piece, 7))
        assert view.dtype == dtype
        assert view.is_contiguous(memory_format=layout)
        assert view.isfinite().all()
        views.append(view)
    assert torch.equal(*views)
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(1, 3, 7, 13), (3, 1, 32, 32), (2, 5, 1, 1), (2, 4, 70, 9)])
def test_any_batch_size_side_and_channel_count(shape: tuple[int, ...]):
    piece, images = piece_of(), torch.rand(shape)
    for seed in range(6):
        (view,) = piece.images(drawn(piece, shape[0], seed), scene_of(images, mixwell.Pixels((0.0,), (1.0,))))
        assert view.shape == shape
        assert ((view >= 0) & (view <= 1)).all()


def test_every_picture_of_a_folder_and_every_place_in_it_is_taken(tmp_path):
    """With a = 0 and b = 1 a sum is the picture itself; red says which, green and blue say which pixel."""
    across, down = np.meshgrid(np.arange(9), np.arange(9))
    for which in range(3):
        Image.fromarray(np.stack((np.full((9, 9), which), down, across), -1).astype(np.uint8)).save(
            tmp_path / f"{which}.png"
        )
    piece, images = piece_of(pictures=str(tmp_path)), images_of(600, 8, 6)
    flags = np.zeros((600, 5), bool)
    draws = drawn(
        piece,
        600,
        rounds=np.ones(600, int),
        copied=flags,
        multiplied=flags[:, 1:],
        a=np.zeros((600, 4), np.float32),
        b=np.ones((600, 4), np.float32),
    )
    shown = (PIXELS.raw(view_of(piece, images, draws)) * 255).round().long()
    assert torch.equal(shown[:, 0].flatten(1).amin(1), shown[:, 0].flatten(1).amax(1))
    corners = shown[:, :, 0, 0]
    assert set(map(tuple, corners.tolist())) == {(w, y, x) for w in range(3) for y in range(2) for x in range(4)}
    assert torch.equal(shown[:, 1], corners[:, 1, None, None] + torch.arange(8)[:, None].expand(8, 6))
    assert torch.equal(shown[:, 2], corners[:, 2, None, None] + torch.arange(6).expand(8, 6))


def test_grey_images_take_grey_pictures_and_more_channels_repeat_them():
    colour, grey, five = (mixing_pictures("fractals", 12, 36, channels, torch.device("cpu")) for channels in (3, 1, 5))
    assert colour.shape == (12, 3, 36, 36)
    torch.testing.assert_close(grey[:, 0].float(), colour.float().mean(1), atol=0.5, rtol=0)
    assert torch.equal(five, colour[:, [0, 1, 2, 0, 1]])


def test_prepare_makes_the_fractals_and_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    told = []
    recipe = mixwell.create("pixmix(count=3)", num_classes=4, pixels=PIXELS)
    batch = mixwell.Batch(images_of(4, 32, 32), torch.arange(4), PIXELS)
    recipe.prepare(lambda: [batch], "noise", progress=lambda *step: told.append(step))
    assert told == [("fractals", 3, 3)]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["pixmix(count=12)", "pixmix(count=12, k=2, beta=4, severity=1, ops=9) + cutmix"])
def test_a_step_trains_a_network(cnn, text: str):
    recipe, model = mixwell.create(text, num_classes=7, pixels=PIXELS), cnn()
    optimizer = torch.optim.SGD(recipe.parameter_groups(model), lr=0.1)
    loss = recipe(model, images_of(5), torch.arange(5))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    optimizer.step()


def test_no_network_is_needed_and_labels_stay():
    images, labels = images_of(30), torch.arange(30)
    mixed, targets = mixwell.create("pixmix(count=12)", num_classes=30, pixels=PIXELS).mix_batch(images, labels)
    assert torch.equal(targets.dense(), torch.eye(30))
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("text", ["k=0", "beta=0", "severity=11", "severity=0", "ops=10", "count=0"])
def test_parameters_out_of_range(text: str):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"pixmix({text})")


def test_batches_and_folders_it_cannot_use(tmp_path):
    recipe = mixwell.create("pixmix(count=12)", num_classes=7)
    with pytest.raises(mixwell.BatchError, match="normalised"):
        recipe.mix_batch(images_of(3), torch.arange(3))
    with pytest.raises(mixwell.BatchError, match=r"\(B, C, H, W\)"):
        recipe.mix_batch(mixwell.Batch(torch.randn(3, 8), torch.arange(3), mixwell.Pixels((0.5,), (1.0,))))
    recipe = mixwell.create(f"pixmix(pictures='{tmp_path / 'nowhere'}')", num_classes=7, pixels=PIXELS)
    assert str(mixwell.create(str(recipe))) == str(recipe)
    with pytest.raises(mixwell.DataError, match="No folder"):
        recipe.mix_batch(images_of(3), torch.arange(3))
