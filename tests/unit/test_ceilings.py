from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hal.backend import BackendRef, Configuration, Device, Target
from hal.errors import BackendError
from hal.profiling.ceilings import best_of, last_level_cache_bytes, measure_ceilings
from hal.profiling.chain import Stage
from hal.testing import FakeBackend

MIB = 1 << 20
#: A limit of 24 MiB leaves 2 MiB for the tensor that is copied.
COPIED_BYTES = 2 * MIB
SIDES = (512, 1024, 2048, 4096, 8192)


def staged(
    name: str, precisions: tuple[str, ...] = ("fp32",), *, kind: str = "FakeBackend", **fields: Any
) -> tuple[Stage, list[Target]]:
    device = {"id": "cpu:0", "precisions": list(precisions), "memory_bytes": 24 * MIB}
    configuration = {"name": name, "devices": [device], **fields}
    module = "hal.testing.fake" if kind == "FakeBackend" else "tests.unit.linked_backends"
    ref = BackendRef(f"{module}:{kind}", configuration)
    (discovered,) = FakeBackend(devices=[device]).discover()
    targets = [Target("cpu:0", name, Configuration.of(precision)) for precision in precisions]
    return Stage(name=f"cpu:0/{name}", ref=ref, device=discovered), targets


def possible_rates(cost_ns: int) -> set[float]:
    """A virtual clock charges each side the same; which sides are tried depends on the real time it takes."""
    return {2 * side**3 / (cost_ns + 100) * 1e9 for side in SIDES}


def test_ceilings_choose_the_best_target_when_two_offer_one_precision() -> None:
    # A factor of 1000 is more than the sizes tried differ in.
    slow = staged("slow", costs_ns={"MatMul": 1_000_000_000, "Relu": 5_000_000, "ReduceMax": 4_000_000})
    fast = staged("fast", costs_ns={"MatMul": 1_000_000, "Relu": 8_000_000, "ReduceMax": 9_000_000})
    ceilings, notes = measure_ceilings([slow, fast])
    assert notes == ()
    (ceiling,) = ceilings
    assert (ceiling.device, ceiling.precision) == ("cpu:0", "fp32")
    assert ceiling.compute_target == "cpu:0/fast/fp32"
    assert ceiling.flops_per_s in possible_rates(1_000_000)
    # 2 MiB read and 2 MiB written in 5 ms beat 2 MiB read in 4 ms.
    assert ceiling.copy_target == "cpu:0/slow/fp32"
    assert ceiling.bytes_per_s == pytest.approx(2 * COPIED_BYTES / 5_000_100 * 1e9)


def test_bytes_hold_for_every_precision_when_a_device_has_several() -> None:
    costs = {"cpu:0/fp32/MatMul": 900_000_000, "cpu:0/bf16/MatMul": 1_000_000, "ReduceMax": 1_000_000}
    ceilings, _ = measure_ceilings([staged("fake", ("fp32", "bf16"), costs_ns=costs, default_ns=9_000_000)])
    exact, lowered = ceilings
    assert (exact.precision, lowered.precision) == ("fp32", "bf16")
    assert lowered.compute_target == "cpu:0/fake/bf16"
    assert lowered.flops_per_s > exact.flops_per_s
    assert exact.copy_target == lowered.copy_target == "cpu:0/fake/fp32"
    # The reduction writes one value per row of 1024.
    moved_bytes = COPIED_BYTES + COPIED_BYTES // 1024
    assert exact.bytes_per_s == lowered.bytes_per_s == pytest.approx(moved_bytes / 1_000_100 * 1e9)


def test_ceilings_leave_a_target_out_with_a_note_when_it_crashes() -> None:
    stage, targets = staged("fake", ("fp32", "bf16"), kind="DiesInFp32", default_ns=5_000_000)
    ceilings, notes = measure_ceilings([(stage, targets), staged("other", default_ns=50_000_000)])
    assert [(c.precision, c.compute_target) for c in ceilings] == [
        ("bf16", "cpu:0/fake/bf16"),
        ("fp32", "cpu:0/other/fp32"),
    ]
    (note,) = notes
    assert note.startswith("no ceilings from cpu:0/fake/fp32: ")
    assert "exited with status 6" in note


def test_bytes_are_measured_all_the_same_when_one_of_the_operators_is_refused() -> None:
    refusing = staged("fake", default_ns=5_000_000, refuse={"Relu": "not today"})
    ceilings, notes = measure_ceilings([refusing])
    assert notes == ()
    moved_bytes = COPIED_BYTES + COPIED_BYTES // 1024
    assert ceilings[0].bytes_per_s == pytest.approx(moved_bytes / 5_000_100 * 1e9)


def test_ceilings_are_none_when_every_operator_is_refused() -> None:
    refusing = staged("fake", refuse={"Relu": "not today", "ReduceMax": "nor tomorrow"})
    ceilings, notes = measure_ceilings([refusing])
    assert ceilings == ()
    assert len(notes) == 1
    assert "not today" in notes[0]


def test_transfers_are_left_out_when_a_device_has_memory_of_its_own() -> None:
    stage, _ = staged("fake", kind="AwayOrFail", default_ns=1)
    away = Device(id="cuda:0", name="x", kind="gpu", silicon="x", memory_pool="x", memory_bytes=24 * MIB)
    stage = Stage(name="cuda:0/fake", ref=stage.ref, device=away)
    stage.ref.configuration["devices"] = [{"id": "cuda:0", "kind": "gpu"}]
    ceilings, notes = measure_ceilings([(stage, [Target("cuda:0", "fake", Configuration.of("fp32"))])])
    # Its executables fail where an input or an output lies on the host.
    assert notes == ()
    assert ceilings[0].flops_per_s > 0
    assert ceilings[0].bytes_per_s > 0


def test_best_is_the_tenth_percentile_when_runs_differ() -> None:
    assert best_of(list(range(100, 201)), "it") == 110


def test_best_says_what_stands_still_when_the_clock_does() -> None:
    text = (
        "'MatMul' on cpu:0/fake took 0 ns by its own clock over 3 runs; expected more than 0: "
        "mend the backend's timed_run"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(text)}$"):
        best_of([0, 0, 0], "'MatMul' on cpu:0/fake")


def add_cache(root: Path, cpu: int, index: int, level: int, size: str, shared_by: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared_by)):
        (folder / name).write_text(f"{text}\n")


def test_caches_are_added_up_when_cores_have_several_of_the_last_level(tmp_path: Path) -> None:
    for cpu in range(4):
        add_cache(tmp_path, cpu, 0, 1, "32K", str(cpu))
        add_cache(tmp_path, cpu, 3, 3, "32768K", "0-1" if cpu < 2 else "2-3")
    assert last_level_cache_bytes(tmp_path) == 2 * 32 * MIB


def test_caches_are_nothing_when_the_system_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "cpu0" / "cache" / "index0").mkdir(parents=True)
    assert last_level_cache_bytes(tmp_path) == 0
