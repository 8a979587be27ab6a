"""What ``hal doctor`` should say about ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Sequence

from hal.backend import Device, Finding
from hal.errors import BackendError
from hal_onnxruntime.runtime import INSTALL, onnxruntime

# Variables that make every run slower.
# Source: NVIDIA, CUDA C++ Programming Guide, "CUDA Environment Variables".
_SLOW = {
    "CUDA_LAUNCH_BLOCKING": ("1", "each kernel launch waits for the one before; unset it unless you debug"),
}


def findings(devices: Sequence[Device]) -> list[Finding]:
    """Findings from the devices that discovery told; never raises."""
    try:
        package = onnxruntime()
    except BackendError as error:
        return [Finding(severity="problem", subject="ONNX Runtime", message=str(error), advice=INSTALL)]
    found = [Finding(severity="ok", subject="ONNX Runtime", message=f"version {package.__version__}")]
    builds = installed_builds(
        distribution.metadata["Name"] for distribution in importlib.metadata.distributions()
    )
    if len(builds) > 1:
        found.append(
            Finding(
                severity="problem",
                subject="ONNX Runtime packages",
                message=f"{' and '.join(builds)} are installed together; they overwrite each other's files",
                advice="uninstall all of them and install one",
            )
        )
    for device in devices:
        variant = device.variant or "cpu"
        if device.unavailable:
            found.append(
                Finding(
                    severity="warning",
                    subject=f"execution provider {variant}",
                    message=device.unavailable,
                    advice="install what is missing, or use another build of onnxruntime",
                )
            )
        else:
            found.append(
                Finding(
                    severity="ok", subject=f"execution provider {variant}", message=f"works on {device.id}"
                )
            )
    for name, (value, advice) in _SLOW.items():
        if os.environ.get(name) == value:
            found.append(
                Finding(severity="warning", subject=name, message=f"is set to {value}", advice=advice)
            )
    return found


def installed_builds(names: Iterable[str | None]) -> list[str]:
    """Distributions that all provide the package ``onnxruntime``."""
    known = {"onnxruntime", *(f"onnxruntime-{kind}" for kind in _BUILDS)}
    return sorted({name.lower().replace("_", "-") for name in names if name} & known)


_BUILDS = (
    "gpu",
    "openvino",
    "directml",
    "qnn",
    "training",
    "azure",
    "migraphx",
    "rocm",
    "cann",
    "coreml",
    "silicon",
)
