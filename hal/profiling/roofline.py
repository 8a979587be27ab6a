"""What limits a kernel: arithmetic, memory traffic, or neither.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from hal.errors import TargetError
from hal.records.machine import Ceiling
from hal.records.profile import KernelCost, KernelTable, Unit
from hal.records.targets import Target

#: ``compute``: the flat roof is the lower one at the kernel's intensity. ``memory``: the slanted one is.
#: ``overhead``: the kernel is so far below both that neither explains its time.
Bound = Literal["compute", "memory", "overhead"]

#: Share of its roof below which a kernel's time counts as overhead: launching, waiting, filling pipelines.
#: Source: ours. Nsight Compute's "speed of light" rule calls a kernel bound by latency below 60% of both
#: peaks, by counted instructions and traffic. hal knows the least work and traffic of a kernel's nodes,
#: which sound kernels exceed several times (im2col, repacking, tiles read twice), so the line is drawn
#: where nine tenths of the time have no such explanation.
OVERHEAD_BELOW = 0.1


def classify(kernel: KernelCost, ceiling: Ceiling) -> Bound | None:
    """Which roof is the lower one for a kernel, or that it comes near neither.

    Returns:
        The class; None where the kernel's work, traffic or time is not known.
    """
    return classify_work(kernel.flops, kernel.moved_bytes, kernel.median_ns, ceiling)


def classify_work(
    flops: int | None, moved_bytes: int | None, median_ns: int, ceiling: Ceiling
) -> Bound | None:
    """As :func:`classify`, for any work that took some time."""
    share = _share(flops, moved_bytes, median_ns, ceiling)
    if share is None or flops is None or moved_bytes is None:
        return None
    if share < OVERHEAD_BELOW:
        return "overhead"
    computing_s, moving_s = _least_s(flops, moved_bytes, ceiling)
    return "compute" if computing_s >= moving_s else "memory"


def share_of_roof(kernel: KernelCost, ceiling: Ceiling) -> float | None:
    """Least time that the ceilings allow for the kernel over the time it took.

    This is the kernel's height over that of the roof at its intensity, and also defined for kernels without
    arithmetic. Above 1 where data stays in a cache, which is faster than the copy that was measured.

    Source: Williams et al. 2009: attainable performance = min(peak, intensity x bandwidth).

    Returns:
        The share; None where the kernel's work, traffic or time is not known.
    """
    return _share(kernel.flops, kernel.moved_bytes, kernel.median_ns, ceiling)


def ceiling_for(ceilings: Iterable[Ceiling], target: str, device: str = "") -> Ceiling | None:
    """The ceiling that holds for a kernel of a target.

    Args:
        ceilings: Those of the profile.
        target: As written by ``str(Target)``.
        device: Where the kernel ran, if not on the target's device.

    Returns:
        The one of that device and the target's precision; None where it was not measured.
    """
    try:
        asked = Target.parse(target)
    except TargetError:  # a name by hand or of a later version; its roof is unknown
        return None
    wanted = (device or asked.device, asked.configuration.precision)
    for found in ceilings:
        if (found.device, found.precision) == wanted and found.flops_per_s > 0 and found.bytes_per_s > 0:
            return found
    return None


def limited(table: KernelTable, ceilings: Sequence[Ceiling], target: str) -> KernelTable:
    """The table with the limit of each kernel.

    Args:
        table: Of the target.
        ceilings: Of the machine.
        target: As written by ``str(Target)``.
    """
    kernels = []
    for kernel in table.kernels:
        ceiling = ceiling_for(ceilings, target, kernel.device)
        limit = classify(kernel, ceiling) if ceiling else None
        kernels.append(msgspec.structs.replace(kernel, limit=limit or ""))
    return msgspec.structs.replace(table, kernels=tuple(kernels))


def limited_unit(unit: Unit, ceilings: Sequence[Ceiling]) -> Unit:
    """The unit with its limit on each target."""
    costs = {}
    for target, cost in unit.costs.items():
        ceiling = ceiling_for(ceilings, target)
        limit = classify_work(unit.flops, unit.moved_bytes, cost.median_ns, ceiling) if ceiling else None
        costs[target] = msgspec.structs.replace(cost, limit=limit or "")
    return msgspec.structs.replace(unit, costs=costs)


def _least_s(flops: int, moved_bytes: int, ceiling: Ceiling) -> tuple[float, float]:
    return flops / ceiling.flops_per_s, moved_bytes / ceiling.bytes_per_s


def _share(flops: int | None, moved_bytes: int | None, median_ns: int, ceiling: Ceiling) -> float | None:
    if flops is None or moved_bytes is None or not median_ns:
        return None
    return max(_least_s(flops, moved_bytes, ceiling)) / (median_ns / 1e9)
