"""What a session tells of itself, as records: requests, latency, partitions, devices, events."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

#: Buckets of a histogram for each doubling of the time: a quantile is off by at most a factor of 2 ** (1/8),
#: which is 9 %.
#: Source: ours; Prometheus' native histograms have eight per doubling at schema 3 (2 ** (2 ** -3)).
PER_DOUBLING = 8
#: Upper ends of a histogram's buckets, in nanoseconds, from a microsecond to 18 minutes. Times above the last
#: count in one more.
#: Source: ours; no call of a session takes less than one microsecond.
BOUNDS_NS: tuple[int, ...] = tuple(
    round(1000 * 2 ** (step / PER_DOUBLING)) for step in range(30 * PER_DOUBLING + 1)
)


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """Requests that took about as long.

    Attributes:
        at_most_ns: The longest; one of :data:`BOUNDS_NS`. Longer ones than its last are in its last.
        n: How many; at least 1.
    """

    at_most_ns: int
    n: int


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long requests took, as a histogram with buckets of equal ratio.

    Attributes:
        n: How many.
        total_ns: Their sum.
        p50_ns: The median, within 9 %; 0 where there is none, as below.
        p95_ns: 95 of 100 took at most this.
        p99_ns: 99 of 100 took at most this.
        buckets: Those that are not empty, the shortest first.
    """

    n: int = 0
    total_ns: int = 0
    p50_ns: int = 0
    p95_ns: int = 0
    p99_ns: int = 0
    buckets: tuple[Bucket, ...] = ()

    @classmethod
    def of(cls, buckets: Iterable[Bucket], total_ns: int) -> Latency:
        """A histogram of its buckets.

        Args:
            buckets: The shortest first; empty ones are left out.
            total_ns: Sum of the times.
        """
        kept = tuple(bucket for bucket in buckets if bucket.n > 0)
        p50, p95, p99 = (_quantile(kept, share) for share in (0.5, 0.95, 0.99))
        n = sum(bucket.n for bucket in kept)
        return cls(n=n, total_ns=total_ns, p50_ns=p50, p95_ns=p95, p99_ns=p99, buckets=kept)

    def since(self, earlier: Latency) -> Latency:
        """That of the requests since an earlier histogram of the same session."""
        before = {bucket.at_most_ns: bucket.n for bucket in earlier.buckets}
        left = [Bucket(one.at_most_ns, one.n - before.get(one.at_most_ns, 0)) for one in self.buckets]
        return Latency.of(left, max(self.total_ns - earlier.total_ns, 0))


class PartitionMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What one partition of the plan in force took.

    Attributes:
        number: Of the partition, from 0.
        target: That computes it.
        n_runs: Since the plan is in force.
        total_ns: Of these runs.
        expected_ns: What it should take by the profile; 0 where that is not known (yet).
        slowdown: What it takes now over what it should, where it was found to be slow for long; else 1.
    """

    number: int
    target: str
    n_runs: int
    total_ns: int
    expected_ns: int = 0
    slowdown: float = 1.0

    @property
    def mean_ns(self) -> float:
        """Of its runs; 0 where there is none."""
        return self.total_ns / self.n_runs if self.n_runs else 0.0


class DeviceMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a device of the plan tells now, whoever uses it; None where it does not tell.

    Attributes:
        id: Of the device.
        name: Of the device.
        memory_used_bytes: In use.
        memory_bytes: There is.
        utilisation_percent: Since the reading before.
        temperature_celsius: The hottest sensor.
        power_mw: Drawn.
    """

    id: str
    name: str
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    utilisation_percent: int | None = None
    temperature_celsius: int | None = None
    power_mw: int | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """A session at a moment. Counts never go down.

    Attributes:
        at: When, seconds since 1970-01-01 UTC.
        since: When the session was made, likewise.
        session: Number of the session in its process, from 1.
        model: Name of the model.
        targets: Of the plan in force.
        n_requests: That ended, rightly or not. What was refused before anything ran is not among them.
        n_errors: Of these, those that raised.
        n_in_flight: Under way now.
        oldest_ns: How long the oldest of them has been under way; 0 where there is none.
        latency: Of the requests that were answered, from inputs that fit to outputs.
        partitions: Of the plan in force.
        devices: Of the plan in force.
        process_bytes: Memory of this process on the host.
        events: How many there were, by kind; :attr:`hal.Session.events` tells them.
    """

    at: float
    since: float
    session: int
    model: str
    targets: tuple[str, ...]
    n_requests: int
    n_errors: int
    n_in_flight: int
    oldest_ns: int
    latency: Latency
    partitions: tuple[PartitionMetrics, ...]
    devices: tuple[DeviceMetrics, ...]
    process_bytes: int
    events: dict[str, int]


def latency_of(counts: Sequence[int], total_ns: int) -> Latency:
    """A histogram of the number of times in each bucket.

    Args:
        counts: One for each of :data:`BOUNDS_NS`, and one for longer times.
        total_ns: Sum of the times.
    """
    folded = [*counts[:-2], counts[-2] + counts[-1]]
    return Latency.of(map(Bucket, BOUNDS_NS, folded), total_ns)


def _quantile(buckets: Sequence[Bucket], share: float) -> int:
    """The time that a share of requests took at most, in a straight line within its bucket."""
    rank = share * sum(bucket.n for bucket in buckets)
    for bucket in buckets:
        if rank <= bucket.n:
            at = bisect_left(BOUNDS_NS, bucket.at_most_ns)
            below = BOUNDS_NS[at - 1] if at else 0
            return math.ceil(below + (bucket.at_most_ns - below) * rank / bucket.n)
        rank -= bucket.n
    return 0


__all__ = [
    "BOUNDS_NS",
    "PER_DOUBLING",
    "Bucket",
    "DeviceMetrics",
    "Latency",
    "Metrics",
    "PartitionMetrics",
    "latency_of",
]
