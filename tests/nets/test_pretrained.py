"""The teacher that methods look through: trained, from a run, from timm or given; frozen, and nobody's parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mixwell
from mixwell.core.artefacts import Workshop
from mixwell.nets import create_net, pretrained
from mixwell.nets.pretrained import Pretrained, train_classifier
from mixwell.train.folder import RunFolder

PIXELS = mixwell.Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def workshop_of(batches: list[mixwell.Batch], folder: Path, num_classes: int | None = 4, **options) -> Workshop:
    return Workshop(lambda: batches, "noise", num_classes=num_classes, folder=folder, **options)


def batches_of(count: int = 2, rows: int = 8, channels: int = 3, size: tuple[int, int] = (16, 16)):
    return [mixwell.Batch(torch.randn(rows, channels, *size), torch.arange(rows) % 4) for _ in range(count)]


def run_in(folder: Path, net: nn.Module, status: str = "finished", **config: object) -> Path:
    run = RunFolder(folder)
    run.begin({"status": "running"})
    checksum = run.write_weights("weights.safetensors", net.state_dict())
    run.describe({"status": status, "config": config, "files": {"weights.safetensors": checksum}})
    return folder


@pytest.mark.usefixtures("one_thread")
def test_training_tells_classes_apart():
    prototypes = 2 * torch.randn(4, 2, 16, 16)
    labels = torch.arange(64) % 4
    images = prototypes[labels] + torch.randn(64, 2, 16, 16)
    net, told = create_net("cnn-s", 4, channels=2), []
    train_classifier(net, lambda: zip(images.split(16), labels.split(16), strict=True), 6, progress=told.append)
    assert (net.eval()(images).argmax(1) == labels).float().mean() > 0.9
    assert told == [0, 1, 2, 3, 4, 5, 6]


def test_training_takes_rows_of_shares_and_a_last_batch_of_one():
    rows = F.one_hot(torch.arange(3), 4).float()
    net = create_net("cnn-s", 4)
    train_classifier(net, lambda: [(torch.randn(3, 3, 8, 8), rows), (torch.randn(1, 3, 8, 8), rows[:1])], 1)
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_a_loss_that_is_not_finite_is_told():
    images = torch.full((2, 3, 8, 8), torch.nan)
    with pytest.raises(mixwell.MixwellError, match="not finite after 1 epochs"):
        train_classifier(create_net("cnn-s", 4), lambda: [(images, torch.arange(2))], 2)


@pytest.mark.usefixtures("one_thread")
def test_the_small_one_is_made_once_whatever_the_seed(tmp_path: Path):
    batches, told, said = batches_of(), [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        teacher = Pretrained(owner="attentive_cutmix", epochs=2)
        teacher.prepare(workshop_of(batches, tmp_path, progress=lambda *words: told.append(words)))
        said.append(teacher.logits(batches[0].images))
    assert torch.equal(*said)
    assert said[0].shape == (8, 4)
    assert told == [("teacher", done, 2) for done in range(3)]
    for other in (Pretrained(owner="x", epochs=3), Pretrained(owner="x", epochs=2, size=24)):
        other.prepare(workshop_of(batches, tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("rows", [False, True])
def test_classes_are_counted_where_the_recipe_names_none(tmp_path: Path, rows: bool):
    batches = batches_of(channels=1)
    if rows:
        batches = [mixwell.Batch(batch.images, F.one_hot(batch.labels, 5).float()) for batch in batches]
    teacher = Pretrained(owner="x", epochs=1)
    teacher.prepare(workshop_of(batches, tmp_path, None))
    assert teacher.logits(batches[0].images).shape == (8, 5 if rows else 4)


def test_it_sees_maps_and_logits_of_any_precision_as_the_network_does():
    net = create_net("cnn-s", 4)
    teacher = Pretrained(owner="x")
    teacher.use(net)
    images = torch.randn(3, 3, 20, 28)
    with torch.autocast("cpu", torch.bfloat16):
        logits, last = teacher.logits(images.double()), teacher.features(images.half().contiguous())
    assert logits.dtype == last.dtype == torch.float32
    torch.testing.assert_close(logits, net(images))
    assert last.shape == (3, 64, 3, 4)
    assert teacher.features(images, site="layer1").shape == (3, 16, 10, 14)
    torch.testing.assert_close(teacher.features(images).mean((2, 3)) @ net.fc.weight.T + net.fc.bias, logits)


def test_class_activation_adds_up_to_the_logits_without_the_bias():
    net, teacher = create_net("cnn-s", 4), Pretrained(owner="x")
    teacher.use(net)
    images, ids = torch.randn(5, 3, 20, 28), torch.tensor([3, 0, 1, 1, 2])
    logits = teacher.logits(images)
    features, maps = teacher.activation(images, ids)
    torch.testing.assert_close(features, teacher.features(images))
    torch.testing.assert_close(maps.mean((1, 2)), logits.gather(1, ids[:, None])[:, 0] - net.fc.bias[ids])
    predicted = teacher.activation(images)[1]
    torch.testing.assert_close(
        predicted.mean((1, 2)), (logits - net.fc.bias).gather(1, logits.argmax(1)[:, None])[:, 0]
    )
    halves = torch.full((5, 4), 0.25)
    torch.testing.assert_close(teacher.activation(images, halves)[1].mean((1, 2)), (logits - net.fc.bias).mean(1))
    with pytest.raises(mixwell.ModelError, match="tells 4 apart, and labels have 9"):
        teacher.activation(images, torch.rand(5, 9))


def test_class_activation_needs_a_classifier_of_the_last_stage():
    teacher = Pretrained(owner="x")
    teacher.use(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4)))
    with pytest.raises(mixwell.MixwellError):
        teacher.activation(torch.randn(2, 3, 8, 8), torch.arange(2))


def test_gradients_reach_the_images_and_never_the_parameters(cnn: Callable[..., nn.Module]):
    teacher, net = Pretrained(owner="x"), cnn()
    teacher.use(net.train())
    before = copy.deepcopy(net.state_dict())
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    teacher.train()
    (teacher.logits(images).sum() + teacher.features(images).sum()).backward()
    assert images.grad.abs().sum() > 0
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_it_is_no_part_of_its_holder_but_moves_with_it(cnn: Callable[..., nn.Module]):
    teacher = Pretrained(owner="x")
    holder = nn.Sequential(teacher)
    teacher.use(net := cnn())
    assert not list(holder.parameters())
    assert not holder.state_dict()
    assert net not in list(holder.modules())
    holder.double()
    assert all(parameter.dtype == torch.float64 for parameter in net.parameters())
    assert teacher.logits(torch.randn(2, 3, 16, 16)).dtype == torch.float32


def test_one_of_ones_own_is_not_replaced_and_has_its_own_normalisation(tmp_path: Path):
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean((2, 3))

    teacher = Pretrained(owner="x")
    teacher.use(Watching(), mixwell.Pixels((0.5,) * 3, (0.1,) * 3), size=24)
    teacher.prepare(workshop_of(batches_of(), tmp_path))
    assert not list(tmp_path.iterdir())
    raw = torch.rand(2, 3, 24, 24)
    teacher.logits(PIXELS.normalise(raw), PIXELS)
    torch.testing.assert_close(seen[-1], (raw - 0.5) / 0.1)
    teacher.logits(torch.randn(2, 1, 12, 20), mixwell.Pixels((0.3,), (0.2,)))
    assert seen[-1].shape == (2, 3, 24, 24)
    assert torch.equal(seen[-1][:, 0], seen[-1][:, 2])
    with pytest.raises(mixwell.BatchError, match=r"pixels=Pixels\(mean"):
        teacher.logits(raw)


def test_a_finished_run_is_loaded(tmp_path: Path):
    net = create_net("cnn-s", 4, channels=2, width=8).eval()
    folder = run_in(tmp_path / "run", net, model="cnn-s", model_options={"width": 8})
    batches = batches_of(channels=2)
    teacher = Pretrained(str(folder), owner="x")
    teacher.prepare(workshop_of(batches, tmp_path / "cache"))
    torch.testing.assert_close(teacher.logits(batches[0].images), net(batches[0].images))
    with pytest.raises(mixwell.BatchError, match=r"takes images of 2 channels, got \(8, 3"):
        teacher.logits(torch.randn(8, 3, 16, 16))


@pytest.mark.parametrize("own_classes", [False, True])
def test_of_a_run_with_a_further_head_the_plain_network_teaches(tmp_path: Path, own_classes: bool):
    """As token_labeling's, whose predictor also asks the tokens' classifier."""
    whole = nn.Module()
    whole.net, whole.head = create_net("cnn-s", 4), nn.Linear(64, 4)
    folder, batches = run_in(tmp_path / "run", whole, model="cnn-s", model_options={}), batches_of()
    found = Pretrained(str(folder), owner="supermix", own_classes=own_classes)
    found.prepare(workshop_of(batches, tmp_path))
    images = batches[0].images
    torch.testing.assert_close(found.logits(images), whole.net.eval()(images))


def test_a_run_on_other_classes_is_loaded_where_they_need_not_be_the_recipes(tmp_path: Path):
    net = create_net("cnn-s", 9).eval()
    folder, batches = run_in(tmp_path / "run", net, model="cnn-s", model_options={}), batches_of()
    with pytest.raises(mixwell.ModelError, match="of 4 classes"):
        Pretrained(str(folder), owner="x").prepare(workshop_of(batches, tmp_path / "cache"))
    teacher = Pretrained(str(folder), owner="x", own_classes=True)
    teacher.prepare(workshop_of(batches, tmp_path / "cache"))
    torch.testing.assert_close(teacher.logits(batches[0].images), net(batches[0].images))


@pytest.mark.usefixtures("one_thread")
def test_the_small_one_goes_elsewhere_by_its_weights(tmp_path: Path):
    batches = batches_of()
    first, second = Pretrained(owner="x", epochs=1), Pretrained(owner="x")
    first.prepare(workshop_of(batches, tmp_path))
    second.restore(first.weights)
    assert torch.equal(first.logits(batches[0].images), second.logits(batches[0].images))
    assert first.small
    assert second.small
    assert not Pretrained("resnet18", owner="x").small
    second.use(create_net("cnn-s", 4))
    assert not second.small


def test_runs_that_cannot_teach(tmp_path: Path):
    net = create_net("cnn-s", 4)

    def prepare(folder: Path, **given: object) -> None:
        Pretrained(str(folder), owner="x").prepare(workshop_of(batches_of(**given), tmp_path / "cache"))

    with pytest.raises(mixwell.ModelError, match="not finished"):
        prepare(run_in(tmp_path / "running", net, "running", model="cnn-s", model_options={}))
    with pytest.raises(mixwell.ModelError, match=r"does not fit images \(1, 16, 16\) of 4 classes"):
        prepare(run_in(tmp_path / "other", net, model="cnn-s", model_options={}), channels=1)
    damaged = run_in(tmp_path / "damaged", net, model="cnn-s", model_options={})
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(mixwell.ModelError, match="is damaged"):
        prepare(damaged)
    (tmp_path / "empty").mkdir()
    with pytest.raises(mixwell.ModelError, match=r"holds no run\.json"):
        prepare(tmp_path / "empty")
    assert json.loads((damaged / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(("name", "size", "side"), [("timm/resnet18", None, 7), ("vit_tiny_patch16_224", 64, 4)])
def test_a_network_of_timm_keeps_its_classes_normalisation_and_size(
    name: str, size: int | None, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {}

    def without_weights(name: str, num_classes: int, *, size: int, pretrained: bool) -> nn.Module:
        asked.update(name=name, num_classes=num_classes, size=size, pretrained=pretrained)
        sized = {"img_size": size} if "vit" in name else {}
        return timm.create_model(name.removeprefix("timm/"), num_classes=num_classes, **sized)

    monkeypatch.setattr(pretrained, "create_net", without_weights)
    teacher = Pretrained(name, owner="x", size=size)
    teacher.prepare(workshop_of(batches_of(), tmp_path))
    assert asked["name"].startswith("timm/")
    assert (asked["num_classes"], asked["size"], asked["pretrained"]) == (1000, size or 224, True)
    grey = mixwell.Pixels((0.3,), (0.2,))
    assert teacher.features(torch.randn(1, 1, 20, 28), grey).shape[2:] == (side, side)
    mean = (0.485, 0.456, 0.406) if "resnet" in name else (0.5, 0.5, 0.5)
    black = teacher._shown(torch.full((1, 1, 8, 8), -1.5), grey)[0, :, 0, 0]
    torch.testing.assert_close(black, -torch.tensor(mean) / torch.tensor(teacher._pixels.std))


def test_an_unknown_name_is_told(tmp_path: Path):
    with pytest.raises(mixwell.ModelError, match="unknown network 'timm/resnet81'"):
        Pretrained("resnet81", owner="x").prepare(workshop_of(batches_of(), tmp_path))


def test_unprepared_it_says_what_to_do():
    with pytest.raises(mixwell.MixwellError, match=r"supermix looks .* recipe\.prepare\(batches, data\)"):
        Pretrained(owner="supermix").logits(torch.randn(2, 3, 8, 8))


def test_without_a_batch_nothing_is_made(tmp_path: Path):
    with pytest.raises(mixwell.MixwellError, match="there are none"):
        Pretrained(owner="x").prepare(workshop_of([], tmp_path))


@pytest.mark.parametrize("given", [{"size": 0}, {"epochs": 0}], ids=str)
def test_numbers_out_of_range(given: dict[str, int]):
    with pytest.raises(mixwell.ParameterError, match=f"teacher_{next(iter(given))}"):
        Pretrained(owner="x", **given)


@pytest.mark.parametrize("name", ["cnn-s", "preact-resnet18", "timm/test_nfnet", "timm/resnet10t"])
def test_the_mean_over_all_places_is_what_the_network_says(name):
    teacher, net = Pretrained(owner="the test"), create_net(name, 4, size=64)
    teacher.use(net)
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        maps = teacher.class_maps(images)
        torch.testing.assert_close(maps.mean((2, 3)), teacher.logits(images), rtol=1e-4, atol=1e-5)
    assert maps.shape[:2] == (3, 4)
    assert maps.shape[2] * maps.shape[3] > 1
    assert maps.dtype == torch.float32
    assert (maps.std((2, 3)) > 0).all()


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg", "class_token": False}, {"reg_tokens": 2}], ids=str)
def test_a_transformers_patches_are_classified_alone(vit, options):
    net = vit(4, size=(32, 48), **options).eval()
    teacher = Pretrained(owner="the test")
    teacher.use(net)
    images = torch.randn(3, 3, 32, 48)
    with torch.no_grad():
        maps = teacher.class_maps(images)
        tokens = images
        tokens = net.blocks(net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(tokens)))))
        tokens = tokens[:, net.num_prefix_tokens :]
        expected = net.head(net.fc_norm(net.norm(tokens))).mT.view(3, 4, 4, 6)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_needs_all_places_has_no_maps():
    teacher = Pretrained(owner="the test")
    net = nn.Sequential()
    net.add_module("layer1", nn.Conv2d(3, 2, 3, 4, 1))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(2 * 4 * 4, 5))
    teacher.use(net)
    with pytest.raises(mixwell.ModelError, match=r"the test's teacher cannot classify single places"):
        teacher.class_maps(torch.randn(2, 3, 16, 16))


def test_a_fingerprint_tells_weights_and_sizes_apart():
    net = create_net("cnn-s", 4)

    def of(**options) -> str:
        teacher = Pretrained(owner="the test")
        teacher.use(net, **options)
        return teacher.fingerprint

    first = of()
    assert of() == first
    assert of(size=16) != first
    assert of(pixels=PIXELS) != first
    with torch.no_grad():
        net.fc.bias[0] += 1
    assert of() != first
