"""Throughput by branch and bound on the whole problem, while windows of it are solved beside."""

from __future__ import annotations

import queue
import threading

import highspy
import numpy as np

from hal.planning.milp_program import give_start, program_of, scale_of, scaled, solver_of
from hal.planning.milp_windows import applies as applies
from hal.planning.milp_windows import milp_windows
from hal.planning.partitions import partitioned
from hal.planning.pipeline_local import pipeline_local
from hal.planning.pipeline_model import Blocks, blocks, is_contiguous, targets_of
from hal.planning.pipeline_segments import Classes, classes, tolls
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Share within which HiGHS's bound is the plan's value: its tolerances, and some room.
_TOLERANCE = 1e-7
#: Seconds of annealing and of windows in turn, while HiGHS is at work.
_ANNEALING_S, _WINDOWS_S = 2.0, 6.0


def milp_throughput(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Branch and bound on the whole problem, from the best plan so far, in a thread.

    Its bound holds for every plan: handoffs count as if the other end were the cheapest one, each target as
    if it ran one partition, and contiguity is left out. Meanwhile this thread anneals and solves windows,
    which finds good plans sooner.

    Source: the integer program of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
    Operators", NeurIPS 2020, section 4.2, with the identical targets put in the order of their heaviest
    blocks. Solver: HiGHS (Q. Huangfu and J. A. J. Hall, "Parallelizing the dual revised simplex method",
    2018).
    """
    if best.is_optimal or budget.is_spent:
        return
    found = blocks(problem, closed=is_contiguous(problem))
    p = found.pipeline
    kinds = classes(problem)
    single = Classes(tuple((b,) for b in range(problem.n_targets)), np.arange(problem.n_targets))
    costs = tolls(p, single, least=True)
    may = np.isfinite(p.time)
    heavy = np.argsort(-np.where(np.isfinite(p.time), p.time, 0).max(axis=1), kind="stable")
    for known in kinds.members:
        for number, u in enumerate(heavy[: len(known) - 1]):
            may[u, list(known[number + 1 :])] = False
    scale = scale_of(p, best.objective)
    solver = solver_of(program_of(*scaled(p, costs, scale), may, problem.max_error), budget.left, seed)
    if best.proposal is not None:
        give_start(solver, p, _relabelled(found, kinds, heavy, best.proposal.assignment.target))
    solutions: queue.SimpleQueue[Floats] = queue.SimpleQueue()

    def on_solution(event: highspy.cb.HighsCallbackEvent) -> None:  # type: ignore[name-defined]  # no types
        solutions.put(np.array(event.data_out.mip_solution))

    solver.cbMipImprovingSolution += on_solution
    thread = threading.Thread(target=solver.run, name="HiGHS", daemon=True)
    thread.start()
    try:
        _beside(problem, best, budget, seed, thread)
        while thread.is_alive() and not budget.is_spent and not best.is_optimal:
            thread.join(0.05)
    finally:
        solver.cancelSolve()
        thread.join()
    while not solutions.empty():
        _offer(problem, best, found, solutions.get())
    if solver.getSolution().value_valid:
        _offer(problem, best, found, np.array(solver.getSolution().col_value))
    bound = float(solver.getInfo().mip_dual_bound) * scale
    if bound >= best.objective * (1 - _TOLERANCE):
        bound = best.objective
    if np.isfinite(bound):
        best.prove(bound, "dual bound of the integer program (HiGHS)")


def _beside(problem: Problem, best: Best, budget: Budget, seed: int, thread: threading.Thread) -> None:
    """Anneal and solve windows until HiGHS has ended."""
    # Small problems are done at once.
    thread.join(min(0.2, budget.left))
    while thread.is_alive() and best.proposal is not None and not budget.is_spent and not best.is_optimal:
        for solver, seconds in ((pipeline_local, _ANNEALING_S), (milp_windows, _WINDOWS_S)):
            if thread.is_alive():
                solver(problem, best, budget.part(seconds), seed)
        seed += 1


def _offer(problem: Problem, best: Best, found: Blocks, values: Floats) -> None:
    n, t = found.pipeline.time.shape
    target = values[: n * t].reshape(n, t).argmax(axis=1).astype(np.int32)
    best.offer(partitioned(problem, targets_of(found, target)), "integer program (HiGHS)")


def _relabelled(found: Blocks, kinds: Classes, heavy: Ints, target: Small) -> Small:
    """Targets of blocks, those of a class renamed in the order of the heaviest blocks."""
    first = np.unique(found.block, return_index=True)[1]
    of_block = target[first]
    new = np.full(len(kinds.of), -1, np.int32)
    taken = [0] * len(kinds.members)
    for b in of_block[heavy].tolist():
        if new[b] < 0:
            kind = int(kinds.of[b])
            new[b] = kinds.members[kind][taken[kind]]
            taken[kind] += 1
    return new[of_block]
