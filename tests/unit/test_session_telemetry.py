"""What devices tell, read when it is asked for: cached, in time, and without what fails."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import psutil
import pytest

from hal.backend import BackendRef, Device
from hal.executor.executor import Place
from hal.records.plan import Plan
from hal.session import telemetry
from hal.session.metrics import DeviceMetrics
from hal.session.telemetry import Gauges, Processor, process_bytes
from hal.session.watching import Watcher
from hal.testing import FakeBackend
from tests.unit import planned
from tests.unit.isolated import Box

GPU, CPU = planned.DEVICES[1], planned.DEVICES[0]
ALL = {
    "memory_used_bytes": 1 << 30,
    "utilisation_percent": 97,
    "temperature_celsius": 81,
    "power_mw": 250_000,
    "clock_hz": 1,
}


class Telling(FakeBackend):
    """Counts how often it is asked, and does as it is told to."""

    n_asked = 0

    def telemetry(self, device: Device) -> Mapping[str, int]:
        self.n_asked += 1
        return super().telemetry(device)


def places(backend: FakeBackend, *devices: Device) -> dict[str, Place]:
    return {f"{device.id}/fake": Place(BackendRef("nowhere:x"), backend, device) for device in devices}


def plan(*devices: Device) -> Plan:
    return planned.single(planned.GPU, devices=devices)


def gauges(**options: Any) -> Gauges:
    return Gauges(processor=lambda: {"utilisation_percent": 12, "memory_bytes": 100}, **options)


def test_all_that_a_device_tells_is_read() -> None:
    backend = Telling(telemetry=ALL)
    assert gauges().read(plan(GPU), places(backend, GPU)) == (
        DeviceMetrics(
            id="cuda:0",
            name="A GPU",
            memory_used_bytes=1 << 30,
            memory_bytes=8 << 30,
            utilisation_percent=97,
            temperature_celsius=81,
            power_mw=250_000,
        ),
    )


def test_the_processor_is_read_when_a_device_is_one_and_its_backend_may_add_to_it() -> None:
    found = gauges().read(plan(CPU), places(Telling(telemetry={"power_mw": 7}), CPU))
    assert (found[0].utilisation_percent, found[0].memory_bytes, found[0].power_mw) == (12, 100, 7)


def test_nothing_is_told_when_the_backend_cannot() -> None:
    backend = Telling(abilities=())
    assert gauges().read(plan(GPU), places(backend, GPU)) == (
        DeviceMetrics(id="cuda:0", name="A GPU", memory_bytes=8 << 30),
    )
    assert backend.n_asked == 0


def test_devices_are_asked_again_only_when_readings_are_old_or_the_plan_is_another() -> None:
    now_s = [0.0]
    backend = Telling(telemetry=ALL)
    one, other, at = plan(GPU), plan(GPU), places(backend, GPU)
    read = gauges(now_s=lambda: now_s[0]).read
    for moment, which, asked in (
        (0, one, 1),
        (0.4, one, 1),
        (0.5, one, 2),
        (0.6, other, 3),
        (0.7, other, 3),
    ):
        now_s[0] = moment
        read(which, at)
        assert backend.n_asked == asked


def test_other_devices_are_told_when_one_fails() -> None:
    class Failing(Telling):
        def telemetry(self, device: Device) -> Mapping[str, int]:
            raise RuntimeError("NVML is gone")

    at = places(Failing(), GPU) | places(Telling(telemetry=ALL), CPU)
    gpu, cpu = gauges().read(plan(GPU, CPU), at)
    assert gpu == DeviceMetrics(id="cuda:0", name="A GPU", memory_bytes=8 << 30)
    assert cpu.temperature_celsius == 81


def test_a_device_is_asked_once_when_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    class Hanging(Telling):
        def telemetry(self, device: Device) -> Mapping[str, int]:
            self.n_asked += 1
            assert let_go.wait(timeout=60)
            return {}

    monkeypatch.setattr(telemetry, "PATIENCE_S", 0.01)
    backend = Hanging()
    read = gauges(now_s=iter(range(100)).__next__).read
    for _ in range(3):
        assert read(plan(GPU), places(backend, GPU))[0].power_mw is None
    assert backend.n_asked == 1
    let_go.set()


def test_devices_of_isolated_backends_are_read_through_their_process() -> None:
    box = Box()
    runner = box.runner("cuda:0")
    try:
        plan, times = runner.in_force
        assert times.unlike == (True,)  # what passes between processes is in no profile
        (device,) = Watcher(runner, "chain").metrics().devices
        assert (device.id, device.power_mw, device.utilisation_percent) == ("cuda:0", 1000, 50)
        assert plan.targets == ("cuda:0/emulator/fp32",)
    finally:
        runner.close()


def test_the_processor_tells_memory_at_once_and_its_use_from_reading_to_reading() -> None:
    processor = Processor()
    first = processor.read()
    assert 0 < first["memory_used_bytes"] <= first["memory_bytes"]
    assert "utilisation_percent" not in first
    while sum(psutil.cpu_times()) == sum(processor._times):  # the kernel counts in steps
        sum(range(10_000))
    assert 0 <= processor.read()["utilisation_percent"] <= 100
    assert process_bytes() > 1 << 20
