import os
import sys
from pathlib import Path

import pytest

from hal import host


def make(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": ""}, None),
        ({"cpu.max": "garbage here"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n"}, None),
        (
            {"cpu.max": "300000 100000", "cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
            1.0,
        ),
    ],
)
def test_cpu_quota_is_read_when_the_group_files_say(tmp_path, files, quota):
    assert host.cpu_quota(make(tmp_path, files)) == quota


def test_usable_cpus_is_the_affinity_when_there_is_no_quota(tmp_path):
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert host.n_usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "n_cpus"), [("10000 100000", 1), ("100000 100000", 1), ("100000000 100000", None)]
)
def test_usable_cpus_is_the_lesser_when_there_is_a_quota(tmp_path, quota, n_cpus):
    without = host.n_usable_cpus(tmp_path)
    assert host.n_usable_cpus(make(tmp_path, {"cpu.max": quota})) == (n_cpus or without)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity call")
def test_usable_cpus_follows_the_affinity_when_it_is_narrowed(tmp_path):
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert host.n_usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("quota", "n_cpus"),
    [("150000 100000", 2), ("200001 100000", 3), ("200000 100000", 2), ("400000 100000", 4)],
)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity call")
def test_usable_cpus_rounds_up_when_the_quota_is_a_fraction(tmp_path, monkeypatch, quota, n_cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    assert host.n_usable_cpus(make(tmp_path, {"cpu.max": quota})) == n_cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory/memory.limit_in_bytes": "2048\n", "memory.max": "4096"}, 2048),
    ],
)
def test_memory_limit_is_read_when_the_group_files_say(tmp_path, files, limit):
    assert host.memory_limit_bytes(make(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("own", "quota_files"),
    [
        ("0::/system/box\n", {"system/box/cpu.max": "100000 100000"}),
        ("0::/system/box\n", {"system/cpu.max": "100000 100000", "system/box/cpu.max": "max 100000"}),
        (
            "3:cpu,cpuacct:/system/box\n0::/\n",
            {"cpu/system/box/cpu.cfs_quota_us": "100000", "cpu/system/box/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_limits_hold_along_the_path_when_the_process_is_in_a_group_below_the_root(
    tmp_path, monkeypatch, own, quota_files
):
    make(tmp_path, {"own": own, **quota_files, "cpu.max": "300000 100000", "system/memory.max": "4096"})
    monkeypatch.setattr(host, "OWN_CGROUPS", tmp_path / "own")
    assert host.cpu_quota(tmp_path) == 1.0
    if own.startswith("0::"):
        assert host.memory_limit_bytes(tmp_path) == 4096


def test_limits_ignore_the_path_when_it_leaves_the_root(tmp_path, monkeypatch):
    root = make(tmp_path / "root", {"own": "0::/../outside\n"})
    make(tmp_path, {"outside/cpu.max": "100000 100000"})
    monkeypatch.setattr(host, "OWN_CGROUPS", root / "own")
    assert host.cpu_quota(root) is None


def test_total_memory_is_the_containers_when_it_has_a_limit(tmp_path, monkeypatch):
    unlimited = host.total_memory_bytes()
    monkeypatch.setattr(host, "CGROUP_ROOT", make(tmp_path, {"memory.max": str(64 << 20)}))
    assert host.total_memory_bytes() == 64 << 20 < unlimited
    assert 0 < host.available_memory_bytes() <= 64 << 20


def test_cpu_is_named_when_asked():
    assert host.cpu_name()
    features = host.cpu_features()
    assert list(features) == sorted(features)
    if sys.platform == "linux":
        assert features


def test_packages_state_differs_when_a_folder_gets_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "absent"))
    before = host.packages_state()
    assert host.packages_state() == before
    assert before[0] == (str(tmp_path / "absent"), 0)
    os.utime(tmp_path, ns=(0, 0))
    assert host.packages_state() != before
