from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixwell.core.errors import MixwellError

RECIPE = "djmix(channels=4, codes=8, dim=4, epochs=2)"
DIGITS = ("--data", "digits", "--data-options", "size=16", "channels=1")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_made_once(run, cache: Path):
    first = run("prepare", "--recipe", RECIPE, *DIGITS)
    assert first.code == 0
    assert first.out == f"Made for {RECIPE}: VQ auto-encoder. It is in {cache}\n"
    assert "Making the VQ auto-encoder" in first.err
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    again = run("prepare", "--recipe", f"{RECIPE} + mixup", *DIGITS)
    assert (again.code, again.err) == (0, "")
    assert again.out == f"All that {RECIPE} + mixup needs was there already. It is in {cache}\n"
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [made]


def test_training_takes_what_was_prepared(run, cache: Path, tmp_path: Path):
    run("prepare", "--recipe", RECIPE, *DIGITS)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    argv = ("--recipe", RECIPE, *DIGITS, "--epochs", "1", "--batch-size", "200", "--out", str(tmp_path / "run"))
    trained = run("train", *argv)
    assert trained.code == 0
    assert "Making" not in trained.err
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_edits_that_were_stopped_are_taken_up(run, cache: Path, monkeypatch: pytest.MonkeyPatch):
    from mixwell.sample.generative import diffusemix

    calls: list[int] = []

    def brighter(stop: int, **given):
        if len(calls) >= stop:
            raise MixwellError("the power failed")
        calls.append(len(given["image"]))
        return SimpleNamespace(images=[image.point(lambda level: 40 + level // 2) for image in given["image"]])

    recipe = "diffusemix(pipeline='any/name', prompts=('a dog',), size=16, count=5)"
    monkeypatch.setattr(diffusemix, "pipeline_of", lambda name, device: partial(brighter, 10))
    first = run("prepare", "--recipe", recipe, *DIGITS)
    assert first.code == 1
    assert "the power failed" in first.err
    monkeypatch.setattr(diffusemix, "pipeline_of", lambda name, device: partial(brighter, 10**6))
    second = run("prepare", "--recipe", recipe, *DIGITS)
    assert second.code == 0
    assert "Made for" in second.out
    assert "edited images" in second.out
    (folder,) = cache.glob("edits-*")
    assert sum(calls) == len(list(folder.glob("a-dog/*.png")))
    assert "All that" in run("prepare", "--recipe", recipe, *DIGITS).out


def test_a_recipe_that_needs_nothing(run, cache: Path):
    found = run("prepare", "--recipe", "cutmix", *DIGITS)
    assert (found.code, found.err) == (0, "")
    assert found.out == "cutmix needs nothing that is made before training.\n"
    assert not cache.exists()


def test_a_recipe_is_asked_for(run):
    found = run("prepare")
    assert (found.code, found.out) == (2, "")
    assert "--recipe" in found.err


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_made(run, cache: Path):
    cache.write_text("no folder")
    found = run("prepare", "--recipe", RECIPE, *DIGITS)
    assert (found.code, found.out) == (1, "")
    assert "MIXWELL_CACHE" in found.err
    assert "Making" not in found.err
