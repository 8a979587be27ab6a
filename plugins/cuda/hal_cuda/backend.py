"""PyTorch on NVIDIA GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hal import host
from hal.backend import Backend, Configuration, Device, Executable, Finding, OptionSpec, Support
from hal.graph.model import Graph
from hal_cuda.findings import build_finding, driver_finding, gpu_findings
from hal_cuda.nvml import Gpu, Nvml, NvmlFailure, same
from hal_torch import support


class CudaBackend(Backend):
    """One device per GPU that PyTorch sees (``CUDA_VISIBLE_DEVICES`` decides), or per slice of one.

    Args:
        nvml: The module ``pynvml`` or an object with its functions; None imports it when needed.
    """

    name = "cuda"

    def __init__(self, nvml: Any = None) -> None:
        self._api = nvml
        self._session: Nvml | None = None

    def discover(self) -> Sequence[Device]:
        """The GPUs; where there is none that PyTorch can use, why."""
        session, failure = self._open()
        gpus, driver = _told(session)
        try:
            import torch
        except (ImportError, OSError) as error:  # OSError: a shared library of PyTorch does not load
            reason = f"PyTorch cannot be imported ({str(error).splitlines()[0]}); reinstall torch"
            return absent(reason, gpus)
        if torch.version.cuda is None:
            reason = f"PyTorch {torch.__version__} is a build without CUDA"
            return absent(f"{reason}; {failure}" if failure else reason, gpus)
        try:
            torch.cuda.init()
            found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        except (RuntimeError, AssertionError) as error:
            return absent(failure or _first_line(error), gpus)
        if not found:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            hidden = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
            return absent(failure or f"no CUDA device is visible{hidden}", gpus)
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, **driver}
        return tuple(device_of(index, shown, gpus, versions) for index, shown in enumerate(found))

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """``mode``."""
        return (support.MODE,)

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """What the bridge translates, in the precisions of the GPU."""
        if device.unavailable:
            return {name: Support(False, device.unavailable) for name in graph.nodes}
        return support.capability(device, graph, precision)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Bridge the graph and, with ``mode=compiled``, compile it with Inductor here and now."""
        support.check(self.name, device, self.options(device), configuration)
        import torch

        from hal_cuda.executable import CudaExecutable

        place = torch.device(device.id)
        with torch.cuda.device(place):
            return CudaExecutable(graph, place, configuration, n_workers=host.n_usable_cpus())

    def telemetry(self, device: Device) -> Mapping[str, int]:
        """What NVML tells now; empty where it tells nothing."""
        session, _ = self._open()
        if session is None:
            return {}
        gpu = next((gpu for gpu in session.gpus() if gpu.uuid == device.memory_pool), None)
        return {} if gpu is None else session.readings(gpu).numbers()

    def compile_ranges(
        self,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        ranges: Mapping[str, tuple[int, int]],
    ) -> Executable:
        """See :class:`hal.backend.DynamicShapes`; PyTorch's operators take any size, node by node."""
        return self.compile(device, graph, configuration)

    def diagnose(self) -> Sequence[Finding]:
        """The build of PyTorch, the driver, and settings of each GPU that cost speed."""
        devices = self.discover()
        session, failure = self._open()
        version, cuda = _torch_versions()
        system = session.system().values if session is not None else {}
        findings = [build_finding(version, cuda), driver_finding(failure, system, cuda)]
        unavailable = devices[0].unavailable
        if unavailable and cuda and not failure:
            advice = "check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
            findings.append(Finding(severity="problem", subject="GPU", message=unavailable, advice=advice))
        if session is not None:
            gpus, _ = _told(session)
            for gpu in gpus:
                findings.extend(gpu_findings(gpu, session.settings(gpu)))
        return findings

    def _open(self) -> tuple[Nvml | None, str]:
        if self._session is None:
            try:
                self._session = Nvml(self._api)
            except NvmlFailure as failure:
                return None, failure.message
        return self._session, ""


def device_of(index: int, shown: Any, gpus: Sequence[Gpu], versions: Mapping[str, str]) -> Device:
    """A GPU as PyTorch shows it, joined by UUID with what NVML tells (their numbers differ).

    Args:
        index: PyTorch's number.
        shown: What ``torch.cuda.get_device_properties`` returns.
        gpus: What NVML lists.
        versions: Of PyTorch, CUDA and the driver.
    """
    uuid = str(getattr(shown, "uuid", ""))
    gpu = next((gpu for gpu in gpus if same(gpu.uuid, uuid)), None)
    capability = (int(shown.major), int(shown.minor))
    return Device(
        id=f"cuda:{index}",
        name=str(shown.name),
        kind="gpu",
        silicon=gpu.silicon if gpu else uuid or f"cuda:{index}",
        memory_pool=gpu.uuid if gpu else uuid or f"cuda:{index}",
        memory_bytes=int(shown.total_memory),
        precisions=precisions(capability),
        properties={
            **versions,
            "compute_capability": f"{capability[0]}.{capability[1]}",
            "n_multiprocessors": int(shown.multi_processor_count),
            "mig": bool(gpu and gpu.is_mig),
        },
    )


def precisions(capability: tuple[int, int]) -> tuple[str, ...]:
    """What a GPU of a compute capability computes in by itself.

    Source: NVIDIA CUDA C++ Programming Guide, "Arithmetic Instructions": half from 5.3, bfloat16 from 8.0.
    """
    found = ["fp32"]
    if capability >= (8, 0):
        found.append("bf16")
    if capability >= (5, 3):
        found.append("fp16")
    return tuple(found)


def absent(reason: str, gpus: Sequence[Gpu]) -> tuple[Device, ...]:
    """Devices that cannot be used, each with the reason; one without a name where NVML lists none."""
    shown = gpus or (Gpu(None, "NVIDIA GPU", "", ""),)
    return tuple(
        Device(
            id=f"cuda:{index}",
            name=gpu.name,
            kind="gpu",
            silicon=gpu.silicon or f"cuda:{index}",
            memory_pool=gpu.uuid or f"cuda:{index}",
            unavailable=reason,
        )
        for index, gpu in enumerate(shown)
    )


def _told(session: Nvml | None) -> tuple[tuple[Gpu, ...], dict[str, str]]:
    if session is None:
        return (), {}
    system = session.system().values
    driver = {"driver": str(system["driver"])} if "driver" in system else {}
    try:
        return session.gpus(), driver
    except NvmlFailure:
        return (), driver  # PyTorch may still see the GPU: nothing is lost but names


def _torch_versions() -> tuple[str, str]:
    try:
        import torch
    except (ImportError, OSError):
        return "", ""
    return str(torch.__version__), str(torch.version.cuda or "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
