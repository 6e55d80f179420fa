"""evaluation.json: what is in it, and how it survives."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mixwell.core.errors import ParameterError, RunError
from mixwell.evaluate import PARTS, Reliability, evaluate_run
from mixwell.train import Run, RunFolder, TrainConfig, train

QUICK = ("clean", "ood", "occlusion")
CORRUPTIONS = ("darker", "noisier")


@pytest.fixture(autouse=True)
def corruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two corruptions in place of fifteen."""

    def corrupted(images: Tensor, name: str, severity: int, *, seed: int = 0, cache: bool = True) -> Tensor:
        assert images.dtype == torch.uint8
        if name == "darker":
            return images // (2 * severity)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(-20 * severity, 20 * severity, images.shape, generator=generator)
        return (images.int() + noise).clamp(0, 255).to(torch.uint8)

    module = ModuleType("mixwell.evaluate.corruptions")
    module.CORRUPTIONS, module.corrupted = CORRUPTIONS, corrupted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "evaluation.json").read_text())


def test_everything_is_found_and_kept(copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixwell.evaluate.run.training_cost", lambda config, **_: {"seconds_per_step": 1.0})
    path, told = copy_of(), []
    found = evaluate_run(path, images=30, progress=lambda part, done, total: told.append((part, done, total)))
    assert set(found) == {"format", "settings", "reliability", *PARTS}
    assert found["settings"]["parts"] == list(PARTS)
    stored = read(path)
    stored.pop("checksum_of_this")
    assert stored == found
    assert list(dict.fromkeys(part for part, _, _ in told)) == list(PARTS[:-1])
    for part in PARTS[:-1]:
        steps = [(done, total) for name, done, total in told if name == part]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
    result = RunFolder(path).run()["result"]
    assert found["clean"]["accuracy"] == pytest.approx(result["accuracy"])
    assert found["clean"]["nll"] == pytest.approx(result["nll"], rel=1e-5)
    assert found["clean"]["ece"] == pytest.approx(result["ece"], abs=1e-4)
    bins = Reliability(**{name: tuple(values) for name, values in found["reliability"].items()})
    assert bins.ece == found["clean"]["ece"]
    errors = found["corruptions"]["errors"]
    assert list(errors) == list(CORRUPTIONS)
    assert all(len(each) == 5 for each in errors.values())
    assert found["corruptions"]["error"] == pytest.approx(sum(map(sum, errors.values())) / 10)
    assert errors["darker"][-1] > errors["darker"][0]
    assert found["occlusion"]["accuracies"][0] <= 1


def test_it_is_the_same_again_bit_for_bit_and_leaves_threads_and_random_states(
    copy_of: Callable[..., Path], global_random_states: Callable[[], tuple[bytes, ...]]
) -> None:
    path, parts = copy_of(), PARTS[:-1]
    torch.set_num_threads(2)
    before = global_random_states()
    first = evaluate_run(path, parts=parts, images=30)
    assert torch.get_num_threads() == 2
    assert global_random_states() == before
    torch.manual_seed(5)
    assert evaluate_run(path, parts=parts, images=30, anew=True) == first


def test_what_is_there_is_not_found_again(copy_of: Callable[..., Path]) -> None:
    path = copy_of()
    first = evaluate_run(path, parts=["clean", "ood"])
    (path / "weights.safetensors").unlink()
    assert evaluate_run(path, parts=["ood"]) == first
    limited = evaluate_run(path, parts=["ood", "clean"], images=7)  # neither depends on the number of images
    assert {**limited, "settings": None} == {**first, "settings": None}
    with pytest.raises(RunError, match=r"weights\.safetensors"):
        evaluate_run(path, parts=["occlusion"])


def test_parts_are_added_and_an_evaluation_goes_on_where_it_was_stopped(
    copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of()
    evaluate_run(path, parts=["clean"])
    calls = []

    def stop(*given: Any, **settings: Any) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixwell.evaluate.run.occluded", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(path, parts=["occlusion", "ood"])
    assert read(path)["settings"]["parts"] == ["clean", "ood"]
    with monkeypatch.context() as patch:
        patch.setattr("mixwell.evaluate.run.detected", stop)
        patch.setattr("mixwell.evaluate.run.clean_figures", stop)
        found = evaluate_run(path, parts=["ood", "occlusion"])
    assert found["settings"]["parts"] == ["clean", "ood", "occlusion"]
    assert len(calls) == 1


def test_other_settings(copy_of: Callable[..., Path]) -> None:
    path = copy_of()
    first = evaluate_run(path, parts=QUICK, seed=0)
    with pytest.raises(RunError, match=r"holds clean, occlusion under other settings: seed is 1, was 0"):
        evaluate_run(path, parts=["ood"], seed=1)
    assert read(path)["ood"] == first["ood"]
    second = evaluate_run(path, parts=QUICK, seed=1)
    assert second["ood"] != first["ood"]
    assert second["clean"]["accuracy"] == first["clean"]["accuracy"]
    limited = evaluate_run(path, parts=["occlusion"], seed=1, images=20)
    assert limited["clean"] == second["clean"]
    assert limited["occlusion"]["accuracies"] != second["occlusion"]["accuracies"]
    alone = evaluate_run(path, parts=["ood"], seed=0, anew=True)
    assert alone["settings"]["parts"] == ["ood"]
    assert alone["ood"] == first["ood"]


def test_an_evaluation_of_other_weights_is_not_taken_for_this_one_s(
    copy_of: Callable[..., Path], run_of: Callable[..., Run], tmp_path: Path
) -> None:
    path = copy_of()
    first = evaluate_run(path, parts=["clean"])
    other = run_of("none", epochs=1).folder
    for name in ("run.json", "weights.safetensors", "history.jsonl"):
        (path / name).write_bytes((other / name).read_bytes())
    assert evaluate_run(path, parts=["clean"])["clean"]["accuracy"] != first["clean"]["accuracy"]


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace("0.", "0.1", 1)])
def test_damage_is_found(copy_of: Callable[..., Path], damage: Callable[[str], str]) -> None:
    path = copy_of()
    evaluate_run(path, parts=["clean"])
    file = path / "evaluation.json"
    text = file.read_text()
    file.write_text(damage(text))
    with pytest.raises(RunError, match=r"damaged.*Delete it, and evaluate"):
        evaluate_run(path, parts=["clean"])
    assert not list(path.glob("*.tmp"))


