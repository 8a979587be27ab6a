"""The backend: devices, support, compiling."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hal import host
from hal.backend import (
    AsyncRun,
    Backend,
    CompiledBlob,
    Configuration,
    Device,
    DeviceTensors,
    Executable,
    Fallback,
    Finding,
    KernelRuns,
    KernelTimes,
    OptionSpec,
    Placements,
    Support,
    Tensor,
)
from hal.errors import BackendError, TargetError, UnsupportedGraph
from hal.graph.model import Graph
from hal_onnxruntime import blobs, capability, diagnosis, discovery, kernels
from hal_onnxruntime.executable import OrtExecutable
from hal_onnxruntime.loading import Endpoint, open_graph, open_session
from hal_onnxruntime.options import choices_of, option_specs, session_options
from hal_onnxruntime.providers import CPU, provider_of
from hal_onnxruntime.runtime import onnxruntime

A = TypeVar("A")

#: Providers whose kernels take any size; others compile for the sizes of a run when they first come.
_ANY_SIZE = (CPU, "CUDAExecutionProvider")

# A blob is one protobuf message, which holds less than 2 GiB; half leaves room for rewritten weights.
_MOST_BLOB_BYTES = 1 << 30


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime; one device per execution provider.

    Args:
        libraries: Files of execution providers to load, by a name of your choice, besides installed
            packages and ``HAL_ONNXRUNTIME_EP_LIBRARIES``.
    """

    name = "onnxruntime"

    def __init__(self, libraries: Mapping[str, str] | None = None) -> None:
        self._libraries = dict(libraries or {})
        self._found: list[discovery.Found] | None = None

    def discover(self) -> Sequence[Device]:
        """One device per execution provider; those that do not work say why."""
        try:
            return [found.device for found in self._discovered()]
        except BackendError as error:
            return [_absent(str(error))]

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """The same for every provider."""
        return option_specs()

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """See :meth:`hal.backend.Backend.capability`; refusals are in the runtime's own words."""
        endpoint = self._endpoint(device)
        if precision not in endpoint.provider.precisions:
            return dict.fromkeys(graph.nodes, Support(False, _no_precision(endpoint, precision)))
        if endpoint.provider.name == CPU:
            return capability.support_on_cpu(graph, endpoint, lambda: capability.plain_options(precision))
        return capability.support_on_provider(graph, endpoint, precision)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """See :meth:`hal.backend.Backend.compile`."""
        if graph.unbound:
            raise UnsupportedGraph(
                f"model {graph.name!r} has dimensions without a number: {', '.join(graph.unbound)}; "
                "bind them before compiling"
            )
        return self._compiled(device, graph, configuration)

    def compile_ranges(
        self,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        ranges: Mapping[str, tuple[int, int]],
    ) -> Executable:
        """See :class:`hal.backend.DynamicShapes`; of the CPU and CUDA providers.

        Others compile for the sizes of each run, which takes far longer than the run.
        """
        name = self._endpoint(device).provider.name
        if name not in _ANY_SIZE:
            raise UnsupportedGraph(f"{name} compiles for bound sizes; expected {' or '.join(_ANY_SIZE)}")
        return self._compiled(device, graph, configuration)

    def _compiled(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        choices = choices_of(configuration)
        endpoint = self._endpoint(device)
        if configuration.precision not in endpoint.provider.precisions:
            raise TargetError(_no_precision(endpoint, configuration.precision))
        executable = GraphExecutable(self._device(device), endpoint, graph, configuration)
        try:
            executable.open(lambda: session_options(choices))
        except UnsupportedGraph as refusal:
            answers = self.capability(device, graph, configuration.precision)
            if all(answer.yes for answer in answers.values()):
                raise UnsupportedGraph(f"onnxruntime refuses model {graph.name!r}: {refusal}") from refusal
            raise UnsupportedGraph(capability.unsupported(graph, answers, endpoint)) from refusal
        except BackendError as error:
            raise BackendError(f"model {graph.name!r} does not compile: {error}") from error
        return executable

    def load_blob(self, device: Device, blob: bytes, configuration: Configuration) -> Executable:
        """See :class:`hal.backend.BlobLoader`; of the CPU provider's blobs only."""
        choices = choices_of(configuration)
        endpoint = self._endpoint(device)
        if endpoint.provider.name != CPU:
            raise BackendError(f"{endpoint.provider.name} has no blobs; compile the model instead")
        model, signature = blobs.unpack(blob, configuration)
        options = session_options(choices)
        # The graph is rewritten already; doing it twice could change it again.
        options.graph_optimization_level = _nothing()
        try:
            session = open_session(model, options, endpoint, configuration.precision)
        except UnsupportedGraph as refusal:
            raise BackendError(f"the blob cannot be opened: {refusal}; compile the model again") from refusal
        return LoadedExecutable(session, signature)

    def diagnose(self) -> Sequence[Finding]:
        """See :class:`hal.backend.Diagnosis`."""
        return diagnosis.findings(self.discover())

    def _discovered(self) -> list[discovery.Found]:
        if self._found is None:
            self._found = discovery.discover(self._libraries)
        return self._found

    def _find(self, device: Device) -> discovery.Found:
        found = self._discovered()
        for entry in found:
            if (entry.device.id, entry.device.variant) == (device.id, device.variant):
                if entry.device.unavailable:
                    raise BackendError(f"device {_called(device)} cannot be used: {entry.device.unavailable}")
                return entry
        available = ", ".join(_called(entry.device) for entry in found if not entry.device.unavailable)
        raise TargetError(f"backend 'onnxruntime' has no device {_called(device)}; available: {available}")

    def _endpoint(self, device: Device) -> Endpoint:
        return self._find(device).endpoint

    def _device(self, device: Device) -> Device:
        return self._find(device).device


class LoadedExecutable(OrtExecutable):
    """Made from a blob: the graph is not at hand, so kernels cannot be mapped to its nodes."""

    def ability(self, kind: type[A]) -> A | None:
        """Asynchronous runs."""
        return super().ability(kind) if kind is AsyncRun else None


class GraphExecutable(OrtExecutable):
    """Made from a graph. Call :meth:`open` before anything else."""

    def __init__(
        self, device: Device, endpoint: Endpoint, graph: Graph, configuration: Configuration
    ) -> None:
        # Device buffers exist for CUDA only: elsewhere the runtime takes host memory and copies.
        memory = "cuda" if device.id.startswith("cuda:") and endpoint.ep_device is None else "cpu"
        super().__init__(None, graph.signature, memory, endpoint.index)
        self._device, self._endpoint, self._graph = device, endpoint, graph
        self._configuration = configuration
        self._options_of: Any = None

    def open(self, options_of: Any) -> None:
        """Make the session.

        Args:
            options_of: Makes fresh session options.

        Raises:
            UnsupportedGraph: The runtime does not take the graph.
            BackendError: The runtime failed.
        """
        self._options_of = options_of
        self._session = self._make(lambda options: None)

    def ability(self, kind: type[A]) -> A | None:
        """What this provider really has."""
        on_cpu = self._endpoint.provider.name == CPU
        offered = {
            AsyncRun: True,
            Placements: True,
            # Where kernels are queued on a GPU, the profile tells when they were launched.
            KernelTimes: self._endpoint.provider.kind != "gpu",
            DeviceTensors: self._memory != "cpu",
            CompiledBlob: on_cpu and self._graph.weight_bytes <= _MOST_BLOB_BYTES,
        }
        return super().ability(kind) if offered.get(kind, False) else None

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """See :class:`hal.backend.KernelTimes`; durations are whole microseconds."""
        self._check_open()
        recorder = kernels.Recorder(
            graph=self._graph,
            open=self._make,
            device_of=self._device_of,
            run=lambda session: OrtExecutable(session, self._signature).run(inputs),
            provider=self._endpoint.provider.name,
        )
        return kernels.record(recorder, n_runs)

    def fallbacks(self) -> Sequence[Fallback]:
        """See :class:`hal.backend.Placements`."""
        self._check_open()
        provider = self._endpoint.provider.name
        if provider == CPU:
            return ()
        return [
            Fallback(node.name or node.op_type, provider, part.ep_name)
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name != provider
            for node in part.get_nodes()
        ]

    def blob(self) -> bytes:
        """See :class:`hal.backend.CompiledBlob`."""
        self._check_open()
        with tempfile.TemporaryDirectory(prefix="hal-onnxruntime-") as name:
            path = Path(name) / "optimised.onnx"

            def saving(options: Any) -> None:
                options.optimized_model_filepath = str(path)

            self._make(saving)
            return blobs.pack(path.read_bytes(), self._configuration, self._signature)

    def _make(self, change: Any, without: tuple[str, ...] = ()) -> Any:
        def options_of() -> Any:
            options = self._options_of()
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            change(options)
            return options

        return open_graph(self._graph, options_of, self._endpoint, self._configuration.precision, without)

    def _device_of(self, provider: str) -> str:
        if provider in ("", self._endpoint.provider.name):
            return ""
        ran_on = f"{provider_of(provider).device}:{self._endpoint.index if provider != CPU else 0}"
        return "" if ran_on == self._device.id else ran_on

    def _check_open(self) -> None:
        if self._session is None:
            raise BackendError("this executable is closed; compile the graph again")


def _nothing() -> Any:
    return onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL


def _absent(reason: str) -> Device:
    return Device(
        id="cpu:0",
        name=host.cpu_name(),
        kind="cpu",
        silicon="cpu:0",
        memory_pool="host",
        memory_bytes=host.total_memory_bytes(),
        unavailable=reason,
    )


def _called(device: Device) -> str:
    return f"{device.id}/onnxruntime{'-' if device.variant else ''}{device.variant}"


def _no_precision(endpoint: Endpoint, precision: str) -> str:
    provider = endpoint.provider
    note = f" ({provider.note})" if provider.note else ""
    return (
        f"{provider.name} does not compute in {precision}{note}; available: {', '.join(provider.precisions)}"
    )
