"""Timed runs of one executable on fixed inputs, beside it in the same process."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hal import sampling
from hal.backend import DeviceTime, Executable
from hal.clock import Clock, MonotonicClock
from hal.tensor import Tensor

#: A process rests when it uses less than a tenth of a core over a step; one that never does is not
#: waited for longer.
_REST_STEP_NS, _REST_MAX_NS = 4_000_000, 250_000_000


class Sampler:
    """Measures by the device's own clock where it has one, else by the host's.

    Args:
        executable: What to run; stays the caller's.
        inputs: Used for every run.
        clock: The host's clock.
    """

    def __init__(self, executable: Executable, inputs: Sequence[Tensor], clock: Clock | None = None) -> None:
        self._run = executable.run
        self._inputs = inputs
        self._now_ns = (clock or MonotonicClock()).now_ns
        device_time = executable.ability(DeviceTime)
        self._timed = self._host_run if device_time is None else lambda: device_time.timed_run(self._inputs)

    def warm_up(self, policy: sampling.Policy) -> sampling.WarmUp:
        """Run until the durations settle."""
        gc.collect()  # once: bursts follow each other closely
        with _no_collection():
            return sampling.warm_up(self._timed, policy)

    def burst(self, policy: sampling.Policy) -> list[int]:
        """Durations (ns) of one row of runs; returns when the process has come to rest."""
        with _no_collection():
            durations = sampling.burst(self._timed, policy)
        rest()
        return durations

    def _host_run(self) -> int:
        started_ns = self._now_ns()
        self._run(self._inputs)
        return self._now_ns() - started_ns


def rest() -> None:
    """Wait until no thread of this process spins, so that the next target's burst has the cores.

    Source: measured here, on two cores: after a run ONNX Runtime's pool spins for 40 ms and PyTorch's
    OpenMP threads for 10 ms, which made whatever ran next up to 1.8 times slower.
    """
    until_ns = time.monotonic_ns() + _REST_MAX_NS
    spent_ns = time.process_time_ns()
    while time.monotonic_ns() < until_ns:
        time.sleep(_REST_STEP_NS / 1e9)
        before_ns, spent_ns = spent_ns, time.process_time_ns()
        if spent_ns - before_ns < _REST_STEP_NS // 10:
            return


@contextmanager
def _no_collection() -> Iterator[None]:
    # A collection in the middle of a run would be charged to the model. Source: timeit does so too.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
