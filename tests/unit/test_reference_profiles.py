"""The profiles that ship in the repository are read by today's reader, whole and free of names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.profiling.chain import HOST
from hal.profiling.privacy import scrub
from hal.records.machine import MachineProfile, interpolate
from hal.records.reading import read_machine

FOLDER = Path(__file__).parents[2] / "profiles"
FILES = sorted(FOLDER.glob("*.json"))
#: Folders and addresses, whatever machine this test runs on.
_PERSONAL = re.compile(r"(^|[\s'\"(=])/\w+/|[A-Za-z]:\\|\b[\w.+-]+@[\w-]+")


def profile_of(path: Path) -> MachineProfile:
    return read_machine(path.read_bytes(), path.name)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_a_profile_ships_when_the_folder_is_read() -> None:
    assert FILES
    listed = set(re.findall(r"`([\w-]+\.json)`", (FOLDER / "README.md").read_text()))
    assert listed == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ceilings_are_positive_when_a_profile_is_read(path: Path) -> None:
    machine = profile_of(path)
    assert machine.ceilings
    known = {(device.id, precision) for device in machine.devices for precision in device.precisions}
    for ceiling in machine.ceilings:
        assert (ceiling.device, ceiling.precision) in known
        assert ceiling.flops_per_s > 1e9
        assert ceiling.bytes_per_s > 1e9
        assert ceiling.compute_target.startswith(f"{ceiling.device}/")
        assert ceiling.compute_target.endswith(f"/{ceiling.precision}")
        assert ceiling.copy_target.startswith(f"{ceiling.device}/")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_are_complete_or_have_reasons_when_a_profile_is_read(path: Path) -> None:
    machine = profile_of(path)
    ends = {link.source for link in machine.links} - {HOST}
    routes = {(link.source, link.destination) for link in machine.links}
    # A data sheet tells of no runs, and nothing of handing a tensor to oneself.
    is_measured = any(point.n for link in machine.links for point in link.points)
    assert {(one, other) for one in ends for other in ends if is_measured or one != other} <= routes
    linked, rated = {end.partition("/")[0] for end in ends}, {c.device for c in machine.ceilings}
    # Of a data sheet, what computes in the host's memory is that end of the links.
    hosts = {device.id for device in machine.devices if device.memory_pool == "host"}
    assert linked == rated if is_measured else linked | hosts >= rated >= linked
    for link in machine.links:
        assert link.points or link.reason
        sizes = [point.n_bytes for point in link.points]
        assert sizes == sorted(set(sizes))
        for point in link.points:
            assert point.n >= 3 if is_measured else point.n == 0
            assert point.p10_ns <= point.p90_ns
            assert 0 <= point.median_ns <= max(point.p90_ns, 0)
        if link.points:
            assert interpolate(link, 300_000) >= 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_personal_name_is_in_it_when_a_profile_is_read(path: Path) -> None:
    found = [text for text in texts(json.loads(path.read_bytes())) if _PERSONAL.search(text)]
    assert found == []
    for text in texts(json.loads(path.read_bytes())):
        assert scrub(text) == text


@pytest.mark.parametrize("text", ["see /home/me/x", "C:\\Users\\me", "me@example.org"])
def test_personal_names_are_found_when_they_are_there(text: str) -> None:
    assert _PERSONAL.search(text)


def test_the_readme_reads_a_profile_when_its_block_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(FOLDER.parent)
    (block,) = re.findall(r"^```python\n(.*?)^```", (FOLDER / "README.md").read_text(), re.M | re.S)
    exec(block, {})
    flops_per_s, cost_ns = capsys.readouterr().out.split()
    assert float(flops_per_s) > 1e9
    assert int(cost_ns) >= 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_is_explained_when_it_is_in_a_profile(path: Path) -> None:
    readme = (FOLDER / "README.md").read_text()
    told = {
        name
        for row in re.findall(r"^\| `([\w.\[\]]+)` \|", readme, re.M)
        for name in re.split(r"[.\[\]]+", row)
    }
    whole = json.loads(path.read_bytes())
    fields = set(whole) | set(whole["environment"])
    fields |= {name for part in (*whole["ceilings"], *whole["links"]) for name in part}
    fields |= {name for link in whole["links"] for point in link["points"] for name in point}
    assert fields <= told
