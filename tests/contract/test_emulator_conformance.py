"""hal.testing's suite on emulated machines, in this process and in a worker."""

from __future__ import annotations

from pathlib import Path

from hal.backend import BackendRef
from hal.testing import BackendConformance
from hal.worker.backend import WorkerBackend

EMULATOR = "hal_emulator.backend:EmulatorBackend"
PROFILES = Path(__file__).parents[2] / "profiles"
MIXED = {"machine": str(PROFILES / "gtx1050-i7-8700.json")}


class TestGpuAndCpu(BackendConformance):
    ref = BackendRef(EMULATOR, MIXED)


class TestHalfPrecision(BackendConformance):
    ref = BackendRef(EMULATOR, {"machine": str(PROFILES / "a40-a100-epyc-7742.json")})


class TestMeasuredMachine(BackendConformance):
    ref = BackendRef(EMULATOR, {"machine": str(PROFILES / "amd-epyc-2cpu.json")})


class TestWorker(BackendConformance):
    @classmethod
    def opened(cls):
        if cls.backend is None:
            cls.backend = WorkerBackend(BackendRef(EMULATOR, MIXED))
        return cls.backend

    @classmethod
    def teardown_class(cls):
        if cls.backend is not None:
            cls.backend.close()
