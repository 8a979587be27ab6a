"""One target's way through a profile. Whatever fails on it is kept as its reason and stops nothing else."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from hal import stats
from hal.backend import (
    BackendRef,
    CompiledBlob,
    Device,
    Fallback,
    KernelTimes,
    MemoryUse,
    Placements,
    Target,
    Telemetry,
)
from hal.demo import Evaluation
from hal.errors import BackendError, HalError, UnsupportedGraph
from hal.graph.model import Graph
from hal.profiling import energy, judge
from hal.profiling.kernels import table
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress
from hal.profiling.sources import Subject
from hal.records.facts import ModelFacts
from hal.records.profile import (
    ColdStart,
    Energy,
    KernelTable,
    MemoryPeak,
    MemorySample,
    OutputError,
    RefusedNode,
    TargetProfile,
    Timing,
)
from hal.sampling import Policy, WarmUp, is_enough, verdict
from hal.tensor import Array, as_numpy
from hal.worker import Deadlines, WorkerBackend, WorkerExecutable

_log = logging.getLogger("hal.profiling")
T = TypeVar("T")

#: Time for the instrumented runs, and their least and greatest number.
_KERNELS_NS, _KERNELS_MIN, _KERNELS_MAX = 500_000_000, 5, 100
#: Durations of a burst that go into the record; more would make the file large and tell nothing new.
_KEPT_PER_BURST = 50


class Lane:
    """A target in its own child process, from start to record.

    Args:
        ref: The backend.
        device: The target's device.
        target: What is measured.
        policy: Of warm-up and sampling.
        deadlines: Of the child's steps.
        group: Number of the group of lanes that run in turn.
    """

    def __init__(
        self,
        ref: BackendRef,
        device: Device,
        target: Target,
        policy: Policy,
        deadlines: Deadlines | None,
        *,
        group: int = 0,
    ) -> None:
        self.target = target
        self.outputs: list[Array] = []
        self.bursts: list[list[int]] = []
        self._group = group
        self._measured = ""
        self._ref, self._device, self._policy, self._deadlines = ref, device, policy, deadlines
        self._backend: WorkerBackend | None = None
        self._executable: WorkerExecutable | None = None
        self._status, self._reason = "ok", ""
        self._warm: WarmUp | None = None
        self._loaded_bytes = 0
        self._started_ns = 0
        self._samples: list[MemorySample] = []
        self._energy: Energy | None = None
        self._cold_start: ColdStart | None = None
        self._memory: MemoryPeak | None = None
        self._errors: tuple[OutputError, ...] = ()
        self._accuracy: float | None = None
        self._kernels: KernelTable | None = None
        self._kernels_missing = ""
        self._refused: tuple[RefusedNode, ...] = ()
        self._fallbacks: tuple[Fallback, ...] = ()
        self._telemetry: dict[str, int] = {}
        self._can_tell: Telemetry | None = None

    @property
    def alive(self) -> bool:
        """Whether the target can still be measured."""
        return self._status in ("ok", "wrong")

    @property
    def done(self) -> bool:
        """Whether the stopping rule holds, or nothing more can come."""
        return not self.alive or is_enough(self.bursts, self._policy)

    def start(self, subject: Subject) -> None:
        """Start the child, compile, warm up and take the first outputs."""
        self._guard(lambda: self._start(subject))

    def judge(self, reference: Sequence[Array], graph: Graph) -> None:
        """Compare the first outputs with the reference's."""
        if not self.alive or self._executable is None:
            return
        self._errors = judge.compare(self._executable.signature, reference, self.outputs)
        fault = judge.fault(self._errors, self.target.configuration.precision, graph)
        if fault:
            self._status, self._reason = "wrong", fault

    def burst(self) -> None:
        """Run one burst."""
        self._guard(self._burst)
        if self.alive and self._can_tell is not None:
            try:
                readings = self._can_tell.telemetry(self._device)
            except HalError as error:  # the timing stands without it
                self._can_tell = None
                _log.warning("%s: telemetry: %s", self.target, error)
                return
            for name, value in readings.items():
                if name == energy.COUNTER:
                    continue
                self._telemetry[name] = max(value, self._telemetry.get(name, value))

    def read_memory(self) -> None:
        """Take the peak before anything but plain runs happens in the child."""

        def read() -> None:
            executable = self._open()
            device_memory = executable.ability(MemoryUse)
            device_bytes = device_memory.memory_bytes() if device_memory else None
            _, peak_bytes = self._child().resident()
            self._memory = MemoryPeak(
                loaded_bytes=self._loaded_bytes, peak_bytes=peak_bytes, device_bytes=device_bytes
            )

        self._guard(read)

    def read_energy(self) -> None:
        """Take the energy of a run, where the device or the processor tells it."""
        if not self.alive or not self.bursts:
            return
        try:
            counter, source = energy.counter_of(self._device, self._can_tell)
            policy = msgspec.structs.replace(self._policy, burst_ns=energy.BURST_NS)
            self._energy = energy.per_run(counter, source, lambda: self._open().burst(policy))
        except LookupError as error:  # most machines do not tell
            _log.info("%s: no energy: %s", self.target, error)
        except HalError as error:
            _log.warning("%s: energy: %s", self.target, error)

    def score(self, evaluation: Evaluation) -> None:
        """Run the labelled data and keep the accuracy; wrong answers are not worth a score."""
        if self._status != "ok":
            return

        def run() -> None:
            executable = self._open()
            names = [spec.name for spec in executable.signature.inputs]
            answers = [
                as_numpy(executable.run([batch[name] for name in names])[0]) for batch in evaluation.batches
            ]
            self._accuracy = evaluation.accuracy(answers)

        self._guard(run)

    def time_kernels(self, subject: Subject, facts: ModelFacts) -> None:
        """Run with instrumentation, between plain runs; a failure here leaves the plain figures standing."""
        if not self.alive or not self.bursts:
            return
        try:
            executable = self._open()
            kernel_times = executable.ability(KernelTimes)
            if kernel_times is None:
                self._kernels_missing = f"{self.target.backend} does not tell kernel times"
                return
            n_runs = int(_KERNELS_NS / max(self._median_ns(), 1))
            n_runs = min(max(n_runs, _KERNELS_MIN), _KERNELS_MAX)
            # Plain runs on both sides: what else the machine does drifts by more than instruments cost.
            plain = executable.burst(self._policy)
            runs = kernel_times.kernel_runs(subject.inputs, n_runs)
            plain += executable.burst(self._policy)
            self._kernels = table(runs, facts, plain_ns=round(stats.median(plain)))
            self._sample("kernels")
        except HalError as error:
            self._kernels_missing = scrub(error.message)
            _log.warning("%s: kernel times: %s", self.target, error)

    def export_blob(self) -> None:
        """Learn the size of the compiled form, where the backend can export it."""
        if not self.alive or self._executable is None or self._cold_start is None:
            return
        blob = self._executable.ability(CompiledBlob)
        if blob is None:
            return
        try:
            size = len(blob.blob())
        except HalError as error:
            _log.warning("%s: export of the compiled form: %s", self.target, error)
            return
        self._cold_start = msgspec.structs.replace(self._cold_start, blob_bytes=size)

    def close(self) -> None:
        """End the child. A second call does nothing."""
        if self._backend is not None:
            self._backend.close()

    def record(self) -> TargetProfile:
        """What was learned."""
        return TargetProfile(
            target=str(self.target),
            status=self._status,
            reason=self._reason,
            timing=self._timing(),
            cold_start=self._cold_start,
            memory=None
            if self._memory is None
            else msgspec.structs.replace(self._memory, samples=tuple(self._samples)),
            errors=self._errors,
            accuracy=self._accuracy,
            kernels=self._kernels,
            kernels_missing=self._kernels_missing,
            refused=self._refused,
            fallbacks=self._fallbacks,
            telemetry=self._telemetry,
            energy=self._energy,
            measured=self._measured,
            policy=self._policy.digest,
        )

    def _start(self, subject: Subject) -> None:
        self._started_ns = started_ns = time.perf_counter_ns()
        self._measured = datetime.now(UTC).isoformat(timespec="seconds")
        self._backend = WorkerBackend(self._ref, deadlines=self._deadlines)
        # The framework's libraries load at first use: before the figures of the start are taken.
        self._backend.discover()
        start_ns = time.perf_counter_ns() - started_ns
        self._loaded_bytes = self._sample("load")
        # Compile first: judging support would warm it up.
        try:
            executable = self._backend.compile(self._device, subject.graph, self.target.configuration)
        except UnsupportedGraph:
            self._name_unsupported(self._backend, subject.graph)
            raise
        self._executable = executable
        self._sample("compile")
        self._can_tell = self._backend.ability(Telemetry)
        executable.prepare(subject.inputs)
        self._warm = executable.warm_up(self._policy)
        self._sample("warm-up")
        self._cold_start = ColdStart(
            start_ns=start_ns,
            compile_ns=executable.compile_ns,
            first_run_ns=self._warm.first_run_ns,
        )
        self.outputs = [as_numpy(output) for output in executable.run(subject.inputs)]
        placements = executable.ability(Placements)
        if placements is not None:
            self._fallbacks = tuple(
                msgspec.structs.replace(fallback, reason=scrub(fallback.reason))
                for fallback in placements.fallbacks()
            )

    def _burst(self) -> None:
        self.bursts.append(self._open().burst(self._policy))
        self._sample("burst")

    def _sample(self, step: str) -> int:
        now_bytes, _ = self._child().resident()
        at_ns = time.perf_counter_ns() - self._started_ns
        self._samples.append(MemorySample(at_ns=at_ns, resident_bytes=now_bytes, step=step))
        return now_bytes

    def _name_unsupported(self, backend: WorkerBackend, graph: Graph) -> None:
        answers = backend.capability(self._device, graph, self.target.configuration.precision)
        self._refused = tuple(
            RefusedNode(node=name, op=node.op_type, reason=scrub(answers[name].reason))
            for name, node in graph.nodes.items()
            if name in answers and not answers[name].yes
        )

    def _timing(self) -> Timing | None:
        bursts = self.bursts
        if not bursts or self._warm is None or not self.alive:
            return None
        samples = [float(duration) for durations in bursts for duration in durations]
        interval = stats.median_interval([stats.median(durations) for durations in bursts])
        judged = verdict(bursts, self._warm, self._policy)
        return Timing(
            median_ns=round(stats.median(samples)),
            p10_ns=round(stats.percentile(samples, 10)),
            p90_ns=round(stats.percentile(samples, 90)),
            n=len(samples),
            interval_low_ns=round(interval.low),
            interval_high_ns=round(interval.high),
            stable=judged.stable,
            reason=judged.reason,
            bursts_ns=tuple(_thinned(durations) for durations in bursts),
            group=self._group,
        )

    def _median_ns(self) -> float:
        return stats.median([float(duration) for durations in self.bursts for duration in durations])

    def _guard(self, step: Callable[[], None]) -> None:
        if not self.alive:
            return
        try:
            step()
        except HalError as error:
            self._status = "refused" if isinstance(error, UnsupportedGraph) else "failed"
            self._reason = scrub(error.message)
            _log.warning("%s %s: %s", self.target, self._status, error)
            self.close()

    def _open(self) -> WorkerExecutable:
        if self._executable is None:
            raise BackendError(f"{self.target} has not been compiled; start it first")
        return self._executable

    def _child(self) -> WorkerBackend:
        if self._backend is None:
            raise BackendError(f"{self.target} has no process; start it first")
        return self._backend


def interleave(lanes: Sequence[Lane], progress: Progress) -> None:
    """Bursts in turn, in a new random order each round, until each lane has enough."""
    progress.stage("measuring, all in turn")
    order = random.Random(0)
    while waiting := [lane for lane in lanes if not lane.done]:
        order.shuffle(waiting)
        for lane in waiting:
            lane.burst()
        progress.advance(sum(lane.done for lane in lanes), len(lanes))


def _thinned(durations: Sequence[int]) -> tuple[int, ...]:
    step = -(-len(durations) // _KEPT_PER_BURST)
    return tuple(durations[::step])
