"""Sites: which a network has, how their outputs are shown, and that mixing there is what one would write by hand."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import mixwell
from mixwell import Probe, Want
from mixwell.core.rng import Streams
from mixwell.probe import Anatomy, Site

IMAGES, LABELS = torch.randn(4, 3, 32, 32), torch.arange(4)


def drawn(recipe):
    """λ and partners of step 0."""
    (option,) = recipe.options
    draws = option.draw(len(IMAGES), Streams(0), 0).of
    return torch.from_numpy(draws[option.ratio]).float(), torch.from_numpy(draws[option.pairing])


def mix_by_hand(x, lam, partner):
    weight = lam.view(-1, *(1,) * (x.ndim - 1))
    return weight * x + (1 - weight) * x[partner]


def one_turn(recipe, model):
    (turn,) = recipe.turns(model, IMAGES, LABELS)
    return turn


def assert_trains_alike(recipe, model, forward):
    """Logits, loss and gradients of a step against those of a forward pass written by hand."""
    lam, partner = drawn(recipe)
    turn = one_turn(recipe, model)
    logits = forward(lambda x: mix_by_hand(x, lam, partner))
    torch.testing.assert_close(turn.logits, logits.detach())
    loss = (lam * F.cross_entropy(logits, LABELS, reduction="none")).mean()
    loss += ((1 - lam) * F.cross_entropy(logits, LABELS[partner], reduction="none")).mean()
    torch.testing.assert_close(turn.loss, loss)
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(turn.loss, parameters), torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("site", [0, 1, 2, 3])
def test_each_stage_of_a_cnn(cnn, site):
    model = cnn(4).eval()

    def forward(mix):
        x = IMAGES
        for number, part in enumerate((nn.Identity(), model.layer1, model.layer2, model.layer3)):
            x = part(x)
            x = mix(x) if number == site else x
        return model.fc(x.mean((2, 3)))

    assert_trains_alike(mixwell.create(f"manifold_mixup(sites=({site},))", 4), model, forward)


def test_batchnorm_sees_clean_maps_before_the_site_and_mixed_ones_after(cnn):
    model, plain = cnn(4).train(), cnn(4).train()
    recipe = mixwell.create("manifold_mixup(sites=(2,))", 4)
    lam, partner = drawn(recipe)
    one_turn(recipe, model)
    plain.layer3(mix_by_hand(plain.layer2(plain.layer1(IMAGES)), lam, partner))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[name], buffer, msg=name)


@pytest.mark.parametrize("reg_tokens", [0, 3])
@pytest.mark.parametrize("site", [0, 1, 2])
def test_each_stage_of_a_vit_with_its_prefix_tokens(vit, site, reg_tokens):
    model = vit(4, depth=2, reg_tokens=reg_tokens).eval()

    def forward(mix):
        x = model.patch_embed(mix(IMAGES) if site == 0 else IMAGES)
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
        for number, block in enumerate(model.blocks, 1):
            x = block(x)
            x = mix(x) if number == site else x
        return model.head(model.norm(x)[:, 0])

    assert_trains_alike(mixwell.create(f"manifold_mixup(sites=({site},))", 4), model, forward)


def test_a_module_by_name(cnn):
    model = cnn(4).eval()

    def forward(mix):
        x = model.layer2[0](model.layer1(IMAGES))
        return model.fc(model.layer3(model.layer2[2](model.layer2[1](mix(x)))).mean((2, 3)))

    assert_trains_alike(mixwell.create("manifold_mixup(sites=('layer2.0',))", 4), model, forward)


def test_what_the_first_stage_is_given():
    model = torchvision.models.resnet18(num_classes=4).eval()
    trunk = nn.Sequential(model.layer1, model.layer2, model.layer3, model.layer4, model.avgpool, nn.Flatten(), model.fc)

    def forward(mix):
        return trunk(mix(model.maxpool(model.relu(model.bn1(model.conv1(IMAGES))))))

    recipe = mixwell.create("manifold_mixup(sites=('stem',))", 4)
    assert_trains_alike(recipe, model, forward)
    assert recipe.sites == {"stem"}


def test_what_the_first_block_is_given(vit):
    model = vit(4, depth=2).eval()

    def forward(mix):
        x = mix(model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(IMAGES)))))
        return model.head(model.norm(model.blocks(x))[:, 0])

    assert_trains_alike(mixwell.create("manifold_mixup(sites=('stem',))", 4), model, forward)


def test_the_stem_where_stages_are_found_by_a_pass():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 64, 4)
    )
    assert Anatomy(net, IMAGES).site("stem") == Site("stem", "0")
    assert_trains_alike(
        mixwell.create("manifold_mixup(sites=('stem',))", 4).bind(net, IMAGES),
        net,
        lambda mix: net[1:](mix(net[0](IMAGES))),
    )
    with pytest.raises(mixwell.SiteError, match="'stem' does not exist in Sequential, whose stages are not known"):
        Anatomy(net).site("stem")


def test_what_the_classifier_is_given(cnn, vit):
    model = cnn(4).eval()

    def forward(mix):
        return model.fc(mix(model.layer3(model.layer2(model.layer1(IMAGES))).mean((2, 3))))

    assert_trains_alike(mixwell.create("manifold_mixup(sites=('embedding',))", 4), model, forward)
    transformer = vit(4, depth=2).eval()
    recipe = mixwell.create("manifold_mixup(sites=('embedding',))", 4)
    assert_trains_alike(
        recipe, transformer, lambda mix: transformer.head(mix(transformer.norm(_tokens(transformer))[:, 0]))
    )


def _tokens(model):
    return model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(IMAGES))))


def test_a_module_called_stem_is_the_stem():
    net = nn.Sequential()
    for name, part in (("stem", nn.Conv2d(3, 4, 3)), ("layer1", nn.Conv2d(4, 4, 3))):
        net.add_module(name, part)
    assert Anatomy(net).site("stem") == Site("stem", "stem")


def test_a_module_that_is_given_no_tensor():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Flatten()
            self.fc = nn.Linear(3072, 4)

        def forward(self, x):
            return self.fc(input=self.layer1(x))

    with pytest.raises(mixwell.IncompatibleRecipe, match=r"'fc' is given, but .* not given a tensor as its first"):
        mixwell.create("manifold_mixup(sites=('embedding',))", 4).bind(Named(), IMAGES)


def test_a_vector_and_a_signal_are_sites_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 4))
    recipe = mixwell.create("manifold_mixup(sites=('1',))", 4)
    assert_trains_alike(recipe, model, lambda mix: model[3](mix(model[1](model[0](IMAGES))).relu()))
    signal = nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    recipe = mixwell.create("manifold_mixup(sites=('1',))", 4)
    assert_trains_alike(recipe, signal, lambda mix: signal[2:](mix(signal[1](signal[0](IMAGES)))))


def test_boxes_on_hidden_maps_are_boxes_of_the_map(cnn):
    """cutmix at a hidden site: the labels follow the box on the map, where the partner's features are pasted."""
    model = cnn(4).eval()
    recipe = mixwell.create("cutmix + manifold_mixup(sites=(2,))", 4)
    (option,) = recipe.options
    maps = model.layer2(model.layer1(IMAGES))
    mix = option.mix(maps, mixwell.Scene(mixwell.Batch(IMAGES, LABELS), option.draw(4, Streams(0), 0)))
    turn = one_turn(recipe, model)
    torch.testing.assert_close(turn.logits, model.fc(model.layer3(mix.images).mean((2, 3))).detach())
    torch.testing.assert_close(turn.targets.weights, mix.weights)
    assert mix.masks.shape == (4, 2, 16, 16)


