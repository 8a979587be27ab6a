"""A plan as an executable: its partitions compiled, and run in the order of the plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hal.backend import (
    Backend,
    BackendRef,
    Configuration,
    Device,
    DeviceTime,
    Executable,
    Fallback,
    Kernel,
    KernelRuns,
    KernelTimes,
    MemoryUse,
    OptionValue,
    OwnClock,
    Placements,
    Signature,
    Target,
    Tensor,
)
from hal.clock import Clock, MonotonicClock
from hal.errors import BackendError, HalError, InputError, PlanError
from hal.executor.ends import Inputs, Outputs
from hal.executor.homes import Homes, home_of, joined, memory_of, targets
from hal.executor.parallel import Request, Threads
from hal.executor.partitions import Cut, Part, Piece, cut
from hal.executor.program import Compiled, Handoff, Program, Step, program
from hal.executor.times import Span, Times
from hal.graph.cut import Cutter
from hal.graph.model import Graph
from hal.records.targets import place_name

A = TypeVar("A")


@dataclass(frozen=True)
class Place:
    """A device of an open backend.

    Attributes:
        ref: Names the backend.
        backend: The backend.
        device: As it discovered it.
    """

    ref: BackendRef
    backend: Backend
    device: Device


#: By step: what its outputs are written into; None lets its backend allocate.
Rooms = list[Sequence[Tensor] | None]
#: Places by ``DEVICE/BACKEND[-VARIANT]``.
Places = Mapping[str, Place]


def compile_plan(graph: Graph | Cutter, pieces: Sequence[Piece], places: Places) -> Executable:
    """Compile a plan's partitions.

    A plan of one partition is what its backend compiles the whole graph to, untouched. Where there are more,
    idle threads of runtimes must not spin, for they would slow the next partition: the option ``spinning``
    is turned off where a backend offers it and the target does not say otherwise.

    Args:
        graph: Bound, or its cutter.
        pieces: The plan's partitions.
        places: Of the targets they name.

    Raises:
        PlanError: The plan does not fit the graph, or names a target that is not here.
        PluginError: A backend cannot compile its partition; the text names it.
    """
    cutting = cut(graph, pieces)
    compiled: list[Compiled] = []
    try:
        for part in cutting.parts:
            one = _compile(part, places, resting=len(pieces) > 1)
            compiled.append(one)
        if len(pieces) == 1:
            return compiled[0].executable
        clock = _clock([places[end_of(part.target)] for part in cutting.parts])
    except BaseException:
        for one in compiled:
            one.executable.close()
        raise
    return Executor(graph.graph if isinstance(graph, Cutter) else graph, cutting, compiled, clock)


def end_of(target: Target) -> str:
    """``DEVICE/BACKEND[-VARIANT]``: what targets that differ in their configuration share."""
    return place_name(target.device, target.backend, target.variant)


class Executor(Executable):
    """Runs the parts of a graph. Any number of threads may call ``run``.

    Where all parts share one silicon they run one after the other in the caller's thread, one request at a
    time. Else each silicon has a thread of its own, on which parts run in the order of the plan as soon as
    their inputs are there, and those of several requests take turns.

    Tensors are passed on as the backend returned them, and released after their last use.

    Args:
        graph: The whole.
        cutting: It in parts.
        compiled: One per part; closed with this object.
        clock: That times runs, where it is not the host's.

    Attributes:
        clock: That times runs.
        times: What the partitions took, by the host's clock.
    """

    def __init__(
        self, graph: Graph, cutting: Cut, compiled: Sequence[Compiled], clock: Clock | None = None
    ) -> None:
        self.clock: Clock = clock or MonotonicClock()
        self._has_own_clock = clock is not None
        self._signature = graph.signature
        self._compiled = tuple(compiled)
        self.times = Times([one.executable.ability(DeviceTime) is not None for one in self._compiled])
        inputs = [spec.name for spec in self._signature.inputs]
        self._names = (inputs, [spec.name for spec in self._signature.outputs])
        self._program: Program = program(cutting, self._compiled, *self._names)
        self._inputs = Inputs(self._signature.inputs)
        self._outputs = Outputs(self._program, len(inputs))
        self._lock = threading.Lock()
        self._closed = False
        self._rooms: list[Rooms] = []
        self._threads = Threads(self._program) if self._program.n_silicons > 1 else None
        self._empty = [None] * (self._program.n_slots - len(inputs))
        self._has_rooms = any(step.room is not None for step in self._program.steps)
        self._no_rooms: Rooms = [None] * len(self._program.steps)
        self._calls = [
            (step.compiled.executable.run, step.reads, step.writes, step.last) for step in self._program.steps
        ]

    @property
    def signature(self) -> Signature:
        """The graph's."""
        return self._signature

    @property
    def parts(self) -> tuple[Part, ...]:
        """The partitions, in order."""
        return tuple(one.part for one in self._compiled)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """See :meth:`hal.backend.Executable.run`.

        Raises:
            BackendError: A partition failed; the text names it, or the executor is closed.
        """
        given = self._inputs.check(inputs)
        rooms = None if outputs is None else self._onto(outputs)
        values: Sequence[Tensor | None]
        if self._threads is None:
            with self._lock:
                values, spans = self._in_order(given, rooms)
                self._note(inputs, spans)
            return self._outputs.collect(values, outputs)
        request = self._at_once(self._threads, given, rooms)
        with self._lock:
            self._note(inputs, request.times)
        return self._outputs.collect(request.values, outputs)

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """One kernel per partition, then one per tensor that is copied to another device's memory.

        What handing over costs within a partition (a copy, a change of layout) is in its time.
        """
        given = self._inputs.check(inputs)
        durations: list[list[int]] = [[] for _ in self._program.steps]
        copies: dict[int, list[int]] = {}
        run_ns = []
        self.run(given)
        for _ in range(n_runs):
            started_ns = time.perf_counter_ns()
            if self._threads is None:
                with self._lock:
                    _, spans = self._in_order(given)
            else:
                request = self._at_once(self._threads, given)
                spans = request.times
                for slot, taken_ns in request.handoffs.items():
                    copies.setdefault(slot, []).append(taken_ns)
            run_ns.append(time.perf_counter_ns() - started_ns)
            for taken, (began_ns, ended_ns) in zip(durations, spans, strict=True):
                taken.append(ended_ns - began_ns)
        kernels = [
            Kernel(name=str(part.number), type=str(part.target), nodes=part.nodes, durations_ns=tuple(taken))
            for part, taken in zip(self.parts, durations, strict=True)
        ]
        kernels += [
            Kernel(
                name=handoff.name, type="handoff", nodes=(), durations_ns=tuple(copies[handoff.destination])
            )
            for group in self._program.handoffs.values()
            for handoff in group
            if handoff.destination in copies
        ]
        return KernelRuns(kernels=tuple(kernels), run_ns=tuple(run_ns), defines_units=False)

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Duration of a run by the clock of the devices, in nanoseconds."""
        started_ns = self.clock.now_ns()
        outputs = self.run(inputs)
        taken_ns = self.clock.now_ns() - started_ns
        del outputs
        return taken_ns

    def memory_bytes(self) -> int:
        """Bytes that the partitions hold on their devices; see :class:`hal.backend.MemoryUse`."""
        told = [one.executable.ability(MemoryUse) for one in self._compiled]
        return sum(one.memory_bytes() for one in told if one is not None)

    def fallbacks(self) -> Sequence[Fallback]:
        """What the partitions' backends placed elsewhere; see :class:`hal.backend.Placements`."""
        told = [one.executable.ability(Placements) for one in self._compiled]
        return [fallback for one in told if one is not None for fallback in one.fallbacks()]

    def ability(self, kind: type[A]) -> A | None:
        """Those of the class.

        Memory only where every partition tells it, and either times by the devices' clock, where they have
        one, or times of partitions by the host's.
        """
        if kind is (KernelTimes if self._has_own_clock else DeviceTime):
            return None
        if kind is MemoryUse and not all(one.executable.ability(MemoryUse) for one in self._compiled):
            return None
        return super().ability(kind)

    def close(self) -> None:
        """Close every partition, after the runs under way. A second call does nothing."""
        with self._lock:
            self._closed = True
            if self._threads is not None:
                self._threads.close()
            self._rooms.clear()
            for one in self._compiled:
                one.executable.close()

    def _in_order(
        self, inputs: Sequence[Tensor], bound: Rooms | None = None
    ) -> tuple[list[Tensor | None], list[Span]]:
        """All steps one after the other, in this thread, and when each was done; the lock is held."""
        self._check_open()
        values: list[Tensor | None] = [*inputs, *self._empty]
        rooms = self._room() if bound is None else bound
        spans: list[Span] = []
        number = 0
        try:
            began_ns = time.perf_counter_ns()
            for number, (run, reads, writes, last) in enumerate(self._calls):
                # None of them is None: steps come in the order in which their inputs are there.
                made = run([values[slot] for slot in reads], rooms[number])  # type: ignore[misc]
                for slot in last:
                    values[slot] = None
                for slot, tensor in zip(writes, made, strict=True):
                    values[slot] = tensor
                ended_ns = time.perf_counter_ns()
                spans.append((began_ns, ended_ns))
                began_ns = ended_ns
        except Exception as error:  # whatever a plugin raises is told with its partition
            raise _explained(self._program.steps[number], error) from error
        if self._has_rooms and bound is None:
            self._rooms.append(rooms)
        return values, spans

    def _at_once(self, threads: Threads, inputs: Sequence[Tensor], bound: Rooms | None = None) -> Request:
        """All steps on the threads of their silicon."""
        with self._lock:
            self._check_open()
            rooms = self._room() if bound is None else bound
        request = Request(self._program, threads, _explained, rooms)
        request.run(inputs)
        if self._has_rooms and bound is None:
            with self._lock:
                self._rooms.append(rooms)
        return request

    def _note(self, inputs: Sequence[Tensor], spans: Sequence[Span]) -> None:
        """What the partitions took in a run; the lock is held."""
        self.times.add(spans)
        if self.times.on_run is not None:
            self.times.on_run(inputs, spans)

    def homes(self) -> Homes:
        """Where the graph's inputs and outputs may lie; see :class:`hal.executor.homes.Homes`."""
        parts = [
            (one.part.inputs, one.part.outputs, None if one.tensors is None else memory_of(one.executable))
            for one in self._compiled
        ]
        return joined(self._names, parts)

    def _onto(self, outputs: Sequence[Tensor]) -> Rooms | None:
        """Rooms for a run whose outputs go to devices, made anew; None where all go to the host."""
        wanted = {
            name: tensor
            for name, tensor in zip(self._names[1], outputs, strict=False)  # told once all was run
            if home_of(tensor) is not None
        }
        if not wanted:
            return None
        made: Rooms = []
        for step in self._program.steps:
            one = step.compiled
            specs = one.executable.signature.outputs
            room = targets(one.part.outputs, wanted, specs)
            made.append(room if room is not None or step.room is None else step.room())
        return made

    def _room(self) -> Rooms:
        """Tensors on devices for one run's outputs, used again by later runs."""
        if not self._has_rooms:
            return self._no_rooms
        if self._rooms:
            return self._rooms.pop()
        return [None if step.room is None else step.room() for step in self._program.steps]

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this executor is closed; compile the plan again")


