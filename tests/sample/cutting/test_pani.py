"""Pani MixUp: the neighbours of patches by exhaustive search, what they leave unchanged, and whose label they carry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.mix import Partners
from mixwell.ops.patches import nearest, patches_of
from mixwell.sample.cutting.pani import Derangement, PatchNeighbours, PatchShares, expand

X = torch.randn(6, 3, 24, 32)
PARTNERS = Partners.at(torch.tensor([[3, 5], [0, 2], [5, 0], [1, 4], [2, 1], [4, 3]]), torch.arange(6))


def mix_of(images, partners, total, split=None, **settings):
    """Patches of 8×8 and the given shares; one neighbour if no split is given."""
    split = np.ones((*total.shape, 1)) if split is None else split
    piece = PatchNeighbours(8, split.shape[2], partners.index.shape[1], **settings)
    batch = mixwell.Batch(images, torch.arange(len(images)))
    return piece.mix(images, partners, torch.full((1,), torch.nan), PatchShares(total, split), Scene(batch))


def random_shares(neighbours=1, seed=0, mask_ratio=0.5):
    return expand(np.array([seed, 1], np.uint64), (6, 12, neighbours), mask_ratio)


def patches(images, side=8):
    """(B, T, C, side, side), cut one by one."""
    return torch.stack(
        [
            images[:, :, row : row + side, column : column + side]
            for row in range(0, images.shape[2] - side + 1, side)
            for column in range(0, images.shape[3] - side + 1, side)
        ],
        1,
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_patches_are_numbered_row_by_row_and_are_views(layout):
    images = torch.randn(2, 3, 21, 32).contiguous(memory_format=layout)
    tiled = patches_of(images, (8, 8))
    assert tiled.shape == (2, 2, 4, 3, 8, 8)
    assert torch.equal(tiled.flatten(1, 2), patches(images))
    assert tiled.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()


@pytest.mark.parametrize("count", [1, 2, 9])
def test_nearest_are_the_least_of_all_explicit_distances(count):
    own, other = torch.randn(4, 5, 7), torch.randn(4, 9, 7)
    distances, index = nearest(own, other, count)
    explicit = (own[:, :, None] - other[:, None]).square().sum(3)
    torch.testing.assert_close(distances, explicit.sort(2).values[..., :count])
    torch.testing.assert_close(explicit.gather(2, index), distances)


def test_distances_are_never_negative_and_ties_take_the_first():
    own = 100 * torch.randn(1, 4, 50)
    distances, index = nearest(own, torch.cat((own, own), 1))
    assert (distances >= 0).all()
    assert index[0, :, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("neighbours", [1, 3])
def test_every_patch_is_interpolated_with_its_nearest_wherever_these_stand(neighbours):
    shares = random_shares(neighbours)
    mix = mix_of(X, PARTNERS, shares.total, shares.split)
    own, mixed = patches(X), patches(mix.images)
    expected = torch.zeros(6, 6)
    for row, patch in np.ndindex(6, 12):
        candidates = own[PARTNERS.index[row]].flatten(0, 1)
        order = (candidates - own[row, patch]).square().sum((1, 2, 3)).argsort()[:neighbours]
        eta = torch.from_numpy(shares.total[row, patch] * shares.split[row, patch]).float()
        wanted = (1 - eta.sum()) * own[row, patch] + torch.einsum("k,kchw->chw", eta, candidates[order])
        torch.testing.assert_close(mixed[row, patch], wanted)
        expected[row, row] += 1 / 12 - eta.sum() / 12
        expected[row].index_add_(0, PARTNERS.index[row, order // 12], eta / 12)
    torch.testing.assert_close(mix.targets().dense(6), expected)


def test_patches_that_are_left_alone_are_the_images_bit_by_bit():
    shares = random_shares()
    mixed, own = patches(mix_of(X, PARTNERS, shares.total).images), patches(X)
    alone = torch.from_numpy(shares.total == 0)
    assert alone.any()
    assert torch.equal(mixed[alone], own[alone])
    assert (mixed[~alone] != own[~alone]).flatten(1).any(1).all()


def test_without_shares_nothing_changes():
    mix = mix_of(X, PARTNERS, np.zeros((6, 12)))
    assert torch.equal(mix.images, X)
    assert torch.equal(mix.weights, torch.tensor([1.0, 0, 0]).expand(6, 3))


def test_whole_shares_replace_every_patch():
    mix = mix_of(X, PARTNERS, np.ones((6, 12)))
    theirs = patches(X)
    for row, patch in np.ndindex(6, 12):
        candidates = theirs[PARTNERS.index[row]].flatten(0, 1)
        assert (candidates == patches(mix.images)[row, patch]).flatten(1).all(1).any()
    torch.testing.assert_close(mix.weights[:, 0], torch.zeros(6), atol=1e-6, rtol=0)


def test_a_candidate_that_is_a_copy_changes_the_label_alone():
    """Each patch finds itself in the copy; this is why a row must not be its own candidate."""
    copies = X[:3].repeat(2, 1, 1, 1)
    pairs = Partners.at(torch.tensor([3, 4, 5, 0, 1, 2])[:, None], torch.arange(6))
    mix = mix_of(copies, pairs, random_shares().total)
    torch.testing.assert_close(mix.images, copies)
    assert (mix.weights[:, 1] > 0.05).all()


def test_the_order_of_a_candidates_patches_does_not_matter():
    others = patches(X[1:])[:, np.random.default_rng(0).permutation(12)]
    shuffled = X.clone()
    patches_of(shuffled, (8, 8))[1:] = others.unflatten(1, (3, 4))
    total = random_shares().total
    first, again = (mix_of(images, PARTNERS, total).images[0] for images in (X, shuffled))
    assert not torch.equal(first, X[0])
    assert torch.equal(again, first)


def test_mixed_patches_lie_between_the_patch_and_its_neighbours():
    images = torch.rand(6, 1, 24, 32)
    shares = random_shares(3)
    mixed = mix_of(images, PARTNERS, shares.total, shares.split).images
    assert mixed.min() >= images.min()
    assert mixed.max() <= images.max()


def test_what_no_whole_patch_covers_stays_and_counts_as_own():
    images = torch.randn(6, 1, 21, 13)
    mix = mix_of(images, PARTNERS, np.ones((6, 2)))
    assert torch.equal(mix.images[..., 16:, :], images[..., 16:, :])
    assert torch.equal(mix.images[..., 8:], images[..., 8:])
    torch.testing.assert_close(mix.weights[:, 0], torch.full((6,), 1 - 2 * 64 / (21 * 13)))
    torch.testing.assert_close(mix.masks.mean((2, 3)), mix.weights)


def test_images_below_the_patch_size_are_one_patch():
    images = torch.randn(6, 1, 4, 5)
    mix = mix_of(images, PARTNERS, np.ones((6, 1)))
    nearer = (images[PARTNERS.index] - images[:, None]).square().sum((2, 3, 4)).argmin(1)
    assert torch.equal(mix.images, images[PARTNERS.index[torch.arange(6), nearer]])


def test_other_resolutions_are_mixed_in_the_same_patches():
    flat = torch.arange(6 * 12.0).view(6, 12)[:, :, None, None, None].expand(6, 12, 1, 8, 8)
    large = torch.empty(6, 1, 24, 32)
    patches_of(large, (8, 8))[:] = flat.unflatten(1, (3, 4))
    mix = mix_of(X, PARTNERS, random_shares().total)
    assert torch.equal(mix.apply(large[..., ::4, ::4]), mix.apply(large)[..., ::4, ::4])
    with pytest.raises(mixwell.BatchError, match=r"24×32 images in patches of 8×8: expected .* got 8×8"):
        mix.apply(torch.randn(6, 1, 8, 8))


def test_shares_are_distributed_as_declared():
    total, split = expand(np.array([3, 4], np.uint64), (200, 100, 3), mask_ratio=0.6, alpha=2.0)
    mixed = total > 0
    assert stats.binomtest(int(mixed.sum()), mixed.size, 0.4).pvalue > 1e-4
    assert stats.kstest(total[mixed], stats.beta(2, 2).cdf).pvalue > 1e-4
    assert stats.pearsonr(total[:, :-1].ravel(), total[:, 1:].ravel()).pvalue > 1e-4
    np.testing.assert_allclose(split.sum(2), 1)
    np.testing.assert_allclose(split.mean((0, 1)), 1 / 3, atol=0.01)


@pytest.mark.parametrize(("rows", "count"), [(3, 1), (6, 1), (6, 3), (6, 5)])
def test_candidates_are_different_other_rows(rows, count):
    piece, rng = Derangement(count), np.random.default_rng(0)
    counts = np.zeros((rows, rows))
    for _ in range(600):
        drawn = piece.draw(rows, rng)
        assert drawn.shape == (rows, count)
        for row, found in enumerate(drawn.tolist()):
            assert len({row, *found}) == 1 + count
        counts[np.arange(rows)[:, None], drawn] += 1
    others = counts[~np.eye(rows, dtype=bool)].reshape(rows, rows - 1)
    assert all(stats.chisquare(row).pvalue > 1e-4 for row in others)


def test_small_batches_meet_some_rows_twice_and_an_only_row_itself():
    rng = np.random.default_rng(0)
    assert Derangement(3).draw(2, rng).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert Derangement(2).draw(1, rng).tolist() == [[0, 0]]
    images, targets = mixwell.create("pani", 6).mix_batch(X[:1], torch.tensor([4]))
    torch.testing.assert_close(images, X[:1])
    torch.testing.assert_close(targets.dense(), torch.eye(6)[4:5])


def test_a_network_trains_on_mixed_images_and_on_mixed_hidden_maps(cnn):
    for text in ("pani", "pani(patch=2, neighbours=2, candidates=3) + manifold_mixup"):
        net = cnn()
        recipe = mixwell.create(text, 7).bind(net, X)
        for _ in range(3):
            loss = recipe(net, X, torch.arange(6))
            loss.backward()
            assert torch.isfinite(loss)
            assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_more_neighbours_than_patches():
    with pytest.raises(mixwell.BatchError, match=r"at least 13 patches among 1 candidate\(s\), got 12 of 8×8"):
        mixwell.create("pani(neighbours=13)").mix_batch(X, torch.arange(6))


@pytest.mark.parametrize("given", ["patch=0", "neighbours=0", "candidates=0", "mask_ratio=1.1", "alpha=0"])
def test_bad_parameters(given):
    with pytest.raises(mixwell.ParameterError, match=f"{given.partition('=')[0]} must be a number in"):
        mixwell.create(f"pani({given})")
