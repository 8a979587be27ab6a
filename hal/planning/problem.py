"""A placement problem: which target computes which unit. Numbers only, so anybody's problem loads into it.

Words. A *unit* is placed whole. A *target* is where it may run; targets on one *silicon* exclude each other
in time, targets of one *pool* share its memory. A *tensor* is made by one unit (or comes from outside) and
read by any number. A *partition* is a set of units of one target that runs in one call. An
:class:`Assignment` says for each unit its target and its partition; partitions are numbered in the order in
which they are carried out, and that order is kept on every silicon, port and link (static order). With every
order fixed the machine is a max-plus linear system, so that longer durations never shorten a plan.

Time has the unit of the problem (nanoseconds in hal's own problems), memory is in bytes, energy is time times
power. An infinite time says that the target cannot compute the unit.

What a partition costs. Partition p of target b waits until its inputs are there and until its silicon has a
free slot for it. Slots are given in the order of the numbers and are held while waiting: with one slot, p
comes after all lower numbers on its silicon; with 0 slots nobody waits. Then p takes::

    call[b]
    + for each tensor it is charged for, made by another target or from outside:  receive[tensor, b]
    + for each such tensor of target a whose handoff does not overlap:             transfer[tensor, a, b]
    + for each tensor it is charged for, of another partition of b itself:         transfer[tensor, b, b]
    + time[unit, b] of its units
    + for each of its tensors that another target reads, or that is an output:     send[tensor, b]

and its tensors are there when it ends. A handoff between targets on different silicon, where ``overlap`` is
set, runs beside the computing: it starts when the tensor is there and the ports and the link it needs are
free, and takes ``transfer[tensor, a, b]``. Each port and link serves its handoffs in the order of (reading
partition, making partition, tensor). A handoff that takes no time needs no port. What comes from outside is
there from the beginning: it is received, never transferred.

``charge`` says how often a tensor is charged for: for each reading unit outside the partition that makes it
(``edge``), once for each reading partition (``partition``), or once for each reading target (``target``: the
reading partition with the lowest number pays, ``transfer[tensor, b, b]`` likewise). With ``target``, the
others wait for the one handoff where it overlaps, and else only for the partition that makes the tensor.

``start`` is ``partition`` or ``unit``. With ``unit`` each unit is a call of its own: the partition numbers of
all units differ, and are the order of the units.

Objectives, all to be made small:

* ``latency``: when the last partition has ended.
* ``throughput``: the time between two requests of a pipeline, the largest load of any silicon (divided by
  its slots; none where they are 0), port or link; a load is the sum of all that the plan puts on it.
* ``energy``: energy[unit, target] of all units, plus power[b] times the time of the calls, sends, receives
  and handoffs, overlapping or not, that partitions of b are charged for.
* ``memory``: the highest use of each pool, summed over pools.

Memory of a pool at a time: the weights of all units on its targets, always; of each partition that runs the
largest workspace of its units; and tensors, each once, half-open from begin to end, so that what takes no
time takes no memory. A tensor begins where the partition that makes it starts, or the first handoff that
brings it to the pool, or the first partition that reads it there, whichever is first. It ends with the last
of these: the partitions of the pool that make or read it; the overlapping handoffs out of the pool; the
partitions that pay for a handoff out of the pool that does not overlap, even one that takes no time; and for
an output, in the pool that makes it, the request.

Source: DESIGN section 4 of the project; the charging and start rules are those of Tarnawski et al.,
"Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020, and of Zhang et al.,
"Moirai: Towards Optimal Placement for Distributed Inference on Heterogeneous Devices", 2023.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hal.errors import ProblemError, problems

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Small = npt.NDArray[np.int32]

OBJECTIVES = ("latency", "throughput", "energy", "memory")
CHARGES = ("edge", "partition", "target")
STARTS = ("partition", "unit")
#: A tensor of no unit: it comes from outside.
OUTSIDE = -1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Units, targets, tensors, rules and constraints, as arrays that are not to be written to.

    Sizes: ``n`` units, ``t`` targets, ``s`` silicons, ``m`` pools, ``v`` tensors, ``r`` reads. Arrays of the
    default None become zeros (or what is said) of the right size when the problem is made.

    Attributes:
        time: float64[n, t]; infinite where a target cannot compute a unit, or must not.
        silicon: int[t]: silicon of each target, numbered from 0.
        pool: int[t]: memory pool of each target, numbered from 0.
        producer: int[v]: unit that makes each tensor, or :data:`OUTSIDE`.
        read_tensor: int[r] and
        read_unit: int[r]: which unit reads which tensor; each pair once.
        is_output: bool[v]: tensors the caller wants.
        tensor_bytes: int[v].
        transfer: float64[v, t, t]: from target a to target b.
        send: float64[v, t]: leaving a target.
        receive: float64[v, t]: entering a target, from another or from outside.
        call: float64[t]: for each partition.
        energy: float64[n, t].
        power: float64[t].
        weight_bytes: int[n, t].
        workspace_bytes: int[n, t].
        error: float64[n, t]: adds up over units.
        capacity: float64[m]: bytes of each pool; infinite by default.
        slots: int[s]: partitions that a silicon runs at once, 1 by default; 0 for any number.
        link: int[t, t]: handoffs from a to b of one link exclude each other; -1 (the default) for none.
        same_device: int[n]: units of one group, numbered from 0, share a target; -1 (the default) for none.
        max_error: Highest sum of errors; infinite for any.
        max_partitions: Highest number of partitions; 0 for any. With ``start="unit"`` nothing is counted.
        partitions_per_target: int[t]: highest number for each target; 0 (the default) for any. For the
            objective throughput, 1 is what "contiguous" means: the target's units are convex.
        charge: One of :data:`CHARGES`.
        start: One of :data:`STARTS`.
        overlap: Whether handoffs between different silicon run beside computing.
        send_port: Whether a silicon sends one tensor at a time.
        receive_port: Whether a silicon receives one tensor at a time.
        objective: One of :data:`OBJECTIVES`.
        unit_names: For texts.
        target_names: For texts.
        pool_names: For texts.
        silicon_names: For texts.
        reasons: (unit, target) to why its time is infinite, for texts.

    Raises:
        ProblemError: Sizes or values do not fit together, or the units form a cycle; all faults are named.
    """

    time: Floats
    silicon: Ints
    pool: Ints
    producer: Ints
    read_tensor: Ints
    read_unit: Ints
    # None until the problem is made: then all are arrays, and readers need not ask.
    is_output: npt.NDArray[np.bool_] = None  # type: ignore[assignment]
    tensor_bytes: Ints = None  # type: ignore[assignment]
    transfer: Floats = None  # type: ignore[assignment]
    send: Floats = None  # type: ignore[assignment]
    receive: Floats = None  # type: ignore[assignment]
    call: Floats = None  # type: ignore[assignment]
    energy: Floats = None  # type: ignore[assignment]
    power: Floats = None  # type: ignore[assignment]
    weight_bytes: Ints = None  # type: ignore[assignment]
    workspace_bytes: Ints = None  # type: ignore[assignment]
    error: Floats = None  # type: ignore[assignment]
    capacity: Floats = None  # type: ignore[assignment]
    slots: Ints = None  # type: ignore[assignment]
    link: Ints = None  # type: ignore[assignment]
    same_device: Ints = None  # type: ignore[assignment]
    partitions_per_target: Ints = None  # type: ignore[assignment]
    max_error: float = np.inf
    max_partitions: int = 0
    charge: str = "partition"
    start: str = "partition"
    overlap: bool = True
    send_port: bool = False
    receive_port: bool = False
    objective: str = "latency"
    unit_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    pool_names: tuple[str, ...] = ()
    silicon_names: tuple[str, ...] = ()
    reasons: dict[tuple[int, int], str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("time", np.atleast_2d(np.ascontiguousarray(self.time, np.float64)))
        for name in ("silicon", "pool", "producer", "read_tensor", "read_unit"):
            put(name, np.ascontiguousarray(getattr(self, name), np.int64).reshape(-1))
        n, t = self.time.shape
        v, s, m = len(self.producer), _count(self.silicon), _count(self.pool)
        shapes: dict[str, tuple[tuple[int, ...], type, float]] = {
            "is_output": ((v,), np.bool_, False),
            "tensor_bytes": ((v,), np.int64, 0),
            "transfer": ((v, t, t), np.float64, 0),
            "send": ((v, t), np.float64, 0),
            "receive": ((v, t), np.float64, 0),
            "call": ((t,), np.float64, 0),
            "energy": ((n, t), np.float64, 0),
            "power": ((t,), np.float64, 0),
            "weight_bytes": ((n, t), np.int64, 0),
            "workspace_bytes": ((n, t), np.int64, 0),
            "error": ((n, t), np.float64, 0),
            "capacity": ((m,), np.float64, np.inf),
            "slots": ((s,), np.int64, 1),
            "link": ((t, t), np.int64, -1),
            "same_device": ((n,), np.int64, -1),
            "partitions_per_target": ((t,), np.int64, 0),
        }
        found = [
            f"{name} has shape {np.shape(getattr(self, name))}; expected {shape}"
            for name, (shape, _, _) in shapes.items()
            if getattr(self, name) is not None and np.shape(getattr(self, name)) != shape
        ]
        for name, length in (("silicon", t), ("pool", t), ("read_unit", len(self.read_tensor))):
            if len(getattr(self, name)) != length:
                found.append(f"{name} has {len(getattr(self, name))} entries; expected {length}")
        if found:
            raise ProblemError(problems("the arrays of the problem do not fit together", found))
        for name, (shape, kind, default) in shapes.items():
            value = getattr(self, name)
            put(name, np.full(shape, default, kind) if value is None else np.ascontiguousarray(value, kind))
        for name, what, count in (
            ("unit_names", "unit", n),
            ("target_names", "target", t),
            ("pool_names", "pool", m),
            ("silicon_names", "silicon", s),
        ):
            names = tuple(getattr(self, name)) or tuple(f"{what} {at}" for at in range(count))
            put(name, names)
        found = self._faults()
        if found:
            raise ProblemError(problems("the problem cannot be", found))
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), np.ndarray):
                if value.base is not None or not value.flags.owndata or value.flags.writeable:
                    value = value.copy()
                value.flags.writeable = False
                put(field.name, value)

    @property
    def n_units(self) -> int:
        """Units."""
        return int(self.time.shape[0])

    @property
    def n_targets(self) -> int:
        """Targets."""
        return int(self.time.shape[1])

    @property
    def n_tensors(self) -> int:
        """Tensors."""
        return len(self.producer)

    @property
    def n_silicons(self) -> int:
        """Silicons."""
        return len(self.slots)

    @property
    def n_pools(self) -> int:
        """Memory pools."""
        return len(self.capacity)

    @functools.cached_property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """bool[n, t]: whether a target can compute a unit."""
        return np.isfinite(self.time)

    @functools.cached_property
    def order(self) -> Ints:
        """int[n]: the units in a topological order, of those possible the one nearest their numbers."""
        return _order(self)

    def replace(self, **changes: Any) -> Problem:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def _faults(self) -> list[str]:
        n, t = self.time.shape
        v = self.n_tensors
        found = []
        if n == 0 or t == 0:
            found.append(f"it has {n} units and {t} targets; expected at least one of each")
            return found
        for name, legal in (("objective", OBJECTIVES), ("charge", CHARGES), ("start", STARTS)):
            if getattr(self, name) not in legal:
                found.append(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(legal)}")
        ranges: Sequence[tuple[str, int, int]] = (
            ("silicon", 0, t),
            ("pool", 0, t),
            ("producer", OUTSIDE, n),
            ("read_tensor", 0, v),
            ("read_unit", 0, n),
            ("same_device", -1, n),
            ("link", -1, t * t),
            ("slots", 0, 1 << 31),
            ("partitions_per_target", 0, 1 << 31),
        )
        for name, low, high in ranges:
            value = getattr(self, name)
            if value.size and (value.min() < low or value.max() >= high):
                found.append(f"{name} holds {value.min()} to {value.max()}; expected {low} to {high - 1}")
        for name in ("time", "transfer", "send", "receive", "call", "energy", "power", "error", "capacity"):
            value = getattr(self, name)
            if np.isnan(value).any() or (value < 0).any():
                found.append(f"{name} holds a negative value or not a number; expected 0 or more")
            elif name not in ("time", "capacity") and np.isinf(value).any():
                found.append(f"{name} holds an infinite value; expected a finite one")
        if not self.max_error >= 0:
            found.append(f"max_error is {self.max_error}; expected 0 or more")
        if self.max_partitions < 0:
            found.append(f"max_partitions is {self.max_partitions}; expected 0 for any number, or more")
        found += [
            f"{name} holds a negative value; expected 0 or more"
            for name in ("tensor_bytes", "weight_bytes", "workspace_bytes")
            if (getattr(self, name) < 0).any()
        ]
        for name, count in (
            ("unit_names", n),
            ("target_names", t),
            ("pool_names", self.n_pools),
            ("silicon_names", self.n_silicons),
        ):
            if len(getattr(self, name)) != count:
                found.append(f"{name} has {len(getattr(self, name))} entries; expected {count}")
        pairs = self.read_tensor * n + self.read_unit
        if len(np.unique(pairs)) != len(pairs):
            found.append("a unit reads a tensor twice; expected each pair once")
        if not found and len(self.order) < n:
            stuck = np.setdiff1d(np.arange(n), self.order)
            names = ", ".join(self.unit_names[at] for at in stuck[:5])
            found.append(f"units on or behind a cycle: {len(stuck)}, {names} among them; expected a DAG")
        return found


