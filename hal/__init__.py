"""hal: measure a model on every device and runtime of the machine, and run the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Profile", "__version__", "bench", "profile", "run"]

if TYPE_CHECKING:
    from hal.profiling import bench, profile, run
    from hal.records.profile import Profile

#: Where the public names live. They load on first use, so that ``import hal`` loads nothing.
_LAZY = {
    "profile": "hal.profiling",
    "bench": "hal.profiling",
    "run": "hal.profiling",
    "Profile": "hal.records.profile",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hal' has no attribute {name!r}")
