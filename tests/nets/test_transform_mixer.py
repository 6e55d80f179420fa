"""TransformMix's module: masks, and what it predicts before and after training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mixwell
from mixwell.nets.transform_mixer import TransformMixer, mask_of

SIZE = (12, 20)


def told(mixer: TransformMixer, rows: int = 5) -> tuple[Tensor, Tensor]:
    maps = torch.randn(rows, 1 + mixer.channels, 6, 10)
    return mixer(maps, torch.arange(rows).roll(1), torch.linspace(0, 1, rows))


def test_masks_are_enlarged_before_the_sigmoid_and_harder_where_tau_is_small():
    logits = torch.randn(2, 1, 3, 5)
    large = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear")
    torch.testing.assert_close(mask_of(logits, SIZE, 0.5), torch.sigmoid(2 * large))
    assert torch.equal(mask_of(logits, (3, 5)), torch.sigmoid(logits))
    soft, hard = ((mask_of(logits, SIZE, tau) - 0.5).abs().mean() for tau in (4.0, 0.1))
    assert soft < hard


@pytest.mark.parametrize("transform", ["affine", "scale-translate"])
def test_at_first_nothing_moves(transform: str):
    theta, logits = told(TransformMixer(4, transform))
    assert torch.equal(theta, torch.eye(2, 3).expand(5, 2, 2, 3))
    assert logits.shape == (5, 1, 6, 10)


def trained(transform: str) -> TransformMixer:
    mixer = TransformMixer(4, transform, width=8)
    torch.nn.init.normal_(mixer.locate[-1].weight, std=0.3)
    return mixer.eval()


def test_a_scale_and_shifts_neither_turn_nor_shear():
    theta, _ = told(trained("scale-translate"))
    assert (theta[..., 0, 1] == 0).all()
    assert (theta[..., 1, 0] == 0).all()
    assert torch.equal(theta[..., 0, 0], theta[..., 1, 1])
    assert len(theta[..., 2].unique()) == 20
    free, _ = told(trained("affine"))
    assert len(free.unique()) == 60


def test_it_sees_lambda_and_both_images():
    mixer, maps, partner = trained("affine"), torch.randn(4, 5, 6, 10), torch.tensor([1, 2, 3, 0])
    plain = mixer(maps, partner, torch.full((1,), 0.3))
    assert all(torch.equal(*pair) for pair in zip(plain, mixer(maps, partner, torch.full((4,), 0.3)), strict=True))
    for other in (
        mixer(maps, partner, torch.full((1,), 0.6)),
        mixer(maps, partner.flip(0), torch.full((1,), 0.3)),
        mixer(maps + torch.eye(5)[0].view(1, 5, 1, 1), partner, torch.full((1,), 0.3)),
    ):
        assert all((one != two).any() for one, two in zip(plain, other, strict=True))


def test_rows_do_not_depend_on_their_batch_once_it_is_trained():
    mixer, maps = trained("affine"), torch.randn(4, 5, 6, 10)
    order = torch.tensor([2, 0, 3, 1])
    lam, partner = torch.rand(4), torch.tensor([1, 2, 3, 0])
    place = order.argsort()
    for one, two in zip(mixer(maps, partner, lam), mixer(maps[order], place[partner[order]], lam[order]), strict=True):
        torch.testing.assert_close(one[order], two)


def test_half_precision_and_autocast_change_nothing():
    mixer, maps, lam = trained("affine"), torch.randn(4, 5, 6, 10).half(), torch.rand(4)
    plain = mixer(maps.float(), torch.arange(4), lam)
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer(maps, torch.arange(4), lam)
    assert all(torch.equal(*pair) for pair in zip(plain, found, strict=True))


@pytest.mark.parametrize("transform", ["affine", "scale-translate"])
def test_it_is_built_again_from_its_weights(transform: str):
    mixer = trained(transform)
    again = TransformMixer.of(mixer.state_dict()).eval()
    torch.manual_seed(0)
    one = told(mixer)
    torch.manual_seed(0)
    assert all(torch.equal(*pair) for pair in zip(one, told(again), strict=True))


@pytest.mark.parametrize("weights", [{}, {"locate.0.weight": torch.randn(3)}, torch.nn.Linear(2, 2).state_dict()])
def test_other_weights_are_refused(weights: dict[str, Tensor]):
    with pytest.raises(mixwell.ModelError, match="not the weights of a module of TransformMix"):
        TransformMixer.of(weights)


def test_numbers_out_of_range():
    with pytest.raises(mixwell.ParameterError, match="transform must be"):
        TransformMixer(4, "projective")
    with pytest.raises(mixwell.ParameterError, match="width"):
        TransformMixer(4, width=0)
