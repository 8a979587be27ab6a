"""What the devices of a plan tell of themselves: memory, use, temperature, power."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hal import host
from hal.backend import Device, Telemetry
from hal.errors import RequestTimeout
from hal.executor.executor import Place
from hal.records.plan import Plan
from hal.session.deadline import THREADS
from hal.session.faults import told
from hal.session.metrics import DeviceMetrics

_log = logging.getLogger("hal.session")

#: Readings younger than this are not taken again, in seconds.
#: Source: ours; asking NVML takes milliseconds, and it measures power every 20 to 100 ms.
FRESH_S = 0.5
#: How long a device may take to answer, in seconds; then it is left out. Source: ours.
PATIENCE_S = 1.0
#: The processor's own sensors, as the kernel names them: Intel's, AMD's and those of most others.
#: Source: Linux kernel documentation, hwmon "coretemp" and "k10temp"; "cpu_thermal" of device trees.
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")
#: Longest time over which the processor's power is told, in seconds: its counters overflow.
#: Source: Intel SDM vol. 3B, 16.10.1: about 60 s at high power where the unit of energy is small.
_MOST_POWER_S = 60.0


class Gauges:
    """Reads the devices of plans. Any thread may ask.

    Args:
        now_s: The clock, in seconds.
        processor: Reads the processor.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        processor: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self._now_s = now_s
        self._processor = processor or Processor().read
        self._lock = threading.Lock()
        self._read_s = float("-inf")
        self._last: tuple[DeviceMetrics, ...] = ()
        self._plan: Plan | None = None
        self._silent: set[str] = set()

    def read(self, plan: Plan, places: Mapping[str, Place]) -> tuple[DeviceMetrics, ...]:
        """The readings of a plan's devices; those of half a second ago where there are some.

        Args:
            plan: Names the devices.
            places: The backends that are open.
        """
        with self._lock:
            if self._plan is not plan or self._now_s() - self._read_s >= FRESH_S:
                self._last = tuple(self._device(device, places) for device in _once(plan.devices))
                self._plan, self._read_s = plan, self._now_s()
            return self._last

    def _device(self, device: Device, places: Mapping[str, Place]) -> DeviceMetrics:
        readings: dict[str, int] = dict(self._processor()) if device.kind == "cpu" else {}
        for end, place in places.items():
            if place.device.id == device.id and end not in self._silent:
                readings |= self._told(end, place)
        return DeviceMetrics(
            id=device.id,
            name=device.name,
            memory_used_bytes=readings.get("memory_used_bytes"),
            memory_bytes=readings.get("memory_bytes", device.memory_bytes),
            utilisation_percent=readings.get("utilisation_percent"),
            temperature_celsius=readings.get("temperature_celsius"),
            power_mw=readings.get("power_mw"),
        )

    def _told(self, end: str, place: Place) -> Mapping[str, int]:
        """What a backend tells of its device; nothing where it cannot, in time."""
        able = place.backend.ability(Telemetry)
        if able is None:
            return {}
        try:
            return THREADS.begin(lambda: able.telemetry(place.device)).answer(PATIENCE_S, "telemetry")
        except RequestTimeout as error:
            # Each call that hangs keeps a thread: it is not asked again.
            self._silent.add(end)
            _log.warning("%s tells nothing any more: %s", end, error)
        except Exception as error:  # noqa: BLE001  whatever a plugin raises: it tells nothing now
            _log.info("%s: telemetry failed: %s", end, told(error))
        return {}


class Processor:
    """Reads the processor of this machine. One thread at a time.

    Use is counted from reading to reading; the first one tells none. Power needs counters that Linux shows to
    root only.
    """

    def __init__(self) -> None:
        self._times: Any = None
        self._energy: tuple[float, float] | None = None
        self._counter: Callable[[], float] | None = None
        self._is_open = False

    def read(self) -> dict[str, int]:
        """What it tells now: names as for :meth:`hal.backend.Telemetry.telemetry`, and ``memory_bytes``."""
        total = host.total_memory_bytes()
        found = {"memory_bytes": total, "memory_used_bytes": total - host.available_memory_bytes()}
        for name, value in (
            ("utilisation_percent", self._utilisation()),
            ("temperature_celsius", _temperature()),
            ("power_mw", self._power()),
        ):
            if value is not None:
                found[name] = round(value)
        return found

    def _utilisation(self) -> float | None:
        import psutil

        before, self._times = self._times, psutil.cpu_times()
        if before is None:
            return None
        passed = {
            name: getattr(self._times, name) - getattr(before, name)
            for name in self._times._fields
            # Linux counts guests in user and nice too. Source: proc(5), /proc/stat.
            if name not in ("guest", "guest_nice")
        }
        total = sum(passed.values())
        idle = passed.get("idle", 0.0) + passed.get("iowait", 0.0)
        return max(0.0, min(100.0, 100 * (1 - idle / total))) if total > 0 else None

    def _power(self) -> float | None:
        if not self._is_open:
            from hal.profiling.energy import POWERCAP, Rapl  # it comes with all of the profiler

            self._is_open = True
            try:
                self._counter = Rapl(POWERCAP)
            except LookupError as error:
                _log.info("the processor's power is not known: %s", error)
        if self._counter is None:
            return None
        before, self._energy = self._energy, (self._counter(), time.monotonic())
        if before is None or not 0 < self._energy[1] - before[1] < _MOST_POWER_S:
            return None
        return (self._energy[0] - before[0]) / (self._energy[1] - before[1])


def process_bytes() -> int:
    """Memory of this process on the host."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _temperature() -> float | None:
    import psutil

    if not hasattr(psutil, "sensors_temperatures"):  # macOS and Windows
        return None
    sensors = psutil.sensors_temperatures()
    name = next((name for name in _SENSORS if sensors.get(name)), None)
    return None if name is None else max(sensor.current for sensor in sensors[name])


def _once(devices: Sequence[Device]) -> list[Device]:
    """Devices, each once: variants of one are the same device."""
    return list({device.id: device for device in devices}.values())


__all__ = ["FRESH_S", "PATIENCE_S", "Gauges", "Processor", "process_bytes"]
