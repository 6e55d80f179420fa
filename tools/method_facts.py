"""What is known of a method beside the registry: our results, published ones, and how to cite it."""

from __future__ import annotations

import re
import textwrap
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mixwell.cli.page import Page
from mixwell.core.algebra import Call, Plain, Sum, parse
from mixwell.core.registry import Method
from mixwell.report import Board, Metric, Row, boards_of, rows_of, summary
from mixwell.report.board import measured
from mixwell.report.metrics import RELATIVE_EPOCH
from mixwell.train import Run, RunFolder

__all__ = ["RESULTS", "bibtex", "leaderboards", "our_result", "published"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "fashion-mini"
PUBLISHED = ROOT / "docs" / "published.toml"
TOP1 = "top-1 accuracy, %"
MINOR = frozenset({"a", "an", "and", "as", "at", "by", "for", "from", "in", "of", "on", "the", "to", "via", "with"})
JOURNALS = frozenset({"CVMJ", "IEEE Access", "IEEE TIP", "Pattern Recognition", "TMLR", "TNNLS"})


# Our results


@cache
def our_boards(folder: Path) -> tuple[Board, ...]:
    """A leaderboard per setting of the finished runs in the folder; none if there are none."""
    found = [path.parent for path in sorted(folder.glob("*/run.json"))]
    runs = [Run.read(path) for path in found if RunFolder(path).run()["status"] == "finished"]
    return tuple(boards_of(rows_of(runs))) if runs else ()


def our_result(slug: str, folder: Path = RESULTS) -> str:
    """What the method came to beside `none`: the recipe that it is alone, else those in which it acts beside others."""
    found = [(board, row) for board in our_boards(folder) for row in board.rows if slug in _methods(row.recipe)]
    alone = [(board, row) for board, row in found if _methods(row.recipe) == [slug]]
    parts = [text for board, row in alone or found for text in (_heading(row), _beside_none(board, row))]
    return "\n\n".join([*parts, _conditions(folder)]) if parts else ""


def leaderboards(folder: Path = RESULTS) -> str:
    """All rows, a table per setting, the best accuracy first; empty if there are none."""
    parts = []
    for board in our_boards(folder):
        metrics = [*_shown(board.rows), *filter(None, [_time(board.rows)])]
        lines = [f"| recipe | {' | '.join(map(_title, metrics))} | seeds |", f"|---|{'---:|' * (len(metrics) + 1)}"]
        for row in board.rows:
            cells = []
            for metric in metrics:
                estimate = row.estimate(metric.key)
                text = metric.interval if metric.key == "accuracy" else lambda found, of=metric: of.text(found.mean)
                cells.append("" if estimate is None else text(estimate))
            lines.append(f"| `{_escaped(row.recipe)}` | {' | '.join(cells)} | {len(row.runs)} |")
        parts += [f"**{_network(board.rows[0])}**", "\n".join(lines), summary(board)]
    return "\n\n".join([*parts, _conditions(folder)]) if parts else ""


def _heading(row: Row) -> str:
    seeds = f"{len(row.runs)} seed{'s' if len(row.runs) > 1 else ''}"
    return f"`{row.recipe}` on {_network(row)}, {seeds}:"


def _beside_none(board: Board, row: Row) -> str:
    """A line per figure: of the recipe, of `none`, and their difference seed by seed."""
    lines = ["| figure | mean | `none` | difference |", "|---|---:|---:|---:|"]
    for metric in _shown([row]):
        mine, plain = row.estimate(metric.key), board.reference and board.reference.estimate(metric.key)
        difference = board.against(row, metric)
        cells = [
            _title(metric),
            metric.interval(mine) if mine else "",
            metric.interval(plain) if plain else "",
            metric.interval(difference, signed=True) if difference else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if (metric := _time([row])) and (mine := row.estimate(metric.key)):
        lines.append(f"| {_title(metric)} | {metric.interval(mine)} | {metric.text(1.0)} | |")
    return "\n".join(lines)


def _shown(rows: Sequence[Row]) -> list[Metric]:
    return [metric for metric in measured(rows) if metric.main and metric.key != "nll"]


def _time(rows: Sequence[Row]) -> Metric | None:
    """Time over that of `none`: of a step as it was evaluated, else of an epoch."""
    found = {metric.key: metric for metric in measured(rows)}
    return found.get("relative_time") or found.get(RELATIVE_EPOCH)


def _title(metric: Metric) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]
    if metric.unit == "×":
        return f"{metric.name}, × `none`"
    return f"{metric.name}{f', {metric.unit}' if metric.unit else ''}{arrow}"


def _conditions(folder: Path) -> str:
    setting = our_boards(folder)[0].rows[0].runs[0].setting
    names = {"data": "data", "epochs": "epochs", "augment": "augment", "label_noise": "label noise"}
    said = ", ".join(f"{told} {setting[name]}" for name, told in names.items() if setting.get(name))
    return (
        f"Measured by mixwell ({said}): means over the seeds ± half the 95% interval; differences are paired by seed. "
        "↑ higher is better, ↓ lower is."
    )


def _network(row: Row) -> str:
    return str(row.runs[0].setting.get("model"))


def _escaped(recipe: str) -> str:
    return recipe.replace("|", r"\|")


def _methods(recipe: str) -> list[str]:
    """The methods that a recipe adds up; none of one that switches."""
    node = parse(recipe)
    terms = node.terms if isinstance(node, Sum) else [] if isinstance(node, Plain) else [node]
    return [term.slug for term in terms if isinstance(term, Call)]


# Published results


def published(slug: str) -> str:
    """A row per published figure of the method; empty if none is known."""
    document = _document()
    lines = ["| setting | figure | without | source |", "|---|---:|---:|---|"]
    for table in document["tables"]:
        for name, value in _figures(table, slug):
            metric = table.get("metric", TOP1)
            setting = ", ".join(filter(None, [table["setting"], name]))
            source = document["sources"][table["source"]]
            title = f"[{source['title']}]({source['url']})" if "url" in source else source["title"]
            said = setting if metric == TOP1 else f"{setting}: {metric}"
            plain = table.get("plain", "")
            lines.append(f"| {said} | {value} | {plain} | {title} |")
    if len(lines) == 2:
        return ""
    return (
        "\n".join(lines) + f"\n\nWhere nothing else is said, {TOP1}. The source's own figures, which depend on "
        "its protocol; a difference below 0.3 points on CIFAR or ImageNet is within the noise of seeds."
    )


def _figures(table: dict[str, Any], slug: str) -> Iterator[tuple[str, float]]:
    """The method's figures in a table, by variant."""
    found = table.get(slug, {})
    yield from found.items() if isinstance(found, dict) else [("", found)]


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))


