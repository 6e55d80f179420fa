"""The guides' code runs, in the order in which it is read, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mixwell.cli import COMMANDS, main

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = [DOCS / "index.md", *sorted((DOCS / "guides").glob("*.md"))]
COMMAND = re.compile(r"mixwell (\w+)((?: (?!mixwell)[^\s`]+)*)")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_its_code_runs(guide, blocks_of, readers_names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, **readers_names()}
    for block in blocks_of(guide.relative_to(DOCS.parent)):
        exec(compile(block, guide.name, "exec"), names)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(guide):
    links = re.findall(r"\]\(([^)#]+)", guide.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (guide.parent / link).exists()] == []


def test_their_commands_have_these_options(capsys):
    said = {}
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        for block in [*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), *re.findall(r"`(mixwell [^`]*)`", text)]:
            for name, words in COMMAND.findall(block.replace("\n", " ")):
                said.setdefault(name, set()).update(re.findall(r"(?<!\S)(--?[a-z][\w-]*)", words))
    assert {"train", "evaluate", "bench", "report", "show"} <= set(said) <= set(COMMANDS)
    for name, options in said.items():
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert [option for option in options if option not in shown] == [], name
