"""Networks by name: which library answers, what is passed on, and what every mistake is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from mixwell.core.errors import ModelError, ParameterError
from mixwell.nets import PreActResNet, WideResNet, create_net


def test_own_names_come_first():
    assert isinstance(create_net("preact-resnet18", 10), PreActResNet)
    assert isinstance(create_net("wrn-10-2", 10), WideResNet)


def test_timm_answers_before_torchvision():
    assert type(create_net("resnet18", 3)).__module__ == "timm.models.resnet"


def test_prefixes_force_the_library():
    assert type(create_net("timm/resnet18", 3)).__module__ == "timm.models.resnet"
    assert type(create_net("torchvision/resnet18", 3)).__module__ == "torchvision.models.resnet"


def test_torchvision_answers_for_names_that_timm_lacks():
    assert not timm.is_model("squeezenet1_1")
    net = create_net("squeezenet1_1", 3).eval()
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_timm_gets_channels_and_parameters():
    net = create_net("resnet18", 3, channels=1, layers=(1, 1, 1, 1), drop_rate=0.25)
    assert len(net.layer1) == 1
    assert net.drop_rate == 0.25
    assert net.conv1.in_channels == 1
    assert net(torch.randn(3, 1, 32, 40)).shape == (3, 3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "mixer_s16_224"])
def test_timm_nets_of_one_size_are_built_for_ours(name):
    with torch.device("meta"):
        net = create_net(name, 3, size=64)
        assert net(torch.empty(1, 3, 64, 64)).shape == (1, 3)


def test_the_users_image_size_goes_before_ours():
    net = create_net("vit_tiny_patch16_224", 3, size=64, img_size=(32, 48), depth=1)
    assert net(torch.randn(1, 3, 32, 48)).shape == (1, 3)


def test_torchvision_vit_is_built_for_our_size():
    with torch.device("meta"):
        net = create_net("torchvision/vit_b_32", 3, size=64)
    assert net.image_size == 64


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_torchvision_nets_return_logits_in_training(name):
    net = create_net(f"torchvision/{name}", 3, init_weights=False)
    assert net(torch.randn(2, 3, 80, 80)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cnn_s", "'cnn-s'"),
        ("resnet19", "'resnet18'"),
        ("timm/resnet19", "'resnet18'"),
        ("torchvision/resnet19", "'resnet18'"),
        ("torchvision/cnn-s", "unknown network"),
        ("torchvision/fasterrcnn_resnet50_fpn", "unknown network"),
        ("preact-resnet19", "'preact-resnet18'"),
    ],
)
def test_unknown_names_get_the_closest(name, hint):
    with pytest.raises(ModelError, match=hint):
        create_net(name, 3)


def test_a_name_like_no_other_does_not_list_them_all():
    with pytest.raises(ModelError, match=r"known: cnn-s.*timm\.list_models") as caught:
        create_net("zzzzqqq", 3)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["cnn-s", "vit-s", "wrn-10-1", "resnet18", "timm/resnet18", "torchvision/resnet18"])
def test_unknown_parameters_are_named(name):
    with pytest.raises(ModelError, match=f"{name.split('/')[-1]} has no parameter 'drop_rat'"):
        create_net(name, 3, drop_rat=0.1)


def test_type_errors_about_other_things_pass():
    with pytest.raises(TypeError, match="not subscriptable"):
        create_net("preact-resnet18", 3, blocks=2)


@pytest.mark.parametrize("name", ["cnn-s", "preact-resnet18", "resnet18-cifar", "vit-s", "wrn-28-10"])
def test_own_nets_have_no_pretrained_weights(name):
    with pytest.raises(ModelError, match="--init FILE"):
        create_net(name, 3, pretrained=True)


def test_timm_architectures_without_weights_say_so():
    with_weights = {name.partition(".")[0] for name in timm.list_pretrained()}
    name = next(name for name in timm.list_models() if name not in with_weights)
    with pytest.raises(ModelError, match=f"no pretrained weights for {name}.*--init FILE"):
        create_net(name, 3, pretrained=True)


def test_unknown_weight_tags_get_the_closest():
    with pytest.raises(ModelError, match=r"resnet18 has no weights tagged 'a1_in2k'.*'a1_in1k'"):
        create_net("resnet18.a1_in2k", 3)


def test_pretrained_asks_timm_for_its_weights(monkeypatch):
    asked = {}

    def create_model(name, **arguments):
        asked.update(arguments, name=name)
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", create_model)
    create_net("resnet18", 3, channels=1, pretrained=True)
    assert asked == {"name": "resnet18", "pretrained": True, "num_classes": 3, "in_chans": 1}


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "vit_b_32"])
@pytest.mark.parametrize("num_classes", [3, 1000])
def test_pretrained_torchvision_nets_get_a_new_classifier_where_it_differs(monkeypatch, name, num_classes):
    build = torchvision.models.get_model
    built = []

    def get_model(name, *, weights, **arguments):
        assert weights == "DEFAULT"
        built.append(build(name, weights=None, **arguments))
        return built[0]

    with torch.device("meta"):
        monkeypatch.setattr(torchvision.models, "get_model", get_model)
        net = create_net(f"torchvision/{name}", num_classes, pretrained=True)
        fresh = [key for key, value in net.state_dict().items() if value.shape[:1] == (num_classes,)]
        assert net is built[0]
        assert net.eval()(torch.empty(2, 3, 224, 224)).shape == (2, num_classes)
    assert sorted(fresh)[0].rpartition(".")[0] == sorted(fresh)[-1].rpartition(".")[0]


@pytest.mark.parametrize(("module", "function"), [(timm, "create_model"), (torchvision.models, "get_model")])
def test_failed_downloads_say_what_else_works(monkeypatch, module, function):
    def unreachable(*_arguments, **_keywords):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(module, function, unreachable)
    library = module.__name__.partition(".")[0]
    with pytest.raises(ModelError, match=r"weights of resnet18: no route to host.*--init FILE"):
        create_net(f"{library}/resnet18", 3, pretrained=True)


def test_torchvision_refuses_other_channels_and_says_who_takes_them():
    with pytest.raises(ModelError, match=r"3 channels, got 1.*timm/resnet18"):
        create_net("torchvision/resnet18", 3, channels=1)


@pytest.mark.parametrize(("name", "missing"), [("resnet18", "timm"), ("torchvision/resnet18", "torchvision")])
def test_a_missing_library_names_the_extra(monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=rf"needs {missing}.*mixwell\[train\]"):
        create_net(name, 3)


def test_vit_s_without_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(ModelError, match=r"needs timm.*mixwell\[train\]"):
        create_net("vit-s", 3)


def test_importing_nets_imports_no_library():
    code = "import sys, mixwell.nets; sys.exit(any(m in sys.modules for m in ('timm', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"channels": -1}, {"size": 32.0}, {"num_classes": True}])
def test_counts_must_be_positive_integers(wrong):
    with pytest.raises(ParameterError, match="must be a positive integer"):
        create_net("cnn-s", **({"num_classes": 3} | wrong))
