"""The page: true to the runs, self-contained, escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mixwell import RunError
from mixwell.evaluate import Reliability
from mixwell.report import Album, Example, Frame, page
from mixwell.train import Run

Finished = Callable[..., Run]
PIXEL = "data:image/png;base64,iVBORw0KGgo="


class Reader(HTMLParser):
    """Every start tag with its attributes, and the cells of the first table's body."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.values: list[list[str | None]] = []
        self.titles: list[str] = []
        self._bodies = 0
        self._inside = self._heading = False
        self.feed(self.text)
        self.data = json.loads(self.text.partition('id="data">')[2].partition("</script>")[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._heading = self._heading or (tag == "th" and "data-first" in dict(attrs))
        if tag == "th" and self._heading and not self._bodies:
            self.titles.append("")
        if tag == "tbody":
            self._bodies += 1
            self._inside = self._bodies == 1
        if self._inside and tag == "tr":
            self.rows.append([])
            self.values.append([])
        if self._inside and tag in ("td", "th"):
            self.rows[-1].append("")
            self.values[-1].append(dict(attrs).get("data-value"))

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "tbody"
        self._heading = self._heading and tag != "th"

    def handle_data(self, data: str) -> None:
        if self._heading and not self._bodies:
            self.titles[-1] += data.strip()
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def written(finished: Finished, evaluation: Callable[..., Any], tmp_path: Path) -> Reader:
    runs = [
        finished("none", accuracy=0.7125, ece=0.0512, nll=0.8251, seconds=2.0),
        finished("cutmix(alpha=0.5)", accuracy=0.7455, ece=0.0311, nll=0.7004, seconds=2.5, evaluation=evaluation()),
    ]
    frame = Frame("image", 'a "bag" & <more>', PIXEL)
    path = page(
        runs,
        tmp_path / "new" / "report.html",
        pictures=[Album("cutmix", "What is seen.", (Example((frame,), (("Bag", 0.625), ("Coat", 0.375))),))],
        reliabilities={"none": Reliability((0, 3), (0.0, 0.9), (0.0, 0.7))},
        notes=["<script>alert(1)</script>"],
        unfinished=[Path("runs/<begun>")],
    )
    return Reader(path)


def test_cells_are_the_runs_figures(written: Reader) -> None:
    cutmix, none = written.rows
    assert cutmix[:5] == ["cutmix(alpha=0.5)", "1", "74.55(best)", "0.700(best)", "3.11(best)"]
    assert none[:5] == ["nonereference", "2", "71.25", "0.825", "5.12"]
    assert (cutmix[-3:], none[-3:]) == (["2.5", "1.25", "1"], ["2.0(best)", "1.00(best)", "1"])
    place = written.titles.index("Error%")
    assert (cutmix[place], none[place]) == ("30.0(best)", "–")
    assert [row[1:5] for row in written.values] == [
        ["1", "0.7455", "0.7004", "0.0311"],
        ["2", "0.7125", "0.8251", "0.0512"],
    ]


def test_the_data_hold_what_the_drawings_need(written: Reader) -> None:
    cutmix, none = written.data["rows"]
    assert cutmix["values"]["accuracy"] == [0.7455]
    assert cutmix["curves"]["accuracy"] == pytest.approx([0.5455, 0.6455, 0.7455])
    assert cutmix["corruptions"] == [[0.2, 0.3, 0.4], [0.25, 0.3, 0.35]]
    assert written.data["corruptions"] == ["fog", "snow"]
    assert cutmix["occlusion"] == [[0.0, 0.5, 1.0], [0.8, 0.5, 0.1]]
    assert cutmix["intrusion"] == [[0.25, 0.08], [0.75, None]]
    assert (none["reliability"], cutmix["reliability"][0]) == ([[0, 3], [0.0, 0.9], [0.0, 0.7]], [0, 10, 30])
    assert (none["reference"], none["corruptions"], cutmix["axes"]) == (True, None, ["blend"])


def test_what_is_not_finite_does_not_break_the_page(finished: Finished, tmp_path: Path) -> None:
    runs = [finished("none", nll=0.5), finished("mixup", nll=float("nan"), record={"loss": float("inf")})]
    read = Reader(page(runs, tmp_path / "report.html"))
    none, mixup = read.data["rows"]
    assert (mixup["values"]["nll"], mixup["curves"]["loss"]) == ([None], [None] * 3)
    assert ["not finite" in row for row in read.rows] == [False, True]
    assert none["values"]["nll"] == [0.5]


def test_nothing_comes_from_the_network(written: Reader) -> None:
    links = [
        value or ""
        for _, attributes in written.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
    ]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttpRequest", written.text)
    assert not {"iframe", "object", "embed"} & {tag for tag, _ in written.tags}


def test_headings_can_sort_and_drawings_are_described(written: Reader) -> None:
    headings = [attributes for tag, attributes in written.tags if tag == "th" and "data-first" in attributes]
    assert [heading["data-first"] for heading in headings[:3]] == ["ascending", "ascending", "descending"]
    drawings = [attributes for tag, attributes in written.tags if tag == "svg"]
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") == "true" for drawing in drawings)
    (image,) = [attributes for tag, attributes in written.tags if tag == "img"]
    assert image["alt"] == 'a "bag" & <more>'
    assert "62% Bag, 38% Coat" in written.text
    assert "prefers-color-scheme: dark" in written.text


def test_text_is_escaped(finished: Finished, written: Reader, tmp_path: Path) -> None:
    assert "&lt;script&gt;alert(1)" in written.text
    assert "runs/&lt;begun&gt;" in written.text
    assert len([tag for tag, _ in written.tags if tag == "script"]) == 2
    evil = Reader(page([finished(data="imagefolder:</script><b>"), finished(data="digits")], tmp_path / "evil.html"))
    assert len([tag for tag, _ in evil.tags if tag == "script"]) == 2
    assert "b" not in [tag for tag, _ in evil.tags]
    assert {row["facets"][0] for row in evil.data["rows"]} == {"imagefolder:</script><b>", "digits"}


def test_seeds_show_intervals_and_settings_their_columns(finished: Finished, tmp_path: Path) -> None:
    runs = [finished("mixup", seed, accuracy=0.7 + seed / 100) for seed in (0, 1, 2)]
    read = Reader(page([*runs, finished("mixup", model="vit-s", lr=0.01)], tmp_path / "report.html"))
    assert {tuple(row[:4]) for row in read.rows} == {
        ("mixup", "cnn-s", "1", "71.00± 2.48"),
        ("mixup", "vit-s", "1", "80.00"),
    }
    assert "mixup, model=vit-s, lr=0.01" in [row["name"] for row in read.data["rows"]]
    assert "vit-s (lr 0.01)" in read.text  # settings that change together are chosen together


def test_what_was_left_out_or_evaluated_otherwise_is_told(
    finished: Finished, evaluation: Callable[..., Any], tmp_path: Path
) -> None:
    other = evaluation(settings={"parts": ["clean"], "weights": "f00d", "seed": 0, "images": 500})
    runs = [finished("none", evaluation=evaluation()), finished("mixup", evaluation=other), finished("cutmix")]
    text = Reader(page(runs, tmp_path / "report.html", unfinished=[Path("a"), Path("b")])).text
    assert "2 unfinished runs were left out" in text
    assert "1 of 3 runs were not evaluated" in text
    assert "The evaluations differ in images: compare" in text  # and not in the weights, which are each run's own


def test_two_hundred_runs_make_a_small_page(finished: Finished, evaluation: Callable[..., Any], tmp_path: Path) -> None:
    kinds = {f"corruption {i}": [0.123456789] * 5 for i in range(19)}
    told = evaluation(corruptions={"error": 0.123456789, "errors": kinds})
    run = finished("none", epochs=200, evaluation=told)
    runs = [
        replace(run, recipe=f"mixup(alpha=0.{i})", seed=seed, folder=Path(f"{i}-{seed}"))
        for i in range(70)
        for seed in range(3)
    ]
    assert page(runs, tmp_path / "report.html").stat().st_size < 3e6


def test_a_place_that_cannot_be_written_is_explained(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        page([finished()], tmp_path / "file" / "report.html")