def _clock(places: Sequence[Place]) -> Clock | None:
    """The clock that all these places share, where they do not live by the host's.

    Raises:
        PlanError: They live by different clocks, so that no time could be told.
    """
    told = [place.backend.ability(OwnClock) for place in places]
    clocks = {id(one.clock) if one is not None else 0: one for one in told}
    if len(clocks) > 1:
        names = ", ".join(dict.fromkeys(place.backend.name for place in places))
        raise PlanError(
            f"the backends {names} live by different clocks, and a plan that mixes them has no duration; "
            "leave the emulated or the real ones out"
        )
    (one,) = clocks.values()
    return None if one is None else one.clock


def _compile(part: Part, places: Places, *, resting: bool) -> Compiled:
    end = end_of(part.target)
    if end not in places:
        raise PlanError(
            f"{part} cannot be placed: {end} is not here; available are {', '.join(places) or 'none'}; "
            "plan again for this machine"
        )
    place = places[end]
    configuration = part.target.configuration
    if resting:
        configuration = _resting(place, configuration)
    try:
        executable = place.backend.compile(place.device, part.graph, configuration)
    except HalError as error:
        raise type(error)(f"{part}: {error.message}") from error
    return Compiled(part, executable, place.device, place.ref)


def _resting(place: Place, configuration: Configuration) -> Configuration:
    """With spinning off, where that is offered and nothing is said.

    Source: measured here on two cores: handing 1 MiB from PyTorch to a spinning ONNX Runtime cost up to
    25 ms (hal.profiling.chain measures links likewise).
    """
    offered = {spec.name for spec in place.backend.options(place.device)}
    options: dict[str, OptionValue] = dict(configuration.options)
    if "spinning" not in offered or "spinning" in options or options.get("threads") == 1:
        return configuration
    options["spinning"] = False
    return Configuration.of(configuration.precision, options)


def _explained(what: Step | Handoff, error: Exception) -> Exception:
    """An error with the partition it is from. What a partition was fed came from here, not from the user."""
    if isinstance(what, Step):
        place = str(what.compiled.part)
    else:
        place = f"handing {what.name}"
    if isinstance(error, HalError) and not isinstance(error, InputError):
        return type(error)(f"{place}: {error.message}")
    text = error.message if isinstance(error, HalError) else f"{type(error).__name__}: {error}"
    return BackendError(f"{place}: {text}")
