"""A lower bound of latency and throughput: the linear program of loads with handoffs, ports and links."""

from __future__ import annotations

import numpy as np

from hal.planning.domains import domains
from hal.planning.labelling import Labelling, minimised, size
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget

#: Columns up to which building and solving takes about a second.
_COLUMNS = 20_000


def applies(problem: Problem) -> bool:
    """Latency and throughput, of a size that HiGHS takes a second for."""
    return problem.objective in ("latency", "throughput") and size(problem) <= _COLUMNS


def loads_bound(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Raise ``best.bound`` by :func:`load_with_transfers`."""
    if applies(problem) and domains(problem).any(axis=1).all():
        best.prove(load_with_transfers(problem, budget.left), "linear program of loads and links")


def load_with_transfers(problem: Problem, seconds: float) -> float:
    """The linear program of loads of silicons, ports and links, with sends, receives, handoffs and calls.

    Proof. Each plan gives values of the columns of :class:`~hal.planning.labelling.Labelling` with loads that
    are at most its own; and in one request each silicon (over its slots), port and link is busy for its load,
    one thing after another, so that latency is at least each load. The bound is computed from dual values.

    Args:
        problem: The problem.
        seconds: Time limit; 0 is returned where it is not enough.
    """
    model = Labelling(problem)
    loads = model.loads()
    if not loads:
        return 0.0
    # Any plan's loads are below the sum of the costs of all columns.
    most = max(sum(value * model.upper[at] for at, value in terms) for terms in loads)
    busiest = model.column(upper=most)
    for terms in loads:
        model.row(0, np.inf, [(busiest, 1.0), *((at, -value) for at, value in terms)])
    return max(minimised(model, [(busiest, 1.0)], seconds, integral=False).bound, 0.0)
