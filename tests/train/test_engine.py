"""Training: that it learns, repeats itself, and does what each field says."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from mixwell import (
    DataError,
    IncompatibleRecipe,
    ModelError,
    ParameterError,
    Recipe,
    RecipeSyntaxError,
    RunError,
    Turn,
    UnknownMethod,
)
from mixwell.data import InMemory, Loader, from_datasets
from mixwell.data.varied import Varied
from mixwell.train import Run, RunFolder, check, train, trained
from mixwell.train.optim import steppers


def weights(folder, name="weights.safetensors"):
    return safetensors.torch.load_file(folder / name)


def assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **tolerance)


@pytest.mark.parametrize("recipe", ["cutmix", "manifold_mixup"])
def test_the_loss_falls_and_the_folder_tells_the_story(quick, digits, recipe):
    config = quick(recipe=recipe, epochs=5, channels_last=True)
    result = train(config, dataset=digits, progress=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.2
    assert result.history[-1]["mixed_accuracy"] > result.history[0]["mixed_accuracy"]
    assert result.accuracy > 0.5
    assert result.accuracy == result.history[-1]["accuracy"]
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in config.folder.iterdir()) == ["history.jsonl", "run.json", "weights.safetensors"]
    run = json.loads((config.folder / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["result"]["accuracy"] == result.accuracy
    assert run["config"]["recipe"] == recipe
    assert run["processor"].endswith(f"({torch.backends.cpu.get_cpu_capability()})")
    assert len(run["processor"]) > len("( AVX512)")
    assert run["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__


def test_the_same_config_gives_the_same_bits_and_leaves_the_callers_generator_alone(quick, digits, outcome):
    changes = {"recipe": "cutmix", "model": "vit-s", "model_options": {"proj_drop_rate": 0.2}}
    before = torch.get_rng_state()
    train(quick("a", **changes), dataset=digits, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    train(quick("b", **changes), dataset=digits, progress=False)
    assert outcome(quick("a").folder) == outcome(quick("b").folder)
    train(quick("c", seed=1, **changes), dataset=digits, progress=False)
    assert outcome(quick("c").folder) != outcome(quick("b").folder)


def test_a_finished_run_returns_its_result_without_training(quick, digits, turns, capsys):
    first = train(quick(), dataset=digits, progress=False)
    turns.clear()
    again = train(quick(), dataset=digits)
    assert not turns
    assert again == first
    assert "finished" in capsys.readouterr().err


def test_a_finished_run_without_weights_is_finished(quick, digits, flat, turns):
    result = train(quick(ema=0.9), dataset=digits, progress=False)
    (result.folder / "samples").mkdir()
    RunFolder(result.folder).drop_weights()
    assert sorted(path.name for path in result.folder.iterdir()) == ["history.jsonl", "run.json"]
    assert RunFolder(result.folder).run()["dropped"] == ["ema.safetensors", "weights.safetensors"]
    turns.clear()
    assert train(quick(ema=0.9), dataset=digits, progress=False) == result
    assert turns == []
    assert Run.read(result.folder).facts["result"]["accuracy"] == result.accuracy
    with pytest.raises(RunError, match="were dropped"):
        RunFolder(result.folder).weights("weights.safetensors")


def test_a_config_is_checked_without_a_trace(quick, digits, monkeypatch, turns):
    monkeypatch.setattr("mixwell.train.engine.prepare", pytest.fail)
    check(quick(recipe="djmix"), dataset=digits)
    with pytest.raises(IncompatibleRecipe, match="self-attention"):
        check(quick(recipe="transmix"), dataset=digits)
    with pytest.raises(ParameterError, match="optimizer"):
        check(quick(optimizer="sdg"), dataset=digits)
    assert turns == []
    assert not quick().folder.exists()


def test_a_network_of_ones_own_is_trained_in_place_and_gets_the_weights_of_a_finished_run(quick, digits, flat, turns):
    net, untrained = flat(), flat()
    train(quick(), dataset=digits, model=net, progress=False)
    assert_close(net.state_dict(), weights(quick().folder), rtol=0, atol=0)
    turns.clear()
    train(quick(), dataset=digits, model=untrained, progress=False)
    assert not turns
    assert_close(untrained.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_the_evaluation_is_that_of_the_saved_weights(quick, digits, flat):
    result = train(quick(), dataset=digits, model=flat(), progress=False)
    net = flat()
    net.load_state_dict(weights(quick().folder))
    (batch,) = Loader(digits.test, 100, pixels=digits.pixels, shuffle=False).epoch(0)
    logits = net.eval()(batch.images)
    assert result.accuracy == pytest.approx((logits.argmax(1) == batch.labels).double().mean().item())
    assert result.nll == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-5)
    confidence, guess = logits.softmax(1).max(1)
    bins = (confidence * 15).ceil().long() - 1
    right = (guess == batch.labels).double()
    ece = sum(abs((confidence.double() - right)[bins == b].sum().item()) for b in range(15)) / 100
    assert result.ece == pytest.approx(ece, abs=1e-5)


# What each field does


def test_accumulated_batches_step_like_one_large_batch_even_where_the_last_are_smaller(quick, digits, flat):
    for out, batch_size, accumulate in (("large", 80, 1), ("small", 40, 2)):
        config = quick(out, recipe="none", batch_size=batch_size, accumulate=accumulate)
        train(config, dataset=digits, model=flat(), progress=False)
    assert_close(weights(quick("small").folder), weights(quick("large").folder), rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step(quick, digits, flat):
    one_step = {"batch_size": 300, "epochs": 1, "warmup_epochs": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    config = quick(clip=1e-3, lr=2.0, optimizer="momentum", **one_step)
    train(config, dataset=digits, model=flat(), progress=False)
    start, end = flat().state_dict(), weights(config.folder)
    moved = math.sqrt(sum((end[name] - start[name]).square().sum().item() for name in start))
    assert moved == pytest.approx(2e-3, rel=1e-3)


def test_the_average_of_the_weights_follows_its_recursion_and_is_evaluated(quick, digits, flat, monkeypatch):
    after_step, seen = Recipe.after_step, []

    def record(self, model, clock=None):
        after_step(self, model, clock)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    monkeypatch.setattr(Recipe, "after_step", record)
    result = train(quick(ema=0.9), dataset=digits, model=flat(), progress=False)
    average = seen[0]
    for update, current in enumerate(seen[1:], 1):
        decay = min(0.9, 1 - (1 + update) ** (-2 / 3))
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    assert_close(weights(quick().folder, "ema.safetensors"), average, rtol=1e-4, atol=1e-6)
    assert result.ema is not None
    assert result.ema.nll != result.nll
    assert result.history[-1]["ema"]["accuracy"] == result.ema.accuracy


def test_half_precision_reaches_the_network(quick, digits, turns):
    result = train(quick(precision="bf16", epochs=3), dataset=digits, progress=False)
    assert turns[0].logits.dtype == torch.bfloat16
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert {tensor.dtype for name, tensor in weights(quick().folder).items() if "num_batches" not in name} == {
        torch.float32
    }
    turns.clear()
    train(quick("full"), dataset=digits, progress=False)
    assert turns[0].logits.dtype == torch.float32


def test_nothing_is_mixed_any_more_from_the_given_epoch_on(quick, digits, turns):
    train(quick(mix_until=1.5, label_smoothing=0.1), dataset=digits, progress=False)
    mixed = [turn.targets.sources.shape[1] == 2 for turn in turns]
    assert mixed == [True] * 9 + [False] * 3
    plain = F.cross_entropy(turns[-1].logits, turns[-1].targets.pool, label_smoothing=0.1)
    assert turns[-1].loss.item() == pytest.approx(plain.item(), rel=1e-5)


def test_class_weights_and_criterion_reach_the_recipe(quick, digits, turns):
    ones = train(quick("a", recipe="none", criterion="bce"), dataset=digits, progress=False).history[0]["loss"]
    assert ones < 1
    skewed = (10.0, *[0.0] * 9)
    train(quick("b", recipe="none", class_weights=skewed), dataset=digits, progress=False)
    turn = turns[-1]
    wanted = F.cross_entropy(turn.logits, turn.targets.pool, weight=torch.tensor(skewed))
    assert turn.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_training_starts_from_the_weights_in_a_file(quick, digits, flat, tmp_path):
    file = tmp_path / "start.safetensors"
    start = {name: tensor + 0.01 for name, tensor in flat().state_dict().items()}
    safetensors.torch.save_file(start, file)
    still = {"lr": 1e-12, "weight_decay": 0.0, "epochs": 1, "init": str(file)}
    train(quick(**still), dataset=digits, model=flat(), progress=False)
    assert_close(weights(quick().folder), start)


def test_a_classifier_of_another_size_is_made_anew_and_said_so(quick, digits, flat, tmp_path, capsys):
    file = tmp_path / "start.safetensors"
    safetensors.torch.save_file({name: t + 0.01 for name, t in flat(classes=7).state_dict().items()}, file)
    train(quick(lr=1e-12, weight_decay=0.0, epochs=1, init=str(file)), dataset=digits, model=flat())
    assert "but for fc.bias, fc.weight" in capsys.readouterr().err
    end = weights(quick().folder)
    torch.testing.assert_close(end["body.weight"], flat().body.weight.detach() + 0.01)
    torch.testing.assert_close(end["fc.weight"], flat().fc.weight.detach())


@pytest.mark.parametrize(("recipe", "model"), [("manifold_mixup", "cnn-s"), ("transmix", "vit-s")])
def test_a_compiled_network_trains_as_an_eager_one(quick, digits, recipe, model):
    changes = {"recipe": recipe, "model": model, "batch_size": 100, "epochs": 1}
    train(quick("eager", **changes), dataset=digits, progress=False)
    train(quick("compiled", compile=True, compile_backend="aot_eager", **changes), dataset=digits, progress=False)
    assert_close(weights(quick("compiled").folder), weights(quick("eager").folder), rtol=1e-3, atol=1e-5)


def test_the_tracker_gets_the_history(quick, digits):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(quick(tracker="tensorboard"), dataset=digits, progress=False)
    (events,) = [path for path in quick().folder.rglob("*tfevents*") if path.parent.name == "mixwell"]
    log = EventAccumulator(str(events)).Reload()
    logged = [event.value for event in log.Scalars("accuracy")]
    assert logged == pytest.approx([record["accuracy"] for record in result.history])
    assert log.Tags()["scalars"].count("parts/criterion") == 1


def test_groups_of_turns_are_stepped_by_themselves(quick, digits, flat, monkeypatch):
    """Two turns with two losses; what one leaves on the other's parameters must not count, accumulated or not."""

    def groups(self, model):
        return [
            {"params": list(model.body.parameters()), "turn": "main"},
            {"params": list(model.fc.parameters()), "turn": "head"},
        ]

    def turns(self, model, batch, labels=None, *, clock=None):
        loss = F.cross_entropy(model(batch.images), batch.labels)
        yield Turn(loss, "main", last=False)
        yield Turn(3 * F.cross_entropy(model(batch.images), batch.labels), "head")

    monkeypatch.setattr(Recipe, "parameter_groups", groups)
    monkeypatch.setattr(Recipe, "turns", turns)
    config = quick(batch_size=150, accumulate=2, epochs=1, warmup_epochs=0.0, weight_decay=0.0, optimizer="momentum")
    result = train(config, dataset=digits, model=flat(), progress=False)

    net = flat()
    batches = list(Loader(digits.train, 150, pixels=digits.pixels, seed=0).epoch(0))

    def loss(batch):
        return F.cross_entropy(net(batch.images), batch.labels)

    first, second = [loss(batch) for batch in batches]
    body = list(net.body.parameters())
    early = torch.autograd.grad(first, net.fc.weight, retain_graph=True)[0]
    grads = torch.autograd.grad((first + second) / 2, body)
    with torch.no_grad():
        for parameter, grad in zip(body, grads, strict=True):
            parameter -= 0.05 * grad
    # The second turn of the second batch sees what the first turn has stepped.
    late = torch.autograd.grad(loss(batches[1]), net.fc.weight)[0]
    end = weights(config.folder)
    torch.testing.assert_close(end["body.weight"], net.body.weight.detach())
    torch.testing.assert_close(end["fc.weight"], net.fc.weight.detach() - 0.05 * 3 * (early + late) / 2)
    assert result.history[0]["loss"] == pytest.approx((first + second).item() / 2, rel=1e-5)
    assert result.history[0]["head/loss"] < 3 * result.history[0]["loss"]


