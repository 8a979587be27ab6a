"""The plugin module: what the entry point ``onnxruntime`` names. Importing it loads no framework."""

from __future__ import annotations

from hal.backend import Backend
from hal.hookspecs import hookimpl
from hal_onnxruntime.backend import OnnxRuntimeBackend


@hookimpl
def hal_backend() -> Backend:
    """ONNX Runtime, with the execution providers that work on this machine."""
    return OnnxRuntimeBackend()
