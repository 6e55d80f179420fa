"""mixwell's own networks: published sizes, stages, any image shape, and a residual stream that hooks may keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixwell.core.errors import ModelError
from mixwell.nets import CNNS, PreActResNet, WideResNet, create_net, nets

STAGES = {
    "cnn-s": ["layer1", "layer2", "layer3"],
    "preact-resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet18-cifar": ["layer1", "layer2", "layer3", "layer4"],
    "vit-s": ["blocks.0", "blocks.1"],
    "wrn-10-1": ["layer1", "layer2", "layer3"],
}
CNNS_BY_NAME = ["cnn-s", "preact-resnet18", "resnet18-cifar", "wrn-10-1"]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_published_parameter_counts():
    with torch.device("meta"):
        assert parameters(PreActResNet(10)) == 11_172_170  # the known 11,171,146 and a last BatchNorm of 2·512
        assert parameters(WideResNet(10)) == 36_479_194
        assert parameters(WideResNet(10, depth=16, width=8)) == 10_961_370
        assert parameters(create_net("wrn-40-2", 10)) == 2_243_546
        assert parameters(create_net("resnet18-cifar", 10)) == 11_173_962
        assert parameters(create_net("resnet18-cifar", 100)) == 11_220_132
        assert parameters(create_net("resnext50-cifar", 100)) == 23_177_124  # ResNeXt-50 but for stem and classes


@pytest.mark.parametrize("name", ["resnet18-cifar", "resnext50-cifar"])
def test_the_first_stage_of_a_cifar_resnet_sees_the_whole_resolution(name):
    net, sizes = create_net(name, 3, channels=2).eval(), []
    for stage in STAGES["resnet18-cifar"]:
        net.get_submodule(stage).register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    net(torch.randn(1, 2, 32, 32))
    assert [tuple(size) for size in sizes] == [(32, 32), (16, 16), (8, 8), (4, 4)]


def test_cnn_s_stays_small():
    assert 75_000 <= parameters(CNNS(10)) <= 85_000


@pytest.mark.parametrize("name", CNNS_BY_NAME)
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 1, 28, 28), (2, 3, 16, 16), (3, 2, 17, 40)])
def test_convolutional_nets_take_any_batch_channels_and_shape(name, shape):
    net = create_net(name, 7, channels=shape[1]).eval()
    logits = net(torch.randn(shape))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("size", "patch"), [(16, 2), (28, 4), (32, 4), (64, 8), (96, 12), (224, 32)])
def test_vit_s_chooses_its_patch_size(size, patch):
    net = create_net("vit-s", 5, channels=1, size=size)
    assert net.patch_embed.patch_size == (patch, patch)
    assert net(torch.randn(3, 1, size, size)).shape == (3, 5)


def test_vit_s_names_the_size_it_cannot_cut():
    with pytest.raises(ModelError, match=r"31 px.*patch_size="):
        create_net("vit-s", 5, size=31)


def test_vit_s_takes_non_square_images_when_asked():
    net = create_net("vit-s", 5, dynamic_img_size=True)
    assert net(torch.randn(2, 3, 32, 48)).shape == (2, 5)


def test_vit_s_attends_with_the_fused_kernel():
    net = create_net("vit-s", 5)
    assert net.cls_token is not None
    assert all(block.attn.fused_attn for block in net.blocks)


@pytest.mark.parametrize("name", STAGES)
def test_stages_run_in_order_and_leave_each_output_as_it_was(name):
    torch.manual_seed(0)
    net = create_net(name, 4)
    ran, kept, copies = [], [], []

    def keep(stage):
        def hook(_module, _inputs, output):
            ran.append(stage)
            kept.append(output)
            copies.append(output.detach().clone())

        return hook

    for stage in STAGES[name]:
        net.get_submodule(stage).register_forward_hook(keep(stage))
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert ran == STAGES[name]
    for output, copy in zip(kept, copies, strict=True):
        assert torch.equal(output, copy)


@pytest.mark.parametrize("name", CNNS_BY_NAME)
def test_a_hook_may_replace_a_stage_output(name):
    torch.manual_seed(0)
    net = create_net(name, 4).eval()
    images = torch.randn(4, 3, 32, 32)
    net.layer2.register_forward_hook(lambda _module, _inputs, output: output.flip(0))
    mixed = net(images)
    net.layer2._forward_hooks.clear()
    torch.testing.assert_close(mixed, net(images).flip(0))


@pytest.mark.parametrize("name", ["preact-resnet18", "wrn-10-1"])
def test_pre_activation_streams_are_not_rectified(name):
    torch.manual_seed(0)
    net = create_net(name, 4)
    streams = []
    for stage in STAGES[name]:
        net.get_submodule(stage).register_forward_hook(lambda _module, _inputs, output: streams.append(output))
    net(torch.randn(2, 3, 32, 32))
    assert all((stream < 0).any() for stream in streams)


def test_wide_resnet_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = WideResNet(4, depth=10, width=1, dropout=0.5)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(("depth", "width"), [(28, 0), (27, 10), (4, 10)])
def test_wide_resnet_names_the_depths_it_has(depth, width):
    with pytest.raises(ModelError, match=rf"6n \+ 4.*depth {depth} and width {width}"):
        create_net(f"wrn-{depth}-{width}", 10)


@pytest.mark.parametrize("name", STAGES)
def test_a_seed_determines_weights_and_logits(name):
    def logits(seed):
        torch.manual_seed(seed)
        return create_net(name, 4).eval()(torch.ones(1, 3, 32, 32))

    assert torch.equal(logits(3), logits(3))
    assert not torch.equal(logits(3), logits(4))


@pytest.mark.parametrize("name", ["cnn-s", "vit-s"])
def test_small_nets_learn_a_batch(name):
    torch.manual_seed(0)
    net = create_net(name, 4)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


@pytest.mark.parametrize("name", CNNS_BY_NAME)
def test_channels_last_gives_the_same_logits(name):
    torch.manual_seed(0)
    net = create_net(name, 4).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = net(images)
    actual = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_nets_lists_names_that_build():
    with torch.device("meta"):
        assert all(isinstance(create_net(name, 10), nn.Module) for name in nets())
