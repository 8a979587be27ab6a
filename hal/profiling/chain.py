"""A backend that passes tensors through other backends in one process, to measure what passing costs.

It is opened in a worker's child by its :class:`~hal.backend.BackendRef`, so that deadlines, the sampler and
the isolation of crashes work on it as on any backend. It measures; it serves no model: see
:class:`ChainExecutable` for what it keeps between runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 by name from it)
import msgspec
import numpy as np

from hal.backend import (
    API_VERSION,
    Backend,
    BackendRef,
    Configuration,
    Device,
    DeviceTensors,
    DeviceTime,
    Executable,
    Kernel,
    KernelRuns,
    KernelTimes,
    OptionSpec,
    OptionValue,
    Signature,
    Support,
    Tensor,
)
from hal.errors import BackendError, ContractViolation, TargetError
from hal.graph.cut import Cutter
from hal.plugins import open_backend
from hal.tensor import as_numpy, deliver

if TYPE_CHECKING:
    from hal.graph.model import Graph

A = TypeVar("A")

#: The device a chain is compiled for: it stands for all of its stages.
CHAIN = Device(id="chain:0", name="chain", kind="other", silicon="chain", memory_pool="host")
#: In a path, the host itself: tensors come from its memory, or end there.
HOST = "host"


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a backend, as a part of a chain.

    Attributes:
        name: ``DEVICE/BACKEND[-VARIANT]``.
        ref: The backend.
        device: As the backend discovered it.
    """

    name: str
    ref: BackendRef
    device: Device

    @property
    def away(self) -> bool:
        """Whether its tensors lie in another memory than the host's."""
        return self.device.kind != "cpu" and self.device.memory_pool != "host"


def chain_ref(stages: Sequence[Stage]) -> BackendRef:
    """Names a chain across a process boundary."""
    return BackendRef(f"{__name__}:chain_backend", {"stages": msgspec.to_builtins(list(stages))})


def chain_backend(stages: Sequence[Mapping[str, Any]]) -> ChainBackend:
    """Open the backends of the stages, each once, and make a chain of them.

    Args:
        stages: :class:`Stage` as plain data.

    Raises:
        PluginLoadError: A backend cannot be opened.
    """
    return ChainBackend(msgspec.convert(list(stages), list[Stage]))


def along(precision: str, path: Sequence[int | str], cut: int = 0) -> Configuration:
    """The configuration that compiles a path.

    Args:
        precision: Wanted; a stage whose device has it not takes the first that it has.
        path: Numbers of stages in the order of the run; :data:`HOST` may stand at either end.
        cut: Nodes that the first of two stages computes, the second the others; 0: each computes all.
    """
    options: dict[str, OptionValue] = {"path": "-".join(map(str, path))}
    return Configuration.of(precision, {**options, "cut": cut} if cut else options)


