from __future__ import annotations

import json

import mixwell


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
