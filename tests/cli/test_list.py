from __future__ import annotations

import json
import re

import pytest

import mixwell
import mixwell.conformance
from mixwell.core.pairs import Verdict, pairs


def test_json_describes_every_method(run):
    found = run("list", "--json")
    assert (found.code, found.err) == (0, "")
    entries = json.loads(found.out)
    assert [entry["slug"] for entry in entries] == mixwell.methods()
    for entry in entries:
        words = ("slug", "section", "family", "title", "summary", "paper", "venue")
        assert all(isinstance(entry[word], str) and entry[word] for word in words), entry
        assert entry["essential"] or entry["beside"]
        assert all(isinstance(piece, str) for piece in (entry["essential"] | entry["suggested"]).values())
        assert isinstance(entry["parameters"], dict)
        assert isinstance(entry["axes"], list)
        assert isinstance(entry["needs"], list)


def test_json_of_one_method(run):
    (entry,) = [entry for entry in json.loads(run("list", "--json").out) if entry["slug"] == "transmix"]
    assert entry["essential"] == {"label": "AttentionShares"}
    assert entry["suggested"] == {"ratio": "Beta", "blend": "Box"}
    assert entry["axes"] == ["label"]
    assert entry["needs"] == ["class attention", "masks", "simplex"]
    assert entry["parameters"] == {"switch_prob": 0.8, "cutmix_alpha": 1.0, "mixup_alpha": 0.8, "per": "sample"}
    assert (entry["section"], entry["paper"], entry["venue"]) == ("2.5", "2111.09833", "CVPR 2022")


def test_the_table_fits_and_never_breaks_a_slug(run):
    for columns in (80, 140):
        found = run("list", columns=columns)
        assert found.code == 0
        assert max(map(len, found.out.splitlines())) <= columns
        for slug in mixwell.methods():
            paper = mixwell.method_of(slug).paper.partition(":")[0]
            assert any(line.startswith(f"  {slug} ") and paper in line for line in found.out.splitlines()), slug


