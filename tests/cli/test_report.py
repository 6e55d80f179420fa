from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixwell.core.errors import RunError
from mixwell.train import Run

Finished = Callable[..., Run]


@pytest.fixture
def runs(finished: Finished, evaluation: Callable[..., Any], tmp_path: Path) -> Path:
    """Three recipes with three seeds each below a folder, and one that was begun."""
    for place, recipe in enumerate(("none", "mixup", "cutmix")):
        for seed in (0, 1, 2):
            accuracy = 0.7 + 0.05 * place + 0.01 * seed + 0.001 * place * seed
            finished(recipe, seed, accuracy=accuracy, evaluation=evaluation())
    with pytest.raises(RunError, match="unfinished"):
        finished("fmix", status="running")
    return tmp_path


def test_page_and_tables_are_written_and_the_verdict_is_printed(run, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    tables = ("--csv", str(tmp_path / "new" / "all.csv"), "--markdown", str(tmp_path / "new" / "all.md"))
    found = run("report", str(runs), "-o", str(out), "--title", "Mine", *tables)
    assert (found.code, found.err) == (0, "")
    assert "<title>Mine</title>" in out.read_text(encoding="utf-8")
    with (tmp_path / "new" / "all.csv").open() as file:
        assert [(line["recipe"], line["rank"]) for line in csv.DictReader(file)] == [
            ("cutmix", "1"),
            ("mixup", "2"),
            ("none", "3"),
        ]
    assert (tmp_path / "new" / "all.md").read_text(encoding="utf-8").count("\n| ") == 4
    words = " ".join(found.out.split())
    assert "Most accurate: cutmix – Accuracy 81.20 ± 2.98%" in words
    assert "Of 2 recipes, 2 are more accurate than none" in words
    assert "Left out 1 unfinished run:" in words
    assert f"The page of 9 runs is in {out}" in words
    lines = found.out.splitlines()
    assert max(map(len, (line for line in lines if str(tmp_path) not in line))) <= 80


def test_pages_of_the_methods_are_linked_from_where_the_page_is(run, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert run("report", str(runs), "-o", str(out)).code == 0
    docs = Path(__file__).parents[2] / "docs"
    text = out.read_text(encoding="utf-8")
    (link,) = {part.partition('"')[0] for part in text.split('href="') if "methods/cutmix.md" in part[:200]}
    assert (tmp_path / link).resolve() == (docs / "methods" / "cutmix.md").resolve()
    assert run("report", str(runs), "-o", str(out), "--embed").code == 0
    assert out.read_text(encoding="utf-8").count("data:image/webp;base64,") == 2  # of mixup and of cutmix


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("{}/elsewhere",), "There is no folder"),
        (("{}/bare",), "no run in"),
        (("{}", "-o", "{}"), "is a folder. Give the file to write"),
        (("{}", "--csv", "{}"), "is a folder. Give the file to write"),
        (("{}", "--gallery", "{}/bare"), "no pictures"),
        (("{}", "-o", "{}/file/page.html"), "cannot be written"),
    ],
)
def test_mistakes_are_explained(run, runs: Path, argv: tuple[str, ...], words: str, monkeypatch: Any) -> None:
    (runs / "bare").mkdir()
    (runs / "file").touch()
    monkeypatch.chdir(runs / "bare")
    found = run("report", *(word.format(runs) for word in argv), columns=300)
    assert found.code == 1
    assert words in " ".join(found.err.split())
    assert list((runs / "bare").iterdir()) == []


def test_a_damaged_run_is_named(run, runs: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(runs)
    (path, *_) = sorted(runs.glob("*/run.json"))
    path.write_text(path.read_text().replace("0.7", "0.9", 1))
    found = run("report", ".", columns=300)
    assert found.code == 1
    assert f"{path.parent.name}/run.json is damaged" in " ".join(found.err.split())


def test_folders_must_be_given(run) -> None:
    assert run("report").code != 0
    assert "mixwell report" in run("report", "--help").out
