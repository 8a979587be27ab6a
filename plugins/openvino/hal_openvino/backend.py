"""OpenVINO as a hal backend."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hal.backend import API_VERSION, Backend, Configuration, Device, Executable, Finding, OptionSpec, Support
from hal.errors import BackendError, TargetError, UnsupportedGraph, problems
from hal.graph.model import Graph
from hal_openvino import devices, doctor, settings
from hal_openvino.failures import summary


class OpenVinoBackend(Backend):
    """Runs ONNX graphs on every device that OpenVINO finds.

    ``openvino`` is imported at the first call, not when this object is made.
    """

    name = "openvino"
    api_version = API_VERSION

    @functools.cached_property
    def _core(self) -> Any:
        try:
            import openvino

            return openvino.Core()
        except (ImportError, RuntimeError, OSError) as error:
            raise BackendError(f"openvino cannot start: {summary(error)}; reinstall it") from error

    @functools.cached_property
    def _version(self) -> str:
        import openvino

        return str(openvino.get_version())

    def discover(self) -> Sequence[Device]:
        """Every device that OpenVINO lists; GPU and NPU with the reason where it lists none."""
        return devices.discover(self._core)

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """``hint``, ``streams``, ``cache_dir`` and, on the CPU, ``threads``."""
        return settings.specs(device)

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """OpenVINO's answer for the whole graph, node by node, in its own words."""
        from hal_openvino.support import judge

        if device.unavailable or precision not in device.precisions:
            reason = device.unavailable or (
                f"{device.id} ({device.name}) does not compute in {precision}; "
                f"it computes in {', '.join(device.precisions)}"
            )
            return dict.fromkeys(graph.nodes, Support(False, reason))
        return judge(self._core, devices.openvino_name(device), graph)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Compile for one device; see :meth:`hal.backend.Backend.compile`."""
        if graph.unbound:
            raise UnsupportedGraph(
                f"model {graph.name!r} has dimensions without a number: {', '.join(graph.unbound)}; "
                "bind them before compiling"
            )
        return self._compiled(device, graph, configuration, None)

    def compile_ranges(
        self,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        ranges: Mapping[str, tuple[int, int]],
    ) -> Executable:
        """See :class:`hal.backend.DynamicShapes`; on the CPU, whose plugin OpenVINO documents to take it."""
        if device.kind != "cpu":
            raise UnsupportedGraph(f"OpenVINO compiles for bound sizes on {device.id}; expected the CPU")
        return self._compiled(device, graph, configuration, ranges)

    def _compiled(
        self,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        ranges: Mapping[str, tuple[int, int]] | None,
    ) -> Executable:
        from hal_openvino.atlas import draw
        from hal_openvino.executable import OpenVinoExecutable
        from hal_openvino.passthrough import separate
        from hal_openvino.ranges import reshape
        from hal_openvino.support import untransferable

        chosen = self._settings(device, configuration)
        refused = [f"node {name!r}: {reason}" for name, reason in untransferable(graph).items()]
        if refused:
            raise UnsupportedGraph(
                problems(f"openvino cannot run model {graph.name!r} on {device.id}", refused)
            )
        try:
            model = self._core.read_model(graph.serialized())
        except RuntimeError as error:
            raise self._refusal(device, graph, configuration, error) from error
        separate(graph, model)
        if ranges is not None:
            reshape(model, graph.signature, ranges)
        atlas = draw(graph, model)
        name = devices.openvino_name(device)
        try:
            compiled = self._core.compile_model(model, name, self._properties(device, chosen))
        except RuntimeError as error:
            raise self._refusal(device, graph, configuration, error) from error
        self._verify(compiled, device, chosen)

        def instrument() -> Any:
            alone = settings.per_stream(chosen, _n_streams(compiled))
            return self._core.compile_model(model, name, self._properties(device, alone, profiling=True))

        return OpenVinoExecutable(
            compiled,
            graph.signature,
            atlas=atlas,
            stamp=self._stamp(device, chosen),
            instrument=instrument,
        )

    def load_blob(self, device: Device, blob: bytes, configuration: Configuration) -> Executable:
        """Make an executable of what ``blob()`` returned; see :class:`hal.backend.BlobLoader`."""
        from hal_openvino import blobs
        from hal_openvino.executable import OpenVinoExecutable

        chosen = self._settings(device, configuration)
        unpacked, content = blobs.unpack(blob, self._stamp(device, chosen))
        name = devices.openvino_name(device)

        def load(given: settings.Settings, *, profiling: bool = False) -> Any:
            wanted = self._properties(device, given, profiling=profiling)
            wanted.pop("CACHE_DIR", None)
            try:
                return self._core.import_model(content, name, wanted)
            except RuntimeError as error:
                raise BackendError(
                    f"OpenVINO cannot load the compiled model: {summary(error)}; compile it again"
                ) from error

        compiled = load(chosen)
        self._verify(compiled, device, chosen)
        return OpenVinoExecutable(
            compiled,
            unpacked.signature,
            atlas=unpacked.atlas,
            stamp=unpacked.stamp,
            instrument=lambda: load(settings.per_stream(chosen, _n_streams(compiled)), profiling=True),
        )

    def diagnose(self) -> Sequence[Finding]:
        """Version, devices, default precision, threads, settings that cost speed."""
        try:
            return doctor.examine(self._version, self.discover())
        except (BackendError, ImportError) as error:
            return [
                Finding(
                    severity="problem",
                    subject="OpenVINO",
                    message=str(error),
                    advice="reinstall openvino in this environment",
                )
            ]

    # --- inside ----------------------------------------------------------------------------------

    def _settings(self, device: Device, configuration: Configuration) -> settings.Settings:
        if device.unavailable:
            raise TargetError(f"{device.id} cannot be used by openvino: {device.unavailable}")
        return settings.read(device, configuration)

    def _properties(
        self, device: Device, chosen: settings.Settings, *, profiling: bool = False
    ) -> dict[str, Any]:
        supported = devices.supported_properties(self._core, devices.openvino_name(device))
        return settings.properties(device, chosen, supported, profiling=profiling)

    def _stamp(self, device: Device, chosen: settings.Settings) -> Any:
        from hal_openvino.blobs import Stamp

        return Stamp(openvino=self._version, device=device.name, precision=chosen.precision)

    def _verify(self, compiled: Any, device: Device, chosen: settings.Settings) -> None:
        """Ask the compiled model what it computes in; plugins drop hints they cannot follow."""
        wanted = settings.ELEMENT_TYPES[chosen.precision]
        told = _told(compiled, "INFERENCE_PRECISION_HINT")
        found = "a precision that it does not tell" if told is None else told.to_string()
        if found != wanted:
            raise BackendError(
                f"OpenVINO compiled for {found} on {device.id} where {wanted} was asked for; "
                "choose a precision that `hal devices` lists"
            )

    def _refusal(
        self, device: Device, graph: Graph, configuration: Configuration, error: RuntimeError
    ) -> Exception:
        from hal_openvino.support import refusals

        found = refusals(self.capability(device, graph, configuration.precision))
        if not found:
            return BackendError(
                f"OpenVINO cannot compile model {graph.name!r} for {device.id}: {summary(error)}"
            )
        return UnsupportedGraph(problems(f"openvino cannot run model {graph.name!r} on {device.id}", found))


def _n_streams(compiled: Any) -> int:
    return int(_told(compiled, "NUM_STREAMS") or 1)


def _told(compiled: Any, key: str) -> Any:
    """A property of a compiled model, or None where its plugin does not have it."""
    known = compiled.get_property("SUPPORTED_PROPERTIES")
    return compiled.get_property(key) if key in known else None
