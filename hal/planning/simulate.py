"""The judge: carries a plan out on a virtual clock, event by event, and looks at every constraint.

Each silicon, send port, receive port and link is a resource with a queue, in the static order of the plan. A
task, which is a partition's call or a handoff beside it, starts at the moment when what it waits for is done
and every resource it needs has come to it in its queue. The code shares nothing with the recursion of
:mod:`hal.planning.evaluate`, so that one mistake cannot hide in both; it is slower and knows more.

Source: activity scanning with resource tokens: a timed event graph, Baccelli, Cohen, Olsder and Quadrat,
"Synchronization and Linearity", 1992, chapter 2.
"""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hal.planning.problem import Assignment, Floats, Problem
from hal.planning.simulate_memory import Use, use_of_pools
from hal.planning.simulate_rules import broken_rules, misfit
from hal.planning.simulate_tasks import Tasks, tasks_of
from hal.planning.violations import Violation, is_over, memory


class Resource(NamedTuple):
    """What tasks queue for.

    Attributes:
        kind: ``silicon``, ``send``, ``receive`` or ``link``.
        number: Of the silicon (for ports too) or link.
    """

    kind: str
    number: int


class Event(NamedTuple):
    """Something that took place.

    Attributes:
        kind: ``compute``, the call of a partition, or ``handoff``, a tensor on its way beside computing.
        partition: That is called, or that the tensor is for.
        target: Of that partition.
        tensor: Handed over; -1 for a call.
        source: Partition that made the tensor; -1 for a call.
        resources: What it occupies. A handoff that takes no time occupies nothing.
        slot: Of its silicon, from 0; -1 where the silicon has no limit, and for handoffs.
        start: On the clock.
        end: On the clock.
    """

    kind: str
    partition: int
    target: int
    tensor: int
    source: int
    resources: tuple[Resource, ...]
    slot: int
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """What happens when a plan is carried out.

    Where the assignment has no shape, breaks the order or puts a unit where it cannot run, nothing is carried
    out: there are no events, values are infinite.

    Attributes:
        events: By start, then by end; of a moment's events those of lower partitions first.
        loads: Time that the plan puts on each resource it uses, a silicon's divided by its slots.
        latency: When the last partition has ended.
        throughput: Largest load.
        energy: Sum.
        memory: Bytes of each pool over time.
        violations: Every constraint that does not hold.
    """

    events: tuple[Event, ...]
    loads: dict[Resource, float]
    latency: float
    throughput: float
    energy: float
    memory: tuple[Use, ...]
    violations: tuple[Violation, ...]

    @functools.cached_property
    def peaks(self) -> Floats:
        """float64[m]: highest use of each pool, bytes."""
        return np.array([use.peak for use in self.memory])

    def objective(self, name: str) -> float:
        """The value of one of :data:`hal.planning.problem.OBJECTIVES`."""
        if name == "memory":
            return float(self.peaks.sum())
        return float(getattr(self, name))


def simulate(problem: Problem, assignment: Assignment) -> Simulation:
    """Carry a plan out by the rules of :mod:`hal.planning.problem`.

    Args:
        problem: Whose units are placed.
        assignment: Any; what is wrong with it is said in the violations.
    """
    found = misfit(problem, assignment)
    found = found or broken_rules(problem, assignment)
    if any(one.constraint in ("order", "target") for one in found):
        nothing = Use(np.zeros(1), np.full(1, np.inf))
        memory_of = (nothing,) * problem.n_pools
        return Simulation((), {}, np.inf, np.inf, np.inf, memory_of, tuple(found))
    tasks = tasks_of(problem, assignment)
    queues = _queues(problem, tasks)
    start, slot = _run(problem, tasks, queues)
    end = start + tasks.takes
    memory_of = use_of_pools(problem, assignment, tasks, start, end)
    found += [
        memory(problem, pool, use.peak)
        for pool, use in enumerate(memory_of)
        if is_over(use.peak, float(problem.capacity[pool]))
    ]
    loads = _loads(problem, tasks, queues)
    return Simulation(
        events=_events(tasks, queues, start, end, slot),
        loads=loads,
        latency=float(end[: tasks.n_partitions].max()),
        throughput=max(loads.values(), default=0.0),
        energy=tasks.energy,
        memory=memory_of,
        violations=tuple(found),
    )


