"""What it takes to call a target and to hand tensors over, from measured links.

How the executor hands a tensor over decides what is charged for it:

* Between targets that compute in the host's memory, and between targets of one silicon, the reading partition
  takes what the link says: the copy or the change of layout lies within its call.
* A target with a memory of its own brings its results to the host within its call (``send``), and takes the
  model's inputs from there within its call (``receive``). What it reads from another silicon is copied beside
  computing: that is ``transfer``, what the link says less the part to the host.

Where a link was not measured, two links over the host stand in for it; where these are not known either, an
estimate does, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hal import stats
from hal.planning.costs_times import CALL_NS
from hal.planning.problem import Floats, Ints
from hal.records.machine import Link, interpolate
from hal.records.machines import HOST
from hal.records.plan import BoundaryCost
from hal.records.targets import Device, Target, place_name

#: A handoff of which nothing is known: latency, and bytes per second.
#: Source: handoffs of 4 KiB between three runtimes on one processor take 3 to 7 us, and of 16 MiB 0.2 to 0.7
#: ms, which is 24 to 80 GB/s; over PCIe 3.0 x16 it is 10 us and 12 GB/s (Pearson et al., "Evaluating
#: Characteristics of CUDA Communication Primitives on High-Bandwidth Interconnects", ICPE 2019).
LATENCY_NS, BYTES_PER_S = 10_000, 12e9


@dataclass(frozen=True)
class Place:
    """Where a target computes.

    Attributes:
        target: The target.
        device: As its backend told it.
    """

    target: Target
    device: Device

    @property
    def end(self) -> str:
        """Its name in links: ``DEVICE/BACKEND[-VARIANT]``."""
        return place_name(self.target.device, self.target.backend, self.target.variant)

    @property
    def away(self) -> bool:
        """Whether its tensors lie in another memory than the host's."""
        return self.device.kind != "cpu" and self.device.memory_pool != HOST


class Links:
    """Answers what handing over costs.

    Args:
        links: Measured.
        places: Of the targets.

    Attributes:
        used: Links that gave an answer.
        guessed: Pairs of ends whose answer is an estimate.
    """

    def __init__(self, links: Sequence[Link], places: Sequence[Place]) -> None:
        self._away = {place.end for place in places if place.away}
        self._links = {(link.source, link.destination): link for link in links if link.points}
        self.used: dict[tuple[str, str], Link] = {}
        self.guessed: dict[tuple[str, str], None] = {}

    def call_ns(self, place: Place) -> tuple[float, bool]:
        """What a call of a target takes, and whether that is a guess.

        It is what its backend takes for the smallest graph that links were measured with; else what the
        machine profile says of the device; else :data:`~hal.planning.costs_times.CALL_NS`.
        """
        alone = []
        for (source, destination), link in self._links.items():
            ends = [end for end in (source, destination) if end != HOST]
            alone += [ns for end, ns in zip(ends, link.points[0].alone_ns, strict=False) if end == place.end]
        if alone:
            return stats.median(alone), False
        told = place.device.properties.get("call_ns")
        return (float(told), False) if told is not None else (float(CALL_NS), True)

    def handoff_ns(self, source: str, destination: str, sizes: Ints) -> Floats:
        """Time of tensors from one end to another.

        Args:
            source: End that makes them.
            destination: End that reads them.
            sizes: int[k]: bytes.
        """
        cost = self._cost(source, destination)
        distinct, where = np.unique(sizes, return_inverse=True)
        return np.array([cost(int(size)) for size in distinct], np.float64)[where.reshape(-1)]

    def _cost(self, source: str, destination: str) -> Callable[[int], float]:
        link = self._link(source, destination)
        if link is not None:
            return lambda size: interpolate(link, size)
        if source == destination:
            return lambda size: 0.0
        # What computes in the host's memory is there already.
        hops = [(source, HOST)] if source in self._away else []
        hops += [(HOST, destination)] if destination in self._away else []
        legs = [self._link(*hop) for hop in hops]
        known = [leg for leg in legs if leg is not None]
        if legs and len(known) == len(legs) and (source, destination) != hops[0]:
            return lambda size: sum(interpolate(leg, size) for leg in known)
        self.guessed[source, destination] = None
        return lambda size: LATENCY_NS + size / BYTES_PER_S * 1e9

    def _link(self, source: str, destination: str) -> Link | None:
        link = self._links.get((source, destination))
        if link is not None:
            self.used[source, destination] = link
        return link


