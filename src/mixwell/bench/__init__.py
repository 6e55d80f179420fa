"""Benches: recipes × data × models × seeds as one resumable command, whose cells are run folders."""

from mixwell.bench.cells import Bench, Cell, State, state_of
from mixwell.bench.document import Changes, bench_of, read_bench
from mixwell.bench.scheduler import Summary, run
from mixwell.bench.verification import Verdict, verify
from mixwell.bench.worker import Outcome, work

__all__ = [
    "Bench",
    "Cell",
    "Changes",
    "Outcome",
    "State",
    "Summary",
    "Verdict",
    "bench_of",
    "read_bench",
    "run",
    "state_of",
    "verify",
    "work",
]