def test_warm_up_rises_to_the_learning_rate_and_cosine_falls_from_it(quick, flat):
    model = flat()
    groups = [{"params": list(model.parameters()), "turn": "main"}]
    (stepper,) = steppers(quick(lr=1.0, epochs=10, warmup_epochs=2.0), groups, model, 5).values()
    rates = []
    for update in range(50):
        stepper.schedule(update)
        rates.append(stepper.lr)
    assert rates[:10] == pytest.approx([0.1 + 0.09 * i for i in range(10)])
    assert rates[10:] == pytest.approx([(1 + math.cos(math.pi * i / 50)) / 2 for i in range(10, 50)])
    decayed = [group["weight_decay"] for group in stepper.optimizer.param_groups]
    assert decayed == [5e-4, 0.0]
    assert all(parameter.ndim == 1 for parameter in stepper.optimizer.param_groups[1]["params"])


def test_augment_options_reach_the_training_and_what_reads_its_run(quick, outcome):
    options = {"least_area": 0.5, "randaugment": "rand-m5-inc1", "erase": 0.5}
    fields = {"data_options": {"size": 16}, "augment": "rrc-flip", "epochs": 1, "batch_size": 200}
    plain, varied = quick("plain", **fields), quick("varied", **fields, augment_options=options)
    for config in (plain, varied, quick("again", **fields, augment_options=options)):
        train(config, progress=False)
    assert outcome(varied.folder) == outcome(varied.folder.parent / "again")
    assert outcome(varied.folder)[1] != outcome(plain.folder)[1]
    read = trained(Run.read(varied.folder)).data.train
    assert isinstance(read, Varied)
    assert (read.augment, read.dataset.least_area, read.settings[:2]) == ("rrc-flip", 0.5, ("rand-m5-inc1", 0.5))


