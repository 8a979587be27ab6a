"""The conformance suite is proven by plugins with one fault each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.backend import BackendRef
from hal.testing import BackendConformance, FakeBackend, check, checks
from tests.contract.broken_executables import KeepsFiles, KeepsThreads
from tests.contract.broken_plugins import BROKEN


def failed(results):
    return {result.name: result.message for result in results if result.outcome == "failed"}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_suite_fails_exactly_the_checks_of_the_fault_when_a_plugin_is_broken(kind, monkeypatch):
    monkeypatch.chdir(Path.cwd())
    monkeypatch.delenv("HAL_TEST_BROKEN", raising=False)
    KeepsThreads.release.clear()
    try:
        found = failed(check(kind()))
    finally:
        os.environ.pop("HAL_TEST_BROKEN", None)
        KeepsThreads.release.set()
        while KeepsFiles.kept:
            KeepsFiles.kept.pop().close()
    assert set(found) == kind.fails, found


def test_every_check_has_a_plugin_that_fails_it():
    assert {name for kind in BROKEN for name in kind.fails} == set(checks())


def test_every_check_is_in_the_guide_when_it_is_listed():
    guide = (Path(__file__).parents[2] / "docs" / "writing-a-plugin.md").read_text()
    rows = [
        f"| `{name}` | {getattr(BackendConformance, f'test_{name}').__doc__.strip()} |" for name in checks()
    ]
    assert [row for row in rows if row not in guide] == []


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {
            "devices": [
                {"id": "cpu:0", "precisions": ["fp32", "fp16"]},
                {"id": "gpu:0", "precisions": ["bf16"]},
            ]
        },
        {"jitter": 0.2, "seed": 3, "costs_ns": {"MatMul": 9_000}},
    ],
)
def test_suite_passes_every_check_when_the_backend_is_the_fake(configuration):
    results = check(BackendRef("hal.testing.fake:FakeBackend", configuration))
    assert {result.name: result.message for result in results if result.outcome != "passed"} == {}
    assert [result.name for result in results] == list(checks())


def test_suite_skips_abilities_with_the_reason_when_the_backend_has_none():
    results = check(FakeBackend(abilities=[]))
    assert failed(results) == {}
    skipped = {result.name: result.message for result in results if result.outcome == "skipped"}
    assert skipped == {
        "telemetry_has_units": "the backend has no telemetry",
        "findings_are_legal": "the backend has no diagnosis",
        "device_time_is_real": "no executable has DeviceTime",
        "kernel_times_are_real": "no executable has KernelTimes",
        "kernels_account_for_nodes": "no executable has KernelTimes",
        "blobs_come_back": "the backend loads no blobs",
        "ranges_of_sizes_are_kept": "the backend compiles for bound sizes only",
        "pending_runs_answer": "no executable has AsyncRun",
        "placed_tensors_work": "no executable has DeviceTensors",
        "memory_use_is_told": "no executable has MemoryUse",
        "fallbacks_are_explained": "no executable has Placements",
    }


def test_suite_skips_with_the_reason_when_no_device_is_available():
    results = check(FakeBackend(devices=[{"id": "cuda:0", "unavailable": "no NVIDIA driver"}]))
    assert failed(results) == {}
    messages = {result.message for result in results if result.outcome == "skipped"}
    assert "no device to check (cuda:0: no NVIDIA driver)" in messages


def test_suite_reports_every_problem_when_a_plugin_cannot_be_opened():
    results = check(BackendRef("hal.testing.fake:FakeBackend", {"fail": [{"at": "import", "how": "bug"}]}))
    assert {result.outcome for result in results} == {"failed"}
    assert "failed to open: ZeroDivisionError" in results[1].message


@pytest.mark.parametrize("how", ["raise", "bug"])
@pytest.mark.parametrize("at", ["discover", "capability", "compile", "first_run"])
def test_suite_lets_nothing_out_when_a_plugin_raises(at, how):
    assert failed(check(FakeBackend(fail=[{"at": at, "how": how}])))


def test_check_tells_progress_when_it_runs():
    told = []
    check(FakeBackend(devices=[]), told.append)
    assert told == list(checks())


def test_check_says_there_is_no_plugin_when_the_name_is_unknown():
    message = check(BackendRef("plugin:no_such_plugin"))[1].message
    assert "there is no plugin 'no_such_plugin' with a hook 'hal_backend'" in message
    assert "install it, and mark a function of its module with @hookimpl" in message


def test_suite_says_what_to_set_when_a_subclass_names_no_backend():
    with pytest.raises(TypeError, match="names no backend; set ref = BackendRef"):
        BackendConformance().test_name_and_version()


def test_suite_runs_under_pytest_when_subclassed_in_five_lines(tmp_path):
    file = tmp_path / "test_mine.py"
    file.write_text(
        "from hal.backend import BackendRef\n"
        "from hal.testing import BackendConformance\n"
        "class TestMine(BackendConformance):\n"
        "    ref = BackendRef('hal.testing.fake:FakeBackend', {'abilities': []})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(checks()) - 11} passed, 11 skipped" in result.stdout
