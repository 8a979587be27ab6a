"""Entry point of ``hal-cpu``."""

from __future__ import annotations

from hal.backend import Backend
from hal.hookspecs import hookimpl
from hal_cpu.backend import CpuBackend


@hookimpl
def hal_backend() -> Backend:
    """PyTorch on the processor; PyTorch itself is imported when it is first needed."""
    return CpuBackend()
