"""Idle threads of PyTorch that sleep instead of spinning, so that other runtimes have the cores.

PyTorch computes with GNU OpenMP, whose idle threads spin for some milliseconds. The environment can change
that before the library is loaded (OMP_WAIT_POLICY), nothing can after. But the library itself spins a
thousandth as long while it has more threads than there are processors, so threads that do nothing are
enough.

Source: GCC, libgomp/config/linux/wait.h, ``do_spin`` (gomp_managed_threads > gomp_available_cpus) and
libgomp/env.c (300,000 and 1,000 iterations). Measured on two cores with GCC 14's: 4.3 ms of processor time
go into spinning after an operation, and 0.02 ms with this.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

#: What a process has in memory, where the system tells.
_MAPS = Path("/proc/self/maps")
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_lock = threading.Lock()
_resting: set[str] = set()


def rest() -> bool:
    """Stop idle OpenMP threads of this process from spinning, from now on. PyTorch is loaded.

    Returns:
        Whether it could be done: the library is GNU OpenMP, on Linux.
    """
    libraries = _loaded("libgomp")
    with _lock:
        for library in libraries - _resting:
            _resting.add(library)
            ready = threading.Event()
            threading.Thread(target=_idle, args=(library, ready), name="hal-resting", daemon=True).start()
            ready.wait()
    return bool(libraries)


def _idle(library: str, ready: threading.Event) -> None:
    """Have more threads than processors, all asleep, for as long as the process lives."""
    nothing = _Body(lambda _: None)
    try:
        ctypes.CDLL(library).GOMP_parallel(nothing, None, (os.cpu_count() or 1) + 1, 0)
    finally:
        ready.set()
    threading.Event().wait()


def _loaded(name: str) -> set[str]:
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # only Linux has it
        return set()
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and "/" in line}
    return {path for path in paths if Path(path).name.startswith(name)}