@dataclass(frozen=True)
class Assignment:
    """A plan in numbers.

    Attributes:
        target: int32[n]: target of each unit.
        partition: int32[n]: partition of each unit, numbered from 0 without gaps in the order of execution.
    """

    target: Small
    partition: Small

    @property
    def n_partitions(self) -> int:
        """Partitions."""
        return int(self.partition.max()) + 1 if len(self.partition) else 0


def _count(numbers: Ints) -> int:
    return int(numbers.max()) + 1 if len(numbers) else 0


def _order(problem: Problem) -> Ints:
    """Kahn's algorithm, the unit with the lowest number first; shorter than n where there is a cycle."""
    import heapq

    n = problem.n_units
    made = problem.producer[problem.read_tensor]
    inner = made != OUTSIDE
    source, sink = made[inner], problem.read_unit[inner]
    by_source = np.argsort(source, kind="stable")
    sink_sorted = sink[by_source].tolist()
    starts = np.searchsorted(source[by_source], np.arange(n + 1)).tolist()
    waiting = np.bincount(sink, minlength=n).tolist()
    ready = [unit for unit in range(n) if not waiting[unit]]
    found = []
    while ready:
        unit = heapq.heappop(ready)
        found.append(unit)
        for at in range(starts[unit], starts[unit + 1]):
            reader = sink_sorted[at]
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    return np.array(found, np.int64)
