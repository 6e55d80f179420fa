"""The page in a browser: what a reader can do with it, at any width, with the keyboard, and without a network."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mixwell.report import page
from mixwell.train import Run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
ARGUMENTS = [*QUIET.split(), "--disable-component-update"]
RECIPES = (
    "none",
    "mixup",
    "cutmix",
    "cutmix(alpha=0.5)",
    "cutmix + transmix",
    "augmix",
    "fmix",
    "k_mixup",
    "manifold_mixup",
)
SEEDS = (0, 1, 2)
ACCURACY = {
    recipe: [0.7 + 0.02 * place + math.sin(7 * place + seed) / 100 for seed in SEEDS]
    for place, recipe in enumerate(RECIPES)
}
BEST = RECIPES[-1]
WILD = (9.0, 0.5, 0.48, 0.47, 0.46, 0.45)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, run_in: Callable[..., Run], evaluation: Callable[..., Any]
) -> Path:
    """A page of nine recipes with three seeds in one setting, and two with other seeds in another."""
    root, runs = tmp_path_factory.mktemp("report"), []
    for place, recipe in enumerate(RECIPES):
        told = evaluation(
            cost={"relative_time": 1 + place / 4, "relative_memory": 1.0},
            corruptions={"error": 0.4 - place / 50, "errors": {"fog": [0.2, 0.4 - place / 25], "snow": [0.3, 0.5]}},
        )
        for seed, accuracy in zip(SEEDS, ACCURACY[recipe], strict=True):
            also = None if recipe == "fmix" else told
            runs.append(run_in(root, recipe, seed, accuracy=accuracy, evaluation=also, epochs=6))
    runs += [run_in(root, "none", seed, model="vit-s") for seed in (0, 1)]
    runs.append(run_in(root, "mixup", 9, accuracy=0.9, model="vit-s"))
    return page(runs, root / "report.html")


@pytest.fixture
def opens(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page without a network; nothing may be requested from it, or be complained about."""
    contexts, requests, complaints = [], [], []

    def open_page(path: Path, width: int = 1000, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)


@pytest.fixture
def tab(opens: Callable[..., Any], report: Path) -> Any:
    return opens(report)


def recipes(tab: Any, table: str = "#board") -> list[str]:
    """Those that the table shows, in order."""
    names: list[str] = tab.eval_on_selector_all(
        f"{table} tbody tr:not([hidden]) th", "cells => cells.map(cell => cell.dataset.value)"
    )
    return names


