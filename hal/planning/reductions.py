"""Smaller problems with the same optimum, and the way back to plans of the whole.

What is done, and why it is exact:

* **Targets that a unit cannot have** are struck out: see :func:`hal.planning.domains.domains`.
* **Dominated targets** are struck out (:func:`dominated`): wherever a plan uses one, another on the same
  silicon and pool is nowhere worse. Durations enter sums and maxima only, so nothing gets later.
* **Colocation** (:attr:`Problem.same_device`) and **chains** are contracted into one unit each, where targets
  alone decide a plan's worth (:func:`labels_decide`): loads are sums over targets then, so it does not matter
  which units of a target run together. Groups whose contraction would leave a cycle are not contracted, or,
  where each target has one partition, the whole cycle is: its units would have to share a partition.
  In a chain (:func:`_chains`) a unit joins its only neighbour where, wherever the two are apart, bringing
  them together makes no silicon's load larger. Units that cost nothing are the simplest case.

Repeated blocks are no reduction: that blocks are equal does not make their best targets equal, because the
silicon they share, memory and error add up over them. Solvers for linear orders reuse their costs instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hal.errors import InternalError
from hal.planning.contraction import components
from hal.planning.domains import Flags, by_group, domains, groups
from hal.planning.exhaustive import activations_bind
from hal.planning.partitions import dag, dag_of, partitioned
from hal.planning.problem import OUTSIDE, Assignment, Floats, Ints, Problem
from hal.planning.search import Best

#: Pairs of units and targets above which chains are not looked for: the passes are plain Python.
_CHAINS = 60_000
#: Passes over chains; each at least halves a chain of units that cost nothing.
_PASSES = 12
#: Relative difference that sums in another order may make.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reduced:
    """A smaller problem, and the way back.

    Attributes:
        whole: The problem.
        problem: The smaller one: of the same targets, with some units joined.
        joined: int64[n]: unit of the smaller problem that each unit became.
    """

    whole: Problem
    problem: Problem
    joined: Ints

    @property
    def is_same(self) -> bool:
        """Whether units are the same, so that plans of either are plans of the other."""
        return self.problem.n_units == self.whole.n_units

    def expanded(self, assignment: Assignment) -> Assignment:
        """A plan of the smaller problem as one of the whole."""
        if self.is_same:
            return assignment
        target = assignment.target[self.joined]
        if self.whole.start == "unit":
            return partitioned(self.whole, target)
        return Assignment(target, assignment.partition[self.joined])

    def contracted(self, assignment: Assignment) -> Assignment | None:
        """A plan of the whole as one of the smaller problem; None where joined units are apart."""
        if self.is_same:
            return assignment
        target = np.zeros(self.problem.n_units, np.int32)
        target[self.joined] = assignment.target
        if (target[self.joined] != assignment.target).any():
            return None
        return partitioned(self.problem, target)

    def best(self, outer: Best) -> Best:
        """What solvers of the smaller problem work with: plans and bounds go to ``outer`` too."""
        return outer if self.is_same else _Lifted(self, outer)


class _Lifted(Best):
    """The best plan of a smaller problem, handed on to the whole."""

    def __init__(self, small: Reduced, outer: Best) -> None:
        super().__init__(small.problem)
        self._small, self._outer = small, outer
        self.prove(outer.bound, outer.bound_source)
        if outer.proposal is not None:
            plan = small.contracted(outer.proposal.assignment)
            if plan is not None:
                self.offer(plan, outer.proposal.solver)

    def offer(self, assignment: Assignment, solver: str, claimed: float | None = None) -> float:
        """As :meth:`Best.offer`, for both problems.

        Raises:
            InternalError: The plan is worth something else in the whole problem.
        """
        value = super().offer(assignment, solver, claimed)
        if value < np.inf:
            whole = self._outer.offer(self._small.expanded(assignment), solver)
            if not abs(whole - value) <= _TOLERANCE * max(abs(value), 1e-30):
                raise InternalError(
                    f"{solver}: a plan worth {value!r} in the reduced problem is worth {whole!r} in the "
                    "whole one; report it"
                )
        return value

    def prove(self, bound: float, source: str) -> None:
        """As :meth:`Best.prove`, for both problems."""
        super().prove(bound, source)
        self._outer.prove(bound, source)


def reduced(problem: Problem) -> Reduced:
    """The problem, smaller where that is exact; see the module."""
    can = domains(problem).copy()
    for worse in dominated(problem, can):
        can[:, worse] = False
    if not can.any(axis=1).all():
        can = domains(problem).copy()
    if (can != problem.allowed).any():
        small = problem.replace(time=np.where(can, problem.time, np.inf))
    else:
        small = problem
    joined = np.arange(problem.n_units)
    if labels_decide(problem):
        for step in range(1 + _PASSES):
            sets = _colocated(small) if step == 0 else _chains(small)
            count = int(sets.max()) + 1
            if count == small.n_units:
                if step:
                    break
                continue
            small = _joined(small, sets)
            joined = sets[joined]
    return Reduced(problem, small, joined)


def dominated(problem: Problem, can: Flags) -> list[int]:
    """Targets that are nowhere better than another one on the same silicon and pool.

    Exact: let b be no worse than c for each unit, call, tensor and constraint, and a plan use c. Put
    everything of c on b, partition by partition. What crossed between b and c is handed over within b, for
    no more; what others hand to b or c costs no more; each partition takes no longer, so that by monotony
    nothing ends later; loads, energy, weights and errors fall or stay. Not where activations bind, because a
    tensor's life can grow when others become faster, and not where partitions of single targets are limited.
    Two targets that dominate each other are equal; the first stays.
    """
    if activations_bind(problem) or problem.partitions_per_target.any():
        return []
    gone: list[int] = []
    for c in range(problem.n_targets):
        for b in range(problem.n_targets):
            if (
                b == c
                or b in gone
                or problem.silicon[b] != problem.silicon[c]
                or problem.pool[b] != problem.pool[c]
            ):
                continue
            if _no_worse(problem, can, b, c) and (b < c or not _no_worse(problem, can, c, b)):
                gone.append(c)
                break
    return gone


def _no_worse(problem: Problem, can: Flags, b: int, c: int) -> bool:
    of_c = can[:, c]
    units = (problem.time, problem.energy, problem.weight_bytes, problem.workspace_bytes, problem.error)
    if (of_c & ~can[:, b]).any() or any((values[of_c, b] > values[of_c, c]).any() for values in units):
        return False
    if problem.call[b] > problem.call[c] or problem.power[b] > problem.power[c]:
        return False
    move, link = problem.transfer, problem.link
    others = [a for a in range(problem.n_targets) if a not in (b, c)]
    return bool(
        (problem.send[:, b] <= problem.send[:, c]).all()
        and (problem.receive[:, b] <= problem.receive[:, c]).all()
        and (move[:, b, b] <= np.minimum(move[:, c, c], np.minimum(move[:, b, c], move[:, c, b]))).all()
        and all((move[:, a, b] <= move[:, a, c]).all() for a in others)
        and all((move[:, b, a] <= move[:, c, a]).all() for a in others)
        and all(link[a, b] == link[a, c] and link[b, a] == link[c, a] for a in others)
    )


def labels_decide(problem: Problem) -> bool:
    """Whether a plan's worth depends on its targets alone, and not on how units are grouped or ordered.

    So it is for throughput and energy where weights alone fill memory and either each target has one
    partition at most, or nothing is paid for each partition: no calls (or units start alone), no handoffs
    within a target, and tensors are not charged by partition, edge or unit.
    """
    if problem.objective not in ("throughput", "energy") or activations_bind(problem):
        return False
    if problem.start == "unit":
        return problem.charge == "target" and not _within(problem).any()
    if problem.charge == "edge" or problem.max_partitions:
        return False
    limits = problem.partitions_per_target
    if (limits == 1).all():
        return True
    return problem.charge == "target" and not (limits.any() or problem.call.any() or _within(problem).any())


def _within(problem: Problem) -> Floats:
    """float64[v, t]: handing a tensor over within a target."""
    return np.diagonal(problem.transfer, axis1=1, axis2=2)


def _colocated(problem: Problem) -> Ints:
    """Number of the joined unit of each unit: groups, and where contiguous the cycles that groups form."""
    group = groups(problem)
    count = int(group.max()) + 1
    if count == problem.n_units:
        return np.arange(problem.n_units)
    graph = dag(problem)
    source = group[np.repeat(np.arange(problem.n_units), np.diff(graph.after_at))]
    sink = group[graph.after]
    apart = source != sink
    quotient = dag_of(count, source[apart], sink[apart])
    edges = [quotient.after[quotient.after_at[g] : quotient.after_at[g + 1]].tolist() for g in range(count)]
    component = np.array(components(edges))
    if problem.start == "partition" and (problem.partitions_per_target == 1).all():
        return np.unique(component[group], return_inverse=True)[1].astype(np.int64)
    # Groups on a cycle stay apart.
    alone = (np.bincount(component)[component] == 1)[group]
    marks = np.where(alone, group, count + np.arange(problem.n_units))
    return np.unique(marks, return_inverse=True)[1].astype(np.int64)


def _chains(problem: Problem) -> Ints:
    """Pairs of neighbours that are together in some best plan; number of the joined unit of each unit.

    Let unit u make one tensor x, that only v reads, and let a plan have u on a and v on b. Moving u to b
    changes the load of b's silicon by u's time there and what u reads, less what x took to receive; that of
    a's by what makers on a must send now, less u's time and what x took to send. If neither is above 0
    whatever a and b, and u weighs nothing and has the same error everywhere, the plan with u on b keeps the
    constraints and no load is larger. Convexity and order are kept: whatever fed u fed b's units, through u,
    before. Likewise v, if u is all that feeds it, moves to u, where handoffs cost the same whoever sends.

    Handoffs that overlap must take no time on ports or links.
    """
    n, t = problem.n_units, problem.n_targets
    identity = np.arange(n)
    limited = problem.n_units * t > _CHAINS or problem.objective != "throughput"
    between = problem.transfer.copy()
    between[:, np.arange(t), np.arange(t)] = 0
    if problem.overlap:
        apart = problem.silicon[:, None] != problem.silicon[None, :]
        if between[:, apart].any() and (
            problem.send_port or problem.receive_port or (problem.link >= 0).any()
        ):
            return identity
        between[:, apart] = 0
    if limited:
        return identity
    takes = _Chain(problem, between)
    partner = np.full(n, -1, np.int64)
    for u in problem.order.tolist():
        v = takes.only_reader(u)
        if v < 0 or partner[u] >= 0 or partner[v] >= 0:
            continue
        if takes.may_join(u, v) or takes.may_follow(u, v):
            partner[u] = partner[v] = u
    marks = np.where(partner >= 0, partner, identity)
    return np.unique(marks, return_inverse=True)[1].astype(np.int64)


class _Chain:
    """Costs of neighbours, for :func:`_chains`."""

    def __init__(self, problem: Problem, between: Floats) -> None:
        self.problem = problem
        self.may = problem.allowed
        self.between = between
        self.reads: list[list[int]] = [[] for _ in range(problem.n_units)]
        self.readers: list[list[int]] = [[] for _ in range(problem.n_tensors)]
        self.made: list[list[int]] = [[] for _ in range(problem.n_units)]
        for x, unit in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
            self.reads[unit].append(x)
            self.readers[x].append(unit)
        for x, unit in enumerate(problem.producer.tolist()):
            if unit != OUTSIDE:
                self.made[unit].append(x)
        free = (problem.weight_bytes == 0).all(axis=1) | bool(np.isinf(problem.capacity).all())
        same = np.array(
            [len(np.unique(row[may])) <= 1 for row, may in zip(problem.error, self.may, strict=True)]
        )
        #: Units that may be moved as far as memory, error and groups go.
        self.is_free = free & (same | np.isinf(problem.max_error)) & (problem.same_device < 0)
        self.sourceless = not between.any()

    def only_reader(self, u: int) -> int:
        """The unit that reads all that u makes, if it is one tensor and one unit; else -1."""
        problem = self.problem
        read = [x for x in self.made[u] if self.readers[x] or problem.is_output[x]]
        if len(read) != 1 or problem.is_output[read[0]] or len(self.readers[read[0]]) != 1:
            return -1
        return self.readers[read[0]][0]

    def may_join(self, u: int, v: int) -> bool:
        """Whether u may move to wherever v is."""
        problem, may = self.problem, self.may
        if not self.is_free[u] or (may[v] & ~may[u]).any():
            return False
        x = next(x for x in self.made[u] if self.readers[x])
        reads = self.reads[u]
        # What u's tensors take to get to b at the most, and x at the least.
        brings = problem.receive[reads].sum(axis=0) + self.between[reads].max(axis=1, initial=0).sum(axis=0)
        sends = problem.send[[w for w in reads if problem.producer[w] != OUTSIDE]].sum(axis=0)
        for b in np.flatnonzero(may[v]).tolist():
            for a in np.flatnonzero(may[u]).tolist():
                if a == b:
                    continue
                saved = problem.receive[x, b] + self.between[x, a, b]
                if (
                    problem.time[u, b] + brings[b] > saved
                    or sends[a] > problem.time[u, a] + problem.send[x, a]
                ):
                    return False
        return True

    def may_follow(self, u: int, v: int) -> bool:
        """Whether v may move to wherever u is: u is all that feeds it."""
        problem, may = self.problem, self.may
        inner = [x for x in self.reads[v] if problem.producer[x] != OUTSIDE]
        if not (self.is_free[v] and self.sourceless and len(inner) == 1) or (may[u] & ~may[v]).any():
            return False
        x = inner[0]
        outside = problem.receive[[w for w in self.reads[v] if w != x]].sum(axis=0)
        makes = [y for y in self.made[v] if self.readers[y] or problem.is_output[y]]
        sends, comes = problem.send[makes].sum(axis=0), problem.receive[makes].sum(axis=0)
        for a in np.flatnonzero(may[u]).tolist():
            for b in np.flatnonzero(may[v]).tolist():
                if a == b:
                    continue
                more = problem.time[v, a] + outside[a] + sends[a]
                if more > problem.send[x, a] or comes[b] > problem.time[v, b] + problem.receive[x, b]:
                    return False
        return True


def _joined(problem: Problem, sets: Ints) -> Problem:
    """The problem with each set of units as one unit.

    Times, energies, weights and errors add up, and calls where units start alone; tensors within a set are
    gone, and one that several units of a set read is read once.
    """
    count = int(sets.max()) + 1
    size = np.bincount(sets)
    may = by_group(sets, ~problem.allowed) == 0
    time = by_group(sets, np.where(problem.allowed, problem.time, 0))
    energy = by_group(sets, problem.energy)
    if problem.start == "unit":
        time += (size - 1)[:, None] * problem.call
        energy += (size - 1)[:, None] * problem.call * problem.power
    workspace = np.zeros((count, problem.n_targets), np.int64)
    np.maximum.at(workspace, sets, problem.workspace_bytes)
    maker = np.where(problem.producer >= 0, sets[problem.producer], OUTSIDE)
    reader = sets[problem.read_unit]
    pairs = np.unique(problem.read_tensor * count + reader)
    tensor, reader = pairs // count, pairs % count
    outer = maker[tensor] != reader
    tensor, reader = tensor[outer], reader[outer]
    kept = problem.is_output | np.isin(np.arange(problem.n_tensors), tensor)
    number = np.cumsum(kept) - 1
    first = np.unique(sets, return_index=True)[1]
    group = np.full(count, -1, np.int64)
    group[sets] = np.maximum(group[sets], problem.same_device)
    for unit in np.flatnonzero(problem.same_device >= 0).tolist():
        group[sets[unit]] = problem.same_device[unit]
    return problem.replace(
        time=np.where(may, time, np.inf),
        energy=energy,
        weight_bytes=_whole(by_group(sets, problem.weight_bytes)),
        workspace_bytes=workspace,
        error=by_group(sets, problem.error),
        same_device=_numbered(group),
        producer=maker[kept],
        read_tensor=number[tensor],
        read_unit=reader,
        is_output=problem.is_output[kept],
        tensor_bytes=problem.tensor_bytes[kept],
        transfer=problem.transfer[kept],
        send=problem.send[kept],
        receive=problem.receive[kept],
        unit_names=tuple(problem.unit_names[unit] for unit in first.tolist()),
        reasons={},
    )


def _whole(values: Floats) -> Ints:
    return np.rint(values).astype(np.int64)


def _numbered(group: Ints) -> Ints:
    """Groups numbered from 0 without gaps; groups of one unit are none."""
    found = np.full(len(group), -1, np.int64)
    inside = np.flatnonzero(group >= 0)
    if len(inside):
        numbers: npt.NDArray[np.int64] = np.unique(group[inside], return_inverse=True)[1].astype(np.int64)
        shared = np.bincount(numbers)[numbers] > 1
        found[inside[shared]] = np.unique(numbers[shared], return_inverse=True)[1] if shared.any() else 0
    return found
