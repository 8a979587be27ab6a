"""Measuring models on the targets of this machine.

``hal.profile`` and ``hal.bench`` are functions, so the package that implements them has this name.
"""

from hal.profiling.discovery import Discovery, Found, discover
from hal.profiling.engine import bench, profile
from hal.profiling.health import Proof, diagnose, prove
from hal.profiling.progress import Progress
from hal.profiling.running import RunResult, run

__all__ = [
    "Discovery",
    "Found",
    "Progress",
    "Proof",
    "RunResult",
    "bench",
    "diagnose",
    "discover",
    "profile",
    "prove",
    "run",
]
