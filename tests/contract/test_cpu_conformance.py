"""hal.testing's suite on the cpu plugin, as any third-party plugin would run it."""

from __future__ import annotations

from hal.backend import BackendRef
from hal.testing import BackendConformance


class TestCpu(BackendConformance):
    ref = BackendRef("plugin:cpu")
