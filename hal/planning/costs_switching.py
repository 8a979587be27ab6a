"""What partitions of one silicon take longer because they take turns.

Measured with the links (:mod:`hal.profiling.switching`): what a part takes longer after another backend
computed, by how long that took and how long the part takes. A partition comes to caches filled by whatever
computed on its silicon since its own backend last did, going round from request to request; other partitions
of its own backend leave the backend's code there, but not its data.

How much that is depends on the order of all partitions, which no solver's model has. So a problem charges
each partition the least that any change of target costs, as part of its call, and a plan is then carried out
by the simulator with what its own order costs: see :meth:`hal.planning.costs.Modelled.carried_out`.

Source: fitted, see :mod:`hal.profiling.switching`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hal.planning.costs_links import Place
from hal.planning.problem import Floats
from hal.records.machine import Link, Load, Switching


class Switches:
    """Answers what taking turns costs.

    Args:
        links: Measured.
        places: Of the targets.
    """

    def __init__(self, links: Sequence[Link], places: Sequence[Place]) -> None:
        self._places = tuple(places)
        self._known = {
            (link.source, link.destination): link.switching for link in links if link.switching is not None
        }

    def __bool__(self) -> bool:
        """Whether any was measured."""
        return bool(self._known)

    def least_ns(self) -> Floats:
        """float64[t]: what a partition of each target takes longer at least, where it follows another one."""
        found = np.zeros(len(self._places))
        for b, place in enumerate(self._places):
            costs = [
                self._between(other, place)
                for a, other in enumerate(self._places)
                if a != b and other.device.silicon == place.device.silicon
            ]
            known = [min(map(min, one.extra_ns)) if one else 0 for one in costs]
            found[b] = min(known, default=0)
        return found

    def extra_ns(self, targets: Sequence[int], loads: Sequence[Load]) -> list[float]:
        """What each partition of a plan takes longer than alone.

        Args:
            targets: Of the partitions, in the order of the plan.
            loads: What they compute.
        """
        return [self._extra(at, targets, loads) for at in range(len(targets))]

    def _extra(self, at: int, targets: Sequence[int], loads: Sequence[Load]) -> float:
        place = self._places[targets[at]]
        silicon = place.device.silicon
        between: dict[str, Load] = {}
        nearest: dict[str, Place] = {}
        same = Load(0, 0.0)
        is_since = True
        for back in range(1, len(targets)):
            other = (at - back) % len(targets)
            found = self._places[targets[other]]
            if found.device.silicon != silicon:
                continue
            if found.end == place.end:
                same = _sum(same, loads[other])
                is_since = False
            elif is_since:
                between[found.end] = _sum(between.get(found.end, Load(0, 0.0)), loads[other])
                nearest[found.end] = found
        extra = max(
            (self._at(nearest[end], place, load, loads[at]) for end, load in between.items()),
            default=0.0,
        )
        return extra + (self._at(place, place, same, loads[at]) if same.n_nodes else 0.0)

    def _at(self, source: Place, destination: Place, before: Load, load: Load) -> float:
        known = self._between(source, destination)
        return known.at(before, load) if known else 0.0

    def _between(self, source: Place, destination: Place) -> Switching | None:
        return self._known.get((source.end, destination.end))


def _sum(one: Load, other: Load) -> Load:
    return Load(one.n_nodes + other.n_nodes, one.ns + other.ns)