class ChainBackend(Backend):
    """Compiles one graph for several stages; each one's outputs are the next one's inputs.

    Args:
        stages: In the order of the default path.

    Attributes:
        backends: One per stage; the same object for stages of one backend.

    Raises:
        PluginLoadError: A backend cannot be opened.
    """

    name = "chain"
    api_version = API_VERSION

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        opened: dict[bytes, Backend] = {}
        for stage in self._stages:
            key = msgspec.json.encode(stage.ref)
            if key not in opened:
                opened[key] = open_backend(stage.ref)
        self.backends = [opened[msgspec.json.encode(stage.ref)] for stage in self._stages]

    def discover(self) -> Sequence[Device]:
        """The one device of a chain; asks every backend, so that the runtimes' libraries are loaded.

        Raises:
            BackendError: A backend cannot look for its devices.
        """
        for backend in self.backends:
            backend.discover()
        return (CHAIN,)

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """The path, and where the graph is cut for it."""
        return (
            OptionSpec(name="path", kind="str", default=self._whole, help="Stages, joined by '-'."),
            OptionSpec(
                name="cut",
                kind="int",
                default=0,
                help="Nodes of the first of two stages, the second has the others; 0: each has all.",
            ),
        )

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """Yes where every stage says yes."""
        answers: dict[str, Support] = {}
        for stage, backend in zip(self._stages, self.backends, strict=True):
            told = backend.capability(stage.device, graph, _precision(stage, precision))
            for node, answer in told.items():
                if answers.get(node, answer).yes:
                    answers[node] = answer
        return answers

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> ChainExecutable:
        """Compile the graph for every stage on the path.

        Raises:
            TargetError: The path names a stage that is not there.
            ValueError: The graph is cut for a path that has not two stages.
            ContractViolation: The graph's outputs cannot be its inputs.
            BackendError: A stage failed.
        """
        n_first = int(configuration.option("cut", 0))
        words = str(configuration.option("path", self._whole)).split("-")
        numbers = [int(word) for word in words if word.isdecimal() and int(word) < len(self._stages)]
        ends = (words[0] == HOST) + (words[-1] == HOST)
        if not numbers or len(numbers) + ends != len(words):
            raise TargetError(
                f"path {'-'.join(words)!r} cannot be taken; expected numbers below {len(self._stages)} "
                f"joined by '-', with {HOST!r} at either end where wanted"
            )
        if n_first:
            parts = _cut(graph, n_first)
        else:
            parts = [graph] * len(numbers)
            if len(numbers) > 1:
                _check_feeds_itself(graph.signature, graph.name)
        steps: list[Step] = []
        try:
            for number, part in zip(numbers, parts, strict=True):
                stage = self._stages[number]
                backend = self.backends[number]
                wanted = Configuration.of(
                    _precision(stage, configuration.precision), self._resting(backend, stage)
                )
                executable = backend.compile(stage.device, part, wanted)
                steps.append(Step(stage, executable))
        except BaseException:
            for step in steps:
                step.executable.close()
            raise
        return ChainExecutable(steps, from_host=words[0] == HOST, to_host=words[-1] == HOST)

    def _resting(self, backend: Backend, stage: Stage) -> Mapping[str, OptionValue]:
        """Options of a backend that shares its process: one thread, or else none that spin.

        Idle threads that spin slow the next backend, and threads that sleep take long to wake, now more, now
        less. Source: measured here on two cores, handing 1 MiB from PyTorch to a spinning ONNX Runtime cost
        up to 25 ms; with one thread each, what parts take in turn is predicted best.
        """
        if len(self._stages) == 1:
            return {}
        offered = {spec.name for spec in backend.options(stage.device)}
        if "threads" in offered:
            return {"threads": 1}
        return {"spinning": False} if "spinning" in offered else {}

    @property
    def _whole(self) -> str:
        return "-".join(str(number) for number in range(len(self._stages)))


class Step(NamedTuple):
    """A stage with the graph compiled for it."""

    stage: Stage
    executable: Executable

    @property
    def tensors(self) -> DeviceTensors | None:
        """Its way to place tensors, where its memory is not the host's and it has one."""
        return self.executable.ability(DeviceTensors) if self.stage.away else None