def test_weight_decay_on_norms_and_biases_if_asked(quick, cnn):
    model = cnn()
    groups = [{"params": list(model.parameters()), "turn": "main"}]
    (stepper,) = steppers(quick(weight_decay=1e-4, decay_norms=True), groups, model, 5).values()
    (group,) = stepper.optimizer.param_groups
    assert group["weight_decay"] == 1e-4
    assert len(group["params"]) == len(list(model.parameters()))


def test_without_a_terminal_every_epoch_is_one_line(quick, digits, capsys):
    train(quick(), dataset=digits)
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("mixed accuracy" in line and "images/s" in line for line in lines)
    train(quick("silent"), dataset=digits, progress=False)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_where_the_training_stands(quick, digits, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    train(quick(), dataset=digits)
    shown = capsys.readouterr().err
    for words in ("epoch 2/2", "6/6", "mixed accuracy", "images/s", "0:00 left"):
        assert words in shown


# Bad input: a clear error, and nothing half-done


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"optimizer": "adamww"}, ParameterError, "adamw"),
        ({"optimizer_options": {"betta": 1}}, ParameterError, "betta"),
        ({"schedule": "cosin"}, ParameterError, "'cosine'"),
        ({"recipe": "cutmixx"}, UnknownMethod, "cutmix"),
        ({"recipe": "cutmix +"}, RecipeSyntaxError, "got the end"),
        ({"recipe": "transmix"}, IncompatibleRecipe, "attention"),
        ({"criterion": "hinge"}, ParameterError, "hinge"),
        ({"class_weights": (1.0, 2.0)}, ParameterError, "class_weights"),
        ({"data": "digit"}, DataError, "digits"),
        ({"data_options": {"size": 4}}, DataError, "size"),
        ({"model": "cnn-x"}, ModelError, "cnn-s"),
        ({"model": "vit-s", "model_options": {"img_size": 64}}, ModelError, r"\(3, 32, 32\)"),
        ({"init": "missing.safetensors"}, ModelError, "missing.safetensors"),
        ({"init": "pretrained"}, ModelError, "pretrained"),
        ({"compile": True, "compile_backend": "inductorr"}, ParameterError, "inductor"),
        ({"tracker": "wandb"}, ParameterError, "pip install wandb"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_a_folder_is_made(quick, changes, error, words):
    if changes.get("tracker") == "wandb":
        from importlib.util import find_spec

        if find_spec("wandb"):
            pytest.skip("wandb is installed")
    with pytest.raises(error, match=words):
        train(quick(**changes), progress=False)
    assert not quick().folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_fp16_on_a_cpu_is_refused(quick, digits):
    with pytest.raises(ParameterError, match="bf16"):
        train(quick(precision="fp16"), dataset=digits, progress=False)
    assert not quick().folder.exists()


def test_a_network_with_the_wrong_number_of_classes_is_refused(quick, digits, flat):
    with pytest.raises(ModelError, match=r"logits \(2, 10\).*\(2, 7\)"):
        train(quick(), dataset=digits, model=flat(classes=7), progress=False)
    assert not quick().folder.exists()


def test_weights_of_another_network_are_refused(quick, digits, flat, tmp_path):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({**flat().state_dict(), "body.weight": torch.zeros(32, 255)}, file)
    with pytest.raises(ModelError, match=r"body.weight: \(32, 255\) in the file, \(32, 256\) in the network"):
        train(quick(init=str(file)), dataset=digits, model=flat(), progress=False)
    file.write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="no safetensors file"):
        train(quick(init=str(file)), dataset=digits, model=flat(), progress=False)
    assert not quick().folder.exists()


def test_class_ids_out_of_range_are_refused(quick, digits, flat):
    class Hidden(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return torch.zeros(1, 16, 16), 10 + index

    data = from_datasets(Hidden(), Hidden(), num_classes=10, pixels=digits.pixels)
    with pytest.raises(ValueError, match=r"class ids must lie in \[0, 9\]"):
        train(quick(), dataset=data, model=flat(), progress=False)
    assert not quick().folder.exists()


def test_a_loss_that_is_not_finite_stops_the_training_by_name(quick, digits, flat):
    config = quick(recipe="mixup", lr=1e30, warmup_epochs=0.0)
    with pytest.raises(RunError, match=r"loss is not finite at step \d+ .* recipe mixup.*lr=1e\+30"):
        train(config, dataset=digits, model=nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), progress=False)
    assert not config.folder.exists()


def test_batches_of_one_and_odd_ones_train(quick, digits):
    few = InMemory(digits.train.images[:7], digits.train.labels[:7])
    data = from_datasets(few, few, num_classes=10, pixels=digits.pixels)
    for batch_size in (1, 3):
        result = train(quick(f"of{batch_size}", batch_size=batch_size), dataset=data, progress=False)
        assert np.isfinite(result.nll)
