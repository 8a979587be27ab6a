"""What the partitions of a plan took, run by run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from hal.backend import Tensor

#: Times of single runs that are kept of each partition, until somebody takes them.
#: Source: ours; a median of 256 is good to about 5 % where times scatter by half.
RECENT = 256

#: When a partition began and ended, by ``time.perf_counter_ns``.
Span = tuple[int, int]


class Times:
    """What partitions took. One thread adds at a time, any thread reads.

    Args:
        unlike: For each partition whether it is timed otherwise than in its profile: by the host's clock and
            not by its device's own.
        beside_ns: What runs take beside the partitions' own time.

    Attributes:
        unlike: As given.
        beside_ns: As given.
        n_runs: Runs of all partitions.
        totals_ns: Sum of what each took.
        recent: What each took in the last runs; whoever looks takes them out.
        on_run: Called after each run with its inputs and the span of each partition; it must be quick.
    """

    def __init__(self, unlike: Sequence[bool], *, beside_ns: int = 0) -> None:
        n_partitions = len(unlike)
        self.unlike, self.beside_ns = tuple(unlike), beside_ns
        self.n_runs = 0
        self.totals_ns = [0] * n_partitions
        self.recent: tuple[deque[int], ...] = tuple(deque(maxlen=RECENT) for _ in range(n_partitions))
        self.on_run: Callable[[Sequence[Tensor], Sequence[Span]], None] | None = None

    def add(self, spans: Sequence[Span]) -> None:
        """One run: when each partition began and ended."""
        self.n_runs += 1
        totals_ns, recent = self.totals_ns, self.recent
        for number, (began_ns, ended_ns) in enumerate(spans):
            taken_ns = ended_ns - began_ns
            totals_ns[number] += taken_ns
            recent[number].append(taken_ns)
