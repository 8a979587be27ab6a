"""Several requests at once, to measure what a pipeline of them takes per request."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from hal.backend import Executable, Signature, Tensor
from hal.clock import Clock


class InFlight(Executable):
    """An executable whose timed runs keep several requests in flight. It has the ability DeviceTime.

    Args:
        executable: May be run from several threads; closed with this object.
        n_requests: How many.
        clock: That times them.
    """

    def __init__(self, executable: Executable, n_requests: int, clock: Clock) -> None:
        self._now_ns = clock.now_ns
        self._executable = executable
        self._n_requests = n_requests
        self._pool = ThreadPoolExecutor(n_requests, thread_name_prefix="hal-request")

    @property
    def signature(self) -> Signature:
        """The executable's."""
        return self._executable.signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """One request alone."""
        return self._executable.run(inputs, outputs)

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Time per request (ns), over four times as many requests as are in flight.

        The pipeline fills and drains once in it, which the requests share.
        """
        n_runs = 4 * self._n_requests
        started_ns = self._now_ns()
        runs = [self._pool.submit(self._executable.run, inputs) for _ in range(n_runs)]
        wait(runs)
        taken_ns = self._now_ns() - started_ns
        for run in runs:
            run.result()
        return taken_ns // n_runs

    def close(self) -> None:
        """Close it, after the runs under way. A second call does nothing."""
        self._pool.shutdown(wait=True)
        self._executable.close()
