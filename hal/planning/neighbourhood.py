"""Latency by large-neighbourhood search: a part of the plan is placed anew, the rest stays."""

from __future__ import annotations

import numpy as np

from hal.planning.annealing import Search
from hal.planning.annealing import applies as annealing_applies
from hal.planning.annealing_steps import Rules, below, broken_by, put, take, used
from hal.planning.compiled import compiled
from hal.planning.domains import domains
from hal.planning.flat import Flat
from hal.planning.problem import Floats, Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.slack import settle
from hal.planning.timeline import Bools, Line, fill, keep, span, timed

#: Units that are placed anew at once. Fewer are what annealing's steps do; more seldom end no worse than they
#: began.
_FEWEST, _MOST = 4, 32
#: Units above which placing one stretch anew takes seconds.
_LARGE = 20_000
#: Seconds of rebuilding between two looks at the clock.
_CHUNK_S = 0.02


def applies(problem: Problem) -> bool:
    """Whether the objective is the latency, and the problem is not so large that a round takes seconds."""
    return annealing_applies(problem) and problem.n_units <= _LARGE


def neighbourhood(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Place parts of the best plan anew, again and again, and keep what is no worse.

    A stretch of the line is put on other targets by chance, as a whole or unit by unit. Then each of its
    units, in the order of the line, goes where the whole plan ends first, or swaps its target with another of
    the stretch. Broken rules count as much as the whole latency. The new plan stays if it is no worse.

    Source: P. Shaw, "Using Constraint Programming and Local Search Methods to Solve Vehicle Routing
    Problems", CP 1998; Schrimpf et al., "Record Breaking Optimization Results Using the Ruin and Recreate
    Principle", J. Computational Physics 159, 2000.
    """
    if not applies(problem) or best.proposal is None or not domains(problem).any(axis=1).all():
        return
    search = Search(problem, seed)
    search.begin(best)
    n_rounds = 1
    while not budget.is_spent and not best.is_optimal:
        before = budget.left
        rebuild(
            search.flat,
            search.rules,
            search.line,
            search.random,
            n_rounds,
            search.state,
            search.target,
            search.unit_at,
            search.glued,
        )
        spent = before - budget.left
        n_rounds = max(1, int(n_rounds * min(4.0, _CHUNK_S / max(spent, 1e-6))))
        search.offer(best)


@compiled
def rebuild(
    f: Flat,
    r: Rules,
    plan: Line,
    random: np.random.Generator,
    n_rounds: int,
    state: Floats,
    best_target: Small,
    best_unit_at: Small,
    best_glued: Bools,
) -> None:
    """Place stretches of the line anew.

    Args:
        f: The problem.
        r: Its rules.
        plan: The line, evaluated; changed.
        random: Where chance comes from.
        n_rounds: Stretches.
        state: As for :func:`hal.planning.annealing_steps.steps`, as are the next three.
        best_target: Changed.
        best_unit_at: Changed.
        best_glued: Changed.
    """
    n, t = f.time.shape
    has_send = f.send.size > 0 and f.send.max() > 0
    use = used(r, plan)
    price = state[0]
    moved, seen = np.empty(n, np.int32), np.zeros(n, np.int64)
    mark = 0
    before = plan.target.copy()
    now, broken = state[0], broken_by(r, plan, use)
    for _ in range(n_rounds):
        begin_score = now + price * broken
        fill(before, plan.target)
        size = min(n, _FEWEST + below(random, _MOST + 1 - _FEWEST))
        low = below(random, n - size + 1)
        first, last = low, low + size - 1
        one_target = below(random, 2 * t)
        for place in range(low, low + size):
            unit = plan.unit_at[place]
            b = one_target if one_target < t else below(random, t)
            mark += 1
            for number in range(take(r, plan, unit, b, moved, 0, seen, mark)):
                near, far = span(f, plan, moved[number], has_send)
                first, last = min(first, near), max(last, far)
                put(r, plan, use, moved[number], b)
        now, restart, stop = timed(f, plan, first, last, np.inf)
        keep(f, plan, restart, stop)
        settle(f, plan, restart, stop)
        broken = broken_by(r, plan, use)
        for place in range(low, low + size):
            unit = plan.unit_at[place]
            other = plan.unit_at[low + below(random, size)]
            for b in range(t + 1):
                # Each target alone, and in the end a swap with another unit of the stretch.
                a = plan.target[unit]
                is_swap = b == t
                to = plan.target[other] if is_swap else b
                mark += 1
                n_first = take(r, plan, unit, to, moved, 0, seen, mark)
                n_moved = n_first
                if is_swap and n_first:
                    n_moved = take(r, plan, other, a, moved, n_first, seen, mark)
                if n_moved == 0:
                    continue
                begin, end = place, place
                for number in range(n_moved):
                    near, far = span(f, plan, moved[number], has_send)
                    begin, end = min(begin, near), max(end, far)
                    put(r, plan, use, moved[number], to if number < n_first else a)
                broken_now = broken_by(r, plan, use)
                limit = now + price * (broken - broken_now)
                value, restart, stop = timed(f, plan, begin, end, limit)
                if value <= limit:
                    keep(f, plan, restart, stop)
                    settle(f, plan, restart, stop)
                    now, broken = value, broken_now
                    continue
                for number in range(n_moved):
                    put(r, plan, use, moved[number], a if number < n_first else to)
        if now + price * broken > begin_score:
            for unit in range(n):
                if plan.target[unit] != before[unit]:
                    near, far = span(f, plan, unit, has_send)
                    first, last = min(first, near), max(last, far)
                    put(r, plan, use, unit, before[unit])
            now, restart, stop = timed(f, plan, first, last, np.inf)
            keep(f, plan, restart, stop)
            settle(f, plan, restart, stop)
            broken = broken_by(r, plan, use)
        elif broken == 0 and now < state[1] * (1 - 1e-12):
            state[1] = now
            fill(best_target, plan.target)
            fill(best_unit_at, plan.unit_at)
            fill(best_glued, plan.glued)
    state[0], state[2] = now, broken
