"""What is exported loads without mixwell's training code and predicts as the run does."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open

from mixwell.core.errors import ParameterError, RunError
from mixwell.data import Loader
from mixwell.export import export
from mixwell.nets import create_net
from mixwell.train import Run, TrainConfig, evaluate, train, trained

TOKENS = "token_labeling(teacher_epochs=1)"

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def logits(predictor, folder):
    """What a network says of test images of a run."""
    data = trained(Run.read(folder)).data
    return predictor.eval()(next(Loader(data.test, 32, pixels=data.pixels, shuffle=False).epoch(0)).images)


def test_a_safetensors_file_holds_the_network_and_its_facts(run, trained_run, tmp_path):
    folder, path = trained_run("cutmix"), tmp_path / "new" / "net.safetensors"
    found = run("export", str(folder), "-o", str(path), columns=200)
    assert found.code == 0
    assert str(path) in found.out
    assert "create_net('cnn-s', 10, channels=1, size=16)" in found.out
    net = trained(Run.read(folder))
    fresh = create_net("cnn-s", 10, channels=1, size=16)
    fresh.load_state_dict(safetensors.torch.load_file(path))
    assert torch.equal(logits(fresh, folder), logits(net.predictor, folder))
    with safe_open(path, "pt") as stored:
        facts = stored.metadata()
    assert (facts["recipe"], facts["model"], facts["weights"], facts["format"]) == ("cutmix", "cnn-s", "last", "pt")
    assert json.loads(facts["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(facts["input_shape"]) == [1, 16, 16]
    assert json.loads(facts["mean"]) == list(net.data.pixels.mean)
    assert json.loads(facts["std"]) == list(net.data.pixels.std)
    assert json.loads(facts["accuracy"]) == Run.read(folder).facts["result"]["accuracy"]


def test_timm_loads_it(run, trained_run, tmp_path):
    folder, path = trained_run(model="test_resnet"), tmp_path / "net.safetensors"
    assert run("export", str(folder), "-o", str(path)).code == 0
    fresh = timm.create_model("test_resnet", num_classes=10, in_chans=1, checkpoint_path=path)
    net = trained(Run.read(folder))
    assert torch.equal(logits(fresh, folder), logits(net.predictor, folder))


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_files_have_their_facts_beside_them(run, trained_run, tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    made = export(Run.read(trained_run("cutmix")), path)
    assert made.beside == tmp_path / f"net{suffix}.json"
    assert json.loads(made.beside.read_text()) == made.facts
    create_net("cnn-s", 10, channels=1).load_state_dict(torch.load(path, weights_only=True))
    found = run("export", str(trained_run("cutmix")), "-o", str(path))
    assert found.code == 0, "the same files again are no other files"


def test_averaged_weights(run, trained_run, tmp_path):
    folder = trained_run(ema=0.9)
    last, averaged = (export(Run.read(folder), tmp_path / f"{ema}.safetensors", ema=ema).facts for ema in (False, True))
    result = Run.read(folder).facts["result"]
    assert (last["accuracy"], averaged["accuracy"]) == (result["accuracy"], result["ema"]["accuracy"])
    assert (last["weights"], averaged["weights"]) == ("last", "averaged")
    stored = safetensors.torch.load_file(tmp_path / "True.safetensors")
    kept = safetensors.torch.load_file(folder / "ema.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in stored.items())
    found = run("export", str(trained_run("cutmix")), "-o", str(tmp_path / "none.safetensors"), "--ema")
    assert found.code == 1
    assert "no averaged weights" in " ".join(found.err.split())
    assert not (tmp_path / "none.safetensors").exists()


def test_a_recipe_of_another_predictor_gives_that_network(trained_run, tmp_path):
    folder = trained_run("automix")
    export(Run.read(folder), tmp_path / "net.safetensors")
    net = trained(Run.read(folder))
    fresh = create_net("cnn-s", 10, channels=1)
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    assert torch.equal(logits(fresh, folder), logits(net.predictor, folder))


def test_of_a_network_with_a_further_head_the_plain_one_is_kept(run, trained_run, tmp_path):
    folder, path = trained_run(TOKENS, model="vit-s"), tmp_path / "net.pt"
    found = run("export", str(folder), "-o", str(path), columns=200)
    assert "with a head of its own" in found.out
    net = trained(Run.read(folder))
    fresh = create_net("vit-s", 10, channels=1, size=16)
    fresh.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(logits(fresh, folder), logits(net.model, folder))
    assert not torch.equal(logits(fresh, folder), logits(net.predictor, folder))
    accuracy = evaluate(fresh, Loader(net.data.test, 100, pixels=net.data.pixels, shuffle=False)).accuracy
    assert json.loads((tmp_path / "net.pt.json").read_text())["accuracy"] == accuracy


def test_what_else_is_done_to_images_is_told(run, trained_run, tmp_path):
    found = run("export", str(trained_run("stackmix")), "-o", str(tmp_path / "net.pt"), columns=200)
    assert "eval_images" in found.out
    assert "(Stack)" in found.out
    assert "images" not in export(Run.read(trained_run("cutmix")), tmp_path / "other.pt").facts


@pytest.mark.parametrize("there", ["net.pt", "net.pt.json"])
def test_other_files_are_replaced_only_when_told(run, trained_run, tmp_path, there):
    (tmp_path / there).write_text("precious")
    argv = ("export", str(trained_run("cutmix")), "-o", str(tmp_path / "net.pt"))
    found = run(*argv)
    assert found.code == 1
    assert "--overwrite" in found.err
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"
    assert run(*argv, "--overwrite").code == 0
    assert torch.load(tmp_path / "net.pt", weights_only=True).keys() == create_net("cnn-s", 10).state_dict().keys()


def test_another_prediction_is_not_exported(trained_run, tmp_path, monkeypatch):
    """As where a network does not keep all of its state in its state dict."""
    monkeypatch.setattr("mixwell.export.plain_weights", lambda weights, net: net.state_dict())
    with pytest.raises(RunError, match="predicts other things than the run"):
        export(Run.read(trained_run("cutmix")), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(run, trained_run, tmp_path):
    with pytest.raises(ParameterError, match=r"\.safetensors, \.pt, \.pth"):
        export(Run.read(trained_run("cutmix")), tmp_path / "net.onnx")
    found = run("export", str(tmp_path / "nowhere"), "-o", str(tmp_path / "net.pt"), columns=200)
    assert found.code == 1
    assert "holds no run.json" in " ".join(found.err.split())


def test_a_network_of_ones_own_cannot_be_made_again(tmp_path, cnn):
    settings = TrainConfig(
        recipe="none",
        data="digits",
        data_options={"size": 16, "channels": 1},
        epochs=1,
        threads=1,
        out=tmp_path / "run",
    )
    train(settings, model=cnn(classes=10, channels=1), progress=False)
    with pytest.raises(RunError, match="trained with a model given from Python"):
        export(Run.read(tmp_path / "run"), tmp_path / "net.pt")
