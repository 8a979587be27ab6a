"""Latency by constraint programming: the best order of a fixed placement, and windows of a plan placed anew.

Needs OR-Tools, which the extra ``ordering`` brings; without it :func:`applies` is false.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple

import numpy as np

from hal.planning.domains import domains
from hal.planning.evaluate import no_handoffs, walk
from hal.planning.flat import flat
from hal.planning.problem import OUTSIDE, Assignment, Floats, Problem
from hal.planning.search import Best, Budget

#: Partitions up to which the model is built: above, the solver finds nothing in the time of a plan.
_MOST = 400
#: Units of a window: as many as are solved within seconds, by trials on the public problems.
_WINDOW = 10
#: Seconds for the order of a placement, and for a window.
_ORDER_S, _WINDOW_S = 5.0, 3.0
#: Whole steps that the latency is divided into: fine enough for a millionth, small enough for quick sums.
_STEPS = 1_000_000


def applies(problem: Problem) -> bool:
    """Whether OR-Tools is there, and what a partition takes does not depend on the order."""
    return (
        importlib.util.find_spec("ortools") is not None
        and problem.objective == "latency"
        and problem.charge != "target"
    )


def cpsat(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Improve the best plan: its order first, then the targets of small connected sets of units, by chance.

    The model times each handoff freely, but a plan runs them in the order of their readers; so a better
    model need not be a better plan, and each is evaluated before it counts. Sets are placed anew where units
    start alone and cost nothing to send and receive; elsewhere only the order is improved.

    Source: interval variables with no-overlap, P. Laborie et al., "IBM ILOG CP Optimizer for Scheduling",
    Constraints 23, 2018; windows, P. Shaw, CP 1998.
    """
    if not applies(problem) or best.proposal is None or best.proposal.assignment.n_partitions > _MOST:
        return
    random = np.random.default_rng(seed)
    _improve(problem, best, budget.part(_ORDER_S), seed, np.empty(0, np.int64))
    if problem.start != "unit" or problem.send.any() or problem.receive.any():
        return
    while not budget.is_spent and not best.is_optimal:
        _improve(problem, best, budget.part(_WINDOW_S), seed, _window(problem, random))


class Handoff(NamedTuple):
    """A tensor that one partition needs of another.

    Attributes:
        tensor: Its number.
        maker: Partition that makes it.
        reader: Partition that reads it.
    """

    tensor: int
    maker: int
    reader: int


