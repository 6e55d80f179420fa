"""The documentation site builds, its links lead somewhere, and a browser loads nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mixwell

pytest.importorskip("zensical")

LOADS = {**dict.fromkeys(("img", "script", "iframe", "source", "video", "audio"), "src"), "object": "data"}
"""Attributes whose address a browser fetches by itself."""
ADDRESS = re.compile(r"""url\(\s*['"]?(https?:)?//|@import\s+['"]https?:""")


@dataclass
class Page(HTMLParser):
    """What a page of HTML refers to, and the anchors that it has."""

    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag == "link" and given.get("rel") != "canonical" and "href" in given:
            self.loaded.add(given["href"])
        if tag in LOADS and LOADS[tag] in given:
            self.loaded.add(given[LOADS[tag]])
        if "srcset" in given:
            self.loaded |= {part.split()[0] for part in given["srcset"].split(",")}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    import make_site

    return make_site.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Page()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def target_of(page: Path, site: Path, link: str) -> tuple[Path, str]:
    """The file that a link leads to, and the anchor in it."""
    parts = urlsplit(link)
    start = site if parts.path.startswith("/") else page.parent
    path = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def test_every_method_guide_and_module_has_a_page(site, root):
    for slug in mixwell.methods():
        assert (site / "methods" / slug / "index.html").is_file()
    for guide in (root / "docs" / "guides").glob("*.md"):
        assert (site / "guides" / guide.stem / "index.html").is_file()
    assert "mixwell.train.train" in (site / "api" / "mixwell.train" / "index.html").read_text(encoding="utf-8")


def test_every_internal_link_and_picture_exists(site, pages):
    missing = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links | page.loaded:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            target, anchor = target_of(path, site, link)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                missing.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 80
    assert missing == []


def test_a_browser_loads_nothing_from_elsewhere(site, pages):
    elsewhere = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    styles = [path for path in (*site.rglob("*.css"), *pages) if ADDRESS.search(path.read_text(encoding="utf-8"))]
    assert elsewhere == set()
    assert styles == []


def test_the_menu_leads_to_every_page(site, pages):
    import make_site

    found = make_site.pages()

    def leaves(menu):
        for entry in menu:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else leaves(value)

    assert sorted(leaves(make_site.navigation(found))) == sorted(found)
