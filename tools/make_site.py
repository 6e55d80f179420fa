"""Build the documentation site of docs/, examples/, the public API and the texts beside the README.

    python tools/make_site.py                build/site, which any web server serves
    python tools/make_site.py --out DIR      the same in DIR/site, of the pages in DIR/pages

Needs no network, and neither does the site. pip install "mixwell[docs]".
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import mixwell
from mixwell.cli.page import Page

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Texts outside docs/, and the pages to which links to them lead."""
INTERNAL = frozenset({"cli", "conformance", "core", "demo", "files", "label", "ops", "probe", "sample"})
"""Modules of mixwell that offer nothing of their own: `mixwell` or the commands do."""
GUIDES = ("choosing", "loop", "compose", "targets", "evaluate", "search", "adapters")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")


# Pages


def pages() -> dict[str, str]:
    """The text of every page, by its path in the site."""
    found = {}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        name = path.relative_to(ROOT / "docs").as_posix()
        found[name] = linked(path, name)
    for source, name in BESIDE.items():
        if name not in found:
            found[name] = linked(ROOT / source, name)
    for path in sorted((ROOT / "examples").glob("*.py")):
        found[f"examples/{path.stem}.md"] = example_page(path)
    for name in public_modules():
        found[f"api/{name}.md"] = api_page(name)
    return found


def linked(path: Path, name: str) -> str:
    """A text of the checkout as the page `name`, with links to where their targets are in the site."""

    def moved(match: re.Match[str]) -> str:
        target = (path.parent / match[1]).resolve().relative_to(ROOT).as_posix()
        there = os.path.relpath(page_of(target, path), PurePosixPath(name).parent)
        return f"]({there}{match[2] or ''})"

    parts = FENCED.split(path.read_text(encoding="utf-8"))
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def page_of(target: str, source: Path) -> str:
    """Where the site has a file of the checkout."""
    if target in BESIDE:
        return BESIDE[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target.startswith("examples/") and target.endswith(".py"):
        return f"{target.removesuffix('.py')}.md"
    if target == "examples":
        return "examples/plain_loop.md"
    raise SystemExit(f"{source.relative_to(ROOT)} links to {target}, which the site does not have.")


def example_page(path: Path) -> str:
    """An example: what its docstring says, and the whole file."""
    code = path.read_text(encoding="utf-8")
    title, _, usage = (ast.get_docstring(ast.parse(code)) or path.stem).partition("\n\n")
    return f"# {path.stem}\n\n{title}\n\n```sh\n{usage.strip()}\n```\n\n```python\n{code}```\n"


def public_modules() -> list[str]:
    """`mixwell`, and its modules that have something to offer beside it."""
    children = (module.name for module in pkgutil.iter_modules(mixwell.__path__) if not module.name.startswith("_"))
    named = [f"mixwell.{name}" for name in children if name not in INTERNAL]
    return ["mixwell", *(name for name in named if getattr(importlib.import_module(name), "__all__", ()))]


def api_page(name: str) -> str:
    """The public names of a module: functions, then classes, errors and the rest."""
    module = importlib.import_module(name)
    offered = sorted(module.__all__, key=lambda each: (_kind(getattr(module, each)), each.lower()))
    summary = (module.__doc__ or "").partition("\n\n")[0]
    entries = "\n\n".join(f"::: {name}.{each}" for each in offered)
    return f"# {name}\n\n{summary}\n\n{entries}\n"


def _kind(value: object) -> int:
    if inspect.isclass(value):
        return 2 if issubclass(value, Exception) else 1
    return 0 if callable(value) else 3


def navigation(found: dict[str, str]) -> list[dict[str, Any]]:
    """The site's menu."""
    methods = [Page.of(mixwell.method_of(slug)) for slug in mixwell.methods()]
    families = [
        {f"{section} {family}": [{page.title: f"methods/{page.slug}.md"} for page in members]}
        for (section, family), members in groupby(methods, key=lambda page: (page.section, page.family))
    ]
    titles = {name: text.partition("\n")[0].removeprefix("# ") for name, text in found.items()}
    return [
        {"Home": "index.md"},
        {
            "Guides": [
                *({titles[name]: name} for name in (f"guides/{guide}.md" for guide in GUIDES)),
                {"Your method in one file": "contributing.md"},
                {titles["guides/faq.md"]: "guides/faq.md"},
            ]
        },
        {
            "Methods": [
                {"All methods": "methods.md"},
                {"Who answers what": "matrix.md"},
                {"Who goes together": "pairs.md"},
                {"Gallery": "gallery.md"},
                {"Defects": "defects.md"},
                *families,
            ]
        },
        {"Examples": [{titles[name]: name} for name in found if name.startswith("examples/")]},
        {"API": [{titles[name]: name} for name in found if name.startswith("api/")]},
        {"About": [{"Design": "design.md"}, {"Pictures": "pictures/README.md"}, {"Changelog": "changelog.md"}]},
    ]


# The site


def build(folder: Path) -> Path:
    """Write pages and settings into a folder, and the site of them; returns where the site is."""
    found = pages()
    shutil.rmtree(folder / "pages", ignore_errors=True)
    for name, text in found.items():
        path = folder / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for picture in (ROOT / "docs" / "pictures").glob("*.png"):
        shutil.copy(picture, folder / "pages" / "pictures")
    shutil.copy(TOOLS / "site.css", folder / "pages")
    settings = (TOOLS / "site.toml").read_text(encoding="utf-8")
    for old, new in (
        ("nav = []", f"nav = {inline(navigation(found))}"),
        ('paths = ["src"]', f"paths = {inline([str(ROOT / 'src')])}"),
    ):
        if settings.count(old) != 1:
            raise SystemExit(f"tools/site.toml must contain {old!r} once.")
        settings = settings.replace(old, new)
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--config-file", str(folder / "zensical.toml")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"zensical could not build the site:\n{done.stdout}{done.stderr}")
    return folder / "site"


def inline(value: Any) -> str:
    """Lists, tables and texts as TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {inline(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder of pages and site")
    folder = parser.parse_args().out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"built {build(folder)}")


if __name__ == "__main__":
    main()
