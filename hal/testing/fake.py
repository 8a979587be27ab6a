"""A backend without hardware: true answers, a virtual clock, and failures on demand.

It keeps the whole contract with every ability, and its configuration is JSON, so that
``BackendRef("hal.testing.fake:FakeBackend", {...})`` works in this process and in a worker alike.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import ml_dtypes
import msgspec
import numpy as np
import onnx

from hal.backend import (
    API_VERSION,
    Backend,
    Configuration,
    Device,
    Executable,
    Fallback,
    Finding,
    Kernel,
    KernelRuns,
    OptionSpec,
    Signature,
    Support,
    Tensor,
)
from hal.clock import VirtualClock
from hal.errors import BackendError, TargetError, UnsupportedGraph, problems
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.tensor import Array, HostTensor, as_numpy, deliver, host_inputs
from hal.testing.failures import Failures
from hal.testing.memory import DeviceTensor, Memory

A = TypeVar("A")

_ROUND: Mapping[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
_BLOB_MAGIC = b"hal-fake\0"
_OPTIONS = (
    OptionSpec(name="mode", kind="str", default="plain", choices=("plain", "fast"), help="Changes nothing."),
    OptionSpec(name="n_threads", kind="int", default=1, help="Changes nothing."),
)


class FakeBackend(Backend):
    """Any number of devices that compute with the reference and charge virtual time.

    Args:
        name: The backend's name.
        devices: One mapping of :class:`~hal.backend.Device` fields each; only ``id`` is required. None
            means one ``cpu:0`` with ``fp32`` and ``bf16``.
        costs_ns: Time of a node by ``DEVICE/PRECISION/OP``, ``DEVICE/OP``, ``OP``, ``DEVICE/PRECISION``
            or ``DEVICE``; the first of these that is there counts.
        default_ns: Time of a node that ``costs_ns`` does not name.
        overhead_ns: Time of a run beside its nodes.
        jitter: Every node's time is multiplied by ``1 + jitter * u``, u uniform in -1 to 1.
        seed: Of the jitter; equal seeds give equal times.
        refuse: Operator type to the reason why no device runs it.
        fallbacks: Mappings of :class:`~hal.backend.Fallback` fields, reported by every executable.
        findings: Mappings of :class:`~hal.backend.Finding` fields, for ``diagnose``.
        telemetry: What ``telemetry`` reads.
        abilities: Names of the optional protocols it has; None means all.
        own_memory: Ids of devices whose tensors lie in a memory that the host cannot read.
        fail: Failures on demand; see :class:`~hal.testing.failures.Failures`.

    Attributes:
        clocks: The virtual clock of every device, by its id.
        memories: The memory of each device that has its own, by its id.
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        devices: Sequence[Mapping[str, Any]] | None = None,
        costs_ns: Mapping[str, int] | None = None,
        default_ns: int = 1_000,
        overhead_ns: int = 100,
        jitter: float = 0.0,
        seed: int = 0,
        refuse: Mapping[str, str] | None = None,
        fallbacks: Sequence[Mapping[str, str]] = (),
        findings: Sequence[Mapping[str, str]] = ({"severity": "ok", "subject": "fake", "message": "works"},),
        telemetry: Mapping[str, int] | None = None,
        abilities: Sequence[str] | None = None,
        own_memory: Sequence[str] = (),
        fail: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.name = name
        self.api_version = API_VERSION
        self.failures = Failures(fail)
        self.failures.meet("import")
        given = devices if devices is not None else [{"id": "cpu:0", "precisions": ["fp32", "bf16"]}]
        self.devices = tuple(_device(fields) for fields in given)
        self.clocks = {device.id: VirtualClock() for device in self.devices}
        indices = {device.id: at for at, device in enumerate(self.devices)}
        self.memories = {identity: Memory(indices[identity]) for identity in own_memory}
        self.costs_ns = dict(costs_ns or {})
        self.default_ns, self.overhead_ns = default_ns, overhead_ns
        self.jitter, self.seed = jitter, seed
        self.refuse = {**dict(refuse or {}), **self.failures.refused}
        self.fallbacks = tuple(msgspec.convert(dict(item), Fallback) for item in fallbacks)
        self.findings = tuple(msgspec.convert(dict(item), Finding) for item in findings)
        self.readings = dict(telemetry or {"power_mw": 1_000, "utilisation_percent": 50})
        self.abilities = None if abilities is None else frozenset(abilities)

    def discover(self) -> Sequence[Device]:
        """The devices of the configuration."""
        self.failures.meet("discover")
        return self.devices

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """Two options that change nothing."""
        return _OPTIONS

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """Yes for every operator that the reference knows and the configuration does not refuse."""
        self.failures.meet("capability")
        return {name: self._support(device, node, precision) for name, node in graph.nodes.items()}

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Keep the model; nothing is compiled."""
        self.failures.meet("compile")
        if graph.unbound:
            raise UnsupportedGraph(
                f"{graph.name!r} has free dimensions: {', '.join(graph.unbound)}; bind them"
            )
        return self._compiled(device, graph, configuration)

    def compile_ranges(
        self,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        ranges: Mapping[str, tuple[int, int]],
    ) -> Executable:
        """Keep the model; see :class:`hal.backend.DynamicShapes`."""
        self.failures.meet("compile_ranges")
        return self._compiled(device, graph, configuration)

    def _compiled(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        self.check_options(configuration)
        support = {
            name: self._support(device, node, configuration.precision) for name, node in graph.nodes.items()
        }
        refused = [f"node {name!r}: {answer.reason}" for name, answer in support.items() if not answer.yes]
        if refused:
            raise UnsupportedGraph(problems(f"{self.name} cannot run {graph.name!r} on {device.id}", refused))
        return self.executable(device, graph, configuration)

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        """The executable that ``compile`` returns, after its checks; broken plugins replace it."""
        return FakeExecutable(self, device, graph, configuration)

    def check_options(self, configuration: Configuration) -> None:
        """Refuse what :meth:`options` does not list.

        Raises:
            TargetError: An option is unknown or its value is not legal.
        """
        specs = {spec.name: spec for spec in _OPTIONS}
        found = []
        for name, value in configuration.options:
            if name not in specs:
                found.append(f"option {name!r} is unknown; expected one of {', '.join(specs)}")
            elif type(value).__name__ != specs[name].kind or value not in (specs[name].choices or (value,)):
                legal = ", ".join(map(str, specs[name].choices)) or f"any {specs[name].kind}"
                found.append(f"option {name!r} cannot be {value!r}; expected {legal}")
        if found:
            raise TargetError(problems(f"{self.name} cannot compile", found))

    def telemetry(self, device: Device) -> Mapping[str, int]:
        """The readings of the configuration."""
        return self.readings

    def diagnose(self) -> Sequence[Finding]:
        """The findings of the configuration."""
        return self.findings

    def load_blob(self, device: Device, blob: bytes, configuration: Configuration) -> Executable:
        """Open what :meth:`FakeExecutable.blob` wrote.

        Raises:
            BackendError: The blob is damaged, or is of another device or configuration.
        """
        self.check_options(configuration)
        digest, model = blob[len(_BLOB_MAGIC) :][:32], blob[len(_BLOB_MAGIC) + 32 :]
        if not blob.startswith(_BLOB_MAGIC) or digest != _blob_digest(device, configuration, model):
            raise BackendError(
                f"a blob of {len(blob)} bytes is damaged or was not made for {device.id} and "
                f"{configuration}; compile the model again"
            )
        return self.executable(device, Graph.load(model), configuration)

    def ability(self, kind: type[A]) -> A | None:
        """Those that the configuration leaves on."""
        return super().ability(kind) if self.has(kind) else None

    def has(self, kind: type[Any]) -> bool:
        """Whether the configuration leaves an optional protocol on."""
        return self.abilities is None or kind.__name__ in self.abilities

    def cost_ns(self, device: Device, precision: str, op: str) -> int:
        """What one node of an operator costs, jitter apart."""
        keys = (
            f"{device.id}/{precision}/{op}",
            f"{device.id}/{op}",
            op,
            f"{device.id}/{precision}",
            device.id,
        )
        return next((self.costs_ns[key] for key in keys if key in self.costs_ns), self.default_ns)

    def _support(self, device: Device, node: Any, precision: str) -> Support:
        if precision not in device.precisions:
            return Support(
                False, f"{precision} on {device.id}; expected one of {', '.join(device.precisions)}"
            )
        if node.op_type in self.refuse:
            return Support(False, self.refuse[node.op_type])
        if node.domain not in ("", "ai.onnx"):
            return Support(False, f"operator {node.domain}::{node.op_type} is unknown")
        return Support(True)


class FakeExecutable(Executable):
    """A model that the reference computes; every run moves the clock of its device."""

    def __init__(
        self, backend: FakeBackend, device: Device, graph: Graph, configuration: Configuration
    ) -> None:
        self.backend, self.device, self.configuration = backend, device, configuration
        self.model: onnx.ModelProto | None = graph.to_proto()
        self.clock = backend.clocks[device.id]
        self.costs_ns = {
            name: backend.cost_ns(device, configuration.precision, node.op_type)
            for name, node in graph.nodes.items()
        }
        self._signature = graph.signature
        self._weight_bytes = graph.weight_bytes
        self._memory = backend.memories.get(device.id)
        self._random = random.Random(backend.seed)
        self._n_runs = 0
        self._pool: ThreadPoolExecutor | None = None

    @property
    def signature(self) -> Signature:
        """The graph's."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Compute with the reference and charge the virtual clock."""
        results, durations_ns = self.compute(inputs)
        self.clock.advance(sum(durations_ns.values()) + self.backend.overhead_ns)
        return deliver(results, outputs) if self._memory is None else self._returned(results, outputs)

    def compute(self, inputs: Sequence[Tensor]) -> tuple[list[Array], dict[str, int]]:
        """Answers by position and time by node, without moving the clock."""
        if self.model is None:
            raise BackendError("run after close; compile the graph again")
        given = inputs if self._memory is None else [self._here(tensor) for tensor in inputs]
        arrays = host_inputs(self._signature.inputs, given)
        self._n_runs += 1
        how = self.backend.failures.meet_run(self._n_runs)
        named = {spec.name: array for spec, array in zip(self._signature.inputs, arrays, strict=True)}
        answers = reference_outputs(self.model, named)
        # A copy: the reference may hand back an input or a weight as it is.
        results = [self.rounded(answers[spec.name].copy()) for spec in self._signature.outputs]
        if how == "wrong":
            results = [
                result if result.dtype.kind == "b" else result + result.dtype.type(1) for result in results
            ]
        return results, {name: self._charge(cost_ns, how) for name, cost_ns in self.costs_ns.items()}

    def rounded(self, result: Array) -> Array:
        """A result as the precision of the configuration would give it."""
        to = _ROUND.get(self.configuration.precision)
        if to is None or result.dtype.kind != "f":
            return result
        return result.astype(to).astype(result.dtype)

    def close(self) -> None:
        """Forget the model."""
        self.backend.failures.meet("close")
        self.model = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Virtual time of one run."""
        started_ns = self.clock.now_ns()
        self.run(inputs)
        return self.clock.now_ns() - started_ns

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """One kernel per node."""
        self.backend.failures.meet("kernels")
        runs = [self.compute(inputs)[1] for _ in range(n_runs)]
        total_ns = [sum(run.values()) + self.backend.overhead_ns for run in runs]
        self.clock.advance(sum(total_ns))
        kernels = tuple(
            Kernel(name=name, type="fake", nodes=(name,), durations_ns=tuple(run[name] for run in runs))
            for name in self.costs_ns
        )
        return KernelRuns(kernels=kernels, run_ns=tuple(total_ns))

    def place(self, tensor: Tensor) -> Tensor:
        """A copy in the device's memory, which is the host's unless it has its own."""
        array = as_numpy(tensor)
        return HostTensor(np.array(array, order="C")) if self._memory is None else self._memory.put(array)

    def submit(self, inputs: Sequence[Tensor]) -> FakePending:
        """Run on a thread of its own."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="hal-fake")
        return FakePending(self._pool.submit(self.run, inputs))

    def blob(self) -> bytes:
        """The model with a digest that ties it to device and configuration."""
        if self.model is None:
            raise BackendError("blob after close; compile the graph again")
        model: bytes = self.model.SerializeToString()
        return _BLOB_MAGIC + _blob_digest(self.device, self.configuration, model) + model

    def memory_bytes(self) -> int:
        """Bytes of the weights; none once closed."""
        return 0 if self.model is None else self._weight_bytes

    def fallbacks(self) -> Sequence[Fallback]:
        """Those of the configuration."""
        return self.backend.fallbacks

    def ability(self, kind: type[A]) -> A | None:
        """Those that the configuration leaves on."""
        return super().ability(kind) if self.backend.has(kind) else None

    def _here(self, tensor: Tensor) -> Tensor:
        """An input as the device reads it; what comes from the host is copied."""
        assert self._memory is not None
        if isinstance(tensor, DeviceTensor) and tensor.memory is self._memory:
            return HostTensor(tensor.held)
        return HostTensor(self._memory.put(as_numpy(tensor)).held)

    def _returned(self, results: Sequence[Array], outputs: Sequence[Tensor] | None) -> Sequence[Tensor]:
        """Results where they are wanted; what goes to the host is copied."""
        assert self._memory is not None
        made = [DeviceTensor(self._memory, result) for result in results]
        if outputs is None:
            return deliver([self._memory.get(tensor) for tensor in made], None)
        for tensor, output in zip(made, outputs, strict=True):
            if isinstance(output, DeviceTensor) and output.memory is self._memory:
                np.copyto(output.held, tensor.held)
            else:
                np.copyto(as_numpy(output), self._memory.get(tensor))
        return list(outputs)

    def _charge(self, cost_ns: int, how: str) -> int:
        factor = 10 if how == "slow" else 1
        jitter = self.backend.jitter * self._random.uniform(-1, 1) if self.backend.jitter else 0.0
        return max(0, round(cost_ns * factor * (1 + jitter)))


class FakePending:
    """A run on the executable's thread."""

    def __init__(self, future: Future[Sequence[Tensor]]) -> None:
        self._future = future

    def wait(self) -> Sequence[Tensor]:
        """The outputs; raises what the run raised."""
        return self._future.result()


def _device(fields: Mapping[str, Any]) -> Device:
    identity = str(fields["id"])
    kind = identity.partition(":")[0]
    known = {
        "name": f"Fake {identity}",
        "kind": "gpu" if kind == "cuda" else kind if kind in ("cpu", "gpu", "npu") else "other",
        "silicon": f"fake-{identity}",
        "memory_pool": f"fake-memory-{identity}",
    }
    return msgspec.convert({**known, **fields}, Device)


def _blob_digest(device: Device, configuration: Configuration, model: bytes) -> bytes:
    identity = json.dumps([device.id, msgspec.to_builtins(configuration)]).encode()
    digest: bytes = hashlib.sha256(identity + model).digest()
    return digest
