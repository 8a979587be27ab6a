"""Entry point of ``hal-cuda``."""

from __future__ import annotations

from hal.backend import Backend
from hal.hookspecs import hookimpl
from hal_cuda.backend import CudaBackend


@hookimpl
def hal_backend() -> Backend:
    """PyTorch on NVIDIA GPUs; PyTorch and NVML are loaded when they are first needed."""
    return CudaBackend()
