"""Whether devices work, and what on this machine costs speed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import psutil
from onnx import TensorProto, helper

from hal import host, plugins
from hal.backend import Configuration, Device, Diagnosis, Finding
from hal.errors import HalError
from hal.graph.model import Graph
from hal.profiling.discovery import Discovery, discover
from hal.profiling.environment import governor
from hal.profiling.progress import Progress, Silent
from hal.records.places import cache_folder
from hal.tensor import as_numpy
from hal.worker import Deadlines, WorkerBackend

#: Below this, exporting or caching a model of a few hundred megabytes fails half-way.
_LOW_DISK_BYTES = 2 << 30


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A tiny computation on a device.

    Attributes:
        ok: Whether the answer was right.
        message: What was computed, or what went wrong.
        duration_ns: Compile and run together.
    """

    ok: bool
    message: str
    duration_ns: int


def prove(backend_name: str, device: Device, *, deadlines: Deadlines | None = None) -> Proof:
    """Compute a 2x2 matrix product on a device, in a child process, and check it.

    In fp32 where the device has it, with factors that bf16, fp16 and TF32 cannot hold: a device that
    rounds behind one's back does not pass.
    """
    precision = "fp32" if "fp32" in device.precisions else device.precisions[0]
    # 1 + 2^-13 needs 13 bits of fraction: fp32 has 23; TF32 and fp16 have 10, bf16 has 7.
    a = np.array([[1 + 2**-13, 0], [0, 1 - 2**-13]], np.float32)
    b = np.array([[1, 2], [4, 8]], np.float32)
    if precision != "fp32":
        a = np.round(a)
    try:
        with WorkerBackend(plugins.reference(backend_name), deadlines=deadlines) as backend:
            started_ns = time.perf_counter_ns()
            executable = backend.compile(device, _product(), Configuration.of(precision))
            answer = as_numpy(executable.run([a, b])[0])
            duration_ns = time.perf_counter_ns() - started_ns
    except HalError as error:
        return Proof(ok=False, message=error.message, duration_ns=0)
    if np.array_equal(answer, a @ b):
        return Proof(
            ok=True, message=f"computed a 2x2 matrix product in {precision}", duration_ns=duration_ns
        )
    return Proof(
        ok=False,
        message=f"answered {answer.tolist()} for a 2x2 matrix product; expected {(a @ b).tolist()}",
        duration_ns=duration_ns,
    )


def diagnose(
    progress: Progress | None = None, *, deadlines: Deadlines | None = None
) -> tuple[tuple[str, Finding], ...]:
    """Findings on the host and from every plugin, as (who says it, finding)."""
    progress = progress or Silent()
    discovery = discover(progress=progress, deadlines=deadlines)
    findings = [("hal", finding) for finding in _host_findings()]
    findings += [("hal", finding) for finding in _plugin_findings(discovery)]
    diagnosed = set()
    names = dict.fromkeys(found.backend for found in discovery.found)
    for n_done, name in enumerate(names):
        progress.stage(f"asking {name}")
        progress.advance(n_done, len(names))
        try:
            with WorkerBackend(plugins.reference(name), deadlines=deadlines) as backend:
                diagnosis = backend.ability(Diagnosis)
                if diagnosis is not None:
                    findings += [(name, finding) for finding in diagnosis.diagnose()]
                    diagnosed.add(name)
        except HalError as error:
            findings.append((name, _problem("diagnosis", error.message, "see hal plugins check " + name)))
    # Backends with a diagnosis have said this with more knowledge.
    findings += [
        (backend, Finding(severity="note", subject=device.id, message=device.unavailable))
        for backend, device in discovery.devices
        if device.unavailable and backend not in diagnosed
    ]
    return tuple(findings)


def _product() -> Graph:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("a", "b", "c")]
    node = helper.make_node("MatMul", ["a", "b"], ["c"], name="product")
    graph = helper.make_graph([node], "proof", value[:2], value[2:])
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def _plugin_findings(discovery: Discovery) -> Sequence[Finding]:
    found = [
        _problem(f"plugin {plugin.name}", plugin.failure, f"repair or uninstall {plugin.distribution}")
        for plugin in discovery.plugins
        if plugin.failure
    ]
    if not any(not device.unavailable for _, device in discovery.devices):
        found.append(
            _problem("devices", "no device can be used", "install a plugin: pip install hal-onnxruntime[cpu]")
        )
    return found


def _host_findings() -> Sequence[Finding]:
    return [*_cpu_findings(), *_memory_findings(), *_disk_findings(), *_setting_findings()]


def _cpu_findings() -> Sequence[Finding]:
    n_cpus, n_usable = os.cpu_count() or 1, host.n_usable_cpus()
    quota = host.cpu_quota(host.CGROUP_ROOT)
    message = f"{host.cpu_name()}: {n_usable} of {n_cpus} cores may be used"
    if quota is not None:
        message += f" (container quota {quota:g})"
    found = [Finding(severity="ok" if n_usable == n_cpus else "note", subject="processor", message=message)]
    if governor() and governor() != "performance":
        found.append(
            _warning(
                "CPU governor",
                f"the frequency governor is {governor()!r}; clocks change while measuring",
                "sudo cpupower frequency-set -g performance",
            )
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * n_usable:
        found.append(
            _warning(
                "load",
                f"{load:.1f} processes want to run on {n_usable} cores (mean of the last minute)",
                "close other programs before measuring",
            )
        )
    return found


def _memory_findings() -> Sequence[Finding]:
    from hal.units import format_bytes

    total, free = host.total_memory_bytes(), host.available_memory_bytes()
    message = f"{format_bytes(free)} of {format_bytes(total)} are free"
    if free < total / 8:
        return [_warning("memory", message, "close other programs; models that swap cannot be measured")]
    if psutil.swap_memory().used > 1 << 30:
        return [
            _warning("memory", f"{message}; more than 1 GiB is swapped out", "free memory, then swapoff -a")
        ]
    return [Finding(severity="ok", subject="memory", message=message)]


def _disk_findings() -> Sequence[Finding]:
    from hal.units import format_bytes

    found = []
    places = [("working folder", tempfile.gettempdir()), ("cache", str(_existing(cache_folder())))]
    for subject, folder in places:
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            found.append(
                _problem(subject, "it cannot be written", "set TMPDIR or HAL_HOME to a folder of yours")
            )
        elif free < _LOW_DISK_BYTES:
            found.append(_warning(subject, f"only {format_bytes(free)} are free", "free some space"))
        else:
            found.append(Finding(severity="ok", subject=subject, message=f"{format_bytes(free)} are free"))
    return found


def _setting_findings() -> Sequence[Finding]:
    found = []
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) != host.n_usable_cpus():
        found.append(
            _warning(
                "OMP_NUM_THREADS",
                f"it is {threads}, {host.n_usable_cpus()} cores may be used",
                "unset it, and give hal targets +threads=N where you want fewer",
            )
        )
    if sys.gettrace() is not None:
        found.append(_warning("Python", "a debugger or tracer is active", "measure without it"))
    return found


def _existing(folder: os.PathLike[str]) -> os.PathLike[str]:
    from pathlib import Path

    path = Path(folder)
    while not path.exists():
        path = path.parent
    return path


def _warning(subject: str, message: str, advice: str) -> Finding:
    return Finding(severity="warning", subject=subject, message=message, advice=advice)


def _problem(subject: str, message: str, advice: str) -> Finding:
    return Finding(severity="problem", subject=subject, message=message, advice=advice)
