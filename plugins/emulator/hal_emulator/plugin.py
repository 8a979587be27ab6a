"""Entry point of ``hal-emulator``."""

from __future__ import annotations

from hal.backend import Backend
from hal.hookspecs import hookimpl
from hal_emulator.backend import EmulatorBackend


@hookimpl
def hal_backend() -> Backend:
    """The machine that ``HAL_EMULATE`` names, or one without devices."""
    return EmulatorBackend()
