"""Order statistics for timings: robust where a mean and a standard deviation are not.

Pure Python on purpose: ``import hal`` may not load numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A closed interval in the unit of its samples."""

    low: float
    high: float


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear-interpolation percentile.

    Source: Hyndman and Fan (1996), "Sample Quantiles in Statistical Packages", type 7.

    Args:
        samples: At least one value, in any order.
        percent: 0 to 100.

    Raises:
        ValueError: No samples, or a percent outside 0 to 100.
    """
    if not samples:
        raise ValueError("percentile of no samples; expected at least one")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent} is outside 0 to 100")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(samples: Sequence[float]) -> float:
    """The 50th percentile.

    Raises:
        ValueError: No samples.
    """
    return percentile(samples, 50)


def median_interval(samples: Sequence[float]) -> Interval:
    """A 95% confidence interval of the median, without assuming a distribution.

    Source: Le Boudec, "Performance Evaluation of Computer and Communication Systems" (2010),
    theorem 2.1: the order statistics k and n+1-k, where k is the largest rank with
    ``P(Binomial(n, 1/2) < k) <= 0.025``. Below six samples no rank qualifies, and the range is returned;
    from six to eight it is the range too.

    Raises:
        ValueError: No samples.
    """
    if not samples:
        raise ValueError("interval of no samples; expected at least one")
    ordered = sorted(samples)
    n = len(ordered)
    rank = _lower_rank(n)
    return Interval(ordered[rank - 1], ordered[n - rank])


def _lower_rank(n: int) -> int:
    if n > 1000:  # exact sums grow long, and the normal approximation is within one rank by then
        return max(math.floor(n / 2 - 0.980 * math.sqrt(n)), 1)
    tail, rank = 0, 0
    while (tail := tail + math.comb(n, rank)) <= 0.025 * 2**n:
        rank += 1
    return max(rank, 1)


def relative_half_width(samples: Sequence[float]) -> float:
    """Half the width of :func:`median_interval` over the median; 0 where the median is 0.

    Raises:
        ValueError: No samples.
    """
    middle = median(samples)
    interval = median_interval(samples)
    return (interval.high - interval.low) / 2 / middle if middle else 0.0
