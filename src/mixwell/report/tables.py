"""Leaderboards as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from mixwell.report.board import REFERENCE, Board, measured
from mixwell.report.metrics import GROUPS

__all__ = ["csv_table", "markdown_table"]


def csv_table(boards: Sequence[Board]) -> str:
    """All figures: a line per recipe and setting, with mean and margin (half the 95% interval) of each metric.

    Shares are in [0, 1], times in seconds, memory in bytes; cells are empty where there is no figure, and margins for
    a single seed.
    """
    rows = [row for board in boards for row in board.rows]
    metrics, names = measured(rows), list(rows[0].setting)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    figures = [name for metric in metrics for name in (metric.key, f"{metric.key}_margin")]
    writer.writerow(["recipe", *names, "rank", "mean_rank", "seeds", *figures])
    for board in boards:
        for row in board.rows:
            cells: list[object] = [board.ranks[row.recipe], board.mean_ranks.get(row.recipe, ""), len(row.runs)]
            for metric in metrics:
                found = row.estimate(metric.key)
                cells += ["", ""] if found is None else [found.mean, "" if found.margin is None else found.margin]
            writer.writerow([row.recipe, *row.setting.values(), *cells])
    return file.getvalue()


def markdown_table(boards: Sequence[Board]) -> str:
    """The columns that the page shows at first, a table per setting, the best mean of each column in bold."""
    return "\n\n".join(_markdown(board) for board in boards) + "\n"


def _markdown(board: Board) -> str:
    groups = {group.key: group for group in GROUPS}
    metrics = [metric for metric in measured(board.rows) if groups[metric.group].shown]
    heads = [f"{metric.name}, {metric.unit}" if metric.unit else metric.name for metric in metrics]
    lines = [
        ["Rank", "Recipe", *heads, "Seeds"],
        ["---:", "---", *["---:"] * len(metrics), "---:"],
    ]
    for row in board.rows:
        cells = []
        for metric in metrics:
            found = row.estimate(metric.key)
            text = "" if found is None else metric.interval(found)
            cells.append(f"**{text}**" if board.is_best(row, metric) else text)
        recipe = f"`{row.recipe}`".replace("|", "\\|")
        reference = " (reference)" if row.recipe == REFERENCE else ""
        lines.append([str(board.ranks[row.recipe]), recipe + reference, *cells, str(len(row.runs))])
    setting = board.rows[0].circumstances
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{setting}\n\n{table}" if setting else table
