"""Better pipelines by solving windows of the best plan exactly: a few targets, or a region of blocks."""

from __future__ import annotations

import numpy as np

from hal.planning.milp_program import give_start, program_of, scale_of, scaled, solver_of
from hal.planning.partitions import partitioned
from hal.planning.pipeline_local import neighbours
from hal.planning.pipeline_model import blocks, is_contiguous, state, targets_of
from hal.planning.pipeline_segments import Classes, tolls
from hal.planning.problem import Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Seconds for one window.
_WINDOW_S = 1.0
#: Variables beyond which the program is not tried.
_MOST = 400_000
#: Blocks that are free in one window.
_BLOCKS = (20, 40, 80, 120)
#: Chance of a window of two or three targets rather than of a region.
_FEW = 0.85
#: What a unit of load anywhere in the window costs, beside the largest load.
_EVEN = 0.02


def applies(problem: Problem) -> bool:
    """Throughput, of a size that HiGHS can take."""
    size = (problem.n_units + 2 * problem.n_tensors) * problem.n_targets
    return problem.objective == "throughput" and size <= _MOST


def milp_windows(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Free the blocks of two or three targets, or of a connected region, and solve for them.

    The largest load of the targets in the window is made small, the other targets may not pass the largest
    load of the plan. A window is taken where its largest load does not rise, so that load moves away from
    the bottleneck step by step.

    Source: local branching in the sense of P. Shaw, "Using Constraint Programming and Local Search Methods
    to Solve Vehicle Routing Problems", 1998 (large neighbourhood search).
    """
    if best.proposal is None:
        return
    found = blocks(problem, closed=is_contiguous(problem))
    p = found.pipeline
    n, t = p.time.shape
    single = Classes(tuple((b,) for b in range(t)), np.arange(t))
    costs = tolls(p, single, least=False)
    near_at, near = neighbours(found.graph)
    rng = np.random.default_rng(seed)
    first = np.unique(found.block, return_index=True)[1]
    target = best.proposal.assignment.target[first].astype(np.int32)
    last = best.objective
    while not budget.is_spent and not best.is_optimal:
        if best.objective < last:
            target, last = best.proposal.assignment.target[first].astype(np.int32), best.objective
        loads = state(p, target).loads[: len(p.slots)]
        worst = rng.choice(np.flatnonzero(p.silicon == int(loads.argmax())))
        many = int(rng.choice(_BLOCKS))
        centre = int(rng.choice(np.flatnonzero(target == worst))) if (target == worst).any() else 0
        if rng.random() < _FEW:
            others = rng.permutation(np.delete(np.arange(t), worst))[: int(rng.integers(1, 3))]
            allowed = np.append(others, worst)
            free = _region(near_at, near, centre, many, np.isin(target, allowed), rng)
        else:
            free = _region(near_at, near, centre, many, np.ones(n, bool), rng)
            allowed = np.unique(np.append(target[free], rng.integers(t)))
        may = np.zeros((n, t), bool)
        may[np.arange(n), target] = True
        may[np.ix_(free, allowed)] = np.isfinite(p.time[np.ix_(free, allowed)])
        ceiling = np.full(len(p.slots), float(loads.max()))
        ceiling[p.silicon[allowed]] = np.nan
        scale = scale_of(p, best.objective)
        even = _EVEN / len(allowed)
        program = program_of(*scaled(p, costs, scale), may, problem.max_error, ceiling / scale, even)
        solver = solver_of(program, min(_WINDOW_S, budget.left), int(rng.integers(1 << 30)))
        give_start(solver, p, target)
        solver.run()
        if not solver.getSolution().value_valid:
            continue
        values = np.array(solver.getSolution().col_value)[: n * t]
        target = values.reshape(n, t).argmax(axis=1).astype(np.int32)
        if state(p, target).loads.max() < best.objective * (1 - 1e-12):
            best.offer(partitioned(problem, targets_of(found, target)), "integer program of windows (HiGHS)")


def _region(
    near_at: Small, near: Small, centre: int, many: int, within: np.ndarray, rng: np.random.Generator
) -> Ints:
    """Blocks around one, breadth first, and where these end, around others, among those ``within``."""
    seen = np.zeros(len(within), bool)
    line = [centre]
    seen[centre] = True
    starts = iter(rng.permutation(np.flatnonzero(within)).tolist())
    look = 0
    while len(line) < many:
        if look == len(line):
            other = next((u for u in starts if not seen[u]), None)
            if other is None:
                break
            seen[other] = True
            line.append(other)
            continue
        u = line[look]
        look += 1
        for w in near[near_at[u] : near_at[u + 1]].tolist():
            if within[w] and not seen[w]:
                seen[w] = True
                line.append(w)
    return np.array(line[:many], np.int64)