def test_a_site_in_channels_last_layout():
    """timm's Swin: maps are (B, H, W, C) and shown as (B, C, H, W)."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=4,
    ).eval()
    probe = Probe(model)
    shown = probe.run(IMAGES, wants=[Want("features", 1), Want("features", 2)])
    assert shown[Want("features", 1)].shape == (4, 16, 16, 16)
    assert shown[Want("features", 2)].shape == (4, 32, 8, 8)

    def forward(mix):
        return model.head(model.norm(model.layers[1](mix(model.layers[0](model.patch_embed(IMAGES))))))

    assert_trains_alike(mixwell.create("manifold_mixup(sites=(1,))", 4), model, forward)


@pytest.mark.parametrize(
    "site",
    [
        Site("x", "x", **layout)
        for layout in ({}, {"channels_last": True}, {"tokens": True}, {"tokens": True, "prefix": 2})
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 16, 6), (2, 22, 6), (2, 7)], ids=str)
def test_showing_and_putting_back_is_the_identity(site, shape):
    output = torch.randn(shape)
    aspect = {20: 4 / 5, 14: 2 / 7, 22: 2 / 11}.get(shape[1] - site.prefix, 1.0)
    hidden, prefix, back = site.show(output, aspect)
    assert hidden.ndim == 4
    assert torch.equal(back(hidden, prefix), output)
    if site.channels_last and len(shape) == 4:
        assert hidden.shape == (2, 5, 6, 4)
    if prefix is not None:
        assert prefix.shape == (2, 2, 6)


def test_tokens_that_form_no_grid():
    with pytest.raises(mixwell.SiteError, match="17 patch tokens at 'x' form no grid for images of height/width 1"):
        Site("x", "x", tokens=True).show(torch.randn(2, 17, 6))


def test_tokens_are_laid_out_in_rows(vit):
    """Patch (i, j) of a 24×40 image is pixel (i, j) of the shown 3×5 map."""
    model = vit(size=(24, 40)).eval()
    images = torch.randn(2, 3, 24, 40)
    seen = Probe(model).run(images, wants=[Want("features", 1)])[Want("features", 1)]
    tokens = model.blocks[0](model.norm_pre(model._pos_embed(model.patch_embed(images))))
    assert seen.shape == (2, 32, 3, 5)
    torch.testing.assert_close(seen[:, :, 1, 2], tokens[:, 1 + 1 * 5 + 2])


# What does not work says so


def test_unknown_sites_list_those_that_exist(cnn):
    anatomy = Anatomy(cnn())
    with pytest.raises(
        mixwell.SiteError, match=r"Stage 4 does not exist: SmallCNN has 3 stages \(layer1, layer2, layer3\)"
    ):
        anatomy.site(4)
    with pytest.raises(mixwell.SiteError, match=r"Site 'layer4' does not exist in SmallCNN; did you mean 'layer\d'"):
        anatomy.site("layer4")
    with pytest.raises(mixwell.SiteError, match=r"A site is a stage number or a module's name, got True"):
        anatomy.site(True)


def test_a_module_that_the_pass_does_not_meet(cnn):
    model = cnn()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(mixwell.ModelError, match="did not pass through features at 'spare'"):
        Probe(model).run(IMAGES, wants=[Want("features", "spare")])
    with pytest.raises(mixwell.IncompatibleRecipe, match="passed site 'spare' 0 times"):
        mixwell.create("manifold_mixup(sites=('spare',))", 7)(model, IMAGES, LABELS)


def test_a_module_that_the_pass_meets_twice():
    class Twice(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[1](self[0](x))))

    model = Twice(nn.Flatten(), nn.Linear(3072, 3072), nn.Linear(3072, 4))
    with pytest.raises(mixwell.IncompatibleRecipe, match="passed site '1' 2 times"):
        mixwell.create("manifold_mixup(sites=('1',))", 4)(model, IMAGES, LABELS)


def test_a_site_whose_rows_are_not_the_batchs():
    """Tokens first, as torch's encoder has them by default: mixing the first axis would mix tokens of one image."""

    class TokensFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 16, 16)
            self.inner = nn.Linear(8, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.inner(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))

    for images in (IMAGES, torch.randn(3, 3, 32, 32)):  # four tokens: with four images, the shapes would even agree
        with pytest.raises(mixwell.MixwellError, match="inner"):
            mixwell.create("manifold_mixup(sites=('inner',))", 4)(TokensFirst(), images, torch.arange(len(images)))


