"""The choice of targets as a linear model: what every plan with those targets pays at least, for HiGHS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt

from hal.planning.domains import domains, groups, need
from hal.planning.highs import Highs
from hal.planning.partitions import dag
from hal.planning.problem import OUTSIDE, Floats, Ints, Problem

Terms = list[tuple[int, float]]


@dataclass(frozen=True)
class Weights:
    """How times become a cost that adds up.

    Attributes:
        unit: float64[n, t]: cost of each unit itself.
        second: float64[t]: cost of one unit of time for calls, sends, receives and handoffs of a target.
    """

    unit: Floats
    second: Floats


class Labelling:
    """Columns and rows of the model, and what each column puts on each resource.

    Columns: ``y[g, b]``, whether group g is on target b (0 or 1); ``q[h, a, b]``, whether handoff h is made
    on a and read on b; ``s[x, a]``, whether tensor x is sent from a; ``k[b]``, how many partitions b has at
    least. With ``y`` integral, the others are at their least integral too.

    The model is a relaxation: each plan gives values of the columns whose loads are at most the plan's. It
    is exact for what units, sends, receives and handoffs cost with ``start="unit"``, and with
    ``start="partition"`` where no target needs more than one partition to be handed a tensor once.

    * A handoff h stands for one charge: one reading unit for the charge ``edge`` (and ``partition``, where
      units start alone), else all units that read the tensor. From the maker's target a to each target b
      with a reader there is at least one charge: ``sum_a q[h, a, b] >= y[v, b]`` for each reader v, and
      ``q[h, a, b] <= y[u, a]`` for the maker u.
    * A tensor is sent where a reader is elsewhere: ``s[x, a] >= y[u, a] - y[v, a]``.
    * Partitions of b: at least 1 where a unit is on b; on any path, one for each entry of the path into b.

    Args:
        problem: The problem.
        with_costs: Whether calls and handoffs are wanted, or constraints only.

    Source: the integer program of Tarnawski et al. (NeurIPS 2020), section 5, here for unrelated targets with
    the transport formulation of a pairwise cost (W. P. Adams and H. D. Sherali, "A tight linearization and an
    algorithm for zero-one quadratic programming problems", Management Science 32 (1986)).
    """

    def __init__(self, problem: Problem, with_costs: bool = True) -> None:
        self.problem = problem
        self.group: Ints = groups(problem)
        self.n_groups = int(self.group.max()) + 1
        self.can = np.zeros((self.n_groups, problem.n_targets), np.bool_)
        self.can[self.group] = domains(problem)
        self.n_columns = 0
        self.integral: list[int] = []
        self.upper: list[float] = []
        self.rows: list[tuple[float, float, Terms]] = []
        #: By silicon, send port, receive port and link: what its load is made of.
        self.silicon_load: list[Terms] = [[] for _ in range(problem.n_silicons)]
        self.send_load: list[Terms] = [[] for _ in range(problem.n_silicons)]
        self.receive_load: list[Terms] = [[] for _ in range(problem.n_silicons)]
        self.link_load: list[Terms] = [[] for _ in range(int(problem.link.max()) + 1)]
        #: Time of calls, sends, receives and handoffs, by target.
        self.beside: list[Terms] = [[] for _ in range(problem.n_targets)]
        self.y = np.full((self.n_groups, problem.n_targets), -1, np.int64)
        for g, b in zip(*np.nonzero(self.can), strict=True):
            self.y[g, b] = self.column(is_integral=True)
        for g in range(self.n_groups):
            self.row(1, 1, [(int(at), 1.0) for at in self.y[g] if at >= 0])
        self._constrain()
        if with_costs:
            self._calls()
            self._handoffs()

    def column(self, upper: float = 1.0, is_integral: bool = False) -> int:
        """A new column from 0 to ``upper``; its number."""
        self.upper.append(upper)
        if is_integral:
            self.integral.append(self.n_columns)
        self.n_columns += 1
        return self.n_columns - 1

    def row(self, lower: float, upper: float, terms: Terms) -> None:
        """A new row."""
        self.rows.append((lower, upper, terms))

    def at(self, unit: int, target: int) -> int:
        """Column that says whether a unit is on a target; -1 where it cannot be."""
        return int(self.y[self.group[unit], target])

    def units(self, values: Floats | Ints, target: int) -> Terms:
        """Terms of values[n] summed over the units on a target."""
        total = np.bincount(self.group, np.where(self.problem.allowed[:, target], values, 0), self.n_groups)
        return [
            (int(at), float(total[g])) for g, at in enumerate(self.y[:, target]) if at >= 0 and total[g] != 0
        ]

    def loads(self) -> list[Terms]:
        """What each silicon (over its slots), port and link has to do."""
        problem = self.problem
        found = []
        for s in range(problem.n_silicons):
            slots = int(problem.slots[s])
            if slots:
                terms = list(self.silicon_load[s])
                for b in np.flatnonzero(problem.silicon == s):
                    terms += self.units(problem.time[:, b], int(b))
                found.append([(at, value / slots) for at, value in terms])
        return [terms for terms in [*found, *self.send_load, *self.receive_load, *self.link_load] if terms]

    def costs(self, weights: Weights) -> Terms:
        """What a plan costs where costs add up over targets."""
        found: Terms = []
        for b in range(self.problem.n_targets):
            found += self.units(weights.unit[:, b], b)
            found += [(at, value * float(weights.second[b])) for at, value in self.beside[b]]
        return found

    def _constrain(self) -> None:
        """Memory of weights and of each unit while it runs; the error budget."""
        problem = self.problem
        beside = need(problem)
        for pool in np.flatnonzero(np.isfinite(problem.capacity)):
            limit = float(problem.capacity[pool])
            inside = [int(b) for b in np.flatnonzero(problem.pool == pool)]
            terms = [term for b in inside for term in self.units(problem.weight_bytes[:, b], b)]
            if not terms and not beside[:, inside].any():
                continue
            weight = self.column(upper=limit)
            self.row(0, 0, [*terms, (weight, -1.0)])
            for unit in np.flatnonzero(beside[:, inside].any(axis=1)).tolist():
                terms = [(self.at(unit, b), float(beside[unit, b])) for b in inside if self.at(unit, b) >= 0]
                if terms:
                    self.row(-np.inf, limit, [*terms, (weight, 1.0)])
        if np.isfinite(problem.max_error) and problem.error.any():
            terms = [term for b in range(problem.n_targets) for term in self.units(problem.error[:, b], b)]
            self.row(-np.inf, problem.max_error, terms)

    def _pay(self, column: int, target: int, value: float) -> None:
        """Time of a partition on its silicon."""
        if value:
            self.silicon_load[self.problem.silicon[target]].append((column, value))
            self.beside[target].append((column, value))

    def _calls(self) -> None:
        problem = self.problem
        path = longest_path(problem) if problem.call.any() and problem.start == "partition" else []
        for b in np.flatnonzero(problem.call).tolist():
            if problem.start == "unit":
                for unit in range(problem.n_units):
                    if self.at(unit, b) >= 0:
                        self._pay(self.at(unit, b), b, float(problem.call[b]))
                continue
            count = self.column(upper=problem.n_units)
            self._pay(count, b, float(problem.call[b]))
            for at in self.y[:, b]:
                if at >= 0:
                    self.row(0, np.inf, [(count, 1.0), (int(at), -1.0)])
            entries: Terms = [(count, 1.0)]
            for before, unit in zip([-1, *path], path, strict=False):
                now, then = self.at(unit, b), self.at(before, b) if before >= 0 else -1
                if now < 0 or now == then:
                    continue
                enters = self.column()
                self.row(0, np.inf, [(enters, 1.0), (now, -1.0), *([(then, 1.0)] if then >= 0 else [])])
                entries.append((enters, -1.0))
            if len(entries) > 1:
                self.row(0, np.inf, entries)

    def _handoffs(self) -> None:
        problem = self.problem
        targets = range(problem.n_targets)
        readers: list[list[int]] = [[] for _ in range(problem.n_tensors)]
        for x, unit in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
            readers[x].append(unit)
        for x in range(problem.n_tensors):
            maker = int(problem.producer[x])
            if maker == OUTSIDE:
                self._from_outside(x, readers[x])
                continue
            for a in targets:
                if problem.send[x, a] and self.at(maker, a) >= 0:
                    self._send(x, a, maker, readers[x])
            if not (problem.receive[x].any() or problem.transfer[x].any()):
                continue
            for units in [[unit] for unit in readers[x]] if self._each_pays else [readers[x]]:
                if units:
                    self._handoff(x, maker, units)

    @property
    def _each_pays(self) -> bool:
        charge, start = self.problem.charge, self.problem.start
        return charge == "edge" or (charge == "partition" and start == "unit")

    def _from_outside(self, x: int, readers: list[int]) -> None:
        for b in np.flatnonzero(self.problem.receive[x]).tolist():
            value = float(self.problem.receive[x, b])
            columns = [self.at(unit, b) for unit in readers if self.at(unit, b) >= 0]
            if self._each_pays:
                for at in columns:
                    self._pay(at, b, value)
            elif columns:
                comes = self.column()
                self._pay(comes, b, value)
                for at in set(columns):
                    self.row(0, np.inf, [(comes, 1.0), (at, -1.0)])

    def _send(self, x: int, a: int, maker: int, readers: list[int]) -> None:
        problem, made = self.problem, self.at(maker, a)
        if problem.is_output[x]:
            self._pay(made, a, float(problem.send[x, a]))
            return
        others = {self.at(unit, a) for unit in readers} - {made}
        if not others:
            return
        sends = self.column()
        self._pay(sends, a, float(problem.send[x, a]))
        for at in others:
            self.row(0, np.inf, [(sends, 1.0), (made, -1.0), *([(at, 1.0)] if at >= 0 else [])])

    def _handoff(self, x: int, maker: int, readers: list[int]) -> None:
        problem = self.problem
        sources = [b for b in range(problem.n_targets) if self.at(maker, b) >= 0]
        sinks = sorted({b for unit in readers for b in range(problem.n_targets) if self.at(unit, b) >= 0})
        together = {int(self.group[unit]) for unit in readers} == {int(self.group[maker])}
        q = {}
        for a in sources:
            for b in sinks:
                if together and a != b:
                    continue
                q[a, b] = self.column()
                self._pay_handoff(q[a, b], x, a, b)
        exact = len(readers) == 1
        for b in sinks:
            brings = [(q[a, b], 1.0) for a in sources if (a, b) in q]
            for at in {self.at(unit, b) for unit in readers} - {-1}:
                self.row(0, 0 if exact else np.inf, [*brings, (at, -1.0)])
        for a in sources:
            made = self.at(maker, a)
            if exact:
                terms = [(q[a, b], 1.0) for b in sinks if (a, b) in q]
                self.row(0, 0, [*terms, (made, -1.0)])
            else:
                for b in sinks:
                    if (a, b) in q:
                        self.row(0, np.inf, [(made, 1.0), (q[a, b], -1.0)])

    def _pay_handoff(self, column: int, x: int, a: int, b: int) -> None:
        problem = self.problem
        long, own = float(problem.transfer[x, a, b]), float(problem.receive[x, b])
        if a == b:
            # Between partitions of one target; there may be one partition only.
            if problem.start == "unit":
                self._pay(column, b, long)
            return
        self._pay(column, b, own)
        c, s, link = int(problem.silicon[a]), int(problem.silicon[b]), int(problem.link[a, b])
        if c == s or not problem.overlap:
            self._pay(column, b, long)
        elif long:
            self.beside[b].append((column, long))
            if problem.send_port:
                self.send_load[c].append((column, long))
            if problem.receive_port:
                self.receive_load[s].append((column, long))
            if link >= 0:
                self.link_load[link].append((column, long))


def labels(model: Labelling, values: Floats) -> npt.NDArray[np.int32]:
    """int32[n]: target of each unit in a solution of the model."""
    chosen = np.where(model.y >= 0, values[model.y], -1.0).argmax(axis=1)
    found: npt.NDArray[np.int32] = chosen[model.group].astype(np.int32)
    return found


def size(problem: Problem) -> int:
    """About how many columns the model has."""
    each = problem.n_tensors if problem.charge == "target" else len(problem.read_tensor)
    moves = problem.receive.any() or problem.transfer.any()
    return int(problem.n_units * problem.n_targets + (each * problem.n_targets**2 if moves else 0))


def longest_path(problem: Problem) -> list[int]:
    """Units of a path with the most units."""
    graph = dag(problem)
    length, via = np.ones(problem.n_units, np.int64), np.full(problem.n_units, -1, np.int64)
    for unit in problem.order.tolist():
        for maker in graph.before[graph.before_at[unit] : graph.before_at[unit + 1]].tolist():
            if length[maker] + 1 > length[unit]:
                length[unit], via[unit] = length[maker] + 1, maker
    path = [int(length.argmax())]
    while via[path[-1]] >= 0:
        path.append(int(via[path[-1]]))
    return path[::-1]


@dataclass(frozen=True)
class Solved:
    """What HiGHS says.

    Attributes:
        is_optimal: Whether it is the optimum, to HiGHS's tolerances.
        is_infeasible: Whether there is none.
        values: float64[columns]; None where it found none.
        bound: Of a minimum: no solution is lower. -inf where nothing was proven.
    """

    is_optimal: bool
    is_infeasible: bool
    values: Floats | None
    bound: float


def minimised(
    model: Labelling,
    costs: Terms,
    seconds: float,
    *,
    start: npt.NDArray[np.int32] | None = None,
    integral: bool = True,
    stop_at: float = -np.inf,
) -> Solved:
    """Minimise a linear function over the model with HiGHS, on one thread.

    Args:
        model: The model.
        costs: Terms of the function.
        seconds: Time limit.
        start: int32[n]: targets of a plan to start from.
        integral: Whether columns that are to be integral are; without, the bound is the linear program's,
            from its dual values, so that rounding cannot make it too high.
        stop_at: A solution as low as this is enough.

    Source: HiGHS, Q. Huangfu and J. A. J. Hall, Mathematical Programming Computation 10 (2018); the safe
    bound of a linear program: A. Neumaier and O. Shcherbina, Mathematical Programming 99 (2004).
    """
    lp = highspy.HighsLp()
    cost = np.zeros(model.n_columns)
    for at, value in costs:
        cost[at] += value
    scale = float(np.abs(cost).max()) or 1.0
    lp.num_col_, lp.num_row_ = model.n_columns, len(model.rows)
    lp.col_cost_ = cost / scale
    lp.col_lower_, lp.col_upper_ = np.zeros(model.n_columns), np.array(model.upper, np.float64)
    lp.row_lower_ = np.array([row[0] for row in model.rows])
    lp.row_upper_ = np.array([row[1] for row in model.rows])
    starts, index, factors = _matrix(model)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = starts, index, factors
    if integral:
        kinds = [highspy.HighsVarType.kContinuous] * model.n_columns
        for at in model.integral:
            kinds[at] = highspy.HighsVarType.kInteger
        lp.integrality_ = kinds
    highs = Highs()
    for name, setting in (("threads", 1), ("time_limit", max(seconds, 0.01))):
        highs.setOptionValue(name, setting)
    highs.setOptionValue("mip_rel_gap", 0.0)
    if np.isfinite(stop_at):
        highs.setOptionValue("objective_target", stop_at / scale)
    highs.passModel(lp)
    if start is not None:
        guess = _guess(model, start)
        highs.setSolution(len(guess), np.array(list(guess), np.int32), np.array(list(guess.values())))
    highs.run()
    status, info = highs.getModelStatus(), highs.getInfo()
    is_optimal = status == highspy.HighsModelStatus.kOptimal
    is_infeasible = status == highspy.HighsModelStatus.kInfeasible
    has_values = info.primal_solution_status == 2
    solution = highs.getSolution()
    values = np.array(solution.col_value) if has_values else None
    if integral:
        bound = info.mip_dual_bound * scale if model.integral else info.objective_function_value * scale
    else:
        duals: Any = np.array(solution.row_dual) if is_optimal else None
        bound = _safe(lp, starts, index, factors, duals) * scale if is_optimal else -np.inf
    return Solved(is_optimal, is_infeasible, values, float(bound))


def _matrix(model: Labelling) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Floats]:
    """The rows, compressed; terms of one column in one row are added up."""
    starts, index, value = [0], [], []
    for _, _, terms in model.rows:
        merged: dict[int, float] = {}
        for at, factor in terms:
            merged[at] = merged.get(at, 0.0) + factor
        index += list(merged)
        value += list(merged.values())
        starts.append(len(index))
    return np.array(starts, np.int32), np.array(index, np.int32), np.array(value, np.float64)


def _guess(model: Labelling, target: npt.NDArray[np.int32]) -> dict[int, float]:
    """Values of the columns that say where units are; HiGHS finds the others."""
    found = {int(at): 0.0 for at in model.y.ravel() if at >= 0}
    for unit, b in enumerate(target.tolist()):
        if model.at(unit, b) >= 0:
            found[model.at(unit, b)] = 1.0
    return found


def _safe(
    lp: Any, starts: npt.NDArray[np.int32], index: npt.NDArray[np.int32], value: Floats, duals: Floats
) -> float:
    """Least value of the Lagrangian for any row prices: each column at the better of its bounds."""
    lower, upper = np.array(lp.row_lower_), np.array(lp.row_upper_)
    duals = np.where((duals > 0) & np.isinf(lower) | (duals < 0) & np.isinf(upper), 0, duals)
    limits = np.where(duals > 0, lower, np.where(duals < 0, upper, 0))
    rows = np.repeat(duals, np.diff(starts))
    reduced = np.array(lp.col_cost_) - np.bincount(index, rows * value, minlength=lp.num_col_)
    sides = np.where(reduced < 0, reduced * np.array(lp.col_upper_), 0)
    return float((duals * limits).sum() + sides.sum())
