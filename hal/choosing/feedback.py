"""What measured plans teach about boundaries between partitions, for the next search.

A partition of a mixed plan was timed alone within the plan. What it takes beyond what its units, its call and
the links predict is what its boundaries cost: layouts that are changed at an end, fusions of one backend that
the cut breaks, cold caches. That is charged to the values it reads from other partitions, or, where it
reads none, to those it hands on.

Two kinds of costs come of it. What boundaries between two targets cost in the median holds for all values
between them, seen or not; what a value costs beyond that holds for the value.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hal import stats
from hal.choosing.finalists import Measured
from hal.records.plan import BoundaryCost, Plan, Transfer

#: A value, the target that makes it and the one that reads it.
Boundary = tuple[str, str, str]


class Excess(NamedTuple):
    """What one boundary took beyond what was predicted, in one partition.

    Attributes:
        boundary: Where.
        ns: How much, at the speed that the costs were measured at.
    """

    boundary: Boundary
    ns: float


def learn(measured: Sequence[Measured], extras: Sequence[BoundaryCost]) -> tuple[BoundaryCost, ...]:
    """Boundary costs after a round of measuring.

    Args:
        measured: Plans whose partitions were timed; predictions had ``extras`` in them.
        extras: From earlier rounds.

    Returns:
        All costs, those of earlier rounds corrected. What was not seen again stays.
    """
    speed = speed_of(measured)
    seen: dict[Boundary, list[float]] = defaultdict(list)
    for one in measured:
        plan = one.candidate.plan
        # Both sides of a boundary may be charged to it.
        charged: dict[Boundary, float] = defaultdict(float)
        for excess in excesses(plan, partition_ns(one), speed):
            charged[excess.boundary] += excess.ns
        reads = Counter(_boundary(plan, transfer) for transfer in plan.transfers if transfer.source >= 0)
        for boundary, ns in charged.items():
            seen[boundary].append(ns / reads[boundary])
    pairs = {(e.source, e.destination): float(e.extra_ns) for e in extras if not e.value}
    # What each value between two targets costs in all.
    whole: dict[Boundary, float] = {
        (e.value, e.source, e.destination): e.extra_ns + pairs.get((e.source, e.destination), 0.0)
        for e in extras
        if e.value
    }
    for boundary, values in seen.items():
        before = whole.get(boundary, pairs.get(boundary[1:], 0.0))
        whole[boundary] = before + stats.median(values)
    for pair in {boundary[1:] for boundary in seen}:
        pairs[pair] = stats.median([whole[boundary] for boundary in seen if boundary[1:] == pair])
    costs = {("", *pair): ns for pair, ns in pairs.items()}
    costs |= {boundary: ns - pairs.get(boundary[1:], 0.0) for boundary, ns in whole.items()}
    return tuple(
        BoundaryCost(value=value, source=source, destination=destination, extra_ns=round(ns))
        for (value, source, destination), ns in sorted(costs.items())
        if round(ns)
    )


def excesses(plan: Plan, taken_ns: dict[int, float], speed: float) -> list[Excess]:
    """What each partition took beyond its prediction, by the boundaries it is charged to.

    Args:
        plan: As predicted.
        taken_ns: Measured, by the number of the partition; those of others are not known.
        speed: Of the machine now over when the costs were measured; 2 means that all takes half as long.
    """
    found = []
    for number, taken in taken_ns.items():
        partition = plan.partitions[number]
        beyond = taken * speed - (partition.end_ns - partition.start_ns)
        at_ends = [t for t in plan.transfers if t.destination == number and t.source >= 0]
        at_ends = at_ends or [t for t in plan.transfers if t.source == number]
        found += [Excess(_boundary(plan, transfer), beyond / len(at_ends)) for transfer in at_ends]
    return found


def _boundary(plan: Plan, transfer: Transfer) -> Boundary:
    source, destination = (plan.partitions[at].target for at in (transfer.source, transfer.destination))
    return transfer.value, source, destination


def partition_ns(measured: Measured) -> dict[int, float]:
    """Median time of each partition, by its number; empty where they were not timed."""
    table = measured.record.kernels
    if measured.failure or table is None or len(measured.candidate.plan.partitions) < 2:
        return {}
    # A kernel's name is the partition's number; handoffs beside computing are named otherwise.
    return {int(k.name): float(k.median_ns) for k in table.kernels if k.nodes and k.name.isdecimal()}


def speed_of(measured: Sequence[Measured]) -> float:
    """How fast the machine is now over when the profile was measured, by the targets that ran alone.

    The median of what was predicted (by the profile) over what was measured; 1 where none ran alone.
    """
    ratios = [
        one.candidate.predicted_ns / one.timing.median_ns
        for one in measured
        if one.timing is not None and one.timing.median_ns and len(one.candidate.plan.partitions) == 1
    ]
    return stats.median(ratios) if ratios else 1.0
