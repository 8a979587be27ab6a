"""hal: measure a model on every device and runtime of the machine, and run the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.version import __version__

__all__ = [
    "InferenceSession",
    "Metrics",
    "Plan",
    "Profile",
    "Session",
    "__version__",
    "bench",
    "choose",
    "compile",
    "load",
    "plan",
    "profile",
    "run",
    "serve_metrics",
]

if TYPE_CHECKING:
    from hal.choosing.choose import choose
    from hal.choosing.planner import plan
    from hal.profiling import bench, profile, run
    from hal.records.plan import Plan
    from hal.records.profile import Profile
    from hal.session.bundles import load
    from hal.session.compiling import compile
    from hal.session.inference_session import InferenceSession
    from hal.session.metrics import Metrics
    from hal.session.openmetrics import serve_metrics
    from hal.session.session import Session

#: Where the public names live. They load on first use, so that ``import hal`` loads nothing.
_LAZY = {
    "profile": "hal.profiling",
    "bench": "hal.profiling",
    "run": "hal.profiling",
    "plan": "hal.choosing.planner",
    "choose": "hal.choosing.choose",
    "compile": "hal.session.compiling",
    "load": "hal.session.bundles",
    "InferenceSession": "hal.session.inference_session",
    "Plan": "hal.records.plan",
    "Profile": "hal.records.profile",
    "Session": "hal.session.session",
    "Metrics": "hal.session.metrics",
    "serve_metrics": "hal.session.openmetrics",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hal' has no attribute {name!r}")
