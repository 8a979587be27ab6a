"""What each unit takes on a target, so that the whole model takes what it was measured to take.

Kernels are timed with instruments on, plain runs are not; and kernels do not say what a call of the runtime
costs, nor what passes between two kernels. So a target's time end to end is taken apart into::

    call_ns + what its inputs and outputs take to and from its memory + sum over kernels of (kernel + gap_ns)

``call_ns`` is what the backend takes for the smallest graph, measured with the links. ``gap_ns`` is one
number for all kernels of the target, found so that the sum is the plain median: above 0 it is the time
between kernels, which goes along with them in a split; below 0 it is what the instruments add to each kernel.
No kernel falls below :data:`FLOOR` of what it was timed at, and kernels of no time (views) stay at none. The
gap is found by the plain runs right beside the instrumented ones, where there are any; what the machine was
faster or slower by in the bursts then scales all kernels alike.

Source: fitted. Over demo:digits, ppocr_cls and ppocr_rec on one machine, what end to end differs from the sum
of kernels by is a line in the number of kernels: per kernel -3.7 us for ONNX Runtime (whose profiler writes 8
us of text a kernel), +0.7 us for OpenVINO and +1.5 us for PyTorch, and per call 6, 11 and 18 us; the smallest
graph takes 5.8, 10.3 and 9.3 us there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hal.planning.problem import Floats
from hal.planning.units import kernels_of
from hal.records.facts import ModelFacts
from hal.records.profile import KernelCost, KernelTable, TargetProfile, Unit

#: Share of its timed duration that a kernel keeps, however much its instruments are said to cost.
#: Source: ours; ONNX Runtime's smallest kernels are timed at 5 us and take half of one.
FLOOR = 0.1
#: A call, where no link tells. Source: the median of three runtimes on one machine: 5.8, 9.3 and 10.3 us.
CALL_NS = 10_000
#: Largest share of a run that is taken for the call: the rest is kernels.
_MOST_CALL = 0.5


class Times(NamedTuple):
    """One target's costs.

    Attributes:
        time: float64[n]: of each unit, ns.
        call: Of each partition, ns.
        gap: Added to each kernel, ns; what it means says the module.
        is_whole: Whether only the whole model was measured: then the units' times are shares of it.
        spread: Nodes' time that was told of no unit, put in by order, ns.
    """

    time: Floats
    call: float
    gap: float
    is_whole: bool
    spread: float


def times_of(
    profile: TargetProfile, facts: ModelFacts, units: Sequence[Unit], call_ns: float, ends_ns: float
) -> Times | None:
    """The times of a target whose kernels say what each unit costs.

    Args:
        profile: Of the target; its timing is there.
        facts: Of the model.
        units: That are placed.
        call_ns: Of each call.
        ends_ns: What its inputs and outputs take to and from its memory, part of the time end to end.

    Returns:
        None where they do not say it: there is no table, or kernels cover several units.
    """
    table = profile.kernels
    assert profile.timing is not None
    if table is None or not table.defines_units:
        return None
    # A unit that costs nothing anywhere is one that every runtime computes when it compiles.
    if any(unit.costs and profile.target not in unit.costs for unit in units):
        return None
    durations, spread = _durations(table, kernels_of(facts, units, table), units)
    if not sum(map(sum, durations)):
        return None
    end_to_end = float(profile.timing.median_ns)
    call = min(call_ns, _MOST_CALL * end_to_end)
    inside = max(end_to_end - call - ends_ns, (1 - _MOST_CALL) * (end_to_end - call))
    beside = max(table.plain_ns - call - ends_ns, 0.0) or inside
    kernels = np.array([taken for found in durations for taken in found], np.float64)
    gap = gap_of(kernels, beside)
    corrected = np.where(kernels > 0, np.maximum(kernels + gap, FLOOR * kernels), 0.0)
    corrected *= inside / corrected.sum()
    owner = np.repeat(np.arange(len(units)), [len(found) for found in durations])
    return Times(
        np.bincount(owner, corrected, minlength=len(units)).astype(np.float64), call, gap, False, spread
    )


def whole_times(end_to_end: float, shares: Floats, call_ns: float, ends_ns: float) -> Times:
    """The times of a target of which only the whole model was measured: shares of that."""
    call = min(call_ns, _MOST_CALL * end_to_end)
    inside = max(end_to_end - call - ends_ns, (1 - _MOST_CALL) * (end_to_end - call))
    return Times(inside * shares / shares.sum(), call, 0.0, True, 0.0)


def shares_of(units: Sequence[Unit], known: Mapping[str, Times]) -> Floats:
    """float64[n]: part of a run that each unit takes: the mean over targets that tell, else by work.

    By work it is the operations, of which a byte moved counts for one: small kernels are bound by memory.
    """
    if known:
        return np.asarray(np.mean([times.time / times.time.sum() for times in known.values()], axis=0))
    work = np.array([1.0 + (unit.flops or 0) + (unit.moved_bytes or 0) for unit in units])
    return np.asarray(work / work.sum())


def gap_of(kernels: Floats, total: float) -> float:
    """The number that, added to each kernel of some time, makes their sum a total.

    Args:
        kernels: Durations; those of 0 get nothing, and none falls below :data:`FLOOR` of itself.
        total: What they should add up to. Below the sum of the floors, all are at their floor.
    """
    working = np.sort(kernels[kernels > 0])
    if not len(working):
        return 0.0
    floors = FLOOR * working
    # The sum grows in a straight line between the gaps at which kernels leave their floors, longest first.
    leaves = np.sort(floors - working)
    lowest = float(leaves[0])
    if total <= floors.sum():
        return lowest
    low, high = lowest, max(total, 0.0)
    for _ in range(100):
        middle = (low + high) / 2
        if np.maximum(working + middle, floors).sum() < total:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _durations(
    table: KernelTable, inside: Mapping[str, Sequence[KernelCost]], units: Sequence[Unit]
) -> tuple[list[list[float]], float]:
    """Kernels' times of each unit. A kernel of no unit counts for that of the next kernel that has one."""
    number = {unit.name: at for at, unit in enumerate(units)}
    home = {id(kernel): number[name] for name, kernels in inside.items() for kernel in kernels}
    durations: list[list[float]] = [[] for _ in units]
    waiting: list[float] = []
    last = None
    for kernel in sorted(table.kernels, key=lambda kernel: kernel.order):
        at = home.get(id(kernel))
        if at is None:
            waiting.append(float(kernel.median_ns))
            continue
        durations[at] += [*waiting, float(kernel.median_ns)]
        waiting, last = [], at
    spread = float(sum(k.median_ns for k in table.kernels if id(k) not in home))
    if last is not None:
        durations[last] += waiting
    return durations, spread
