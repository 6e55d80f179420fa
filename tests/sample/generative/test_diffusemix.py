"""DiffuseMix: halves, seams and fractals; edits from batches, folders, pipelines and fixed looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.data.crops import augmented
from mixwell.ops.looks import edited
from mixwell.sample.generative.diffusemix import PROMPTS, EditDraws, EditedHalves, blended, hybrid, ramp

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
FEW = "count=5"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MIXWELL_CACHE", str(folder))
    return folder


def raw_of(rows: int = 6, channels: int = 3, size: tuple[int, int] = (12, 20)) -> Tensor:
    """Pixels of 256 levels, none of them near black or white."""
    return torch.randint(20, 230, (rows, channels, *size)).float() / 255


def batch_of(raw: Tensor, **extras: Tensor) -> mixwell.Batch:
    rows = torch.arange(len(raw))
    return mixwell.Batch(PIXELS.normalise(raw), rows, PIXELS, index=rows, extras=extras)


def draws_of(rows: int = 6, **changes: Any) -> EditDraws:
    """Every row is cut, the image left and its edit right; the first edit and fractal."""
    no, zero = np.zeros(rows, bool), np.zeros(rows)
    return EditDraws(no, zero, no, no, zero)._replace(**changes)


def piece_of(parameters: str = "") -> EditedHalves:
    return mixwell.create(f"diffusemix({parameters or FEW})", num_classes=6, pixels=PIXELS).options[0].alone


def view_of(piece: EditedHalves, batch: mixwell.Batch, draws: EditDraws | None = None) -> Tensor:
    """The pixels of the view."""
    (view,) = piece.images(draws_of(len(batch)) if draws is None else draws, Scene(batch))
    assert view.shape == batch.images.shape
    return PIXELS.raw(view)


def write_edits(folder: Path, edits: Tensor, prompt: str = "snowy") -> None:
    """(B, C, H, W) pixels, one file each."""
    (folder / prompt).mkdir(parents=True, exist_ok=True)
    for row, edit in enumerate(edits):
        levels = (edit * 255).round().to(torch.uint8).movedim(0, -1).squeeze(-1)
        Image.fromarray(levels.numpy()).save(folder / prompt / f"{row}.png")


class Inverting:
    """A pipeline that shows the negative."""

    calls = 0

    def __call__(self, **given: Any) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(images=[Image.eval(image, lambda level: 255 - level) for image in given["image"]])


# Halves and seams


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 20, 31, 32, 256])
def test_a_ramp_fills_any_side_and_shows_half_of_each(side: int):
    for seam in (0, 1, 2, 5, 20):
        if seam > side:
            continue
        line = ramp(side, seam)
        assert line.shape == (side,)
        assert (np.diff(line) >= 0).all()
        assert set(line[: (side - seam) // 2]) <= {0.0}
        assert line[-1] == 1.0 or side == seam == 1
        assert abs(line.mean() - 0.5) <= 0.5 / side + 1e-9  # what cannot be halved is the edit's
    assert ramp(8).tolist() == [0] * 4 + [1] * 4
    assert ramp(7).tolist() == [0] * 3 + [1] * 4
    assert ramp(8, 4).tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])


@pytest.mark.parametrize("size", [(12, 20), (7, 9), (1, 1), (2, 3)])
def test_halves_are_of_the_image_and_of_the_edit(size: tuple[int, int]):
    image, edit = raw_of(4, size=size), raw_of(4, size=size)
    vertical, flipped = np.array([False, False, True, True]), np.array([False, True, False, True])
    found = hybrid(image, edit, vertical, flipped)
    high, wide = size[0] // 2, size[1] // 2
    assert torch.equal(found[0], torch.cat((image[0, ..., :wide], edit[0, ..., wide:]), 2))
    assert torch.equal(found[1], torch.cat((edit[1, ..., :wide], image[1, ..., wide:]), 2))
    assert torch.equal(found[2], torch.cat((image[2, :, :high], edit[2, :, high:]), 1))
    assert torch.equal(found[3], torch.cat((edit[3, :, :high], image[3, :, high:]), 1))


@pytest.mark.parametrize("seam", [0.0, 20 / 256, 0.5, 1.0])
def test_a_flip_exchanges_image_and_edit(seam: float):
    image, edit = raw_of(), raw_of()
    vertical, no, yes = np.arange(6) % 2 == 0, np.zeros(6, bool), np.ones(6, bool)
    torch.testing.assert_close(
        hybrid(image, edit, vertical, yes, seam), hybrid(edit, image, vertical, no, seam), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(hybrid(image, image, vertical, no, seam), image, atol=1e-6, rtol=0)


def test_the_seam_is_as_wide_as_the_cut_side_says():
    image, edit = torch.zeros(2, 1, 64, 256), torch.ones(2, 1, 64, 256)
    found = hybrid(image, edit, np.array([False, True]), np.zeros(2, bool), 20 / 256)
    assert ((found[0, 0, 0] > 0) & (found[0, 0, 0] < 1)).sum() == 18  # of 20, both ends are pure
    assert ((found[1, 0, :, 0] > 0) & (found[1, 0, :, 0] < 1)).sum() == 3  # of 5


def test_the_fractal_has_its_weight_and_nothing_leaves_the_range():
    image, fractal = raw_of(), torch.rand(6, 3, 12, 20)
    torch.testing.assert_close(blended(image, fractal), 0.8 * image + 0.2 * fractal)
    assert torch.equal(blended(image, fractal, 0.0), image)
    assert blended(image + 5, fractal).amax() <= 1


# What is drawn


def test_halves_prompts_fractals_and_originals_are_drawn_as_often_as_they_should():
    draws = piece_of().draw(20000, np.random.default_rng(0))
    assert draws.original.mean() == pytest.approx(0.5, abs=0.02)
    quarters = np.bincount(2 * draws.vertical + draws.flipped) / 20000
    assert np.abs(quarters - 0.25).max() < 0.02
    for uniform in (draws.prompt, draws.fractal):
        assert uniform.mean() == pytest.approx(0.5, abs=0.01)
        assert uniform.var() == pytest.approx(1 / 12, rel=0.03)
    assert piece_of("originals=0").draw(50, np.random.default_rng(0)).original.sum() == 0


def test_paper_and_code_differ_in_halves_seam_and_words():
    paper, code = piece_of(), piece_of("rule=code")
    assert (paper.masks, paper.blend_width) == (4, 0)
    assert (code.masks, code.blend_width) == (2, 20 / 256)
    assert not code.draw(200, np.random.default_rng(0)).flipped.any()
    mixed = piece_of("rule=code, masks=4, blend_width=0.25")
    assert (mixed.masks, mixed.blend_width) == (4, 0.25)
    assert mixed.draw(200, np.random.default_rng(0)).flipped.any()


# Edits of the batch


def test_the_view_is_image_edit_and_fractal():
    raw, edits = raw_of(), raw_of()
    piece = piece_of("weight=0, count=5")
    for given in (edits, (edits * 255).round().to(torch.uint8)):
        view = view_of(piece, batch_of(raw, edits=given))
        torch.testing.assert_close(view[..., :10], raw[..., :10], atol=1e-5, rtol=0)
        torch.testing.assert_close(view[..., 10:], edits[..., 10:], atol=1e-5, rtol=0)
    with_fractal = view_of(piece_of(FEW), batch_of(raw, edits=edits))
    fractal = (with_fractal - 0.8 * torch.cat((raw[..., :10], edits[..., 10:]), 3)) / 0.2
    assert fractal.amin() > -1e-4
    assert fractal.amax() < 1 + 1e-4
    torch.testing.assert_close(fractal, fractal[:1].expand_as(fractal), atol=1e-4, rtol=0)  # all drew the first


def test_a_prompt_is_chosen_among_those_of_the_batch():
    raw = raw_of()
    edits = torch.stack([raw_of(), raw_of(), raw_of()], 1)
    view = view_of(
        piece_of("weight=0"), batch_of(raw, edits=edits), draws_of(prompt=np.array([0, 0.3, 0.4, 0.6, 0.7, 0.99]))
    )
    expected = edits[torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2])]
    torch.testing.assert_close(view[..., 10:], expected[..., 10:], atol=1e-5, rtol=0)


def test_rows_that_stay_do_so_bit_by_bit():
    batch, original = batch_of(raw_of(), edits=raw_of()), np.array([True, False] * 3)
    (view,) = piece_of().images(draws_of(original=original), Scene(batch))
    assert torch.equal(view[original], batch.images[original])
    assert (view[~original] != batch.images[~original]).flatten(1).any(1).all()
    (plain,) = piece_of().images(draws_of(original=np.ones(6, bool)), Scene(batch))
    assert torch.equal(plain, batch.images)


def test_skipped_edits_leave_the_image_as_it_is():
    edits = raw_of()
    edits[1], edits[3] = 0, 1
    batch = batch_of(raw_of(), edits=edits)
    (view,) = piece_of().images(draws_of(), Scene(batch))
    same = (view == batch.images).flatten(1).all(1)
    assert same.tolist() == [False, True, False, True, False, False]
    (code,) = piece_of("rule=code, count=5").images(draws_of(), Scene(batch))
    assert (code == batch.images).flatten(1).all(1).tolist() == [False, False, False, True, False, False]


def test_edits_of_another_shape_are_told():
    for edits in (torch.rand(6, 3, 12, 12), torch.rand(6, 12, 20), torch.rand(4, 3, 12, 20)):
        with pytest.raises(mixwell.BatchError, match=r"extras\['edits'\] must be edits of the batch's images"):
            view_of(piece_of(), batch_of(raw_of(), edits=edits))


# Looks


def test_without_a_folder_each_prompt_is_a_look():
    raw = raw_of(9)
    points = (np.arange(9) + 0.5) / 9
    view = view_of(piece_of("weight=0"), batch_of(raw), draws_of(9, prompt=points))
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(
            view[row, ..., 10:], edited(raw[row : row + 1], prompt)[0, ..., 10:], atol=1e-4, rtol=0
        )
    few = view_of(
        piece_of("weight=0, prompts=('snowy', 'mosaic')"), batch_of(raw[:2]), draws_of(2, prompt=np.array([0.2, 0.7]))
    )
    torch.testing.assert_close(few[1, ..., 10:], edited(raw[1:2], "mosaic")[0, ..., 10:], atol=1e-4, rtol=0)


def test_a_prompt_without_a_look_needs_an_editor():
    with pytest.raises(mixwell.ParameterError, match=r"fixed looks, and there is none for 'a dog'"):
        mixwell.create("diffusemix(prompts=('snowy', 'a dog'))")
    mixwell.create("diffusemix(prompts=('snowy', 'a dog'), edits='somewhere')")


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 20)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_and_channels(size: tuple[int, int], channels: int):
    recipe = mixwell.create("diffusemix(originals=0, count=5)", 6, pixels=mixwell.Pixels((0.5,), (0.25,)))
    images = torch.randn(5, channels, *size)
    mixed, targets = recipe.mix_batch(images, torch.arange(5))
    assert mixed.shape == images.shape
    assert torch.isfinite(mixed).all()
    assert torch.equal(targets.dense(6)[:, :5], torch.eye(5))


# Folders


def test_a_folder_of_edits_is_found_by_the_images_positions(tmp_path: Path):
    raw, edits = raw_of(), raw_of()
    write_edits(tmp_path, edits)
    piece = piece_of(f"weight=0, edits={str(tmp_path)!r}")
    order = torch.tensor([4, 1, 1, 5, 0, 2])
    batch = mixwell.Batch(PIXELS.normalise(raw[order]), order, PIXELS, index=order)
    torch.testing.assert_close(view_of(piece, batch)[..., 10:], edits[order][..., 10:], atol=1e-5, rtol=0)
    with pytest.raises(mixwell.BatchError, match="the batch has no index"):
        view_of(piece, mixwell.Batch(batch.images, order, PIXELS))
    with pytest.raises(mixwell.DataError, match="Image 9 has no edit"):
        view_of(piece, mixwell.Batch(batch.images[:1], order[:1], PIXELS, index=torch.tensor([9])), draws_of(1))
    given = mixwell.Batch(batch.images, order, PIXELS, extras={"edits": raw[order]})
    torch.testing.assert_close(view_of(piece, given), raw[order], atol=1e-5, rtol=0)


def test_a_folder_without_edits_of_some_images_is_told_before_training(tmp_path: Path):
    write_edits(tmp_path, raw_of(4))
    recipe = mixwell.create(f"diffusemix(count=5, edits={str(tmp_path)!r})", pixels=PIXELS)
    with pytest.raises(mixwell.DataError, match=r"2 of 6 images have no edit in .* such as image 4: .*000004\.png"):
        recipe.prepare(lambda: [batch_of(raw_of())], "noise", rows=6)
    recipe.prepare(lambda: [batch_of(raw_of(4))], "noise", rows=4)


@pytest.mark.parametrize("augment", ["crop-flip", "rrc-flip"])
def test_edits_are_cut_out_as_the_images_were(tmp_path: Path, augment: str):
    """An edit that is the image itself fits it at the seam, whatever was cut."""
    rows, columns = torch.arange(24.0).view(24, 1), torch.arange(32.0)
    smooth = torch.stack([40 + 3 * rows + 2 * columns, 60 + 4 * rows + columns, 200 - 3 * rows - columns])
    raw = (smooth.expand(6, 3, 24, 32) + torch.arange(6.0).view(-1, 1, 1, 1)) / 255
    write_edits(tmp_path, raw)
    words = np.random.default_rng(0).integers(2**64, size=(6, 4), dtype=np.uint64)
    cut, crops = augmented((raw * 255).round().to(torch.uint8).numpy(), augment, words)
    batch = batch_of(torch.from_numpy(cut).float() / 255, crop=torch.from_numpy(crops))
    view = view_of(piece_of(f"weight=0, edits={str(tmp_path)!r}"), batch)
    border = 2 if augment == "rrc-flip" else 0
    inside = (slice(None), slice(None), slice(border, 24 - border), slice(border, 32 - border))
    torch.testing.assert_close(
        view[inside], PIXELS.raw(batch.images)[inside], atol=1.5 / 255 if border else 1e-5, rtol=0
    )


# Pipelines


def test_an_editor_of_ones_own_makes_the_edits(tmp_path: Path):
    raw = raw_of(size=(12, 12))
    recipe = mixwell.create(
        "diffusemix(prompts=('a dog', 'a cat'), size=12, weight=0, edits=x, count=5)", 6, pixels=PIXELS
    )
    piece, pipeline = recipe.options[0].alone, Inverting()
    piece.use(pipeline, tmp_path)
    with pytest.raises(mixwell.MixwellError, match=r"recipe\.prepare\(batches, data\)"):
        view_of(piece, batch_of(raw))
    told: list[tuple[object, ...]] = []
    recipe.prepare(lambda: [batch_of(raw)], "noise", progress=lambda *words: told.append(words))
    assert [words for words in told if words[0] == "edited images"][-1] == ("edited images", 12, 12)
    view = view_of(piece, batch_of(raw))
    torch.testing.assert_close(view[..., 6:], 1 - raw[..., 6:], atol=2 / 255, rtol=0)
    calls = pipeline.calls
    recipe.prepare(lambda: [batch_of(raw)], "noise")
    assert pipeline.calls == calls


def test_a_named_pipeline_is_loaded_once_and_its_edits_are_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    from mixwell.sample.generative import diffusemix

    asked: list[str] = []
    monkeypatch.setattr(diffusemix, "pipeline_of", lambda name, device: (asked.append(name), Inverting())[1])
    text, batches = "diffusemix(pipeline='some/name', prompts=('a dog',), size=12, count=5{})", [batch_of(raw_of())]
    for rule in ("", "", ", rule=code"):
        recipe = mixwell.create(text.format(rule), 6, pixels=PIXELS)
        recipe.prepare(lambda: batches, "noise", unaugmented=lambda: batches)
        view_of(recipe.options[0].alone, batches[0])
    assert asked == ["some/name", "some/name"]
    assert len([path for path in own_cache.iterdir() if path.name.startswith("edits-")]) == 2
    mixwell.create(text.format(""), 6, pixels=PIXELS).prepare(lambda: [batch_of(raw_of())], "noise")
    assert len(asked) == 3  # other images


@pytest.mark.parametrize(("rule", "words"), [("paper", "A transformed version of image into a dog"), ("code", "a dog")])
def test_what_the_pipeline_is_told(tmp_path: Path, rule: str, words: str):
    told: list[str] = []

    def pipeline(**given: Any) -> SimpleNamespace:
        told.extend(given["prompt"])
        return SimpleNamespace(images=given["image"])

    recipe = mixwell.create(f"diffusemix(prompts=('a dog',), size=8, count=5, edits=x, rule={rule})", 6, pixels=PIXELS)
    recipe.options[0].alone.use(pipeline, tmp_path)
    recipe.prepare(lambda: [batch_of(raw_of(2))], "noise")
    assert told == [words] * 2


# In recipes


def test_labels_are_kept_and_the_loss_is_the_plain_one(cnn: Callable[..., nn.Module]):
    recipe = mixwell.create("diffusemix(originals=0, count=5)", 7, pixels=PIXELS)
    model, batch = cnn().eval(), batch_of(raw_of(7))
    (turn,) = recipe.turns(model, batch)
    assert torch.equal(turn.targets.dense(7), torch.eye(7))
    torch.testing.assert_close(turn.loss, nn.functional.cross_entropy(turn.logits, batch.labels))
    (plain,) = mixwell.create("none", 7).turns(model, batch)
    assert not math.isclose(turn.loss.item(), plain.loss.item())


def test_it_comes_before_a_mix_of_two_images(cnn: Callable[..., nn.Module]):
    recipe = mixwell.create("diffusemix(count=5) + cutmix", 7, pixels=PIXELS)
    loss = recipe(cnn(), batch_of(raw_of(7)))
    loss.backward()
    assert torch.isfinite(loss)
    with pytest.raises(mixwell.IncompatibleRecipe, match="both decide"):
        mixwell.create("diffusemix + pixmix")


@pytest.mark.parametrize(
    "parameters",
    [
        "rule=other",
        "blend_width=2",
        "masks=3",
        "weight=2",
        "originals=-1",
        "size=4",
        "steps=0",
        "count=0",
        "prompts=()",
    ],
)
def test_parameters_out_of_range(parameters: str):
    with pytest.raises(mixwell.ParameterError, match=parameters.partition("=")[0]):
        mixwell.create(f"diffusemix({parameters})")


def test_without_the_normalisation_it_says_what_is_missing():
    with pytest.raises(mixwell.BatchError, match="needs raw pixels"):
        mixwell.create("diffusemix").mix_batch(torch.rand(4, 3, 8, 8), torch.arange(4))
    with pytest.raises(mixwell.BatchError, match=r"expected images \(B, C, H, W\)"):
        mixwell.create("diffusemix", pixels=PIXELS).mix_batch(torch.rand(4, 3), torch.arange(4))
