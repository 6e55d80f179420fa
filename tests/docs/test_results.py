"""The page of the committed results tells all of them, by today's template."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mixwell.report import Library, find_runs, page

DATA = re.compile(r'(?<=<script type="application/json" id="data">).*?(?=</script>)', re.DOTALL)


def close(found: Any, wanted: Any) -> bool:
    """Whether they are equal but for the last digits of numbers, which differ between processors."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    if isinstance(wanted, float):
        return bool(found == pytest.approx(wanted, rel=1e-6, abs=1e-9))
    return bool(found == wanted)


def test_the_page_is_up_to_date(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = root / "results" / "index.html"
    written: list[str] = []
    monkeypatch.setattr(sys.modules["mixwell.report.page"], "write", lambda _, text: written.append(text))
    (title,) = re.findall(
        r"mixwell report results --title '(.*?)' -o results/index.html", (root / "Makefile").read_text()
    )
    found = find_runs([root / "results"])
    assert found.unfinished == ()
    page(found.runs, committed, title=title, library=Library.of_checkout())
    (new,), old = written, committed.read_text(encoding="utf-8")
    again = "run `make results`"
    assert close(*(json.loads(data) for text in (old, new) for data in DATA.findall(text))), again
    assert DATA.sub("", old) == DATA.sub("", new), again
