"""Sources of saliency: what each shows of a network's clean pass or of the images, and what all have in common."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from mixwell import Batch, BatchError, IncompatibleRecipe, ParameterError, Pixels, Probe, Views, create
from mixwell.core.axes import Scene
from mixwell.core.saliency import Activation, Source, resized, saliency_of, source_of
from mixwell.ops.saliency import fine_grained, spectral_residual

IMAGES, LABELS = torch.randn(4, 3, 32, 32), torch.arange(4)
PIXELS = Pixels((0.5,), (0.25,))
ALONE = ("fine_grained", "spectral")
BY_NETWORK = ("gradient", "cam", "activation", "attention", "patch_attention")


def scene_of(source, model, images=IMAGES, labels=LABELS):
    batch = Batch(images, labels, PIXELS)
    return Scene(batch, views=Views(Probe(model, images), batch, source.views()))


def test_the_lists_are_complete():
    assert sorted((*ALONE, *BY_NETWORK)) == sorted(get_args(Source))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", get_args(Source))
def test_maps_are_fp32_and_not_negative(name, channels, size, cnn, vit):
    source = saliency_of(name)
    model = (vit(channels=channels, size=size) if "attention" in name else cnn(channels=channels)).train()
    images = torch.randn(4, channels, *size, requires_grad=True)
    maps = source.maps(scene_of(source, model, images))
    assert maps.ndim == 3
    assert len(maps) == 4
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert (maps >= 0).all()
    assert (maps.flatten(1).std(1) > 0).all()
    assert source.network == (name in BY_NETWORK)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", get_args(Source))
def test_one_pass_answers_what_was_declared(name, cnn, vit):
    source = saliency_of(name)
    model = vit() if "attention" in name else cnn()
    scene = scene_of(source, model)
    passes = []
    next(model.children()).register_forward_hook(lambda *_: passes.append(1))
    for _ in range(2):
        source.maps(scene)
    assert len(passes) == source.network


def test_images_alone_say_what_their_functions_say():
    scene = Scene(Batch(IMAGES, LABELS, PIXELS))
    pixels = (255 * (IMAGES * 0.25 + 0.5).clamp(0, 1)).round().to(torch.uint8)
    assert torch.equal(saliency_of("fine_grained").maps(scene), fine_grained(pixels).float())
    assert torch.equal(saliency_of("spectral").maps(scene), spectral_residual(IMAGES))


def test_gradient_is_its_root_mean_square(cnn):
    model, images = cnn().eval(), IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), LABELS), images)
    source = saliency_of("gradient")
    torch.testing.assert_close(source.maps(scene_of(source, model)), gradient.square().mean(1).sqrt())


@pytest.mark.parametrize("site", [-1, 1, "layer2"])
def test_activation_is_the_sum_of_sizes(cnn, site):
    model, source = cnn().eval(), Activation(site)
    first = model.layer1(IMAGES)
    second = model.layer2(first)
    expected = {1: first, "layer2": second, -1: model.layer3(second)}[site]
    torch.testing.assert_close(source.maps(scene_of(source, model)), expected.detach().abs().sum(1))


@pytest.mark.parametrize("kind", ["ids", "rows"])
def test_class_activation_begins_at_0(cnn, kind):
    model, source = cnn().eval(), saliency_of("cam")
    labels = LABELS if kind == "ids" else torch.rand(4, 7).softmax(1)
    rows = F.one_hot(LABELS, 7).float() if kind == "ids" else labels
    last = model.layer3(model.layer2(model.layer1(IMAGES)))
    expected = torch.einsum("bc,cd,bdhw->bhw", rows, model.fc.weight, last).detach()
    found = source.maps(scene_of(source, model, labels=labels))
    assert torch.equal(found.amin((1, 2)), torch.zeros(4))
    torch.testing.assert_close(found, expected - expected.amin((1, 2), keepdim=True))


def test_attention_has_the_patches_grid(vit):
    model, images = vit(size=(32, 48)).eval(), torch.randn(4, 3, 32, 48)
    for name, seen in (("attention", Views.class_attention), ("patch_attention", Views.patch_attention)):
        source = saliency_of(name)
        scene = scene_of(source, model, images)
        maps = source.maps(scene)
        assert maps.shape == (4, 4, 6)
        torch.testing.assert_close(maps.flatten(1), seen(scene.views))


def test_a_network_without_it_is_refused(cnn):
    with pytest.raises(IncompatibleRecipe, match="no self-attention"):
        create("saliencymix(saliency=attention)", 7, pixels=PIXELS).bind(cnn(), IMAGES)


@pytest.mark.parametrize("name", BY_NETWORK)
def test_without_a_network_there_is_no_map(name):
    with pytest.raises(BatchError, match=r"read from the network. Use recipe\(model, images, labels\)"):
        saliency_of(name).maps(Scene(Batch(IMAGES, LABELS)))


def test_unknown_sources_are_named():
    assert source_of("cam") == "cam"
    for wrong in ("spectrum", "Cam"):
        with pytest.raises(ParameterError, match=f"Unknown saliency '{wrong}'"):
            saliency_of(wrong)


def test_other_resolutions():
    maps = torch.rand(2, 4, 6)
    assert resized(maps, (4, 6)) is maps
    torch.testing.assert_close(resized(maps, (2, 3)), F.avg_pool2d(maps, 2))
    ramp = torch.arange(6.0).expand(2, 4, 6)
    torch.testing.assert_close(resized(ramp, (8, 12))[0, 3, 1:-1], torch.arange(0.25, 5, 0.5))
