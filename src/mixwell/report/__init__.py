"""From run folders to a page: rows with intervals over seeds, curves, reliability, and pictures of mixes."""

from mixwell.report.page import page
from mixwell.report.pictures import Album, Example, Frame, album
from mixwell.report.reliability import Reliability, reliability
from mixwell.report.runs import Estimate, Row, Run, Trained, rows_of, trained

__all__ = [
    "Album",
    "Estimate",
    "Example",
    "Frame",
    "Reliability",
    "Row",
    "Run",
    "Trained",
    "album",
    "page",
    "reliability",
    "rows_of",
    "trained",
]
