"""A second compilation of a model that counts time per kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hal.backend import Kernel, KernelRuns
from hal.clock import Clock
from hal.errors import BackendError
from hal.tensor import Tensor
from hal_openvino.atlas import Atlas
from hal_openvino.attribution import attribute
from hal_openvino.counters import durations_from_averages, durations_from_runs
from hal_openvino.failures import summary
from hal_openvino.lanes import Lane

#: Runs before the ones that are reported: the first fills caches and touches new memory.
_N_WARM_UP = 3


class InstrumentedModel:
    """A model compiled with performance counters, and all their readings since."""

    def __init__(self, compiled: Any, lane: Lane, atlas: Atlas) -> None:
        self._lane = lane
        self._atlas = atlas
        self._steps, self._folded = attribute(atlas, compiled.get_runtime_model())
        # The CPU's counters are averages since compilation; those of other plugins hold one run.
        self._averages = "CPU" in str(compiled.get_property("EXECUTION_DEVICES"))
        self._readings_us: list[list[int]] = []

    def run(self, inputs: Sequence[Tensor], n_runs: int, clock: Clock) -> KernelRuns:
        """Run, and note every counter after each run.

        Raises:
            BackendError: The runtime failed.
        """
        run_ns: list[int] = []
        try:
            for _ in range(_N_WARM_UP + n_runs):
                start_ns = clock.now_ns()
                self._lane.run(inputs, None)
                run_ns.append(clock.now_ns() - start_ns)
                counters = self._lane.request.profiling_info
                self._readings_us.append([round(c.real_time.total_seconds() * 1e6) for c in counters])
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed while timing kernels: {summary(error)}") from error
        return KernelRuns(
            kernels=tuple(self._kernels(counters, n_runs)),
            run_ns=tuple(run_ns[_N_WARM_UP:]),
            folded=self._folded,
        )

    def _kernels(self, counters: Any, n_runs: int) -> list[Kernel]:
        to_durations = durations_from_averages if self._averages else durations_from_runs
        by_name = {counter.node_name: position for position, counter in enumerate(counters)}
        found = []
        for step in self._steps:
            position = by_name.get(step.name)
            if position is None:
                continue
            durations_ns = to_durations([reading[position] for reading in self._readings_us])
            counter = counters[position]
            found.append(
                Kernel(
                    name=self._atlas.readable(step.name),
                    type=f"{counter.node_type}/{counter.exec_type}",
                    nodes=tuple(step.nodes),
                    durations_ns=tuple(durations_ns[-n_runs:]),
                )
            )
        return found