def _queues(problem: Problem, tasks: Tasks) -> dict[Resource, list[int]]:
    """Tasks of each resource in the order in which they get it."""
    queues: dict[Resource, list[int]] = {}

    def join(kind: str, number: int, task: int) -> None:
        queues.setdefault(Resource(kind, number), []).append(task)

    silicon = problem.silicon.tolist()
    slots = problem.slots.tolist()
    for p, b in enumerate(tasks.target.tolist()):
        if slots[silicon[b]]:
            join("silicon", silicon[b], p)
    link = problem.link.tolist()
    for at, (a, b) in enumerate(zip(tasks.handoff_from.tolist(), tasks.handoff_to.tolist(), strict=True)):
        task = tasks.n_partitions + at
        if tasks.takes[task] == 0:
            continue
        if problem.send_port:
            join("send", silicon[a], task)
        if problem.receive_port:
            join("receive", silicon[b], task)
        if link[a][b] >= 0:
            join("link", link[a][b], task)
    return queues


def _run(problem: Problem, tasks: Tasks, queues: dict[Resource, list[int]]) -> tuple[Floats, list[int]]:
    """When each task starts, and on which slot of its silicon (-1: none)."""
    n = len(tasks.takes)
    takes = tasks.takes.tolist()
    followers = tasks.followers
    missing = list(tasks.waits_for)
    start = [np.inf] * n
    slot = [-1] * n
    needs: list[list[Resource]] = [[] for _ in range(n)]
    for resource, queue in queues.items():
        for task in queue:
            missing[task] += 1
            needs[task].append(resource)
    clock: list[tuple[float, int]] = []
    heads = dict.fromkeys(queues, 0)

    def one_less(task: int, now: float) -> None:
        missing[task] -= 1
        if not missing[task]:
            start[task] = now
            heapq.heappush(clock, (now + takes[task], task))

    def hand_on(resource: Resource, free: int, now: float) -> None:
        """A place of the resource is free: the next in its queue has it from now on, even if it waits."""
        head, queue = heads[resource], queues[resource]
        if head < len(queue):
            heads[resource] = head + 1
            if resource.kind == "silicon":
                slot[queue[head]] = free
            one_less(queue[head], now)

    for task in [task for task in range(n) if not missing[task]]:
        missing[task] = 1
        one_less(task, 0.0)
    for resource in queues:
        places = int(problem.slots[resource.number]) if resource.kind == "silicon" else 1
        for free in range(min(places, len(queues[resource]))):
            hand_on(resource, free, 0.0)
    while clock:
        now, task = heapq.heappop(clock)
        for resource in needs[task]:
            hand_on(resource, slot[task], now)
        for follower in followers[task]:
            one_less(follower, now)
    return np.array(start), slot


def _loads(problem: Problem, tasks: Tasks, queues: dict[Resource, list[int]]) -> dict[Resource, float]:
    """Time that each resource is occupied by one request."""
    loads = {}
    for resource, queue in queues.items():
        places = int(problem.slots[resource.number]) if resource.kind == "silicon" else 1
        loads[resource] = float(tasks.takes[queue].sum()) / places
    return loads


def _events(
    tasks: Tasks, queues: dict[Resource, list[int]], start: Floats, end: Floats, slot: list[int]
) -> tuple[Event, ...]:
    occupies: dict[int, tuple[Resource, ...]] = {}
    for resource, queue in queues.items():
        for task in queue:
            occupies[task] = (*occupies.get(task, ()), resource)
    starts, ends = start.tolist(), end.tolist()
    target = tasks.target.tolist()
    found = [
        Event("compute", p, target[p], -1, -1, occupies.get(p, ()), slot[p], starts[p], ends[p])
        for p in range(tasks.n_partitions)
    ]
    rows = zip(
        tasks.handoff_into.tolist(), tasks.handoff_tensor.tolist(), tasks.handoff_out_of.tolist(), strict=True
    )
    for task, (p, tensor, source) in enumerate(rows, tasks.n_partitions):
        on = occupies.get(task, ())
        found.append(Event("handoff", p, target[p], tensor, source, on, -1, starts[task], ends[task]))
    return tuple(sorted(found, key=lambda event: (event.start, event.end, event.partition)))
