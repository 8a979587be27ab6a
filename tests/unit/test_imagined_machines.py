"""Machines from several profiles: numbers, links by rules and through hosts, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from hal.errors import UserError
from hal.records.machine import MachineProfile, interpolate
from hal.records.machines import LinkRule, combine, read_links
from hal.records.reading import read_machine
from tests.unit.imagined_machines import LATENCY_NS, device, link, machine

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.json"))
FAST = LinkRule(source="a/cuda:*", destination="b/cuda:*", latency_ns=50, bytes_per_s=4e9)


def cost(found: MachineProfile, source: str, destination: str, n_bytes: int = 1000) -> int:
    by_ends = {(one.source, one.destination): one for one in found.links}
    return interpolate(by_ends[source, destination], n_bytes)


def test_devices_get_new_numbers_when_a_second_profile_has_the_same() -> None:
    found = combine([("a", machine(2)), ("b", machine(1))])
    assert [one.id for one in found.devices] == ["cuda:0", "cuda:1", "cpu:0", "cuda:2", "cpu:1"]
    assert len({one.silicon for one in found.devices}) == len({one.memory_pool for one in found.devices}) == 5
    assert found.devices[3].properties["profile"] == "b"
    assert found.devices[3].properties["was"] == "cuda:0"
    assert {one.device for one in found.ceilings} == {one.id for one in found.devices}
    assert found.ceilings[3].compute_target == "cuda:2/emulator/fp32"
    assert found.environment.n_cpus == 8


def test_a_machine_is_as_it_was_when_it_is_alone() -> None:
    alone = machine(1)
    found = combine([("a", alone)])
    assert [one.id for one in found.devices] == ["cuda:0", "cpu:0"]
    assert found.environment == alone.environment
    assert found.notes == ("a: written by hand",)


def test_the_second_copy_is_named_with_a_number_when_a_profile_comes_twice() -> None:
    rule = LinkRule(source="a/cuda:0", destination="a#2/cuda:0", latency_ns=7, bytes_per_s=1e9)
    found = combine([("a", machine(1)), ("a", machine(1))], [rule])
    assert cost(found, "cuda:0/emulator", "cuda:1/emulator") == 7 + 1000
    assert found.notes == ("a, a#2: written by hand",)


def test_every_pair_of_ends_has_a_link_when_machines_are_combined() -> None:
    found = combine([("a", machine(2)), ("b", machine(1))])
    ends = {"host", *(f"{one.id}/emulator" for one in found.devices)}
    pairs = {(one.source, one.destination) for one in found.links}
    assert pairs == {(a, b) for a in ends for b in ends if a != b}


def test_a_tensor_goes_through_the_host_when_no_link_is_given() -> None:
    found = combine([("a", machine(2)), ("b", machine(1))])
    once, twice = LATENCY_NS + 1000, 2 * (LATENCY_NS + 1000)
    assert cost(found, "cuda:0/emulator", "cuda:1/emulator") == twice
    assert cost(found, "cuda:0/emulator", "cpu:0/emulator") == once
    assert cost(found, "cuda:0/emulator", "cuda:2/emulator") == twice
    assert cost(found, "host", "cuda:2/emulator") == once


def test_the_first_rule_holds_when_several_fit() -> None:
    slow = LinkRule(source="*", destination="*", latency_ns=9e6, bytes_per_s=1e6)
    found = combine([("a", machine(1)), ("b", machine(1))], [FAST, slow])
    assert cost(found, "cuda:0/emulator", "cuda:1/emulator") == 50 + 250
    assert cost(found, "cuda:1/emulator", "cuda:0/emulator") == 9_000_000 + 1_000_000


def test_new_numbers_can_be_used_when_a_rule_names_devices() -> None:
    rule = LinkRule(source="cuda:1", destination="cuda:0", latency_ns=5, bytes_per_s=1e9)
    found = combine([("a", machine(1)), ("b", machine(1))], [rule])
    assert cost(found, "cuda:1/emulator", "cuda:0/emulator") == 5 + 1000


def test_the_way_between_hosts_is_added_when_a_rule_tells_of_it() -> None:
    network = LinkRule(source="a/host", destination="b/host", latency_ns=3, bytes_per_s=0.5e9)
    found = combine([("a", machine(1)), ("b", machine(1))], [network])
    assert cost(found, "cuda:0/emulator", "cuda:1/emulator") == 2 * (LATENCY_NS + 1000) + 3 + 2000
    assert cost(found, "cpu:0/emulator", "cpu:1/emulator") == 3 + 2000
    assert cost(found, "host", "cuda:1/emulator") == LATENCY_NS + 1000 + 3 + 2000
    assert cost(found, "cuda:1/emulator", "cuda:0/emulator") == 2 * (LATENCY_NS + 1000)


def test_a_measured_link_is_kept_when_it_is_of_one_profile() -> None:
    direct = link("cuda:0/emulator", "cuda:1/emulator", latency_ns=5)
    measured = machine(2)
    measured = msgspec.structs.replace(measured, links=(*measured.links, direct))
    found = combine([("a", machine(1)), ("b", measured)])
    assert cost(found, "cuda:1/emulator", "cuda:2/emulator") == 5 + 1000
    assert cost(found, "cuda:2/emulator", "cuda:1/emulator") == 2 * (LATENCY_NS + 1000)


def test_a_device_is_left_out_when_it_cannot_be_used() -> None:
    broken = machine(1)
    gone = msgspec.structs.replace(broken.devices[0], unavailable="no driver")
    found = combine([("a", msgspec.structs.replace(broken, devices=(gone, *broken.devices[1:])))])
    assert [one.id for one in found.devices] == ["cpu:0"]
    assert [one.device for one in found.ceilings] == ["cpu:0"]


def test_combining_names_all_faults_when_rules_fit_nothing_or_ways_are_unknown() -> None:
    rule = LinkRule(source="a/npu:*", destination="*", latency_ns=0, bytes_per_s=1)
    with pytest.raises(UserError) as caught:
        combine([("a", machine(1, host_links=False))], [rule])
    assert "fits no two devices; there are a/cuda:0, a/cpu:0" in caught.value.message
    assert "nothing tells what it costs to get from a/host to a/cuda:0; give a link" in caught.value.message


def test_combining_says_so_when_no_device_can_be_used() -> None:
    nothing = msgspec.structs.replace(machine(1), devices=())
    with pytest.raises(UserError, match="no profile has a device that can be used; profiles given: a"):
        combine([("a", nothing)])


def test_links_are_read_when_the_file_is_right() -> None:
    text = json.dumps({"links": [msgspec.to_builtins(FAST)]}).encode()
    assert read_links(text, "the file") == (FAST,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"links": [{"source": "a", "destination": "b", "latency_ns": 1}]}', "bytes_per_s"),
        ('{"links": [{"source": "a", "speed": 3}]}', "speed"),
        ('{"links": 3}', "Expected `array`"),
        ("[", "links.json is not a LinkFile record"),
    ],
)
def test_links_are_refused_when_the_file_has_another_form(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_links(text.encode(), "links.json")
    assert said in caught.value.message


def test_links_are_refused_with_all_figures_when_these_cannot_be() -> None:
    rules = [
        {"source": "a", "destination": "b", "latency_ns": -1, "bytes_per_s": 1},
        {"source": "b", "destination": "a", "latency_ns": 1, "bytes_per_s": 0},
    ]
    with pytest.raises(UserError) as caught:
        read_links(json.dumps({"links": rules}).encode(), "links.json")
    assert "link 0 (a to b) has a latency_ns of -1" in caught.value.message
    assert "link 1 (b to a) has 0.0 bytes_per_s; expected more than 0" in caught.value.message


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_makes_a_machine_when_it_is_read(path: Path) -> None:
    profile = read_machine(path.read_bytes(), path.name)
    found = combine([(path.stem, profile), (path.stem, profile)])
    assert len(found.ceilings) == 2 * len(profile.ceilings) > 0
    readme = (path.parent / "README.md").read_text()
    assert f"`{path.name}`" in readme


def test_equal_memory_stays_equal_when_devices_are_renamed() -> None:
    shared = msgspec.structs.replace(device("gpu:0"), memory_pool="host")
    one = msgspec.structs.replace(machine(0), devices=(shared, *machine(0).devices))
    found = combine([("a", one), ("b", one)])
    pools = {device.id: device.memory_pool for device in found.devices}
    assert pools["gpu:0"] == pools["cpu:0"] == "host"
    assert pools["gpu:1"] == pools["cpu:1"] == "host@b"
