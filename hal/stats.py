"""Order statistics for timings: robust where a mean and a standard deviation are not.

Pure Python on purpose: ``import hal`` may not load numpy.
"""

from __future__ import annotations

import functools
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


class RatioEstimate(NamedTuple):
    """A ratio of times and its 95% confidence interval.

    Attributes:
        ratio: Infinite where only the denominator is 0.
        low: Lower end; 0 where there are too few samples for 95%.
        high: Upper end; infinite where there are too few.
    """

    ratio: float
    low: float
    high: float


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> RatioEstimate:
    """The median ratio of pairs that met the same noise, with :func:`median_interval`.

    This inverts the sign test. Source: as for :func:`median_interval`. Below six pairs there is no interval.

    Args:
        numerators: At least one, not below 0.
        denominators: As many; a pair of zeros has the ratio 1.

    Raises:
        ValueError: No samples, or not as many of both.
    """
    ratios = sorted(_ratio(a, b) for a, b in zip(numerators, denominators, strict=True))
    middle = _middle(ratios)
    n = len(ratios)
    if n < 6:  # 2 * 2**-5 is above 5%
        return RatioEstimate(middle, 0, math.inf)
    rank = _lower_rank(n)
    return RatioEstimate(middle, ratios[rank - 1], ratios[n - rank])


def independent_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> RatioEstimate:
    """The typical ratio of two samples that were not taken together, without assuming a distribution.

    The median of all ratios of one value of each, and the interval that inverts the Mann-Whitney test: it
    excludes 1 where that test tells the samples apart at 5%. Below four values each there is no interval.

    Source: Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", 3rd ed. (2014), sections 4.2
    and 4.3 (Hodges and Lehmann's estimator and Moses' interval), on logarithms, where a factor is a shift.

    Args:
        numerators: At least one, not below 0. Of more than 200, 200 are taken evenly.
        denominators: Likewise; two zeros have the ratio 1.

    Raises:
        ValueError: No samples.
    """
    above, below = _thinned(numerators), _thinned(denominators)
    ratios = sorted(_ratio(a, b) for a in above for b in below)
    middle = _middle(ratios)
    rank = _mann_whitney_rank(*sorted((len(above), len(below))))
    if not rank:
        return RatioEstimate(middle, 0, math.inf)
    return RatioEstimate(middle, ratios[rank - 1], ratios[len(ratios) - rank])


@functools.cache
def _mann_whitney_rank(n: int, m: int) -> int:
    """The largest k with P(U < k) <= 0.025, where U is Mann and Whitney's count for samples of n and m."""
    if n * m > 2500:  # exact sums grow long, and the normal approximation is within one rank by then
        return math.floor(n * m / 2 - 1.96 * math.sqrt(n * m * (n + m + 1) / 12))
    # The number of ways to a count of u is the coefficient of q**u in the product over i = 1..n of
    # (1 - q**(m + i)) / (1 - q**i). Source: G. E. Andrews, "The Theory of Partitions" (1976), section 3.2.
    ways = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):
            ways[u] -= ways[u - m - i]
        for u in range(i, n * m + 1):
            ways[u] += ways[u - i]
    limit, tail, rank = math.comb(n + m, n), 0, 0
    while (tail := tail + ways[rank]) <= 0.025 * limit:
        rank += 1
    return rank


def _ratio(numerator: float, denominator: float) -> float:
    if denominator:
        return numerator / denominator
    return math.inf if numerator else 1.0


def _middle(ordered: Sequence[float]) -> float:
    """The median of sorted values, of which some may be infinite."""
    if not ordered:
        raise ValueError("ratio of no samples; expected at least one of each")
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def _thinned(samples: Sequence[float]) -> Sequence[float]:
    n = len(samples)
    return samples if n <= 200 else [samples[i * n // 200] for i in range(200)]
