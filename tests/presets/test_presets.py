"""Presets are what was published: settings and figures typed from the sources, and trainings that start."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mixwell.presets
from mixwell import ParameterError, create, methods
from mixwell.core.batch import Pixels
from mixwell.data import InMemory, from_datasets
from mixwell.data.varied import varied
from mixwell.presets import families, preset, presets
from mixwell.train import RunFolder, TrainConfig, train

FOLDER = Path(mixwell.presets.__file__).parent

SGD, ADAMW, LAMB = "momentum", "adamw", "lamb"
CLASSES = {
    "aircraft": 100,
    "cifar10": 10,
    "cifar100": 100,
    "cub200": 200,
    "imagefolder:imagenet": 1000,
    "tiny-imagenet": 200,
}

# Network, epochs, batch, optimiser, learning rate and its end, weight decay, epochs of warm-up, augmentation.
SETTINGS = {
    "cifar10-resnet18-200": ("resnet18-cifar", 200, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar10-resnet18-800": ("resnet18-cifar", 800, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar10-resnext50-800": ("resnext50-cifar", 800, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-resnet18-200": ("resnet18-cifar", 200, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-resnet18-400": ("resnet18-cifar", 400, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-resnet18-800": ("resnet18-cifar", 800, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-resnet18-1200": ("resnet18-cifar", 1200, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-resnext50-200": ("resnext50-cifar", 200, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-resnext50-800": ("resnext50-cifar", 800, 100, SGD, 0.1, 0.0, 1e-4, 0, "crop-flip"),
    "cifar100-wrn28x8-400": ("wrn-28-8", 400, 100, SGD, 0.03, 0.0, 1e-3, 0, "crop-flip"),
    "tiny-imagenet-resnet18-400": ("resnet18-cifar", 400, 100, SGD, 0.2, 0.0, 1e-4, 0, "rrc-flip"),
    "tiny-imagenet-resnext50-400": ("resnext50-cifar", 400, 100, SGD, 0.2, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet18-100": ("resnet18", 100, 256, SGD, 0.1, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet18-300": ("resnet18", 300, 256, SGD, 0.1, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet50-100": ("resnet50", 100, 256, SGD, 0.1, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet50-300": ("resnet50", 300, 256, SGD, 0.1, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet101-100": ("resnet101", 100, 256, SGD, 0.1, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet101-300": ("resnet101", 300, 256, SGD, 0.1, 0.0, 1e-4, 0, "rrc-flip"),
    "imagenet-resnet50-rsb-a2": ("resnet50", 300, 2048, LAMB, 5e-3, 1e-6, 0.02, 5, "rrc-flip"),
    "imagenet-resnet50-rsb-a3": ("resnet50", 100, 2048, LAMB, 8e-3, 1e-6, 0.02, 5, "rrc-flip"),
    "imagenet-deit-tiny-300": ("deit_tiny_patch16_224", 300, 1024, ADAMW, 1e-3, 1e-5, 0.05, 20, "rrc-flip"),
    "imagenet-deit-small-300": ("deit_small_patch16_224", 300, 1024, ADAMW, 1e-3, 1e-5, 0.05, 20, "rrc-flip"),
    "imagenet-deit-base-300": ("deit_base_patch16_224", 300, 1024, ADAMW, 1e-3, 1e-5, 0.05, 20, "rrc-flip"),
    "imagenet-swin-tiny-300": ("swin_tiny_patch4_window7_224", 300, 1024, ADAMW, 1e-3, 1e-5, 0.05, 20, "rrc-flip"),
    "imagenet-convnext-tiny-300": ("convnext_tiny", 300, 4096, ADAMW, 4e-3, 1e-6, 0.05, 20, "rrc-flip"),
    "cifar100-deit-small-224-200": ("deit_small_patch16_224", 200, 100, ADAMW, 1e-3, 1e-6, 0.05, 20, "rrc-flip"),
    "cifar100-deit-small-224-600": ("deit_small_patch16_224", 600, 100, ADAMW, 1e-3, 1e-6, 0.05, 20, "rrc-flip"),
    "cifar100-swin-tiny-224-200": ("swin_tiny_patch4_window7_224", 200, 100, ADAMW, 5e-4, 1e-6, 0.05, 20, "rrc-flip"),
    "cifar100-swin-tiny-224-600": ("swin_tiny_patch4_window7_224", 600, 100, ADAMW, 5e-4, 1e-6, 0.05, 20, "rrc-flip"),
    "cub200-resnet18-200": ("resnet18.tv_in1k", 200, 16, SGD, 1e-3, 0.0, 5e-4, 0, "rrc-flip"),
    "cub200-resnext50-200": ("resnext50_32x4d.tv_in1k", 200, 16, SGD, 1e-3, 0.0, 5e-4, 0, "rrc-flip"),
    "aircraft-resnet18-200": ("resnet18.tv_in1k", 200, 16, SGD, 1e-3, 0.0, 5e-4, 0, "rrc-flip"),
    "aircraft-resnext50-200": ("resnext50_32x4d.tv_in1k", 200, 16, SGD, 1e-3, 0.0, 5e-4, 0, "rrc-flip"),
}  # fmt: skip

# Some figures of every family, in percent.
FIGURES = {
    "cifar10-resnet18-200": {"none": 94.87, "mixup": 95.70, "gridmix": 95.89, "samix": 96.67},
    "cifar10-resnet18-800": {"none": 95.50, "puzzlemix": 97.10, "adautomix": 97.55},
    "cifar10-resnext50-800": {"none": 96.23, "resizemix": 97.21, "automix": 97.65},
    "cifar100-resnet18-200": {"none": 76.42, "mixup": 78.52, "cutmix": 79.45, "puzzlemix": 79.96, "automix": 80.12},
    "cifar100-resnet18-400": {"none": 77.73, "comixup": 80.87, "catchup_mix": 82.10},
    "cifar100-resnet18-800": {"none": 78.04, "fmix": 79.69, "lgcoamix": 82.34, "saliency_grafting": 80.83},
    "cifar100-resnet18-1200": {"none": 78.55, "alignmixup": 81.71, "saliencymix": 77.66},
    "cifar100-resnext50-200": {"none": 79.37, "cutmix": 81.52, "manifold_mixup": 81.59},
    "cifar100-resnext50-800": {"none": 81.09, "attentive_cutmix": 80.54, "adautomix": 84.42},
    "cifar100-wrn28x8-400": {"none": 81.63, "resizemix": 84.87, "samix": 85.50},
    "tiny-imagenet-resnet18-400": {"none": 61.68, "smoothmix": 66.65, "alignmixup": 66.87, "gridmix": 65.14},
    "tiny-imagenet-resnext50-400": {"none": 65.04, "comixup": 68.02, "lgcoamix": 73.08},
    "imagenet-resnet18-100": {"none": 70.04, "cutmix": 68.95, "samix": 70.83},
    "imagenet-resnet18-300": {"none": 71.83, "fmix": 70.30, "samix": 72.27},
    "imagenet-resnet50-100": {"none": 76.83, "supermix": 77.63, "saliency_grafting": 77.74, "samix": 78.14},
    "imagenet-resnet50-300": {"none": 77.35, "gridmix": 78.50, "recursive_mix": 79.20, "multimix": 78.81},
    "imagenet-resnet101-100": {"none": 78.18, "resizemix": 79.49, "samix": 80.05},
    "imagenet-resnet101-300": {"none": 78.91, "puzzlemix": 80.67, "automix": 80.98},
    "imagenet-resnet50-rsb-a2": {"rsb": 79.80, "resizemix": 79.94, "automix": 80.28},
    "imagenet-resnet50-rsb-a3": {"rsb": 78.08, "mixup": 77.66, "samix": 78.64},
    "imagenet-deit-tiny-300": {"none": 73.91, "smmix": 75.56, "tl_align": 73.20},
    "imagenet-deit-small-300": {"none": 75.66, "deit": 79.80, "transmix": 80.68, "mixpro": 81.30, "lumix": 80.6},
    "imagenet-deit-base-300": {"none": 77.09, "tokenmix": 82.90, "samix": 82.85},
    "imagenet-swin-tiny-300": {"none": 80.21, "puzzlemix": 81.47, "tl_align": 81.40},
    "imagenet-convnext-tiny-300": {"none": 79.22, "deit": 82.10, "manifold_mixup": 80.57},
    "cifar100-deit-small-224-200": {"none": 65.81, "attentive_cutmix": 75.98, "samix": 77.94},
    "cifar100-deit-small-224-600": {"none": 68.50, "smoothmix": 80.25, "samix": 82.49},
    "cifar100-swin-tiny-224-200": {"none": 78.41, "mixup": 76.78, "automix": 82.67},
    "cifar100-swin-tiny-224-600": {"none": 81.29, "deit": 84.82},
    "cub200-resnet18-200": {"none": 77.68, "manifold_mixup": 79.76, "samix": 81.11},
    "cub200-resnext50-200": {"none": 83.01, "cutmix": 85.68, "automix": 86.56},
    "aircraft-resnet18-200": {"none": 80.23, "resizemix": 78.10, "samix": 82.15},
    "aircraft-resnext50-200": {"none": 85.10, "fmix": 86.23, "samix": 86.80},
}  # fmt: skip


@pytest.mark.parametrize("family", families())
def test_every_family_has_the_published_settings(family):
    network, epochs, batch, optimizer, lr, end, decay, warmup, augment = SETTINGS[family]
    name = next(name for name in presets() if name.startswith(f"{family}/"))
    config = preset(name).config()
    assert (config.model, config.epochs, config.batch_size * config.accumulate) == (network, epochs, batch)
    assert (config.optimizer, config.lr, config.min_lr, config.weight_decay) == (optimizer, lr, end, decay)
    assert (config.schedule, config.warmup_epochs, config.augment) == ("cosine", warmup, augment)
    if optimizer == SGD:
        assert (config.momentum, config.decay_norms) == (0.9, True)
    assert config.criterion == ("bce" if "rsb" in family else None)
    assert config.label_smoothing == (0.1 if optimizer == ADAMW else 0)


def test_the_settings_of_single_methods():
    assert preset("cifar100-resnext50-200/cutmix").config().weight_decay == 5e-4
    assert preset("cifar100-resnext50-200/mixup").config().weight_decay == 1e-4
    assert preset("cifar100-resnet18-200/cutmix").config().weight_decay == 1e-4
    assert preset("cifar100-resnet18-200/automix").config().min_lr == 0.05
    assert preset("imagenet-resnet50-100/automix").config().min_lr == 0
    a3 = preset("imagenet-resnet50-rsb-a3/rsb").config()
    assert a3.data_options == {"size": 160, "test_size": 224, "shown": 0.95}
    assert a3.augment_options == {"randaugment": "rand-m6-mstd0.5-inc1"}
    deit = preset("imagenet-deit-small-300/deit").config()
    assert deit.augment_options == {"randaugment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
    assert (deit.clip, deit.model_options) == (5, {"drop_path_rate": 0.1})
    assert preset("cub200-resnet18-200/none").config().augment_options == {"least_area": 0.5}
    assert preset("cub200-resnet18-200/none").config().init == "pretrained"


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("cifar100-resnet18-200/mixup", 1),
        ("cifar100-resnet18-200/cutmix", 0.2),
        ("cifar100-resnet18-200/manifold_mixup", 2),
        ("cifar100-resnet18-200/puzzlemix", 1),
        ("cifar100-resnet18-200/samix", 2),
        ("tiny-imagenet-resnet18-400/cutmix", 1),
        ("tiny-imagenet-resnet18-400/manifold_mixup", 0.2),
        ("imagenet-resnet50-100/mixup", 0.2),
        ("imagenet-resnet50-100/cutmix", 1),
        ("imagenet-resnet18-100/saliencymix", 0.2),
        ("imagenet-deit-small-300/fmix", 0.2),
        ("cifar100-deit-small-224-200/mixup", 0.8),
        ("cifar100-deit-small-224-200/cutmix", 2),
        ("cub200-resnet18-200/manifold_mixup", 0.5),
    ],
)
def test_alpha_is_that_of_the_table(name, alpha):
    assert float(re.search(r"\(alpha=([\d.]+)", preset(name).recipe)[1]) == alpha


@pytest.mark.parametrize("family", families())
def test_figures_are_the_published_ones(family):
    assert {method: preset(f"{family}/{method}").accuracy for method in FIGURES[family]} == FIGURES[family]


@pytest.mark.parametrize("family", families())
def test_every_preset_is_a_config_and_a_recipe_with_its_source(family):
    names = [name for name in presets() if name.startswith(f"{family}/")]
    assert len(names) >= 10
    for name in names:
        found = preset(name)
        method = name.partition("/")[2]
        config = found.config()
        assert isinstance(config, TrainConfig)
        assert config.recipe == found.recipe
        assert config.to_json().items() >= {**found.fields, "recipe": found.recipe}.items()
        options = {"criterion": config.criterion, "label_smoothing": config.label_smoothing}
        recipe = create(config.recipe, CLASSES[config.data], **options)
        assert method in ("none", "deit", "rsb") or (method in methods() and method in str(recipe))
        assert 50 < found.accuracy < 100
        assert found.title
        assert found.source.table
        assert "arXiv:" in found.source.citation
        assert found.passes >= 1


@pytest.mark.parametrize("family", families())
def test_every_file_opens_with_its_setting_and_source(family):
    lines = (FOLDER / f"{family}.toml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line)])
    title = tomllib.loads("\n".join(lines))["title"]
    assert comment.startswith(title)
    assert "Setting: " in comment
    assert "Source: " in comment


def test_costs_are_the_sources_or_said_to_be_estimates():
    assert preset("cifar100-deit-small-224-600/cutmix").cost == "27 h (published)"
    assert preset("cifar100-deit-small-224-600/automix").hours == 59
    assert preset("cifar100-resnet18-200/puzzlemix").cost == ("200 epochs × 50,000 images × 2 = 20 M passes (estimate)")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar100-resnet18-200/puzlemix", "no method 'puzlemix'; did you mean 'puzzlemix'"),
        ("cifar100-resnet18-20/puzzlemix", "did you mean 'cifar100-resnet18-200/puzzlemix'"),
        ("cifar100-resnet18-200", "is a family, name one of its methods"),
        ("zzz", "known: aircraft-resnet18-200"),
    ],
)
def test_unknown_names_get_the_closest(name, hint):
    with pytest.raises(ParameterError, match=re.escape(hint)):
        preset(name)


def test_a_changed_field_goes_before_the_presets():
    config = preset("cifar100-resnet18-200/cutmix").config(epochs=3, recipe="mixup")
    assert (config.epochs, config.recipe, config.lr) == (3, "mixup", 0.1)


# One training of each network on images of each size, with a recipe that asks something of it.
TRAINED = {
    "cifar10-resnet18-200": "resizemix",
    "cifar100-resnet18-200": "automix",
    "cifar10-resnext50-800": "puzzlemix",
    "cifar100-resnext50-200": "manifold_mixup",
    "cifar100-wrn28x8-400": "samix",
    "tiny-imagenet-resnet18-400": "gridmix",
    "tiny-imagenet-resnext50-400": "fmix",
    "imagenet-resnet18-100": "samix",
    "imagenet-resnet50-100": "puzzlemix",
    "imagenet-resnet101-100": "cutmix",
    "imagenet-resnet50-rsb-a2": "rsb",
    "imagenet-resnet50-rsb-a3": "puzzlemix",
    "imagenet-deit-tiny-300": "smmix",
    "imagenet-deit-small-300": "transmix",
    "imagenet-deit-base-300": "deit",
    "imagenet-swin-tiny-300": "automix",
    "imagenet-convnext-tiny-300": "manifold_mixup",
    "cifar100-deit-small-224-200": "samix",
    "cifar100-swin-tiny-224-200": "gridmix",
    "cub200-resnet18-200": "saliencymix",
    "cub200-resnext50-200": "resizemix",
}


def stand_in(config: TrainConfig):
    """Noise of the data's shape and number of classes, augmented as the data are."""
    stored = {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}.get(config.data, config.data_options.get("size", 224))
    served = config.data_options.get("size") if config.data.startswith("cifar") else None
    classes, pixels = CLASSES[config.data], Pixels((0.5,) * 3, (0.25,) * 3)

    def noise(count, side, **options):
        images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
        return InMemory(images, torch.randint(classes, (count,)), size=served, **options)

    train_part = noise(2, stored, augment=config.augment)
    data = from_datasets(
        train_part, noise(2, config.data_options.get("test_size", stored)), num_classes=classes, pixels=pixels
    )
    return replace(data, train=varied(data.train, config.augment_options, pixels, "noise"))


