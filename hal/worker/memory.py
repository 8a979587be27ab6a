"""Resident memory of this process."""

from __future__ import annotations

import sys


def resident() -> tuple[int, int]:
    """Resident bytes now and at the highest since the process started.

    Source: proc(5), VmRSS and VmHWM of /proc/self/status (kB); elsewhere getrusage(2) ru_maxrss,
    which macOS gives in bytes.
    """
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return tuple(int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    import resource

    import psutil

    scale = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return int(psutil.Process().memory_info().rss), int(peak_bytes)
