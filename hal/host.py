"""The machine this process may use: cores after affinity and container quota, memory, processor."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path

#: Where Linux shows control groups; tests point it at a folder of their own.
CGROUP_ROOT = Path("/sys/fs/cgroup")
#: Where Linux shows this process's own groups; likewise.
OWN_CGROUPS = Path("/proc/self/cgroup")


#: Memory in use by a control group. Source: Linux kernel documentation, cgroup-v2 and cgroup-v1 memory.
_USED = ("memory.current", "memory.usage_in_bytes")


def n_usable_cpus(cgroup_root: Path | None = None) -> int:
    """Cores this process may keep busy: affinity mask and container quota, whichever is less.

    Runtimes that start one thread per core of the machine are throttled inside a container, so
    every plugin takes its default thread count from here.

    Source: Linux kernel documentation, cgroup-v2 "cpu.max" (quota and period in microseconds)
    and cgroup-v1 "cpu.cfs_quota_us"; a quota of ``max`` or -1 means no limit.
    """
    if hasattr(os, "sched_getaffinity"):
        n_cpus = len(os.sched_getaffinity(0))
    else:  # macOS and Windows have no affinity call in os.
        n_cpus = os.cpu_count() or 1
    quota = cpu_quota(cgroup_root or CGROUP_ROOT)
    # A quota of 1.5 cores is served best by 2 threads only when they are not always busy; rounding
    # up keeps the half core usable and is what the JVM and .NET do.
    return max(1, min(n_cpus, math.ceil(quota))) if quota is not None else max(1, n_cpus)


def packages_state() -> tuple[tuple[str, int], ...]:
    """The folders that packages are imported from, each with the time it was last changed.

    It differs once something was installed or removed, so that what was read of the packages may be kept for
    it. Source: importlib.metadata keeps its own look at a folder for the same time.
    """
    return tuple((folder, _changed_ns(folder or ".")) for folder in sys.path)


def _changed_ns(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:  # not there (yet)
        return 0


def cpu_quota(cgroup_root: Path) -> float | None:
    """Cores granted by the container's CPU quota, or None without one."""
    limits = []
    for folder in _cgroup_folders(cgroup_root):
        limit = _quota_v2(folder / "cpu.max")
        if limit is None:
            limit = _quota_v1(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
        if limit is not None:
            limits.append(limit)
    return min(limits) if limits else None


def memory_limit_bytes(cgroup_root: Path | None = None) -> int | None:
    """The container's memory limit, or None without one."""
    limits = []
    for folder in _cgroup_folders(cgroup_root or CGROUP_ROOT):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            # cgroup-v1 writes "no limit" as a page-rounded 2^63.
            if text is not None and text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits) if limits else None


def total_memory_bytes() -> int:
    """Memory this process may use: the machine's, or the container's limit if less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = memory_limit_bytes()
    return min(total, limit) if limit is not None else total


def available_memory_bytes() -> int:
    """Memory that can be taken now without swapping or meeting the container's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = memory_limit_bytes()
    if limit is None:
        return free
    used = max(
        (_number(folder / name) for folder in _cgroup_folders(CGROUP_ROOT) for name in _USED), default=0
    )
    return min(free, max(limit - used, 0))


def _number(path: Path) -> int:
    text = _read(path) or ""
    return int(text) if text.isdigit() else 0


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    if sys.platform == "linux":
        for key, value in _cpuinfo():
            if key in ("model name", "Model"):
                return value
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Instruction-set flags in the system's own spelling; empty where they cannot be read."""
    if sys.platform == "linux":
        for key, value in _cpuinfo():
            if key in ("flags", "Features"):
                return tuple(sorted(value.split()))
    return ()


def _cpuinfo() -> list[tuple[str, str]]:
    text = _read(Path("/proc/cpuinfo")) or ""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _cgroup_folders(root: Path) -> list[Path]:
    """The root and every group on the way down to this process's own (limits hold along the path)."""
    folders = [root, root / "cpu", root / "memory"]
    for line in (_read(OWN_CGROUPS) or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2] not in ("", "/") and ".." not in parts[2]:
            folder = root / parts[1].split(",")[0] if parts[1] else root
            for part in Path(parts[2].lstrip("/")).parts:
                folder = folder / part
                folders.append(folder)
    return folders


def _quota_v2(path: Path) -> float | None:
    fields = (_read(path) or "").split()
    if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
        return int(fields[0]) / int(fields[1])
    return None


def _quota_v1(quota: Path, period: Path) -> float | None:
    quota_text, period_text = _read(quota), _read(period)
    if quota_text and period_text and quota_text.isdigit() and period_text.isdigit() and int(period_text):
        return int(quota_text) / int(period_text)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # absent on this system or not readable: the same as "no limit told"
        return None
