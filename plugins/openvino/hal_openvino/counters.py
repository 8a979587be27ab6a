"""Time per kernel and run, out of OpenVINO's performance counters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_NS_PER_US = 1000


def durations_from_averages(averages_us: Sequence[int]) -> list[int]:
    """Duration of each run (ns) from running averages that were rounded down.

    The CPU plugin reports, after run k, ``floor(total_k / k)`` microseconds: the average over all runs
    so far. So ``total_k`` is known to lie in ``[k * average, k * average + k - 1]``. Of all totals that
    fit every reading, those of the shortest curve through these intervals are taken: the durations
    vary no more than the readings force them to. Their mean is right to 1 us.

    Args:
        averages_us: Reading after run 1, 2, ..., all runs of the counter included.

    Returns:
        One duration per reading.

    Source: ``PerfCount::avg`` in OpenVINO's CPU plugin (``perf_count.h``), which sums whole
    microseconds; the shortest curve in a tube is the taut string of P. L. Davies and A. Kovac,
    "Local extremes, runs, strings and multiresolution", Annals of Statistics 29 (2001).
    """
    n_runs = len(averages_us)
    low = [0, *(k * average for k, average in enumerate(averages_us, 1))]
    high = [0, *(k * average + k - 1 for k, average in enumerate(averages_us, 1))]
    for k in range(1, n_runs + 1):  # totals never fall
        low[k] = max(low[k], low[k - 1])
    for k in range(n_runs - 1, 0, -1):
        high[k] = min(high[k], high[k + 1])
    totals = _taut_string(low, high)
    return [round((after - before) * _NS_PER_US) for before, after in itertools.pairwise(totals)]


def durations_from_runs(readings_us: Sequence[int]) -> list[int]:
    """Duration of each run (ns) where the device's counters hold the last run alone (GPU, NPU)."""
    return [reading * _NS_PER_US for reading in readings_us]


def _taut_string(low: Sequence[int], high: Sequence[int]) -> list[float]:
    """The shortest curve over 0, 1, ... that starts at ``low[0]`` and stays between the bounds."""
    last = len(low) - 1
    curve: list[float] = [float(low[0])]
    start = 0
    while start < last:
        apex = curve[start]
        steepest, flattest = float("inf"), float("-inf")
        steepest_at = flattest_at = start
        bend, target = last, None
        for k in range(start + 1, last + 1):
            reach = k - start
            to_low, to_high = (low[k] - apex) / reach, (high[k] - apex) / reach
            if to_low > steepest:  # must rise later: bend upwards where the upper bound was touched
                bend, target = steepest_at, float(high[steepest_at])
                break
            if to_high < flattest:
                bend, target = flattest_at, float(low[flattest_at])
                break
            if to_high <= steepest:
                steepest, steepest_at = to_high, k
            if to_low >= flattest:
                flattest, flattest_at = to_low, k
        slope = (flattest + steepest) / 2 if target is None else (target - apex) / (bend - start)
        curve.extend(apex + slope * step for step in range(1, bend - start + 1))
        start = bend
    return curve
