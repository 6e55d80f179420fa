"""The page: true to the runs, self-contained, escaped."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixwell import RunError
from mixwell.report import Album, Example, Frame, Reliability, Run, page

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
        self._bodies = 0
        self._inside = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
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

    def handle_data(self, data: str) -> None:
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def written(finished: Finished, tmp_path: Path) -> Reader:
    runs = [
        finished("none", accuracy=0.7125, ece=0.0512, nll=0.8251, seconds=2.0),
        finished("cutmix(alpha=0.5)", accuracy=0.7455, ece=0.0311, nll=0.7004, seconds=2.5),
    ]
    frame = Frame("image", 'a "bag" & <more>', PIXEL)
    path = page(
        runs,
        tmp_path / "new" / "report.html",
        pictures=[Album("cutmix", "What is seen.", (Example((frame,), (("Bag", 0.625), ("Coat", 0.375))),))],
        reliabilities={"none": Reliability((0, 3), (0.0, 0.9), (0.0, 0.7))},
        notes=["<script>alert(1)</script>"],
    )
    return Reader(path)


def test_cells_are_the_runs_figures(written: Reader) -> None:
    assert written.rows == [
        ["none", "71.25%", "0.0512", "0.8251", "2.0", "1.00", "1"],
        ["cutmix(alpha=0.5)", "74.55%", "0.0311", "0.7004", "2.5", "1.25", "1"],
    ]
    assert [row[1:5] for row in written.values] == [
        ["0.7125", "0.0512", "0.8251", "2.0"],
        ["0.7455", "0.0311", "0.7004", "2.5"],
    ]


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


def test_headings_sort_and_drawings_are_described(written: Reader) -> None:
    headings = [attributes for tag, attributes in written.tags if tag == "th" and "data-first" in attributes]
    assert [heading["data-first"] for heading in headings[:3]] == ["ascending", "descending", "ascending"]
    assert "aria-sort" in written.text.partition("<script>")[2]
    drawings = [attributes for tag, attributes in written.tags if tag == "svg"]
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") == "true" for drawing in drawings)
    assert any("Confidence 0.90: accuracy 0.70, 3 images." in (drawing.get("aria-label") or "") for drawing in drawings)
    (image,) = [attributes for tag, attributes in written.tags if tag == "img"]
    assert image["alt"] == 'a "bag" & <more>'
    assert "62% Bag, 38% Coat" in written.text
    assert "prefers-color-scheme: dark" in written.text


def test_text_is_escaped(written: Reader) -> None:
    assert "&lt;script&gt;alert(1)" in written.text
    assert len([tag for tag, _ in written.tags if tag == "script"]) == 1


def test_seeds_show_intervals_and_settings_their_columns(finished: Finished, tmp_path: Path) -> None:
    runs = [finished("mixup", seed, accuracy=0.7 + seed / 100) for seed in (0, 1, 2)]
    read = Reader(page([*runs, finished("mixup", model="vit-s")], tmp_path / "report.html"))
    assert read.rows[0][:3] == ["mixup", "cnn-s", "71.00% ± 2.48%"]
    assert read.rows[1][1] == "vit-s"
    assert read.rows[0][-2:] == ["–", "3"]
    assert "mixup, model=vit-s" in read.text


def test_more_lines_than_colours_get_dashes(finished: Finished, tmp_path: Path) -> None:
    runs = [finished(f"mixup(alpha=0.{i})") for i in range(1, 10)]
    assert Reader(page(runs, tmp_path / "report.html")).text.count("stroke-dasharray=") == 1 + 4


def test_a_place_that_cannot_be_written_is_explained(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        page([finished()], tmp_path / "file" / "report.html")
