"""The parent's side of a worker: a Backend whose work happens in a child process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from hal.backend import (
    Backend,
    BackendRef,
    Configuration,
    Device,
    Executable,
    Fallback,
    Finding,
    KernelRuns,
    OptionSpec,
    Signature,
    Support,
    Tensor,
)
from hal.errors import BackendError, ContractViolation, StorageError
from hal.sampling import Policy, WarmUp
from hal.tensor import Array, as_numpy, deliver, host_inputs, own_dtype
from hal.worker import messages
from hal.worker.arena import Laid, keep
from hal.worker.channel import Channel
from hal.worker.process import Process

if TYPE_CHECKING:
    from hal.graph.model import Graph

A = TypeVar("A")
_S = 1_000_000_000


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step may take before the child is stopped.

    Generous on purpose: they end hangs, not slow work. Source: the longest seen on two cores was 90 s
    for an Inductor compilation and 3 s for an import; ten times that, rounded.
    """

    open_ns: int = 60 * _S
    discover_ns: int = 60 * _S
    capability_ns: int = 300 * _S
    compile_ns: int = 900 * _S
    run_ns: int = 300 * _S


class WorkerBackend(Backend):
    """Runs a backend in a child process of its own, started at construction.

    Any number of threads may call it and its executables. Runs are under way at once in the child, some
    :data:`hal.worker.process.MOST_CHANNELS` of them; all else it does one after the other.

    Args:
        ref: The backend.
        deadlines: Per step.

    Raises:
        PluginLoadError: The backend cannot be opened.
        WorkerCrashed: Its import ended the process.
        WorkerTimeout: Its import hung.
    """

    def __init__(self, ref: BackendRef, *, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()
        self._process = Process(f"backend {ref.entry_point.removeprefix('plugin:')!r}")
        self._models: dict[str, Graph] = {}
        try:
            opened = self._call(messages.Open(ref), messages.Opened, self.deadlines.open_ns, "open")
        except BaseException:
            self._process.close()
            raise
        self.name, self.api_version = opened.name, opened.api_version
        self._abilities = frozenset(opened.abilities)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child can still be asked."""
        return self._process.alive

    @property
    def ended(self) -> str:
        """Why it cannot be asked any more, in a clause with the child as ``it``; empty where it can."""
        return self._process.ended

    @property
    def was_stopped(self) -> bool:
        """Whether it ended by :meth:`stop`, or by a deadline."""
        return self._process.was_stopped

    def discover(self) -> Sequence[Device]:
        """See :class:`hal.backend.Backend`."""
        devices: tuple[Device, ...] = self._call(
            messages.Discover(), tuple[Device, ...], self.deadlines.discover_ns, "discover devices"
        )
        return devices

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """See :class:`hal.backend.Backend`."""
        specs: tuple[OptionSpec, ...] = self._call(
            messages.Options(device), tuple[OptionSpec, ...], self.deadlines.discover_ns, "list options"
        )
        return specs

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """See :class:`hal.backend.Backend`."""
        request = messages.Capability(device, self._model(graph), precision)
        answers: dict[str, Support] = self._call(
            request, dict[str, Support], self.deadlines.capability_ns, f"judge {graph.name!r}"
        )
        return answers

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> WorkerExecutable:
        """See :class:`hal.backend.Backend`."""
        request = messages.Compile(device, self._model(graph), configuration)
        step = f"compile {graph.name!r} in {configuration.precision}"
        compiled = self._call(request, messages.Compiled, self.deadlines.compile_ns, step)
        _check_signature(self.name, graph.signature, compiled.signature)
        return WorkerExecutable(self, compiled)

    def load_blob(self, device: Device, blob: bytes, configuration: Configuration) -> WorkerExecutable:
        """See :class:`hal.backend.BlobLoader`."""
        with tempfile.TemporaryDirectory(prefix="hal-blob-") as folder:
            path = Path(folder) / "blob"
            try:
                path.write_bytes(blob)
            except OSError as error:
                raise _no_room(len(blob), error) from error
            request = messages.LoadBlob(device, str(path), configuration)
            compiled = self._call(request, messages.Compiled, self.deadlines.compile_ns, "load a blob")
        return WorkerExecutable(self, compiled)

    def telemetry(self, device: Device) -> Mapping[str, int]:
        """See :class:`hal.backend.Telemetry`."""
        readings: dict[str, int] = self._call(
            messages.ReadTelemetry(device), dict[str, int], self.deadlines.discover_ns, "read telemetry"
        )
        return readings

    def diagnose(self) -> Sequence[Finding]:
        """See :class:`hal.backend.Diagnosis`."""
        findings: tuple[Finding, ...] = self._call(
            messages.Diagnose(), tuple[Finding, ...], self.deadlines.discover_ns, "diagnose"
        )
        return findings

    def ability(self, kind: type[A]) -> A | None:
        """The abilities of the backend in the child, as far as they cross the process boundary."""
        return self if kind.__name__ in self._abilities and isinstance(self, kind) else None

    def resident(self) -> tuple[int, int]:
        """Resident bytes of the child, now and at the highest."""
        found = self._call(
            messages.Resident(), messages.ResidentBytes, self.deadlines.discover_ns, "tell its memory"
        )
        return found.now_bytes, found.peak_bytes

    def stop(self, why: str) -> None:
        """Kill the child, which hangs: see :meth:`hal.worker.process.Process.stop`."""
        self._process.stop(why)

    def close(self) -> None:
        """End the child; its executables are gone with it. A second call does nothing.

        It does not wait for calls under way: these raise WorkerCrashed.
        """
        self._process.close()

    def __enter__(self) -> WorkerBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _model(self, graph: Graph) -> messages.Model:
        # Its file must outlive the child's use of it, and the child keeps the first one of a digest.
        graph = self._models.setdefault(graph.digest, graph)
        return messages.Model(str(graph.file()), graph.name, graph.digest)

    def _call(self, request: Any, kind: Any, deadline_ns: int, step: str) -> Any:
        channel = self._process.take(step)
        try:
            return self._process.call(channel, request, kind, deadline_ns=deadline_ns, step=step)
        finally:
            self._process.give(channel)

    def _exchange(self, make: Any, inputs: Sequence[Tensor], kind: Any, deadline_ns: int, step: str) -> Any:
        """A call that carries tensors."""
        channel = self._process.take(step)
        try:
            sent = self._laid(channel, [as_numpy(tensor) for tensor in inputs], step).sent
            return self._process.call(channel, make(sent), kind, deadline_ns=deadline_ns, step=step)
        finally:
            channel.writer.delivered()
            self._process.give(channel)

    def _laid(self, channel: Channel, arrays: Sequence[Array], step: str) -> Laid:
        """Arrays where the child reads them."""
        try:
            return channel.writer.put(arrays)
        except StorageError:
            if self._process.alive:
                raise
            # Closing took the folder away.
            raise self._process.gone(step) from None

    def _run(self, handle: int, inputs: Sequence[Array]) -> list[Array]:
        """Run an executable: nothing is worked out anew where tensors are like those of earlier calls."""
        process, deadline_ns = self._process, self.deadlines.run_ns
        channel = process.take("run")
        try:
            laid = self._laid(channel, inputs, "run")
            packed = laid.packed.get(handle)
            if packed is None:
                packed = laid.packed[handle] = messages.encode(messages.Run(handle, laid.sent))
            data = process.ask(channel, packed, deadline_ns=deadline_ns, step="run")
            views = channel.reader.known.get(data)
            if views is None:
                sent = messages.unpack(data, messages.Tensors)
                views = channel.reader.look(sent)
                if sent.is_plain:
                    keep(channel.reader.known, data, views)
            return [view.copy() for view in views]
        finally:
            channel.writer.delivered()
            process.give(channel)


class WorkerExecutable(Executable):
    """An executable in the child. Inputs and outputs pass through shared memory, copied once each way."""

    def __init__(self, backend: WorkerBackend, compiled: messages.Compiled) -> None:
        self._backend = backend
        self._handle = compiled.handle
        self._signature = compiled.signature
        self._abilities = frozenset(compiled.abilities)
        self._closed = False
        self._plain = [(own_dtype(spec.dtype), spec.shape) for spec in self._signature.inputs]
        #: Compile time, taken in the child.
        self.compile_ns = compiled.compile_ns

    @property
    def backend(self) -> WorkerBackend:
        """Where it is."""
        return self._backend

    @property
    def signature(self) -> Signature:
        """See :class:`hal.backend.Executable`."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """See :class:`hal.backend.Executable`."""
        self._check_open()
        results = self._backend._run(self._handle, self._fitting(inputs))
        if len(results) != len(self._signature.outputs):
            raise ContractViolation(
                f"backend {self._backend.name!r} returned {len(results)} outputs; "
                f"expected {len(self._signature.outputs)}, one per output of the signature"
            )
        return deliver(results, outputs)

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """See :class:`hal.backend.DeviceTime`."""
        return int(self._exchange(messages.TimedRun, inputs, int, "run against its clock"))

    def prepare(self, inputs: Sequence[Tensor]) -> None:
        """Send the inputs of the measuring calls below once."""
        self._check_open()
        self._exchange(messages.Prepare, inputs, None, "take inputs")

    def warm_up(self, policy: Policy) -> WarmUp:
        """See :func:`hal.sampling.warm_up`; runs in the child on the prepared inputs."""
        warm: WarmUp = self._measure(messages.WarmUp(self._handle, policy), WarmUp, policy, "warm up")
        return warm

    def burst(self, policy: Policy) -> list[int]:
        """See :func:`hal.sampling.burst`; runs in the child on the prepared inputs."""
        request = messages.Burst(self._handle, policy)
        durations: list[int] = self._measure(request, list[int], policy, "run a burst")
        return durations

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """See :class:`hal.backend.KernelTimes`."""

        def make(handle: int, sent: messages.Tensors) -> messages.Kernels:
            return messages.Kernels(handle, sent, n_runs)

        runs: KernelRuns = self._exchange(make, inputs, KernelRuns, "time its kernels")
        return runs

    def blob(self) -> bytes:
        """See :class:`hal.backend.CompiledBlob`."""
        with tempfile.TemporaryDirectory(prefix="hal-blob-") as folder:
            path = Path(folder) / "blob"
            self._call(messages.Blob(self._handle, str(path)), int, "export its compiled form")
            return path.read_bytes()

    def memory_bytes(self) -> int:
        """See :class:`hal.backend.MemoryUse`."""
        return int(self._call(messages.MemoryBytes(self._handle), int, "tell its memory"))

    def fallbacks(self) -> Sequence[Fallback]:
        """See :class:`hal.backend.Placements`."""
        found: tuple[Fallback, ...] = self._call(
            messages.Fallbacks(self._handle), tuple[Fallback, ...], "list fallbacks"
        )
        return found

    def close(self) -> None:
        """See :class:`hal.backend.Executable`."""
        if not self._closed:
            self._closed = True
            if self._backend.alive:
                self._call(messages.Close(self._handle), None, "close an executable")

    def ability(self, kind: type[A]) -> A | None:
        """The abilities of the executable in the child, as far as they cross the process boundary."""
        return self if kind.__name__ in self._abilities and isinstance(self, kind) else None

    def _fitting(self, inputs: Sequence[Tensor]) -> Sequence[Array]:
        """Inputs as numpy arrays, in few steps where they are such already."""
        if len(inputs) == len(self._plain):
            for tensor, (dtype, shape) in zip(inputs, self._plain, strict=True):
                if type(tensor) is not np.ndarray or tensor.dtype is not dtype or tensor.shape != shape:
                    break
            else:
                return inputs  # type: ignore[return-value]  # the loop has seen that they are arrays
        return host_inputs(self._signature.inputs, inputs)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"this executable of {self._backend.name!r} is closed; compile it again")

    def _call(self, request: Any, kind: Any, step: str) -> Any:
        return self._backend._call(request, kind, self._backend.deadlines.run_ns, step)

    def _measure(self, request: Any, kind: Any, policy: Policy, step: str) -> Any:
        longest_ns = max(policy.warm_up_max_ns, policy.max_time_ns)
        deadline_ns = self._backend.deadlines.run_ns + 2 * longest_ns
        return self._backend._call(request, kind, deadline_ns, step)

    def _exchange(self, make: Any, inputs: Sequence[Tensor], kind: Any, step: str) -> Any:
        self._check_open()
        return self._backend._exchange(
            lambda sent: make(self._handle, sent), inputs, kind, self._backend.deadlines.run_ns, step
        )


def _check_signature(backend: str, wanted: Signature, given: Signature) -> None:
    """Refuse an executable that is not of its graph: everything after relies on names and order."""
    for what, expected, got in (
        ("inputs", wanted.inputs, given.inputs),
        ("outputs", wanted.outputs, given.outputs),
    ):
        if [(spec.name, spec.dtype) for spec in expected] != [(spec.name, spec.dtype) for spec in got]:
            raise ContractViolation(
                f"backend {backend!r} compiled an executable with {what} "
                f"{', '.join(map(str, got)) or 'none'}; expected {', '.join(map(str, expected)) or 'none'}"
            )


def _no_room(n_bytes: int, error: OSError) -> StorageError:
    return StorageError(
        f"{n_bytes} bytes could not be written to the temporary folder: {error.strerror}; "
        "free some space or set TMPDIR"
    )
