"""Energy of plain runs, where a device or the processor tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hal import stats
from hal.backend import Device, Telemetry
from hal.clock import Clock, MonotonicClock
from hal.records.profile import Energy

#: Where Linux shows the processor's energy counters.
#: Source: Linux kernel documentation, "Power Capping Framework".
POWERCAP = Path("/sys/class/powercap")
#: Telemetry that counts energy from some fixed moment on.
COUNTER = "energy_total_mj"
#: Long enough for counters that are written every 20 to 100 ms (NVML).
BURST_NS = 1_000_000_000

#: A counter of energy, in millijoules.
Counter = Callable[[], float]


def counter_of(device: Device, telemetry: Telemetry | None, root: Path | None = None) -> tuple[Counter, str]:
    """Who counts the energy of a device, and under which name; raises LookupError where nobody does.

    Args:
        device: What is measured.
        telemetry: Its backend's readings, where it has them.
        root: Folder of the processor's counters, for tests.
    """
    if telemetry is not None and COUNTER in telemetry.telemetry(device):
        return (lambda: float(telemetry.telemetry(device)[COUNTER])), "NVML"
    if device.kind == "cpu":
        return Rapl(root or POWERCAP), "RAPL package"
    raise LookupError(f"{device.id} does not tell its energy")


class Rapl:
    """Counts the energy of all processor packages.

    Raises:
        LookupError: The system shows no counter, or not to this user (since CVE-2020-8694 Linux shows it
            to root only).
    """

    def __init__(self, root: Path) -> None:
        # Zones below a package (intel-rapl:0:0) are parts of it: they would count twice.
        self._zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._total_uj = 0
        try:
            self._last = [_read(zone / "energy_uj") for zone in self._zones]
            self._range = [_read(zone / "max_energy_range_uj") for zone in self._zones]
        except (OSError, ValueError) as error:
            raise LookupError(f"the processor's energy counters cannot be read: {error}") from error
        if not self._zones:
            raise LookupError(f"the system shows no energy counters in {root.name}")

    def __call__(self) -> float:
        """Energy since construction, in millijoules; to be read more often than the counter overflows."""
        now = [_read(zone / "energy_uj") for zone in self._zones]
        for before, after, most in zip(self._last, now, self._range, strict=True):
            self._total_uj += after - before if after >= before else after - before + most
        self._last = now
        return self._total_uj / 1000


def per_run(
    counter: Counter, source: str, burst: Callable[[], list[int]], clock: Clock | None = None
) -> Energy:
    """Energy of one run: mean power over a row of runs, times the median run.

    The row ends with a rest of some milliseconds, so dividing energy by the number of runs would charge
    the rest to the runs; power over the whole interval errs by the rest's share of it only.

    Args:
        counter: Of the device.
        source: Its name.
        burst: Runs for about a second; durations in nanoseconds.
        clock: The host's.
    """
    now_ns = (clock or MonotonicClock()).now_ns
    before_mj, started_ns = counter(), now_ns()
    durations = burst()
    spent_mj, elapsed_ns = counter() - before_mj, now_ns() - started_ns
    return Energy(per_run_mj=spent_mj / elapsed_ns * stats.median(durations), source=source)


def _read(path: Path) -> int:
    return int(path.read_text())
