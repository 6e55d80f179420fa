"""Artefacts: made once for their settings and data, made anew where a file is damaged, given even if not kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixwell
from mixwell.core.artefacts import Workshop, cache_folder, cached
from mixwell.core.axes import SelfBlend


class Maker:
    """Makes another artefact at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return {"count": torch.tensor(self.calls), "weights": torch.full((2, 3), 0.1 * self.calls)}


@pytest.fixture
def make() -> Maker:
    return Maker()


def count(found: dict[str, Tensor]) -> int:
    return int(found["count"])


def test_equal_settings_are_made_once(make: Maker, tmp_path: Path):
    first = cached("net", {"width": 3, "rate": 0.1}, make, tmp_path)
    again = cached("net", {"rate": 0.1, "width": 3}, make, tmp_path)
    assert make.calls == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("net-")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("net", {"width": 4}), ("net", {"width": 3, "depth": 1}), ("net", {}), ("mask", {"width": 3})],
)
def test_another_kind_or_other_settings_are_made_anew_beside_it(make: Maker, tmp_path: Path, kind, settings):
    cached("net", {"width": 3}, make, tmp_path)
    assert count(cached(kind, settings, make, tmp_path)) == 2
    assert count(cached("net", {"width": 3}, make, tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 500])
def test_a_damaged_file_is_made_anew_and_replaced(make: Maker, tmp_path: Path, damage: Callable[[bytes], bytes]):
    cached("net", {}, make, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert count(cached("net", {}, make, tmp_path)) == 2
    assert count(cached("net", {}, make, tmp_path)) == 2
    assert [file] == list(tmp_path.iterdir())


def test_a_file_that_would_run_code_is_not_loaded(make: Maker, tmp_path: Path):
    cached("net", {}, make, tmp_path)
    (file,) = tmp_path.iterdir()
    torch.save({"count": Maker()}, file)
    assert count(cached("net", {}, make, tmp_path)) == 2


def test_where_the_cache_cannot_be_written_it_is_given_all_the_same(make: Maker, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert count(cached("net", {}, make, blocked / "cache")) == 1
    assert count(cached("net", {}, make, blocked / "cache")) == 2
    assert blocked.read_text() == "no folder"


def test_a_failed_write_leaves_nothing(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(made: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    assert count(cached("net", {}, make, tmp_path)) == 1
    assert not list(tmp_path.iterdir())


def test_a_maker_that_fails_is_heard_and_leaves_nothing(tmp_path: Path):
    def fail() -> dict[str, Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("net", {}, fail, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Maker):
    monkeypatch.delenv("MIXWELL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "mixwell"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mixwell"
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    cached("net", {}, make)
    assert len(list((tmp_path / "own").iterdir())) == 1


def batch(rows: int = 2) -> mixwell.Batch:
    return mixwell.Batch(torch.rand(rows, 3, 4, 4), torch.arange(rows))


def test_a_workshop_keeps_artefacts_by_data(make: Maker, tmp_path: Path):
    def shop(data: str) -> Workshop:
        return Workshop(lambda: [batch()], data, folder=tmp_path)

    assert [count(shop(data).made("net", {}, make)) for data in ("one", "other", "one")] == [1, 2, 1]


def test_a_workshop_without_batches_makes_nothing_but_loads(make: Maker, tmp_path: Path):
    empty = Workshop(list, "data", folder=tmp_path)
    with pytest.raises(mixwell.MixwellError, match="there are none"):
        empty.made("net", {}, make)
    assert make.calls == 0
    Workshop(lambda: [batch()], "data", folder=tmp_path).made("net", {}, make)
    assert count(empty.made("net", {}, make)) == 1


class Mean(SelfBlend):
    """Shows the mean image of the workshop's batches."""

    def prepare(self, workshop: Workshop) -> None:
        def mean() -> dict[str, Tensor]:
            workshop.progress("mean image", 0, 1)
            rows = torch.cat([found.raw.to(workshop.device) for found in workshop.batches()])
            workshop.progress("mean image", 1, 1)
            return {"mean": rows.mean(0)}

        self.mean = workshop.made("mean", {}, mean)["mean"]


def test_a_recipe_gives_its_pieces_raw_pixels_a_device_and_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIXWELL_CACHE", str(tmp_path))
    monkeypatch.setattr(mixwell.core.registry, "_METHODS", dict(mixwell.core.registry._METHODS))
    mixwell.method("mean_image", section="0", paper="", venue="")(lambda: mixwell.Pieces(essential=Mean()))
    recipe = mixwell.create("mean_image", pixels=mixwell.Pixels((0.5,), (2.0,)))
    batches, told = [batch(), batch(3)], []
    assert recipe.prepare(lambda: batches, "two batches", progress=lambda *words: told.append(words)) is recipe
    wanted = torch.cat([found.images for found in batches]).mean(0) * 2 + 0.5
    torch.testing.assert_close(recipe.options[0].alone.mean, wanted)
    assert told == [("mean image", 0, 1), ("mean image", 1, 1)]
    mixwell.create("mean_image").prepare(list, "two batches", progress=lambda *words: told.append(words))
    assert len(told) == 2, "it was loaded"
