"""Faults on demand: devices that are lost, and memory that runs out, in the middle of work."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence

from hal.errors import BackendError

_KEYS = {"device", "at", "how"}
_HOW = ("lost", "out_of_memory")


class Faults:
    """What was asked for: mappings ``{"device": ID, "at": WHEN, "how": HOW}``.

    * WHEN: ``compile``, ``run`` (every run) or ``run:N`` (the Nth run on the device, from 1, whichever
      executable it is of).
    * HOW: ``lost`` (this and all later calls fail, and the device is unavailable) or ``out_of_memory`` (this
      call fails).

    Raises:
        ValueError: A fault is not one of these.
    """

    def __init__(self, wanted: Sequence[Mapping[str, str]]) -> None:
        for fault in wanted:
            fits = re.fullmatch(r"compile|run(:[1-9][0-9]*)?", fault.get("at", ""))
            if set(fault) != _KEYS or not fits or fault["how"] not in _HOW:
                raise ValueError(
                    f"cannot fail by {dict(fault)}; expected the keys device, at (compile, run or run:N) and "
                    f"how ({' or '.join(_HOW)})"
                )
        self._wanted = {(fault["device"], fault["at"]): fault["how"] for fault in wanted}
        self._n_runs: dict[str, int] = {}
        self._lost: dict[str, str] = {}
        self._lock = threading.Lock()

    def why_lost(self, device: str) -> str:
        """Why a device is lost; empty where it is not."""
        return self._lost.get(device, "")

    def meet(self, device: str, at: str) -> None:
        """Fail here if told to, or if the device was lost before.

        Args:
            device: Its id.
            at: ``compile`` or ``run``.

        Raises:
            BackendError: As asked for.
        """
        with self._lock:
            moments = [at]
            if at == "run":
                self._n_runs[device] = self._n_runs.get(device, 0) + 1
                moments.append(f"run:{self._n_runs[device]}")
            how = {self._wanted.get((device, moment)) for moment in moments}
            if "lost" in how:
                self._lost.setdefault(device, f"it was lost at {moments[-1]}, as the emulator was told")
        if device in self._lost:
            raise BackendError(f"{device} is gone: {self._lost[device]}; plan without it")
        if "out_of_memory" in how:
            raise BackendError(f"{device} is out of memory at {moments[-1]}, as the emulator was told")
