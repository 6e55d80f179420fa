"""Attentive CutMix: which cells are pasted, whose label is small, cells of unequal size, what the teacher sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Mix, Partners
from mixwell.sample.saliency.attentive_cutmix import enlarged, heat_map, top_cells

PIXELS = mixwell.Pixels((0.5,), (0.25,))


class Brightness(nn.Module):
    """A teacher whose last map is the mean brightness of 7 × 7 cells, in the first of its channels.

    Attributes:
        seen: the images that it was last shown.
    """

    def __init__(self, channels: int = 1, cells: int = 7) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.AdaptiveAvgPool2d(cells))
        self.fc = nn.Linear(channels, 7)
        self.seen: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.fc(self.layer1(images).mean((2, 3)))


def recipe_of(parameters: str = "", teacher: nn.Module | None = None, **options) -> mixwell.Recipe:
    recipe = mixwell.create(f"attentive_cutmix({parameters})", 7, pixels=PIXELS, **options)
    for option in recipe.options:
        if option.blend is not None:
            option.blend.teacher.use(teacher or Brightness())
    return recipe


def mix_of(images: Tensor, parameters: str = "", partner: list[int] | None = None, **options) -> Mix:
    batch = mixwell.Batch(images, torch.arange(len(images)), PIXELS)
    index = torch.arange(len(images)).roll(1) if partner is None else torch.tensor(partner)
    blend = recipe_of(parameters, **options).options[0].blend
    return blend.mix(images, Partners.at(index[:, None], batch.labels), torch.full((1,), torch.nan), None, Scene(batch))


def test_the_brightest_cells_of_the_image_lie_on_the_partner():
    images = torch.rand(3, 1, 28, 28)
    images[0, :, 4:8, 12:16] += 5
    images[1, :, 24:, :8] += 5
    images[2, :, :4, 20:24] += 5
    mix = mix_of(images, "top_k=1", partner=[1, 2, 0])
    expected = images[[1, 2, 0]].clone()
    expected[0, :, 4:8, 12:16] = images[0, :, 4:8, 12:16]
    assert torch.equal(mix.images[0], expected[0])
    assert torch.equal(mix.images[2, :, :4, 20:24], images[2, :, :4, 20:24])
    torch.testing.assert_close(mix.weights[:, 0], torch.full((3,), 1 / 49))
    assert mix.masks[1, 0].sum() == 16


@pytest.mark.parametrize("top_k", [1, 6, 15, 49])
def test_as_many_cells_as_asked_none_less_responsive_than_what_is_hidden(top_k: int):
    images = torch.randn(5, 1, 42, 35)
    mix = mix_of(images, f"top_k={top_k}")
    cells = recipe_of(f"top_k={top_k}").options[0].blend.cells(Scene(mixwell.Batch(images, torch.arange(5))))
    assert set(cells.unique().tolist()) <= {0.0, 1.0}
    assert (cells.sum((1, 2)) == top_k).all()
    heat = Brightness().layer1(images)[:, 0]
    kept = heat.masked_fill(cells == 0, torch.inf).amin((1, 2))
    assert (kept >= heat.masked_fill(cells == 1, -torch.inf).amax((1, 2))).all()
    torch.testing.assert_close(mix.weights[:, 0], torch.full((5,), top_k / 49))
    if top_k == 49:
        assert torch.equal(mix.images, images)


def test_the_order_of_responses_counts_alone():
    heat = torch.randn(4, 7, 7)
    assert torch.equal(top_cells(3 * heat - 2, 6), top_cells(heat, 6))


@pytest.mark.parametrize("size", [(28, 28), (32, 24), (9, 5), (3, 100)], ids=str)
def test_a_pixel_lies_in_the_cell_below_its_place(size: tuple[int, int]):
    cells = torch.randn(2, 7, 7)
    expected = torch.empty(2, 1, *size)
    for row in range(size[0]):
        for column in range(size[1]):
            expected[:, 0, row, column] = cells[:, row * 7 // size[0], column * 7 // size[1]]
    assert torch.equal(enlarged(cells, size), expected)


def test_labels_follow_the_area_of_each_mask_where_cells_are_unequal():
    images = torch.randn(6, 1, 32, 30)
    area, nominal = mix_of(images), mix_of(images, "label=nominal")
    shown = area.masks[:, 0].mean((1, 2))
    torch.testing.assert_close(area.weights[:, 0], shown)
    assert len(area.weights[:, 0].unique()) > 1
    torch.testing.assert_close(nominal.weights, torch.tensor([[6 / 49, 43 / 49]]).expand(6, 2))
    torch.testing.assert_close(nominal.area, shown)
    assert torch.equal(nominal.images, area.images)


def test_third_party_code_reads_the_last_channel_alone():
    features = torch.randn(3, 5, 7, 7)
    assert torch.equal(heat_map(features, "last"), features[:, -1])
    torch.testing.assert_close(heat_map(features.half()), features.half().float().mean(1))
    images = torch.rand(3, 2, 28, 28)
    teacher = Brightness(2)
    last = mix_of(images, "reduce=last", teacher=teacher)
    assert torch.equal(last.masks, mix_of(images[:, 1:].contiguous()).masks)
    assert not torch.equal(last.masks, mix_of(images, teacher=teacher).masks)


def test_the_grid_may_be_the_teachers_own_or_another():
    images = torch.randn(4, 1, 40, 40)
    teacher = Brightness(cells=10)
    own = mix_of(images, "grid=own", teacher=teacher)
    torch.testing.assert_close(own.weights[:, 0], torch.full((4,), 6 / 100))
    coarse = mix_of(images, "grid=5", teacher=teacher)
    assert torch.equal(coarse.masks, mix_of(images, "grid=5", teacher=Brightness(cells=5)).masks)
    fine = mix_of(images, "grid=20", teacher=teacher)
    torch.testing.assert_close(fine.weights[:, 0], torch.full((4,), 6 / 400))
    with pytest.raises(mixwell.ParameterError, match=r"only 2×2 places.*teacher_size"):
        mix_of(images, "grid=own", teacher=Brightness(cells=2))


def test_hidden_maps_are_mixed_where_the_teacher_looked_at_the_images(cnn):
    recipe = mixwell.create("attentive_cutmix + manifold_mixup(sites=(2,))", 7, pixels=PIXELS)
    teacher = Brightness(3)
    recipe.options[0].blend.teacher.use(teacher)
    images = torch.randn(6, 3, 28, 28)
    recipe(cnn(), images, torch.arange(6)).backward()
    assert torch.equal(teacher.seen, images)


def test_the_teacher_is_trained_beforehand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    recipe = mixwell.create("attentive_cutmix(teacher_epochs=1)", 7, pixels=PIXELS)
    images, labels = torch.randn(8, 3, 28, 28), torch.arange(8) % 7
    with pytest.raises(mixwell.MixwellError, match=r"recipe\.prepare\(batches, data\)"):
        recipe.mix_batch(images, labels)
    recipe.prepare(lambda: [mixwell.Batch(images, labels)], "noise")
    assert not recipe.owns
    mixed, targets = recipe.mix_batch(images, labels)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.weights[:, 0], torch.full((8,), 6 / 49))


@pytest.mark.parametrize("text", ["attentive_cutmix", "attentive_cutmix(prob=0.5, label=nominal)"])
@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_a_step_trains(request: pytest.FixtureRequest, text: str, net: str):
    model = request.getfixturevalue(net)()
    recipe = mixwell.create(text, 7, pixels=PIXELS)
    recipe.options[0].blend.teacher.use(Brightness(3))
    with torch.autocast("cpu", torch.bfloat16):
        (turn,) = recipe.turns(model, torch.randn(5, 3, 32, 32), torch.arange(5))
    turn.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("text", ["top_k=0", "top_k=50", "grid=0", "teacher_size=0", "teacher_epochs=0"])
def test_parameters_out_of_range(text: str):
    with pytest.raises(mixwell.ParameterError, match=text.partition("=")[0]):
        mixwell.create(f"attentive_cutmix({text})")


def test_nothing_is_drawn_but_partners():
    recipe = recipe_of(seed=3)
    images, labels = torch.randn(7, 1, 28, 28), torch.arange(7)
    first = recipe.mix_batch(images, labels, clock=mixwell.Clock(5))[1]
    again = recipe.mix_batch(images.flip(0), labels, clock=mixwell.Clock(5))[1]
    assert torch.equal(first.sources, again.sources)
    assert np.array_equal(np.sort(first.sources[:, 1]), np.arange(7))