@pytest.fixture
def unwritten(monkeypatch):
    """Nothing is written of the largest networks, whose weights and states take gigabytes."""
    monkeypatch.setattr(RunFolder, "write_state", lambda *arguments: None)
    monkeypatch.setattr(RunFolder, "write_weights", lambda *arguments: "")


@pytest.mark.matrix(keep=8)
@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize("family", TRAINED)
def test_network_recipe_optimiser_and_schedule_go_together(family, tmp_path):
    published = preset(f"{family}/{TRAINED[family]}").config()
    config = replace(
        published,
        epochs=1,
        batch_size=2,
        accumulate=1,
        warmup_epochs=min(0.5, published.warmup_epochs),
        workers=0,
        precision="no",
        init=None,
        threads=1,
        out=tmp_path,
    )
    (record,) = train(config, dataset=stand_in(config), progress=False).history
    assert record["step"] == 1
    assert record["loss"] > 0


def test_every_network_is_trained_at_every_size_that_a_preset_has():
    def shapes(names):
        configs = [preset(name).config() for name in names]
        sizes = {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}
        return {(each.model, each.data_options.get("size", sizes.get(each.data, 224))) for each in configs}

    assert shapes(f"{family}/{method}" for family, method in TRAINED.items()) == shapes(presets())