class ChainExecutable(Executable):
    """Runs steps in order, in the way that a runtime passes tensors between partitions.

    Inputs start and outputs end in the memory of the step's own device, so that a chain of one step costs
    what computing there costs, transfers not counted. With ``from_host`` and ``to_host`` they start and end
    on the host, and the transfer counts. Between two steps of one backend in one memory tensors stay on the
    device; between others they come to the host.

    Placed copies of the last inputs are kept: inputs that are changed in place are not noticed. Outputs on a
    device are overwritten by the next run.

    Args:
        steps: At least one.
        from_host: Whether inputs start on the host.
        to_host: Whether outputs end on the host.

    Raises:
        BackendError: A transfer is wanted from or to a device that does not keep tensors.
    """

    def __init__(self, steps: Sequence[Step], *, from_host: bool = False, to_host: bool = False) -> None:
        first, last = steps[0], steps[-1]
        for step, wanted in ((first, from_host), (last, to_host)):
            if wanted and step.tensors is None:
                raise BackendError(
                    f"a transfer to or from {step.stage.name} cannot be told from its runs: "
                    "it keeps no tensors on a device of its own (ability DeviceTensors)"
                )
        self._steps = tuple(steps)
        clocks = [None if step.stage.away else step.executable.ability(DeviceTime) for step in steps]
        own = [clock for clock in clocks if clock is not None]
        self._clocks = own if len(own) == len(steps) else None
        self._place = None if from_host else first.tensors
        self._given: Sequence[Tensor] = ()
        self._placed: Sequence[Tensor] = ()
        bound = [_room(step) if _stays(step, after) else None for step, after in itertools.pairwise(steps)]
        bound.append(None if to_host else _room(last))
        self._runs = [(step.executable.run, room) for step, room in zip(steps, bound, strict=True)]

    @property
    def signature(self) -> Signature:
        """Inputs of the first step, outputs of the last."""
        return Signature(
            self._steps[0].executable.signature.inputs, self._steps[-1].executable.signature.outputs
        )

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Run all steps; see the class for what becomes of the tensors."""
        tensors = self._start(inputs)
        for run, bound in self._runs:
            tensors = run(tensors, bound)
        return tensors if outputs is None else deliver([as_numpy(tensor) for tensor in tensors], outputs)

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Time of all steps (ns): by their own clocks where every step has one, else by the host's.

        The clock of a device away from the host is not used: its time counts transfers that the chain
        leaves out. Freeing the tensors between counts, as in a single run.
        """
        tensors = self._start(inputs)
        if self._clocks is None:
            started_ns = time.perf_counter_ns()
            for run, bound in self._runs:
                tensors = run(tensors, bound)
            del tensors
            return time.perf_counter_ns() - started_ns
        total_ns = 0
        for clock, (run, bound) in zip(self._clocks, self._runs, strict=True):
            total_ns += clock.timed_run(tensors)
            if clock is not self._clocks[-1]:
                tensors = run(tensors, bound)
        return total_ns

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """Every step in a row with the others, then each again and again alone: two kernels per step.

        The first kernels, named by the step's number, are in the chain; those named ``N alone`` are not. In
        all, each step runs twice as often alone, half of which warms it up. By the host's clock.
        """
        given: list[Sequence[Tensor]] = [self._start(inputs)]
        for run, bound in self._runs:
            given.append(run(given[-1], bound))
        in_turn: list[list[int]] = [[] for _ in self._runs]
        alone: list[list[int]] = [[] for _ in self._runs]
        for _ in range(n_runs):
            made = given[0]
            for taken, (run, bound) in zip(in_turn, self._runs, strict=True):
                started_ns = time.perf_counter_ns()
                made = run(made, bound)
                taken.append(time.perf_counter_ns() - started_ns)
        for taken, tensors, (run, bound) in zip(alone, given, self._runs, strict=False):
            for number in range(2 * n_runs):
                started_ns = time.perf_counter_ns()
                run(tensors, bound)
                if number >= n_runs:
                    taken.append(time.perf_counter_ns() - started_ns)
        return KernelRuns(
            kernels=tuple(
                Kernel(name=name.format(number), type="step", nodes=(), durations_ns=tuple(taken))
                for name, durations in (("{}", in_turn), ("{} alone", alone))
                for number, taken in enumerate(durations)
            ),
            run_ns=tuple(map(sum, zip(*in_turn, strict=True))),
            defines_units=False,
        )

    def ability(self, kind: type[A]) -> A | None:
        """Those of the class; no times of steps where all have a clock of their own.

        What the host's caches cost does not show on such clocks.
        """
        return None if kind is KernelTimes and self._clocks is not None else super().ability(kind)

    def close(self) -> None:
        """Close every step. A second call does nothing."""
        for step in self._steps:
            step.executable.close()

    def _start(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if self._place is None:
            return inputs
        same = len(inputs) == len(self._given) and all(map(_is, inputs, self._given))
        if not same:
            self._given, self._placed = tuple(inputs), [self._place.place(tensor) for tensor in inputs]
        return self._placed


def _cut(graph: Graph, n_first: int) -> list[Graph]:
    """The graph's first nodes, and the others; one tensor goes from these to those."""
    cutter = Cutter(graph)
    first, others = cutter.nodes[:n_first], cutter.nodes[n_first:]
    ends = [cutter.writes(first[-1])[0], cutter.outputs[0]]
    return [cutter.part(nodes, [end]) for nodes, end in zip((first, others), ends, strict=True)]


def _is(one: object, other: object) -> bool:
    return one is other


def _stays(step: Step, after: Step) -> bool:
    """Whether the contract lets a tensor pass without leaving the device: within one backend."""
    one, other = step.stage, after.stage
    return one.ref == other.ref and one.device.memory_pool == other.device.memory_pool


def _room(step: Step) -> list[Tensor] | None:
    """Tensors on the step's device to write its outputs into; None where they end on the host."""
    device = step.tensors
    if device is None:
        return None
    return [
        device.place(np.zeros([int(size) for size in spec.shape], np.dtype(spec.dtype)))
        for spec in step.executable.signature.outputs
    ]


def _precision(stage: Stage, wanted: str) -> str:
    return wanted if wanted in stage.device.precisions else stage.device.precisions[0]


def _check_feeds_itself(signature: Signature, name: str) -> None:
    takes = [(spec.dtype, spec.shape) for spec in signature.inputs]
    gives = [(spec.dtype, spec.shape) for spec in signature.outputs]
    if takes != gives:
        raise ContractViolation(
            f"graph {name!r} cannot be chained: it takes {', '.join(map(str, signature.inputs))} and gives "
            f"{', '.join(map(str, signature.outputs))}; expected equal types and shapes"
        )
