"""From run folders to leaderboards: rows with intervals over seeds, tables, a page, and pictures of mixes."""

from mixwell.report.board import Board, boards_of, paired
from mixwell.report.metrics import METRICS, Estimate, Metric
from mixwell.report.page import page, write
from mixwell.report.pictures import Album, Example, Frame, album
from mixwell.report.recipes import Library
from mixwell.report.runs import Found, Row, find_runs, rows_of
from mixwell.report.tables import csv_table, markdown_table
from mixwell.report.verdict import Pick, picks, summary

__all__ = [
    "METRICS",
    "Album",
    "Board",
    "Estimate",
    "Example",
    "Found",
    "Frame",
    "Library",
    "Metric",
    "Pick",
    "Row",
    "album",
    "boards_of",
    "csv_table",
    "find_runs",
    "markdown_table",
    "page",
    "paired",
    "picks",
    "rows_of",
    "summary",
    "write",
]
