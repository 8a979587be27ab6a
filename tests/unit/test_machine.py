from __future__ import annotations

import json

import pytest

from hal.backend import Device
from hal.errors import TargetError
from hal.profiling import discover
from hal.profiling.machine import measure_machine, public
from hal.records.files import to_json
from hal.records.machine import MACHINE_SCHEMA_VERSION, Ceiling, MachineProfile
from hal.records.reading import read_machine
from tests.throwaway import Plugins, failing

#: Little memory keeps the tensors small; 20 ms of virtual time per operator keeps the runs few.
DEVICE = {"id": "cpu:0", "precisions": ["bf16", "fp32"], "memory_bytes": 24 << 20}
FAKE = {"devices": [DEVICE], "default_ns": 20_000_000}


def test_machine_profile_holds_ceilings_and_links_when_all_is_well(plugins: Plugins) -> None:
    plugins.add_fake("one", **FAKE)
    plugins.add_fake("two", **FAKE)
    stages: list[str] = []

    class Listening:
        def stage(self, text: str) -> None:
            stages.append(text)

        def advance(self, n_done: int, n_total: int) -> None:
            assert 0 <= n_done < n_total

    machine = measure_machine(discover(), progress=Listening())
    assert machine.schema_version == MACHINE_SCHEMA_VERSION
    assert machine.notes == ()
    assert [device.id for device in machine.devices] == ["cpu:0", "cpu:0"]
    assert {(c.device, c.precision) for c in machine.ceilings} == {("cpu:0", "fp32"), ("cpu:0", "bf16")}
    ceiling = machine.ceiling("cpu:0", "bf16")
    assert isinstance(ceiling, Ceiling)
    # fp32 comes first whatever the device prefers: that is what the bytes are measured in.
    assert ceiling.copy_target.endswith("/fp32")
    assert machine.ceiling("cpu:0", "fp16") is None
    assert {(link.source, link.destination) for link in machine.links} == {
        (f"cpu:0/{a}", f"cpu:0/{b}") for a in ("one", "two") for b in ("one", "two")
    }
    assert all(link.points and not link.reason for link in machine.links)
    assert "measuring the ceilings of cpu:0/one/bf16" in stages
    assert "handing tensors from cpu:0/one to cpu:0/two" in stages
    assert read_machine(to_json(machine), "the record") == machine


def test_machine_profile_has_the_rest_when_one_plugin_fails(plugins: Plugins) -> None:
    plugins.add_fake("good", **FAKE)
    plugins.add_fake("bad", **FAKE, **failing("compile", "segfault"))
    machine = measure_machine(discover(), targets=["*/fp32"])
    assert [c.compute_target for c in machine.ceilings] == ["cpu:0/good/fp32"]
    assert len(machine.notes) == 1
    assert machine.notes[0].startswith("no ceilings from cpu:0/bad/fp32: ")
    measured = [(link.source, link.destination) for link in machine.links if link.points]
    assert measured == [("cpu:0/good", "cpu:0/good")]
    assert all("SIGSEGV" in link.reason for link in machine.links if not link.points)


def test_only_ceilings_are_measured_when_links_are_not_wanted(plugins: Plugins) -> None:
    plugins.add_fake("one", **FAKE)
    machine = measure_machine(discover(), targets=["cpu:0/one/fp32+mode=fast"], links=False)
    assert machine.links == ()
    # Options are no part of what a machine can do.
    assert [c.compute_target for c in machine.ceilings] == ["cpu:0/one/fp32"]


def test_measuring_a_machine_says_what_is_there_when_no_target_fits(plugins: Plugins) -> None:
    plugins.add_fake("one", **FAKE)
    with pytest.raises(TargetError, match="cpu:0/one/fp32"):
        measure_machine(discover(), targets=["gpu:0/*/*"])


def test_older_records_are_read_when_fields_are_missing() -> None:
    text = {
        "schema_version": 1,
        "hal_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "environment": {
            "system": "Linux",
            "machine": "x86_64",
            "cpu": "Example",
            "cpu_features": [],
            "n_cpus": 2,
            "n_usable_cpus": 2,
            "memory_bytes": 1,
            "python": "3.11",
            "packages": {},
            "settings": {},
        },
        "devices": [],
        "ceilings": [],
        "links": [{"source": "a", "destination": "b", "same_silicon": True}],
    }
    machine = read_machine(json.dumps(text).encode(), "it")
    assert isinstance(machine, MachineProfile)
    assert machine.links[0].points == ()


def test_devices_hold_no_paths_when_they_are_recorded() -> None:
    device = Device(
        id="cpu:0",
        name="x",
        kind="cpu",
        silicon="x",
        memory_pool="host",
        unavailable="libfoo is not in /usr/lib/foo",
        properties={"driver": "/opt/driver/libbar.so", "cores": 4},
    )
    found = public(device)
    assert found.unavailable == "libfoo is not in <path>/foo"
    assert found.properties == {"driver": "<path>/libbar.so", "cores": 4}