@dataclass(frozen=True)
class Handoffs:
    """Arrays of a problem, see :class:`hal.planning.problem.Problem`."""

    transfer: Floats
    send: Floats
    receive: Floats
    link: Ints


def handoffs(
    places: Sequence[Place], links: Links, n_bytes: Sequence[int], is_given: Sequence[bool]
) -> Handoffs:
    """What every tensor takes between every two targets.

    Args:
        places: Of the targets.
        links: Measured.
        n_bytes: Of each tensor.
        is_given: Whether it comes from the caller.
    """
    sizes, given = np.asarray(n_bytes, np.int64), np.asarray(is_given, np.bool_)
    v, t = len(sizes), len(places)
    transfer, send, receive = np.zeros((v, t, t)), np.zeros((v, t)), np.zeros((v, t))
    link = np.full((t, t), -1, np.int64)
    paths: dict[tuple[str, str], int] = {}
    by_pair: dict[tuple[str, str], Floats] = {}

    def takes(source: str, destination: str) -> Floats:
        if (source, destination) not in by_pair:
            by_pair[source, destination] = links.handoff_ns(source, destination, sizes)
        return by_pair[source, destination]

    for b, place in enumerate(places):
        if place.away:
            send[:, b] = np.where(given, 0.0, takes(place.end, HOST))
            receive[:, b] = np.where(given, takes(HOST, place.end), 0.0)
    for a, source in enumerate(places):
        for b, destination in enumerate(places):
            taken = np.where(given, 0.0, takes(source.end, destination.end))
            pools = (source.device.memory_pool, destination.device.memory_pool)
            if a != b:
                taken = np.maximum(taken - send[:, a], 0.0)
            if source.device.silicon != destination.device.silicon and pools[0] != pools[1]:
                link[a, b] = paths.setdefault(pools, len(paths))
            transfer[:, a, b] = taken
    return Handoffs(transfer, send, receive, link)


def with_extras(
    found: Handoffs, values: Sequence[str], targets: Sequence[str], extras: Sequence[BoundaryCost]
) -> Handoffs:
    """Handoffs corrected by what boundaries were measured to cost.

    Args:
        found: By the links alone.
        values: Names of the tensors.
        targets: Names of the targets.
        extras: Measured; those of values or targets that are not here are left out.
    """
    transfer = found.transfer.copy()
    at_value = {value: at for at, value in enumerate(values)}
    at_target = {target: at for at, target in enumerate(targets)}
    for extra in extras:
        tensors = (
            [at_value[v] for v in (extra.value,) if v in at_value] if extra.value else range(len(values))
        )
        froms = (
            [at_target[t] for t in (extra.source,) if t in at_target] if extra.source else range(len(targets))
        )
        to = [at_target[t] for t in (extra.destination,) if t in at_target]
        tos = to if extra.destination else range(len(targets))
        transfer[np.ix_(tensors, froms, tos)] += extra.extra_ns
    return Handoffs(np.maximum(transfer, 0.0), found.send, found.receive, found.link)


def only_whole(
    found: Handoffs, target: int, given: Sequence[bool], wanted: Sequence[bool], cost: float
) -> None:
    """Make a cut of one target's model cost as much as the model, because what a cut costs was not measured.

    Every tensor between units costs that when it enters or leaves the target, so that no plan that uses the
    target for a part is faster than the target alone, and the target alone costs what was measured.

    Args:
        found: Changed in place.
        target: Number of the target.
        given: Whether a tensor comes from the caller.
        wanted: Whether the model returns it.
        cost: Of a cut.
    """
    between = ~np.asarray(given, np.bool_)
    found.receive[between, target] += cost
    found.transfer[between, target, target] += cost
    found.send[between & ~np.asarray(wanted, np.bool_), target] += cost
