"""Figures of a profile as short texts, one way for every table."""

from __future__ import annotations

import math

from hal.records.profile import TargetProfile, Timing
from hal.units import format_bytes, format_ns

#: Stands where nothing was measured.
NOTHING = "-"


def median_of(target: TargetProfile) -> int:
    """End-to-end median in ns; 0 where it was not timed."""
    return target.timing.median_ns if target.timing is not None else 0


def median_text(timing: Timing | None) -> str:
    """``1.23 ms``."""
    return NOTHING if timing is None else format_ns(timing.median_ns)


def spread_text(timing: Timing | None) -> str:
    """10th and 90th percentile: ``1.20-1.31 ms``."""
    if timing is None:
        return NOTHING
    low, low_unit = format_ns(timing.p10_ns).split(" ")
    high, high_unit = format_ns(timing.p90_ns).split(" ")
    return f"{low}-{high} {high_unit}" if low_unit == high_unit else f"{low} {low_unit}-{high} {high_unit}"


def count_text(timing: Timing | None) -> str:
    """Number of runs timed; a ``!`` marks an unstable figure."""
    return NOTHING if timing is None else f"{timing.n}{'' if timing.stable else ' !'}"


def ratio_text(value: float) -> str:
    """A ratio of times: ``1.00x``, and fewer digits where they mean nothing."""
    return f"{value:.2f}x" if value < 99.995 else f"{value:.0f}x"


def memory_text(target: TargetProfile) -> str:
    """What the model takes on the device where it tells, else what it added to its process."""
    if target.memory is None:
        return NOTHING
    on_device = target.memory.device_bytes
    return format_bytes(target.memory.model_bytes if on_device is None else on_device)


def error_of(target: TargetProfile) -> str:
    """Relative L2 error of the worst output: ``3.1e-07``, ``0``, ``inf`` or ``-``."""
    error = target.relative_l2
    if error is None:
        return NOTHING
    if not math.isfinite(error):
        return "inf"
    return f"{error:.1e}" if error else "0"


def accuracy_text(target: TargetProfile) -> str:
    """Share of right answers on the demo's test set."""
    return NOTHING if target.accuracy is None else f"{target.accuracy:.4f}"


def time_text(duration_ns: int) -> str:
    """A duration; ``0`` where a clock saw none."""
    return format_ns(duration_ns) if duration_ns else "0"


def share_text(part: float, whole: float) -> str:
    """``12.3%``; ``-`` of nothing."""
    return f"{part / whole:.1%}" if whole else NOTHING
