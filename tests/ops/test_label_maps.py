"""Label maps: the highest scores of each place, and what crops show of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mixwell.ops.label_maps import class_maps, cropped, line_weights, merged, token_scores, top_scores

WHOLE = [0.0, 0.0, 1.0, 1.0, 0.0]


def some_crops(count, seed=0):
    """Crops of all kinds: inside, beyond the image, of less than a place, mirrored or not."""
    draws = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))
    sides = 0.02 + 0.98 * draws[:, 2:4]
    crops = torch.cat((draws[:, :2] * (1.6 - sides) - 0.3, sides, (draws[:, 4:] > 0.5).float()), 1)
    crops[0] = torch.tensor(WHOLE)
    return crops


def scattered(scores, classes, count):
    """All classes' scores, (B, N, C)."""
    return torch.zeros(*scores.shape[:2], count).scatter_add_(2, classes, scores)


@pytest.mark.parametrize(
    "sizes", [(12, 12, 4, 4), (7, 9, 14, 5), (8, 8, 8, 8), (18, 18, 14, 14), (3, 20, 6, 7), (1, 1, 3, 1)]
)
def test_crops_are_those_of_roi_align(sizes):
    vision = pytest.importorskip("torchvision")
    height, width, rows, columns = sizes
    crops, maps = some_crops(60), torch.randn(60, height, width)
    corners = torch.stack((crops[:, 1], crops[:, 0], crops[:, 1] + crops[:, 3], crops[:, 0] + crops[:, 2]), 1)
    boxes = corners * torch.tensor([width, height, width, height]) - 0.5
    numbered = torch.cat((torch.arange(60.0)[:, None], boxes), 1)
    expected = vision.ops.roi_align(maps[:, None], numbered, (rows, columns), aligned=False)[:, 0]
    expected = torch.where(crops[:, 4, None, None] > 0, expected.flip(2), expected)
    torch.testing.assert_close(cropped(maps, crops, (rows, columns)), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", [(5, 5), (6, 9)])
def test_all_of_an_image_is_its_map(size):
    maps = torch.randn(4, *size)
    assert torch.equal(cropped(maps, None, size), maps)
    mirrored = torch.tensor([0.0, 0, 1, 1, 1]).expand(4, 5)
    assert torch.equal(cropped(maps, mirrored, size), maps.flip(2))


def test_a_slope_stays_a_slope_between_the_crops_edges():
    """Wherever the crop lies, a map that rises along both axes shows the crop's own coordinates."""
    down, across = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    crops = some_crops(80, seed=1)
    crops[:, 2:4] = crops[:, 2:4].clamp_min(1 / 16)
    for axis, (ramp, side) in enumerate(((down, 16), (across, 24))):
        found = cropped((ramp / side).expand(80, -1, -1), crops, (5, 7))
        for crop, seen in zip(crops.tolist(), found, strict=True):
            count = (5, 7)[axis]
            expected = crop[axis] + crop[axis + 2] * (torch.arange(count) + 0.5) / count
            expected = expected.flip(0) if axis == 1 and crop[4] else expected
            seen = seen.T if axis == 0 else seen
            rows, columns = (
                crop[other] + crop[other + 2] * (torch.arange(n) + 0.5) / n for other, n in ((0, 5), (1, 7))
            )
            half = [crop[2] / 10 + 1 / 32, crop[3] / 14 + 1 / 48]
            down_in = (rows > half[0]) & (rows < 1 - half[0])
            across_in = (columns > half[1]) & (columns < 1 - half[1])
            across_in = across_in.flip(0) if crop[4] else across_in
            inner = down_in[:, None] & across_in
            inner = inner.T if axis == 0 else inner
            assert ((seen - expected).abs()[inner] < 1e-5).all()


def test_cells_beyond_the_map_have_no_score():
    maps = torch.ones(2, 6, 6)
    crops = torch.tensor([[2.0, 0, 1, 1, 0], [0, -1.5, 1, 1, 0]])
    assert not cropped(maps, crops, (3, 3)).any()
    assert torch.equal(line_weights(torch.tensor([0.0]), torch.tensor([1.0]), 6, 6)[0], torch.eye(6))


def test_swapped_crops_take_rows_for_columns():
    crops, maps = some_crops(20, seed=2), torch.randn(20, 9, 9)
    crops[:, 4] = 0
    turned = crops[:, [1, 0, 3, 2, 4]]
    assert torch.equal(cropped(maps, crops, (4, 4), swapped=True), cropped(maps, turned, (4, 4)))
    assert not torch.equal(cropped(maps, crops, (4, 4), swapped=True), cropped(maps, crops, (4, 4)))


@pytest.mark.parametrize("sizes", [(12, 12, 4, 4), (7, 9, 14, 5), (18, 18, 14, 14), (5, 5, 1, 1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_scores_of_cells_are_crops_of_every_classes_map(sizes, swapped):
    height, width, rows, columns = sizes
    classes, count = 9, 30
    chosen = torch.rand(count, classes, height, width).argsort(1)[:, :4]
    scores = torch.randn(count, 4, height, width)
    crops = some_crops(count, seed=3)
    dense = torch.zeros(count, classes, height, width).scatter_(1, chosen, scores)
    expected = torch.stack([cropped(dense[:, c], crops, (rows, columns), swapped=swapped) for c in range(classes)], 3)
    found = token_scores(scores, chosen.to(torch.uint8), crops, (rows, columns), swapped=swapped)
    torch.testing.assert_close(scattered(*found, classes), expected.flatten(1, 2), rtol=1e-5, atol=1e-5)
    named = (found[0] != 0)[..., None] & (found[1][..., None] == torch.arange(classes))
    assert named.sum(2).max() == 1, "a class is named twice"


def test_equal_classes_are_merged():
    scores, classes = merged(torch.tensor([[1.0, 2, 4, 8]]), torch.tensor([[3, 0, 3, 3]]))
    assert (scores.tolist(), classes.tolist()) == ([[2, 13, 0, 0]], [[0, 3, 0, 0]])


@pytest.mark.parametrize(("classes", "kept"), [(1, 1), (2, 1), (5, 4), (6, 5), (30, 5)])
def test_top_scores_keep_what_softmax_says_of_them(classes, kept):
    logits = 4 * torch.randn(3, classes, 4, 5) - 6
    scores, chosen = top_scores(logits, 5)
    assert scores.shape == (3, kept, 4, 5)
    assert torch.equal(chosen, logits.argsort(1, descending=True)[:, :kept])
    if classes == 1:
        return
    dense = torch.zeros_like(logits).scatter_(1, chosen, scores)
    torch.testing.assert_close(dense.softmax(1).gather(1, chosen), logits.softmax(1).gather(1, chosen))
    assert (scores >= 0).all()


def test_maps_of_classes_and_of_label_rows():
    logits = torch.randn(4, 6, 3, 5)
    scores, chosen = top_scores(logits, 3)
    dense = torch.zeros_like(logits).scatter_(1, chosen, scores)
    labels = torch.tensor([5, 0, 2, 2])
    found = class_maps(scores, chosen.to(torch.uint8), labels)
    assert torch.equal(found, dense[torch.arange(4), labels])
    torch.testing.assert_close(class_maps(scores, chosen, F.one_hot(labels, 6).float()), found)
    rows = torch.rand(4, 6)
    torch.testing.assert_close(class_maps(scores, chosen, rows), torch.einsum("bchw,bc->bhw", dense, rows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_scores_of_any_precision_are_cropped_in_fp32(dtype):
    scores, chosen = torch.randn(3, 2, 6, 6).to(dtype), torch.randint(5, (3, 2, 6, 6))
    crops = some_crops(3)
    found, _ = token_scores(scores, chosen, crops, (4, 4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, token_scores(scores.float(), chosen, crops, (4, 4))[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cropped(scores[:, 0], crops, (4, 4)), cropped(scores[:, 0].float(), crops, (4, 4)))
