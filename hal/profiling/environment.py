"""The environment of a profile: what makes its figures comparable, and nothing personal."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from hal import host
from hal.plugins import Plugin
from hal.profiling.privacy import scrub
from hal.records.machine import Environment

#: Variables that change what runtimes do.
#: Source: OpenMP 5.2 (OMP_), libgomp (GOMP_), Intel OpenMP and MKL (KMP_, MKL_), oneDNN (ONEDNN_, DNNL_),
#: OpenBLAS, PyTorch (ATEN_, TORCH, PYTORCH_), OpenVINO (OV_), ONNX Runtime (ORT_), CUDA, allocators.
_SETTINGS = re.compile(
    r"(OMP|GOMP|KMP|MKL|ONEDNN|DNNL|OPENBLAS|ATEN|TORCH|PYTORCH|OV|ORT|CUDA|NVIDIA|MALLOC)_\w+|LD_PRELOAD"
)


def describe(plugins: Iterable[Plugin]) -> Environment:
    """Read the environment of this process."""
    return Environment(
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=host.cpu_name(),
        cpu_features=host.cpu_features(),
        n_cpus=os.cpu_count() or 1,
        n_usable_cpus=host.n_usable_cpus(),
        memory_bytes=host.total_memory_bytes(),
        python=platform.python_version(),
        packages=_packages(plugins),
        settings=_settings(),
    )


def governor() -> str:
    """The CPU frequency governor of Linux, or an empty text where it is not shown."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text().strip()
    except OSError:  # virtual machines and other systems show none
        return ""


def _packages(plugins: Iterable[Plugin]) -> dict[str, str]:
    """hal, its plugins and what these require, as far as it is installed."""
    names = {"hal-runtime", "numpy", "onnx", "onnx-ir"}
    for plugin in plugins:
        names.add(plugin.distribution)
        try:
            required = metadata.requires(plugin.distribution) or []
        except metadata.PackageNotFoundError:  # an entry point without a distribution
            continue
        names.update(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in required)
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return versions


def _settings() -> dict[str, str]:
    found = {name: scrub(value) for name, value in os.environ.items() if _SETTINGS.fullmatch(name)}
    if governor():
        found["governor"] = governor()
    return dict(sorted(found.items()))