def test_a_later_format_is_not_overwritten(copy_of: Callable[..., Path]) -> None:
    path = copy_of()
    RunFolder(path).write_evaluation({"format": 2})
    with pytest.raises(RunError, match="format 2"):
        evaluate_run(path, parts=["clean"])
    assert read(path)["format"] == 2


def test_the_temperature_comes_from_held_out_images_where_there_are_some(copy_of: Callable[..., Path]) -> None:
    from mixwell.evaluate import Subject, temperature
    from mixwell.train import trained

    path = copy_of("mixup", held_out=0.2, epochs=2)
    of = trained(Run.read(path))
    assert of.held_out is not None
    assert len(of.held_out) == 280  # type: ignore[arg-type]
    assert len(of.data.train) == 1120  # type: ignore[arg-type]
    subject = Subject(of, channels_last=True)
    wanted = temperature(*subject.over(of.held_out))
    assert evaluate_run(path, parts=["clean"])["clean"]["temperature"] == pytest.approx(wanted, rel=1e-6)


def test_recipes_whose_mixer_was_not_kept_have_no_intrusion(copy_of: Callable[..., Path]) -> None:
    path = copy_of("automix", epochs=1)
    folder = RunFolder(path)
    assert evaluate_run(path, parts=["intrusion"])["intrusion"] is not None
    facts = folder.run()
    facts["files"].pop("recipe.safetensors")
    folder.describe(facts)
    assert evaluate_run(path, parts=["intrusion"], anew=True)["intrusion"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": []}, "at least one"),
        ({"parts": ["atacks"]}, "did you mean 'attacks'"),
        ({"images": 0}, "images must be a whole number >= 1, got 0"),
        ({"seed": -1}, "seed"),
        ({"batch_size": True}, "batch_size"),
    ],
)
def test_mistakes(run_of: Callable[..., Run], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        evaluate_run(run_of().folder, **given)


def test_runs_that_cannot_be_evaluated(tmp_path: Path, copy_of: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match=r"holds no run\.json"):
        evaluate_run(tmp_path / "nowhere")
    path = copy_of()
    folder = RunFolder(path)
    facts = folder.run()
    folder.describe({**facts, "status": "running"})
    with pytest.raises(RunError, match="unfinished"):
        evaluate_run(path)


def test_data_that_was_given_from_python_is_not_taken_for_the_config_s(tmp_path: Path) -> None:
    from mixwell.data import load

    config = TrainConfig(recipe="none", epochs=1, warmup_epochs=0, out=tmp_path / "run", threads=1)
    train(config, dataset=load("digits", size=16), progress=False)
    with pytest.raises(RunError, match="trained with a data given from Python"):
        evaluate_run(config.folder, parts=["clean"])