def test_a_network_without_logits():
    class Other(nn.Linear):
        def forward(self, x):
            return {"out": x}

    with pytest.raises(mixwell.ModelError, match=r"must return logits \(B, C\), or an object with .logits; got dict"):
        mixwell.create("mixup", 4)(Other(1, 1), IMAGES, LABELS)


# Stages of well-known networks


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda: torchvision.models.resnet18(num_classes=4), [16, 8, 4, 2]),
        (lambda: torchvision.models.convnext_tiny(num_classes=4), [16, 8, 4, 2]),
        (lambda: torchvision.models.efficientnet_b0(num_classes=4), [32, 16, 8, 4, 2]),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=4), [32, 16, 8, 4, 2]),
        (lambda: timm.create_model("resnet18", num_classes=4), [16, 8, 4, 2]),
        (lambda: timm.create_model("convnext_atto", num_classes=4), [16, 8, 4, 2]),
        (lambda: timm.create_model("efficientnet_b0", num_classes=4), [32, 16, 8, 4, 2]),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4), [4, 4, 4, 4]),
    ],
    ids=["tv-resnet", "tv-convnext", "tv-efficientnet", "tv-mobilenet", "resnet", "convnext", "efficientnet", "vit"],
)
def test_stages_are_found(make, sizes):
    model, images = make().eval(), torch.randn(2, 3, 64, 64)
    probe = Probe(model, images)
    stages = probe.anatomy.stages
    seen = probe.run(images, wants=[Want("features", stage) for stage in stages])
    assert [seen[Want("features", stage)].shape[-1] for stage in stages] == sizes
    assert all(seen[Want("features", stage)].shape[0] == 2 for stage in stages)


def test_blocks_are_parted_into_four_equal_groups(vit):
    assert Anatomy(vit(depth=8)).stages == ("blocks.1", "blocks.3", "blocks.5", "blocks.7")
    assert Anatomy(vit(depth=2)).stages == ("blocks.0", "blocks.1")
    assert Anatomy(vit(depth=1)).stages == ("blocks.0",)


@pytest.mark.parametrize(
    ("options", "prefix", "class_token"),
    [({}, 1, True), ({"reg_tokens": 4}, 5, True), ({"class_token": False, "global_pool": "avg"}, 0, False)],
    ids=str,
)
def test_prefix_tokens(vit, options, prefix, class_token):
    anatomy = Anatomy(vit(**options))
    assert (anatomy.prefix, anatomy.class_token, anatomy.has_tokens) == (prefix, class_token, True)