def test_a_pipe_gets_one_line_per_method(run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    narrow = run("list").out
    wide = run("list", columns=160).out
    assert len(wide.splitlines()) < len(narrow.splitlines())


def test_json_says_what_a_method_costs_and_what_it_was_compared_with(run):
    entries = {entry["slug"]: entry for entry in json.loads(run("list", "--json").out)}
    assert entries["cutmix"]["cost"] == []
    assert entries["puzzlemix"]["cost"] == ["evaluation pass", "input gradient"]
    assert entries["djmix"]["cost"] == ["preparation", "several views"]
    assert entries["supermix"]["cost"] == ["preparation", "clean training pass"]
    assert entries["metamixup"]["cost"] == ["held-out images"]
    assert entries["genlabel"]["cost"] == ["pass before each epoch"]
    assert entries["cutmix"]["conformance"] == "official code"
    for slug in ("mixup", "catchup_mix"):
        assert "independent reference" in entries[slug]["conformance"]


def test_without_a_checkout_nothing_is_said_of_conformance(run, monkeypatch):
    def nowhere():
        raise mixwell.core.errors.DataError("no checkout")

    monkeypatch.setattr(mixwell.conformance, "find_checkout", nowhere)
    assert {entry["conformance"] for entry in json.loads(run("list", "--json").out)} == {None}


@pytest.fixture(scope="module")
def verdicts():
    return pairs()


@pytest.fixture
def known_verdicts(verdicts, monkeypatch):
    """`mixwell list --pairs`, without composing all pairs for each test."""
    monkeypatch.setattr("mixwell.cli.commands.list.pairs", lambda of: verdicts)
    return verdicts


@pytest.mark.parametrize("columns", [80, 160])
def test_the_matrix_holds_every_pair_in_its_row_and_column(run, known_verdicts, columns):
    lines = run("list", "--pairs", columns=columns).out.splitlines()
    assert max(map(len, lines)) <= columns
    slugs = mixwell.methods()
    found = {}
    for block in range(sum("goes with" in line for line in lines)):
        start = [place for place, line in enumerate(lines) if "goes with" in line][block]
        digits = len(str(len(slugs)))
        heads = lines[start - digits + 1 : start + 1]
        assert lines[start + 1].split()[:2] == ["1", slugs[0]]
        left = heads[-1].index("goes with") + len("goes with")
        for place in range(left, max(map(len, heads))):
            number = "".join(head[place : place + 1] for head in heads).strip()
            if not number:
                continue
            column = slugs[int(number) - 1]
            for row, line in zip(slugs, lines[start + 1 :], strict=False):
                assert line[digits:].split()[0] == row
                found[row, column] = line[place : place + 1].strip()
    for slug in slugs:
        assert found.pop((slug, slug)) == ""
    expected = {pair: "+" if one.accepted else "." if one.slot else "x" for pair, one in known_verdicts.items()}
    assert found == expected
    accepted = sum(mark == "+" for mark in expected.values())
    assert f"accepted {accepted:,} of {len(expected):,}" in lines


@pytest.mark.usefixtures("known_verdicts")
def test_the_matrix_counts_the_partners_of_each_row(run, verdicts):
    rows = [line.split() for line in run("list", "--pairs", columns=160).out.splitlines()]
    counts = {row[1]: int(row[2]) for row in rows if len(row) > 3 and row[1] in mixwell.methods()}
    assert counts == {
        slug: sum(one.accepted for (first, _), one in verdicts.items() if first == slug) for slug in mixwell.methods()
    }


@pytest.mark.usefixtures("known_verdicts")
def test_the_partners_of_a_method_and_the_reasons(run, verdicts):
    found = run("list", "--pairs", "transmix")
    assert (found.code, found.err) == (0, "")
    assert max(map(len, found.out.splitlines())) <= 80
    goes, both, cannot = re.split("Both decide the label|One could not act", found.out)
    for slug in set(mixwell.methods()) - {"transmix"}:
        verdict = verdicts["transmix", slug]
        where = goes if verdict.accepted else both if verdict.slot else cannot
        assert re.search(rf"\b{slug}\b", where), slug
    text = " ".join(cannot.split())
    assert "transmix + mixup transmix needs masks that say which pixels each source shows" in text
    assert "mixup + transmix" not in text


def test_a_reason_of_the_other_order_alone_is_shown(run, verdicts, monkeypatch):
    changed = {**verdicts, ("mixup", "bc"): Verdict("bc needs mixup before it.")}
    monkeypatch.setattr("mixwell.cli.commands.list.pairs", lambda of: changed)
    text = " ".join(run("list", "--pairs", "bc").out.split())
    assert "mixup + bc bc needs mixup before it." in text
    assert "bc + mixup" not in text


def test_json_of_pairs_gives_the_reasons(run):
    entries = json.loads(run("list", "--pairs", "cutmix", "--json").out)
    found = {tuple(entry["methods"]): entry for entry in entries}
    others = set(mixwell.methods()) - {"cutmix"}
    assert set(found) == {("cutmix", other) for other in others} | {(other, "cutmix") for other in others}
    for (first, second), entry in found.items():
        assert entry["recipe"] == f"{first} + {second}"
        assert entry["accepted"] == (entry["reason"] == "")
    assert found["cutmix", "mixup"]["slot"] == "blend"
    assert "both decide the blend" in found["cutmix", "mixup"]["reason"]
    assert found["cutmix", "transmix"]["accepted"]


@pytest.mark.usefixtures("known_verdicts")
def test_json_of_all_pairs(run, verdicts):
    entries = json.loads(run("list", "--json", "--pairs").out)
    assert [tuple(entry["methods"]) for entry in entries] == list(verdicts)


def test_the_pairs_of_a_method_that_does_not_exist(run):
    found = run("list", "--pairs", "cutmx")
    assert (found.code, found.out) == (1, "")
    assert "did you mean 'cutmix'" in " ".join(found.err.split())
