"""PyTorch on the processor this process runs on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

from hal import host
from hal.backend import Backend, Configuration, Device, Executable, Finding, OptionSpec, Support
from hal.graph.model import Graph
from hal_cpu.spinning import rest
from hal_torch import support

#: Instructions that multiply in a format by themselves. Elsewhere PyTorch converts to float32 and
#: back, which is slower than float32 and measures nothing of the processor.
#: Source: Intel 64 and IA-32 Architectures Software Developer's Manual (AVX512_BF16, AVX512_FP16,
#: AMX-BF16, AMX-FP16); Arm Architecture Reference Manual (FEAT_BF16, FEAT_FP16 as Linux spells them).
_NATIVE = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}


class CpuBackend(Backend):
    """One device, ``cpu:0``: all processors that this process may use."""

    name = "cpu"

    def discover(self) -> Sequence[Device]:
        """The processor; imports PyTorch."""
        properties: dict[str, str | int | float | bool] = {}
        unavailable = ""
        try:
            import torch

            properties = {"torch": str(torch.__version__), "isa": torch.backends.cpu.get_cpu_capability()}
        except (ImportError, OSError) as error:  # OSError: a shared library of PyTorch does not load
            unavailable = f"PyTorch cannot be imported ({str(error).splitlines()[0]}); reinstall torch"
        return (
            Device(
                id="cpu:0",
                name=host.cpu_name(),
                kind="cpu",
                silicon="cpu:0",
                memory_pool="host",
                memory_bytes=host.total_memory_bytes(),
                precisions=precisions(host.cpu_features()),
                unavailable=unavailable,
                properties=properties,
            ),
        )

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """``mode``, ``spinning`` and ``threads``."""
        threads = OptionSpec(
            name="threads",
            kind="int",
            default=host.n_usable_cpus(),
            help="Threads within an operation. PyTorch has one setting for the whole process.",
        )
        spinning = OptionSpec(
            name="spinning",
            kind="bool",
            default=True,
            help="Idle threads spin: faster alone, but they take time from other backends' threads. Once "
            "turned off it stays off in the process.",
        )
        return (support.MODE, spinning, threads)

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """What the bridge translates, in the precisions of the processor."""
        return support.capability(device, graph, precision)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Bridge the graph and, with ``mode=compiled``, compile it with Inductor here and now."""
        support.check(self.name, device, self.options(device), configuration)
        import torch

        from hal_torch.executable import TorchExecutable

        if not configuration.option("spinning", True):
            rest()
        n_threads = int(configuration.option("threads", host.n_usable_cpus()))
        return TorchExecutable(
            graph, torch.device("cpu"), configuration, n_threads=n_threads, n_workers=n_threads
        )

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
        """PyTorch, its threads, oneDNN, and the compiler that Inductor needs."""
        device = self.discover()[0]
        if device.unavailable:
            return (
                Finding(
                    severity="problem",
                    subject="PyTorch",
                    message=device.unavailable,
                    advice="reinstall torch, then run `hal doctor` again",
                ),
            )
        version, isa = device.properties["torch"], device.properties["isa"]
        return (
            Finding(severity="ok", subject="PyTorch", message=f"version {version}, instructions {isa}"),
            threads_finding(os.environ.get("OMP_NUM_THREADS"), host.n_usable_cpus()),
            _onednn_finding(),
            _compiler_finding(),
        )


def precisions(features: Sequence[str]) -> tuple[str, ...]:
    """What a processor with these instruction-set flags computes in by itself, best first."""
    return ("fp32", *(name for name, flags in _NATIVE.items() if flags & set(features)))


def threads_finding(variable: str | None, n_usable_cpus: int) -> Finding:
    """Whether ``OMP_NUM_THREADS`` fits the processors that may be used."""
    subject = "threads of PyTorch"
    if variable is None:
        return Finding(
            severity="ok", subject=subject, message=f"{n_usable_cpus}, as many as this process may use"
        )
    if variable.strip() == str(n_usable_cpus):
        return Finding(severity="ok", subject=subject, message=f"OMP_NUM_THREADS is {variable}")
    return Finding(
        severity="note",
        subject=subject,
        message=f"OMP_NUM_THREADS is {variable} and {n_usable_cpus} processors may be used; "
        f"hal runs {n_usable_cpus} threads, programs of yours run {variable}",
        advice="unset OMP_NUM_THREADS, or profile with the option threads set to its value",
    )


def _onednn_finding() -> Finding:
    import torch

    if torch.backends.mkldnn.is_available():
        return Finding(severity="ok", subject="oneDNN", message="built into PyTorch")
    return Finding(
        severity="warning",
        subject="oneDNN",
        message="this build of PyTorch has no oneDNN: convolutions and bf16 are slow",
        advice="install a build of torch with oneDNN (the wheels for Linux have it)",
    )


def _compiler_finding() -> Finding:
    # Source: torch._inductor.config.cpp.cxx, "CXX", else the system's usual compiler.
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler):
        name = os.path.basename(compiler)
        return Finding(severity="ok", subject="C++ compiler", message=f"{name}, for mode=compiled")
    return Finding(
        severity="note",
        subject="C++ compiler",
        message=f"{os.path.basename(compiler)} was not found: mode=compiled cannot be used on the CPU",
        advice="install g++, or name another compiler in the environment variable CXX",
    )
