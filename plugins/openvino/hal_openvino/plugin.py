"""The plugin module that hal finds; the runtime is imported when the backend is asked for."""

from __future__ import annotations

from hal.backend import Backend
from hal.hookspecs import hookimpl


@hookimpl
def hal_backend() -> Backend:
    """OpenVINO as a backend; ``openvino`` itself is imported at its first use."""
    from hal_openvino.backend import OpenVinoBackend

    return OpenVinoBackend()
