"""What pages say beside the registry: our results, published ones, citations, and defects with their options."""

from __future__ import annotations

import re
import tomllib

import pytest

import method_facts as facts
import mixwell
from mixwell.cli.page import Page


@pytest.fixture
def results(run_in, tmp_path):
    """Three seeds of four recipes, one of which is unfinished."""
    for seed, more in enumerate((0.0, 0.01, 0.02)):
        run_in(tmp_path, "none", seed, accuracy=0.80 + more, seconds=2.0)
        run_in(tmp_path, "cutmix", seed, accuracy=0.85 + more, seconds=3.0)
        run_in(tmp_path, "mixup + decouplemix", seed, accuracy=0.83, seconds=2.0)
    return tmp_path


def test_our_result_is_read_from_the_runs(results):
    text = facts.our_result("cutmix", results)
    assert "`cutmix` on cnn-s, 3 seeds" in text
    assert "| Accuracy, % ↑ | 86.00 ± 2.48 | 81.00 ± 2.48 | +5.00 ± 0.00 |" in text
    assert "| Time per epoch, × `none` | 1.50 ± 0.00 | 1.00 | |" in text


def test_a_method_without_a_recipe_of_its_own_has_those_it_acts_in(results):
    assert "`mixup + decouplemix` on cnn-s" in facts.our_result("decouplemix", results)
    assert "`mixup + decouplemix` on cnn-s" in facts.our_result("mixup", results)


def test_a_recipe_of_one_method_alone_goes_before_others(results, run_in):
    run_in(results, "mixup", accuracy=0.82)
    facts.our_boards.cache_clear()
    assert "decouplemix" not in facts.our_result("mixup", results)


def test_the_leaderboard_has_every_recipe_the_best_first(results):
    text = facts.leaderboards(results)
    assert re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE) == ["cutmix", "mixup + decouplemix", "none"]
    assert "data fashion-mini, epochs 3" in text


def test_without_runs_nothing_is_said(tmp_path, run_in):
    assert facts.our_result("cutmix", tmp_path) == facts.leaderboards(tmp_path) == ""
    run_in(tmp_path / "other", "none")
    assert facts.our_result("fmix", tmp_path / "other") == ""


def test_published_figures_are_of_methods_and_have_a_source(root):
    document = tomllib.loads((root / "docs" / "published.toml").read_text(encoding="utf-8"))
    for table in document["tables"]:
        slugs = set(table) - {"setting", "source", "metric", "plain"}
        assert slugs
        assert slugs <= set(mixwell.methods())
        assert table["source"] in document["sources"]
        for slug in slugs:
            figures = [value for _, value in facts._figures(table, slug)]
            assert all(0 < value < 100 for value in figures)
            if "plain" in table and "lower is better" not in table.get("metric", ""):
                assert all(abs(value - table["plain"]) < 10 for value in figures), (slug, table["setting"])


def test_a_figure_is_told_with_setting_reference_and_source():
    text = facts.published("bc")
    assert "| CIFAR-10, 11-layer CNN, BC+ | 94.78 | 93.93 | the authors' repository |" in text
    assert facts.published("genlabel") == ""


def test_every_method_can_be_cited_under_a_key_of_its_own():
    keys = []
    for slug in mixwell.methods():
        entry = mixwell.method_of(slug)
        text = facts.bibtex(Page.of(entry), entry)
        key, year = re.match(r"```bibtex\n@\w+\{([a-z]+(\d{4})[^,]+),\n", text).groups()
        assert key.isascii()
        assert f"year = {{{year}}}" in text
        assert text.count("{") == text.count("}")
        keys.append(key)
    assert len(set(keys)) == len(keys)


def test_options_that_reproduce_published_code_are_accepted(root):
    text = (root / "docs" / "defects.md").read_text(encoding="utf-8")
    recipes = re.findall(r"`(\w+\([^`]*\))`", text)
    assert len(recipes) >= 20
    for recipe in recipes:
        mixwell.create(recipe, 10)