def _window(problem: Problem, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Units near each other in the graph, none of a group, whose units must move together."""
    made = problem.producer[problem.read_tensor]
    inner = made != OUTSIDE
    source, sink = made[inner], problem.read_unit[inner]
    found = {int(random.integers(problem.n_units))}
    while len(found) < _WINDOW:
        inside = np.isin(source, list(found)) ^ np.isin(sink, list(found))
        beside = set(source[inside].tolist()) | set(sink[inside].tolist())
        fresh = sorted(beside - found)
        if not fresh:
            break
        found.add(fresh[int(random.integers(len(fresh)))])
    return np.array(sorted(unit for unit in found if problem.same_device[unit] < 0), np.int64)


def _improve(
    problem: Problem,
    best: Best,
    budget: Budget,
    seed: int,
    window: np.ndarray[Any, np.dtype[np.int64]],
) -> None:
    """Solve the model of the best plan with the targets of some units free, and offer what it finds."""
    assert best.proposal is not None
    model = _Model(problem, best.proposal.assignment, window)
    found = model.solve(budget, seed)
    if found is not None:
        best.offer(found, "CP-SAT")


class _Model:
    """Start of each partition and handoff of a plan as intervals, in whole steps of time."""

    def __init__(
        self, problem: Problem, assignment: Assignment, window: np.ndarray[Any, np.dtype[np.int64]]
    ) -> None:
        self._cp = importlib.import_module("ortools.sat.python.cp_model")
        self._problem, self._assignment = problem, assignment
        self._free = set(window.tolist())
        self._model = self._cp.CpModel()
        n = assignment.n_partitions
        begins, ends = np.empty(n), np.empty(n)
        walk(flat(problem), assignment.target, assignment.partition, begins, ends, *no_handoffs())
        self._step = float(ends.max()) / _STEPS or 1.0
        self._horizon = 2 * _STEPS
        self._target_of = np.empty(n, np.int64)
        self._target_of[assignment.partition] = assignment.target
        self._on: dict[int, dict[int, Any]] = {}
        self._machines: dict[tuple[str, int], list[Any]] = {}
        self._begin = [self._model.new_int_var(0, self._horizon, "") for _ in range(n)]
        self._end = [self._model.new_int_var(0, self._horizon, "") for _ in range(n)]
        latency = self._model.new_int_var(0, _STEPS, "")
        self._place(ends - begins)
        self._hand_over()
        self._share(window)
        self._model.add_max_equality(latency, self._end)
        self._model.minimize(latency)
        for p in range(n):
            self._model.add_hint(self._begin[p], round(begins[p] / self._step))
        for unit, choices in self._on.items():
            for b, literal in choices.items():
                self._model.add_hint(literal, b == assignment.target[unit])

    def solve(self, budget: Budget, seed: int) -> Assignment | None:
        """The plan of the best solution in the time; None where there is none."""
        solver = self._cp.CpSolver()
        solver.parameters.max_time_in_seconds = budget.left
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed
        if solver.solve(self._model) not in (self._cp.OPTIMAL, self._cp.FEASIBLE):
            return None
        old = self._assignment
        target = old.target.copy()
        for unit, choices in self._on.items():
            target[unit] = next(b for b, literal in choices.items() if solver.boolean_value(literal))
        begins = [solver.value(begin) for begin in self._begin]
        ends = [solver.value(end) for end in self._end]
        # What takes no whole step keeps its old place among what begins with it, which is a topological one.
        order = np.lexsort((np.arange(len(begins)), ends, begins))
        number = np.empty(len(order), np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        return Assignment(target, number[old.partition])

    def _place(self, taken: Floats) -> None:
        """An interval for each partition, or for each target that a free unit may have."""
        problem, model = self._problem, self._model
        allowed = domains(problem)
        for unit in sorted(self._free):
            p = int(self._assignment.partition[unit])
            choices = {int(b): model.new_bool_var("") for b in np.flatnonzero(allowed[unit])}
            model.add_exactly_one(choices.values())
            self._on[unit] = choices
            for b, literal in choices.items():
                size = self._steps(problem.time[unit, b] + problem.call[b])
                self._use("silicon", int(problem.silicon[b]), p, size, literal)
        free = {int(self._assignment.partition[unit]) for unit in self._free}
        for p in range(len(taken)):
            if p not in free:
                silicon = int(problem.silicon[self._target_of[p]])
                self._use("silicon", silicon, p, self._steps(taken[p]), None)

    def _use(self, what: str, number: int, p: int, size: int, literal: Any) -> None:
        begin, end = self._begin[p], self._end[p]
        if literal is None:
            interval = self._model.new_interval_var(begin, size, end, "")
        else:
            interval = self._model.new_optional_interval_var(begin, size, end, literal, "")
        self._machines.setdefault((what, number), []).append(interval)

    def _hand_over(self) -> None:
        """What each partition waits for."""
        problem, target, partition = self._problem, self._assignment.target, self._assignment.partition
        seen = set()
        for x, reader in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
            maker = int(problem.producer[x])
            if maker == OUTSIDE or partition[maker] == partition[reader]:
                continue
            handoff = Handoff(x, int(partition[maker]), int(partition[reader]))
            self._model.add(self._begin[handoff.reader] >= self._end[handoff.maker])
            if problem.charge == "partition" and handoff in seen:
                continue
            seen.add(handoff)
            for a, literal_a in self._on.get(maker, {int(target[maker]): None}).items():
                for b, literal_b in self._on.get(reader, {int(target[reader]): None}).items():
                    self._carry(handoff, a, b, [at for at in (literal_a, literal_b) if at is not None])

    def _carry(self, handoff: Handoff, a: int, b: int, literals: list[Any]) -> None:
        """The interval of a handoff from target a to target b, if all literals hold."""
        problem, model = self._problem, self._model
        size = self._steps(problem.transfer[handoff.tensor, a, b])
        c, s = int(problem.silicon[a]), int(problem.silicon[b])
        if size == 0 or c == s or not problem.overlap:
            # Where it does not overlap, a fixed partition's time has it; a free one's has not.
            if size and literals:
                model.add(self._begin[handoff.reader] >= self._end[handoff.maker] + size).only_enforce_if(
                    literals
                )
            return
        begin = model.new_int_var(0, self._horizon, "")
        happens = None
        if literals:
            happens = model.new_bool_var("")
            model.add_bool_and(literals).only_enforce_if(happens)
            model.add_bool_or([literal.negated() for literal in literals] + [happens])
            interval = model.new_optional_fixed_size_interval_var(begin, size, happens, "")
            model.add(begin >= self._end[handoff.maker]).only_enforce_if(happens)
            model.add(self._begin[handoff.reader] >= begin + size).only_enforce_if(happens)
        else:
            interval = model.new_fixed_size_interval_var(begin, size, "")
            model.add(begin >= self._end[handoff.maker])
            model.add(self._begin[handoff.reader] >= begin + size)
        for is_used, key in (
            (problem.send_port, ("send", c)),
            (problem.receive_port, ("receive", s)),
            (problem.link[a, b] >= 0, ("link", int(problem.link[a, b]))),
        ):
            if is_used:
                self._machines.setdefault(key, []).append(interval)

    def _share(self, window: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """No machine does two things at once; weights and errors keep their limits."""
        problem, model, target = self._problem, self._model, self._assignment.target
        for (what, number), intervals in self._machines.items():
            slots = int(problem.slots[number]) if what == "silicon" else 1
            if slots == 1:
                model.add_no_overlap(intervals)
            elif slots > 1:
                model.add_cumulative(intervals, [1] * len(intervals), slots)
        fixed = np.setdiff1d(np.arange(problem.n_units), window)
        for pool in range(problem.n_pools if len(window) else 0):
            if np.isfinite(problem.capacity[pool]):
                inside = fixed[problem.pool[target[fixed]] == pool]
                left = int(problem.capacity[pool]) - int(problem.weight_bytes[inside, target[inside]].sum())
                terms = [
                    int(problem.weight_bytes[unit, b]) * literal
                    for unit, choices in self._on.items()
                    for b, literal in choices.items()
                    if problem.pool[b] == pool
                ]
                model.add(sum(terms) <= left)

    def _steps(self, time: float) -> int:
        return int(np.ceil(time / self._step - 1e-9))
