from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hal.backend import Device
from hal.clock import VirtualClock
from hal.profiling import energy

CPU = Device(id="cpu:0", name="CPU", kind="cpu", silicon="cpu:0", memory_pool="host")
GPU = Device(id="cuda:0", name="GPU", kind="gpu", silicon="0000:0b:00.0", memory_pool="GPU-1")


class Readings:
    def __init__(self, readings: Mapping[str, int]) -> None:
        self._readings = readings

    def telemetry(self, device: Device) -> Mapping[str, int]:
        return self._readings


def zone(root: Path, name: str, energy_uj: int, most_uj: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{most_uj}\n")
    return folder


def test_rapl_adds_packages_but_not_their_parts(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        zone(tmp_path, name, 10_000)
    counter, source = energy.counter_of(CPU, None, tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        zone(tmp_path, name, 15_000)
    assert (counter(), source) == (10.0, "RAPL package")


def test_rapl_goes_on_when_the_counter_overflows(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 999_000)
    counter = energy.Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 1_000)
    assert counter() == 2.0
    zone(tmp_path, "intel-rapl:0", 4_000)
    assert counter() == 5.0


def test_counter_is_refused_with_the_reason_when_nothing_tells(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no energy counters"):
        energy.counter_of(CPU, None, tmp_path)
    with pytest.raises(LookupError, match="cuda:0 does not tell its energy"):
        energy.counter_of(GPU, Readings({"power_mw": 1}), tmp_path)


def test_counter_is_refused_when_the_system_hides_it(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").write_text("")
    with pytest.raises(LookupError, match="cannot be read"):
        energy.counter_of(CPU, None, tmp_path)


def test_device_counts_for_itself_when_it_can(tmp_path: Path) -> None:
    counter, source = energy.counter_of(GPU, Readings({energy.COUNTER: 77}), tmp_path)
    assert (counter(), source) == (77.0, "NVML")


def test_energy_per_run_is_mean_power_times_the_median_run() -> None:
    clock, totals = VirtualClock(), iter([100.0, 120.0])

    def burst() -> list[int]:
        clock.advance(2_000_000_000)
        return [500_000_000] * 3

    # 20 mJ in 2 s are 10 mW; a run of 0.5 s takes 5 mJ.
    found = energy.per_run(lambda: next(totals), "NVML", burst, clock)
    assert found.per_run_mj == pytest.approx(5.0)
    assert found.source == "NVML"