# Citation


def bibtex(page: Page, entry: Method) -> str:
    """An entry for BibTeX from the docstring's citation; the field knows authors by their family names alone."""
    citation = " ".join(entry.doc.split("\n\n")[1].split())
    authors, _, rest = citation.partition(', "')
    title, closed, rest = rest.partition('",')
    year = re.search(r"\b(?:19|20)\d\d\b", rest)
    if not (closed and year):
        return ""
    venue = page.venue.removesuffix(year[0]).strip()
    kind, place = ("article", "journal") if venue in JOURNALS else ("inproceedings", "booktitle")
    if venue == "arXiv":
        kind, venue = "misc", ""
    first = unicodedata.normalize("NFKD", authors.partition(",")[0].lower()).encode("ascii", "ignore").decode()
    word = next(word for word in re.findall(r"\w+", title.lower()) if word not in MINOR)
    fields = {
        "title": f"{{{title}}}",
        "author": " and ".join(name.strip() for name in authors.split(",")),
        **({place: venue} if venue else {}),
        "year": year[0],
        "url": page.url,
    }
    lines = [
        textwrap.fill(f"  {name} = {{{value}}},", 100, subsequent_indent="    ", break_on_hyphens=False)
        for name, value in fields.items()
    ]
    body = "\n".join(lines)
    key = re.sub(r"[^a-z]", "", first) + year[0] + word
    return f"```bibtex\n@{kind}{{{key},\n{body}\n}}\n```"