def sort_by(tab: Any, name: str) -> None:
    tab.locator("#board thead").get_by_role("button", name=name, exact=True).click()


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_headings_sort_both_ways_with_gaps_last(tab: Any) -> None:
    order = sorted(RECIPES, key=lambda recipe: np.mean(ACCURACY[recipe]))
    assert recipes(tab) == order[::-1]
    sort_by(tab, "Accuracy, %")
    assert tab.locator("#board th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert recipes(tab) == order[::-1]
    sort_by(tab, "Accuracy, %")
    assert recipes(tab) == order
    for _ in range(2):
        sort_by(tab, "Corruption error, %")  # fmix has none
        assert recipes(tab)[-1] == "fmix"
    assert recipes(tab)[0] == "none"
    sort_by(tab, "Recipe")
    assert recipes(tab) == sorted(RECIPES, key=lambda recipe: recipe.replace("(", "!"))


def test_filters_act_on_tables_and_drawings(tab: Any) -> None:
    points = tab.locator("#trade .point")
    assert points.count() == 8  # fmix has no cost
    tab.get_by_label("Find").fill("cutmix")
    named = ["cutmix + transmix", "cutmix(alpha=0.5)", "cutmix"]
    assert recipes(tab) == named
    assert recipes(tab, "[aria-labelledby=against] table") == named
    assert points.count() == 3
    assert tab.locator("#count").inner_text().startswith("3 of 11 recipes")
    tab.get_by_label("Decides").select_option("label")
    assert recipes(tab) == ["cutmix + transmix"]
    tab.get_by_label("Find").fill("")
    tab.get_by_label("Decides").select_option("")
    tab.get_by_label("Section of the survey").select_option("1.3 cutting")
    assert recipes(tab) == ["fmix", "cutmix + transmix", "cutmix(alpha=0.5)", "cutmix"]
    tab.get_by_label("Find").fill("nothing like it")
    assert recipes(tab) == []
    assert "Nothing fits" in tab.locator("#count").inner_text()
    tab.get_by_role("button", name="Show all", exact=True).click()
    tab.wait_for_function("document.getElementById('count').textContent === '11 recipes'")
    assert len(recipes(tab)) == 11


def test_settings_are_apart(tab: Any) -> None:
    setting = tab.locator("[name=facet0]")
    assert setting.input_value() == "cnn-s"
    verdicts = tab.locator(".verdict:visible h3")
    assert verdicts.all_inner_texts() == ["model cnn-s, epochs 6"]
    setting.select_option("vit-s")
    assert recipes(tab) == ["mixup", "none"]
    assert verdicts.all_inner_texts() == ["model vit-s, epochs 3"]
    assert tab.locator("#board tbody tr:visible .facet0:visible").count() == 0
    setting.select_option("")
    assert len(recipes(tab)) == 11
    assert tab.locator("#board tbody .facet0:visible").count() == 11
    assert tab.locator("#key code").first.inner_text() == f"{BEST} · cnn-s"


def test_columns_come_and_go(tab: Any) -> None:
    cells = {key: tab.locator(f"#board .g-{key}:visible") for key in ("attacks", "more")}
    assert (cells["attacks"].count() > 0, cells["more"].count()) == (True, 0)
    tab.get_by_label("Attacks").uncheck()
    tab.get_by_label("Further figures").check()
    assert (cells["attacks"].count(), cells["more"].count() > 0) == (0, True)
    margins = tab.locator("#board .extra:visible")
    assert margins.count() == 0
    tab.get_by_label("± everywhere").check()
    assert margins.count() > len(RECIPES)


def compared(tab: Any, one: str, other: str) -> dict[str, list[str]]:
    tab.get_by_label("Recipe A").select_option(label=one)
    tab.get_by_label("Recipe B").select_option(label=other)
    lines = tab.eval_on_selector_all(
        "#compare tbody tr", "lines => lines.map(line => [...line.cells].map(cell => cell.textContent))"
    )
    return {name: cells for name, *cells in lines}


def test_two_recipes_are_compared_by_a_paired_t_test(tab: Any) -> None:
    one, other = ("cutmix", "none")
    cells = compared(tab, f"{one} · cnn-s", f"{other} · cnn-s")["Accuracy, %"]
    mean, margin = map(number, cells[0].split(" ± "))
    low, high = stats.ttest_rel(ACCURACY[one], ACCURACY[other]).confidence_interval(0.95)
    assert (mean - margin, mean + margin) == pytest.approx((100 * low, 100 * high), abs=0.011)
    assert cells[2] == ("▲ A better" if low > 0 else "≈ unclear")
    assert "share 3 seeds: 0, 1, 2" in tab.locator("#compare-note").inner_text()
    error = compared(tab, "none · cnn-s", "cutmix · cnn-s")["Corruption error, %"]
    assert (number(error[0].split(" ± ")[0]), error[2]) == (4.0, "▼ B better")  # a larger error, the same in each seed


def test_few_shared_seeds_are_told(tab: Any) -> None:
    note = tab.locator("#compare-note")
    cells = compared(tab, "mixup · vit-s", "none · vit-s")["Accuracy, %"]
    assert cells[0] == "–"
    assert "no seed in common" in note.inner_text()
    cells = compared(tab, "none · vit-s", "none · cnn-s")["Accuracy, %"]
    assert "share 2 seeds" in note.inner_text()
    assert "different settings" in note.inner_text()


def test_one_shared_seed_gives_no_interval(opens: Any, finished: Callable[..., Run], tmp_path: Path) -> None:
    tab = opens(page([finished("none", accuracy=0.7), finished("mixup", accuracy=0.75)], tmp_path / "one.html"))
    assert compared(tab, "mixup", "none")["Accuracy, %"] == ["+5.00", "", "", "75.00", "70.00"]
    assert "no interval" in tab.locator("#compare-note").inner_text()


def test_ticks_choose_what_is_drawn(tab: Any) -> None:
    drawn = tab.locator("#key code")
    first = [BEST, "none"]
    assert drawn.all_inner_texts() == first
    lines = tab.locator("#curves figure").first.locator("path.curve")
    assert lines.count() == 2
    tab.locator("#board").get_by_label("Draw augmix").check()
    assert lines.count() == 3
    assert tab.locator("#reliability figure").count() == 3
    tab.get_by_role("button", name="Do not draw none", exact=True).click()
    assert drawn.all_inner_texts() == [BEST, "augmix"]
    tab.get_by_label("Add").select_option(label="fmix")
    assert lines.count() == 3
    assert tab.locator("#board").get_by_label("Draw fmix").is_checked()


def test_points_are_reached_and_ticked_by_the_keyboard(tab: Any) -> None:
    first = tab.locator("#trade .point").first
    first.focus()
    tip = tab.locator("#tip")
    assert tip.inner_text().startswith("none\n")
    assert "Time per step: 1.00 ± 0.00×" in tip.inner_text()
    tab.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("mixup\n")
    tab.keyboard.press("Enter")
    assert tab.get_by_role("checkbox", name="Draw mixup, model=cnn-s").is_checked()
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.keyboard.press("Escape")
    assert tip.is_hidden()
    assert tab.locator("#trade [tabindex='0']").count() == 1


def test_the_front_holds_what_nothing_cheaper_reaches(tab: Any) -> None:
    tab.locator("#trade-y").select_option("accuracy")
    found = tab.eval_on_selector_all("#trade .on-front", "all => all.map(each => each.ariaLabel.split(',')[0])")
    means, best, front = {recipe: np.mean(ACCURACY[recipe]) for recipe in RECIPES}, 0.0, []
    for recipe in RECIPES:  # which are in order of cost
        if recipe != "fmix" and means[recipe] > best:
            best = means[recipe]
            front.append(recipe)
    assert found == front


def test_what_lies_far_from_all_others_does_not_flatten_them(
    opens: Any, run_in: Callable[..., Run], evaluation: Callable[..., Any], tmp_path: Path
) -> None:
    accuracies = {recipe: 0.8 + place / 200 for place, recipe in enumerate(RECIPES)} | {"amr": 0.3}
    runs = [
        run_in(tmp_path, recipe, 0, accuracy=accuracy, evaluation=evaluation())
        for recipe, accuracy in accuracies.items()
    ]
    plot = opens(page(runs, tmp_path / "far.html")).locator("#trade .plot")
    heights = {point.get_attribute("aria-label"): point.bounding_box()["y"] for point in plot.locator(".point").all()}
    assert len(heights) == len(accuracies)
    low, high = (next(at for words, at in heights.items() if words.startswith(f"{name},")) for name in ("none", BEST))
    assert low - high > 100
    (outside,) = (words for words in heights if words.startswith("amr,"))
    assert "30" in outside
    assert heights[outside] == max(heights.values())
    assert plot.locator(".point .mark[d$='z']").count() == 2  # the diamond of none, and a triangle
    assert "amr" in plot.locator("svg text.ink").all_text_contents()


def test_corruptions_by_severity_and_as_differences(tab: Any) -> None:
    def line(name: str) -> list[str]:
        cells: list[str] = tab.locator("#corruptions tbody tr", has_text=name).locator("td").all_inner_texts()
        return cells

    assert line("augmix") == ["30.0", "20.0", "40.0"]  # mean, fog, snow
    tab.get_by_label("Severity").select_option("2")
    assert line("augmix") == ["35.0", "20.0", "50.0"]
    tab.get_by_label("Show").last.select_option("difference")
    assert line("augmix") == ["−10.0", "−20.0", "+0.0"]
    assert line("none") == ["+0.0", "+0.0", "+0.0"]


def test_curves_lie_in_proportion_and_a_wild_beginning_outside(
    opens: Any, finished: Callable[..., Run], tmp_path: Path, run_in: Callable[..., Run]
) -> None:
    run = finished("none", epochs=len(WILD))
    history = tuple({**record, "loss": loss} for record, loss in zip(run.history, WILD, strict=True))
    tab = opens(page([Run(run.folder, run.recipe, 0, run.setting, run.facts, history)], tmp_path / "wild.html"))
    chart = tab.locator("#curves figure", has_text="Training loss")
    path = chart.locator("path.curve").get_attribute("d")
    points = [tuple(map(float, pair)) for pair in re.findall(r"([-\d.]+),([-\d.]+)", path)]
    ticks = {
        float(text): float(y)
        for text, y in chart.locator("text[text-anchor=end]").evaluate_all(
            "all => all.map(each => [each.textContent, each.getAttribute('y')])"
        )
    }
    (low, bottom), (high, top) = min(ticks.items()), max(ticks.items())
    assert 3 <= len(ticks) <= 8
    for (_, y), value in zip(points, WILD, strict=True):
        assert y == pytest.approx(bottom + (value - low) / (high - low) * (top - bottom), abs=0.6)
    assert points[0][1] < 0 < top <= min(y for _, y in points[1:])
    steps = np.diff([x for x, _ in points])
    assert steps == pytest.approx(np.full(len(WILD) - 1, steps[0]), abs=0.11)
    chart.get_by_text("Figures").click()
    chart.locator("tbody td").first.wait_for()
    assert chart.locator("tbody td").all_inner_texts() == [f"{value:.3f}" for value in WILD]


def test_lines_beyond_the_colours_are_dashed(opens: Any, finished: Callable[..., Run], tmp_path: Path) -> None:
    runs = [finished(f"mixup(alpha=0.{i})") for i in range(1, 10)]
    tab = opens(page(runs, tmp_path / "many.html"))
    for i in range(1, 10):
        tab.get_by_role("checkbox", name=f"Draw mixup(alpha=0.{i})").check()
    styles = tab.eval_on_selector_all(
        "#key path", "all => all.map(each => each.getAttribute('class') + each.getAttribute('stroke-dasharray'))"
    )
    assert len(set(styles)) == 9
    assert sum("null" not in style for style in styles) == 2  # seven colours, besides that of the reference


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_page(opens: Any, report: Path, width: int, scheme: str) -> None:
    tab = opens(report, width, color_scheme=scheme)
    tab.locator("[name=facet0]").select_option("")
    for chip in tab.locator("#columns input").all():
        chip.check()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 382) == (scheme == "light")
    tab.set_viewport_size({"width": 1400 - width // 2, "height": 800})
    tab.wait_for_function(
        "() => (svg => svg.viewBox.baseVal.width === svg.clientWidth)(document.querySelector('#trade svg'))"
    )


def test_what_is_not_finite_is_left_out(opens: Any, finished: Callable[..., Run], tmp_path: Path) -> None:
    broken = finished("mixup", nll=math.nan, record={"loss": math.inf, "nll": math.nan})
    tab = opens(page([finished("none"), broken], tmp_path / "broken.html"))
    lines = {title: tab.locator("#curves figure", has_text=title) for title in ("Test accuracy", "Training loss")}
    assert [chart.locator("path.curve").count() for chart in lines.values()] == [2, 1]
    sort_by(tab, "NLL, nats")
    sort_by(tab, "NLL, nats")
    assert recipes(tab) == ["none", "mixup"]


def test_one_recipe_alone_makes_a_page(opens: Any, finished: Callable[..., Run], tmp_path: Path) -> None:
    tab = opens(page([finished("cutmix")], tmp_path / "alone.html"))
    assert recipes(tab) == ["cutmix"]
    assert tab.locator("#curves figure").count() == 4
    assert tab.locator("nav a").all_inner_texts() == ["What to use", "Leaderboard", "Ticked recipes"]
