"""Memory, energy and error of units, from figures of whole runs.

Runtimes use the memory of a value again as soon as nobody needs it, within a partition too. So the values
that are alive while a unit runs, in the order of the graph, are the unit's workspace, of which a partition
has the largest; the problem's tensors have no bytes of their own, which would all be kept until their
partition ends. Values that wait in another device's memory are counted here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hal.errors import TargetError
from hal.planning.costs_links import Place
from hal.planning.problem import Floats, Ints
from hal.records.facts import ModelFacts
from hal.records.profile import TargetProfile, Unit
from hal.units import format_bytes


def weight_bytes_of(facts: ModelFacts, units: Sequence[Unit]) -> Ints:
    """int64[n]: weights that each unit reads, whole tables even where only rows of them are looked up.

    A weight that several units read counts for each: if they are apart, each runtime holds it.
    """
    nodes = facts.by_name()
    found = []
    for unit in units:
        read = {value for name in unit.nodes for value in nodes[name].reads if value in facts.weights}
        found.append(sum(facts.value_bytes.get(value, 0) for value in read))
    return np.array(found, np.int64)


def live_bytes_of(facts: ModelFacts, units: Sequence[Unit]) -> Ints:
    """int64[n]: the most that values take at a time while a unit runs, those of unknown size left out.

    Values within a unit count too: whether a runtime ever writes them to memory, nobody tells.
    """
    last = {value: at for at, node in enumerate(facts.nodes) for value in (*node.reads, *node.writes)}
    last |= dict.fromkeys(facts.outputs, len(facts.nodes))

    def size(values: Iterable[str]) -> int:
        return sum(facts.value_bytes.get(value, 0) for value in values if value not in facts.weights)

    live = size(facts.inputs)
    during: dict[str, int] = {}
    for at, node in enumerate(facts.nodes):
        live += size(filter(None, node.writes))
        during[node.name] = live
        live -= size({value for value in (*node.reads, *node.writes) if value and last[value] == at})
    return np.array([max(during[name] for name in unit.nodes) for unit in units], np.int64)


def workspace_of(profile: TargetProfile, weights: Ints, live: Ints) -> int:
    """What a target was measured to hold beside the model's weights and the values alive at a time.

    On a device with memory of its own what it told of that; else what the model added to the process, which
    is an upper estimate, for it has the compiler's memory in it.
    """
    memory = profile.memory
    if memory is None:
        return 0
    held = memory.model_bytes if memory.device_bytes is None else memory.device_bytes
    return max(held - int(weights.sum()) - int(live.max()), 0)


def capacities(places: Sequence[Place], pools: Sequence[str], limits: Mapping[str, int]) -> Floats:
    """float64[m]: bytes of each pool: the least that any backend tells of it, or that was asked for.

    Args:
        places: Of the targets.
        pools: Names of the pools.
        limits: By device id or pool.

    Raises:
        TargetError: A limit is for a device that is not here, or is below 0.
    """
    found = np.full(len(pools), np.inf)
    number = {pool: at for at, pool in enumerate(pools)}
    homes = {place.device.id: place.device.memory_pool for place in places}
    for place in places:
        if place.device.memory_bytes is not None:
            at = number[place.device.memory_pool]
            found[at] = min(found[at], place.device.memory_bytes)
    for name, limit in limits.items():
        pool = name if name in number else homes.get(name)
        if pool is None:
            known = ", ".join(dict.fromkeys([*homes, *pools]))
            raise TargetError(
                f"the memory limit of {name!r} ({format_bytes(limit)}) is for no device of the plan; "
                f"expected one of {known}"
            )
        if limit < 0:
            raise TargetError(f"the memory limit of {name!r} is {limit} bytes; expected 0 or more")
        found[number[pool]] = min(found[number[pool]], limit)
    return found


def squared_errors(profile: TargetProfile, units: Sequence[Unit]) -> Floats:
    """float64[n]: each unit's part of the squared relative L2 error of the worst output; 0 in fp32.

    Errors of units that round independently add by their squares, so squares are what a plan sums up, and
    the budget is squared too. Each unit has the share of the model's squared error that its operations are
    of the model's: one more rounding for each.

    Source: Higham, Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41
    (2019): rounding errors behave like independent random variables of mean zero.
    """
    error = profile.relative_l2 or 0.0
    work = np.array([1.0 + (unit.flops or 0) for unit in units])
    return np.asarray(error**2 * work / work.sum())
