"""MixStyle's invariants, the distribution of its draws, and who is whose partner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixwell
from mixwell.core.axes import Scene
from mixwell.core.errors import BatchError, ParameterError
from mixwell.core.rng import Streams
from mixwell.ops.moments import adain, moments
from mixwell.sample.style.mixstyle import MixStyle, in_blocks, of_other_domains, restyle

IMAGES, LABELS = torch.randn(6, 3, 16, 16), torch.arange(6)


def drawn(piece, rows, steps=1):
    return [piece.draw(rows, Streams(0).at("statistics", step)) for step in range(steps)]


def test_all_of_ones_own_style_is_no_change():
    maps = torch.randn(5, 3, 4, 6)
    assert torch.equal(restyle(maps, torch.randperm(5), torch.ones(5)), maps)
    assert torch.equal(restyle(maps, torch.arange(5), torch.rand(5)), maps)


def test_none_of_ones_own_style_is_adain():
    maps, partner = torch.randn(5, 3, 4, 6), torch.randperm(5)
    torch.testing.assert_close(restyle(maps, partner, torch.zeros(5)), adain(maps, maps[partner], 1e-6))


def test_moments_are_the_mixed_ones():
    maps, partner, lam = torch.randn(5, 3, 8, 9) * 2 + 1, torch.randperm(5), torch.rand(5)
    own = lam[:, None, None, None]
    for found, before in zip(moments(restyle(maps, partner, lam), (2, 3)), moments(maps, (2, 3)), strict=True):
        torch.testing.assert_close(found, own * before + (1 - own) * before[partner], rtol=1e-4, atol=1e-5)


def test_a_constant_channel_gets_the_mixed_mean():
    maps = torch.tensor([1.0, 5.0])[:, None, None, None].expand(2, 1, 4, 4)
    changed = restyle(maps, torch.tensor([1, 0]), torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(changed[:, 0, 0, 0], torch.tensor([2.0, 3.0]))


def test_gradients_pass_by_the_moments():
    maps = torch.randn(4, 3, 5, 5, requires_grad=True)
    partner, lam, given = torch.tensor([1, 2, 3, 0]), torch.rand(4), torch.randn(4, 3, 5, 5)
    (gradient,) = torch.autograd.grad(restyle(maps, partner, lam), maps, given)
    std = moments(maps.detach(), (2, 3), 1e-6)[1]
    mixed = std[partner].lerp(std, lam[:, None, None, None])
    torch.testing.assert_close(gradient, given * mixed / std)


def test_shares_gates_and_partners_are_drawn_for_each_site():
    draws = drawn(MixStyle((1, 2, 3)), 50, steps=400)
    acts = np.stack([one.acts for one in draws])
    np.testing.assert_allclose(acts.mean(0), 0.5, atol=0.1)
    assert np.abs(np.corrcoef(acts.T) - np.eye(3)).max() < 0.2
    lam = np.stack([one.lam for one in draws])
    assert (lam < 0.05).mean() == pytest.approx(0.38, abs=0.02)
    assert np.abs(np.corrcoef(lam.transpose(1, 0, 2).reshape(3, -1)) - np.eye(3)).max() < 0.05
    for one in draws[:20]:
        assert (np.sort(one.partner) == np.arange(50)).all()
        assert not np.array_equal(one.partner[0], one.partner[1])


def test_sites_act_on_their_own(cnn):
    recipe = mixwell.create("mixstyle", 6).bind(cnn(6), IMAGES)
    (option,) = recipe.options
    piece = option.statistics
    seen = {piece.sites(option.draw(6, Streams(0), step)[piece]) for step in range(40)}
    assert seen == {(), ("layer1",), ("layer2",), ("layer1", "layer2")}


def test_labels_stay(cnn):
    (turn,) = mixwell.create("mixstyle(prob=1)", 6).turns(cnn(6), IMAGES, LABELS)
    assert torch.equal(turn.targets.dense(), torch.eye(6))


def test_halves_meet_each_other_one_to_one():
    for one in drawn(MixStyle(mode="crossdomain"), 8, steps=50):
        for partner in one.partner:
            assert set(partner[:4]) == {4, 5, 6, 7}
            assert set(partner[4:]) == {0, 1, 2, 3}


def test_the_codes_halves_of_odd_batches_are_completed():
    """The official code loses a row of them."""
    partner = np.concatenate([one.partner for one in drawn(MixStyle(mode="crossdomain"), 7, steps=600)])
    assert (np.sort(partner[:, :4])[:, :1] >= 4).all()
    assert (partner[:, 4:] < 4).all()
    for row in partner[:50]:
        assert set(row[:4]) == {4, 5, 6}
        assert len(set(row[4:])) == 3
    for column, others in ((0, (4, 5, 6)), (3, (4, 5, 6)), (4, (0, 1, 2, 3)), (6, (0, 1, 2, 3))):
        found = np.bincount(partner[:, column], minlength=7)[list(others)] / len(partner)
        np.testing.assert_allclose(found, 1 / len(others), atol=0.05)


def test_an_image_alone_has_no_other_half():
    (one,) = drawn(MixStyle(mode="crossdomain"), 1)
    assert (one.partner == 0).all()


def test_partners_of_other_domains_are_uniform():
    domains = torch.tensor([7, -2, 7, 0, 7, -2])
    points = torch.rand(4000, 6)
    partner = torch.stack([of_other_domains(domains, one) for one in points])
    for row in range(6):
        share = torch.bincount(partner[:, row], minlength=6) / len(partner)
        others = domains != domains[row]
        torch.testing.assert_close(share, others / others.sum(), atol=0.04, rtol=0)


@pytest.mark.parametrize("point", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_uniforms(point):
    domains = torch.arange(1000).remainder(3)
    partner = of_other_domains(domains, torch.full((1000,), float(point)))
    assert (domains[partner] != domains).all()


@pytest.mark.parametrize("domains", [[3, 3, 3], [5]], ids=str)
def test_without_another_domain_a_row_is_its_own_partner(domains):
    partner = of_other_domains(torch.tensor(domains), torch.rand(len(domains)))
    assert partner.tolist() == list(range(len(domains)))


def test_domains_of_the_batch(cnn):
    recipe = mixwell.create("mixstyle(mode=domain, prob=1)", 6).bind(cnn(6), IMAGES)
    piece = recipe.options[0].statistics
    maps, (draws,) = torch.randn(6, 8, 4, 4), drawn(piece, 6)
    draws.lam[:] = 0

    def styles(ids, dtype=torch.int64):
        batch = mixwell.Batch(IMAGES, LABELS, extras={"domain": torch.tensor(ids, dtype=dtype)})
        return piece.change(maps, "layer1", draws, Scene(batch), None)

    assert torch.equal(styles([4] * 6), maps)
    two = styles([0, 1, 0, 0, 0, 0], torch.int32)
    for row in (0, 2, 3, 4, 5):
        torch.testing.assert_close(two[row], adain(maps[row : row + 1], maps[1:2], 1e-6)[0])
    batch = mixwell.Batch(IMAGES, LABELS, extras={"domain": torch.tensor([0, 1] * 3)})
    assert torch.isfinite(recipe(cnn(6), batch))


@pytest.mark.parametrize(
    ("extras", "got"),
    [
        ({}, "no extras"),
        ({"crop": torch.zeros(6)}, r"extras of \['crop'\]"),
        ({"domain": torch.zeros(6)}, "float32"),
        ({"domain": torch.zeros(6, 2).long()}, r"shape \(6, 2\)"),
    ],
)
def test_domains_that_are_missing_or_no_ids(cnn, extras, got):
    recipe = mixwell.create("mixstyle(mode=domain, prob=1)", 6)
    with pytest.raises(BatchError, match=f"domain of each image.*with 6 integers; got .*{got}"):
        recipe(cnn(6), mixwell.Batch(IMAGES, LABELS, extras=extras))


def test_a_site_named_twice_acts_once(cnn):
    recipe = mixwell.create("mixstyle(sites=(1, layer1), prob=1)", 6).bind(cnn(6), IMAGES)
    piece = recipe.options[0].statistics
    assert piece.sites(drawn(piece, 6)[0]) == ("layer1",)


@pytest.mark.parametrize(("rows", "blocks"), [(3, [3]), (9, [3, 3, 3]), (5, [3, 2]), (2, [2])])
def test_more_or_fewer_rows_than_images_change_style_in_blocks(rows, blocks):
    """A mix of other rows than the batch has: each block of rows partners as the batch would."""
    partner = np.array([2, 0, 1])
    found = in_blocks(partner, rows)
    start = 0
    for size in blocks:
        block = found[start : start + size] - start
        assert (np.sort(block) == np.arange(size)).all()
        if size == len(partner):
            assert (block == partner).all()
        start += size
    assert start == len(found) == rows


@pytest.mark.parametrize("mode", ["random", "crossdomain", "domain"])
@pytest.mark.parametrize(("mix", "images"), [("rankmixup", 6), ("adamixup", 7), ("adamixup", 1)])
def test_mixes_of_other_rows_than_the_batch(cnn, mix, images, mode):
    recipe = mixwell.create(f"{mix} + mixstyle(prob=1, mode={mode})", 6)
    extras = {"domain": torch.arange(images) % 2}
    batch = mixwell.Batch(torch.randn(images, 3, 16, 16), torch.arange(images) % 6, extras=extras)
    *_, turn = recipe.turns(cnn(6), batch)
    turn.loss.backward()
    assert torch.isfinite(turn.loss)


@pytest.mark.parametrize("sites", ["()", "(0, 1)", "(input,)"])
def test_the_input_has_no_style(sites):
    with pytest.raises(ParameterError, match="hidden sites"):
        mixwell.create(f"mixstyle(sites={sites})")


def test_maps_of_one_position_have_no_style(cnn):
    with pytest.raises(BatchError, match="at least 2 values"):
        mixwell.create("mixstyle(sites=(embedding,), prob=1)", 6)(cnn(6), IMAGES, LABELS)


def test_class_tokens_stay(vit):
    model, given = vit(6).eval(), []
    images = torch.randn(6, 3, 32, 32)
    model.blocks[1].norm1.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    model(images)
    mixwell.create("mixstyle(sites=(1,), prob=1)", 6)(model, images, LABELS).backward()
    plain, *_, changed = given  # binding tries a pass in between
    assert torch.equal(plain[:, 0], changed[:, 0])
    assert not torch.allclose(plain[:, 1:], changed[:, 1:])
