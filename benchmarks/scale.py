"""How plans of large problems come out in little time: value, proven bound, gap, seconds, memory.

Problems are made here from a seed: a chain with skips (``chain``), or nodes that read up to three of the last
twenty (``graph``), with times that have nothing in common between targets (``unrelated``), each target on its
own silicon. Goals (issue 4): 1,000 units and 6 targets in 2 s, within 5% of the bound for chains and
throughput; 10,000 and 4 in 1 s; 100,000 and 8 in 10 s and 4 GiB. Compiled code is loaded before, on a small
problem of each kind. Each row runs in a process of its own, so that its memory is its own.

    python -m benchmarks.scale [--only chain]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

from hal.planning.portfolio import solve
from hal.planning.problem import Problem
from hal.units import format_bytes


class Row(NamedTuple):
    """A problem and the time it has."""

    kind: str
    objective: str
    n_units: int
    n_targets: int
    budget_s: float


ROWS = (
    *(
        Row(kind, objective, 1_000, 6, 2.0)
        for kind in ("chain", "graph")
        for objective in ("latency", "throughput")
    ),
    *(
        Row(kind, objective, 10_000, 4, 1.0)
        for kind in ("chain", "graph")
        for objective in ("latency", "throughput")
    ),
    *(
        Row(kind, objective, 100_000, 8, 10.0)
        for kind in ("chain", "graph")
        for objective in ("latency", "throughput")
    ),
)


def problem(row: Row, seed: int = 0) -> Problem:
    """The problem of a row: times 1 to 9 by target, handoffs 0 to 3 by tensor."""
    rng = np.random.default_rng(seed)
    n, t = row.n_units, row.n_targets
    if row.kind == "chain":
        tensors = np.concatenate([np.arange(n - 1), np.arange(0, n - 2, 10)])
        readers = np.concatenate([np.arange(1, n), np.arange(0, n - 2, 10) + 2])
    else:
        unit = np.repeat(np.arange(1, n), 3)
        maker = np.maximum(unit - rng.integers(1, 21, len(unit)), 0)
        pairs = np.unique(np.stack([maker, unit], axis=1), axis=0)
        tensors, readers = pairs[:, 0], pairs[:, 1]
    handoff = rng.uniform(0.0, 3.0, n)
    return Problem(
        time=rng.integers(1, 10, (n, t)).astype(np.float64),
        silicon=np.arange(t),
        pool=np.arange(t),
        producer=np.arange(n),
        read_tensor=tensors,
        read_unit=readers,
        transfer=handoff[:, None, None] * ~np.eye(t, dtype=bool),
        overlap=True,
        objective=row.objective,
    )


def measure(row: Row) -> str:
    """A line of the table."""
    # What is compiled is loaded for all sizes alike.
    solve(problem(row._replace(n_units=300)), budget_s=1.0)
    made = problem(row)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    solution = solve(made, budget_s=row.budget_s)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value, bound, who = solution.best.objective, solution.bound, solution.best.solver
    return (
        f"| {row.kind} | {row.objective} | {row.n_units:,} | {row.n_targets} | {value:.6g} | {bound:.6g} "
        f"| {100 * (value - bound) / value:.2f}% | {who} | {seconds:.2f} of {row.budget_s:g} "
        f"| {format_bytes(peak * 1024)} (+{format_bytes((peak - before) * 1024)}) |"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="only rows of this kind or objective")
    parser.add_argument("--row", type=int, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row is not None:
        print(measure(ROWS[asked.row]), flush=True)
        return 0
    print(
        "| kind | objective | units | targets | value | bound | gap | found by | seconds | memory (solving) "
        "|\n"
        "|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for at, row in enumerate(ROWS):
        if asked.only in ("", row.kind, row.objective):
            done = subprocess.run([sys.executable, "-m", "benchmarks.scale", "--row", str(at)], check=False)
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
