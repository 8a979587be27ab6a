"""``hal devices --measure``: its words, its JSON and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hal.cli import main
from hal.cli.devices_text import machine_text
from hal.cli.output import plain
from hal.records.machine import Ceiling, Handoff, Link, MachineProfile
from hal.records.reading import read_machine
from tests.golden import records
from tests.throwaway import Plugins

KIB = 1024
DEVICE = {"id": "cpu:0", "memory_bytes": 24 << 20}
FAKE = {"devices": [DEVICE], "default_ns": 20_000_000}


def point(n_bytes: int, median_ns: int, p10_ns: int, p90_ns: int) -> Handoff:
    return Handoff(n_bytes=n_bytes, median_ns=median_ns, p10_ns=p10_ns, p90_ns=p90_ns, n=7)


def machine(*ceilings: Ceiling, links: tuple[Link, ...] = (), notes: tuple[str, ...] = ()) -> MachineProfile:
    return MachineProfile(
        schema_version=1,
        hal_version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        environment=records.FULL.environment,
        devices=(),
        ceilings=ceilings,
        links=links,
        notes=notes,
    )


def test_tables_are_exactly_as_agreed_when_a_machine_was_measured() -> None:
    ceiling = Ceiling(
        device="cpu:0",
        precision="fp32",
        flops_per_s=1.5e11,
        bytes_per_s=3.27e10,
        compute_target="cpu:0/openvino/fp32",
        copy_target="cpu:0/onnxruntime/fp32",
    )
    clash = "backend 'chain': its process was killed by SIGSEGV while asked to open"
    links = (
        Link(
            source="cpu:0/a",
            destination="cpu:0/a",
            same_silicon=True,
            points=(point(4 * KIB, 0, -90, -10), point(64 * KIB, 0, -400, 900)),
        ),
        Link(
            source="cpu:0/a",
            destination="cpu:0/b",
            same_silicon=True,
            points=(point(4 * KIB, 4_150, 4_000, 4_300),),
            reason="from 64.0 KiB on: out of memory",
        ),
        Link(source="cpu:0/a", destination="cpu:0/c", same_silicon=True, reason=clash),
        Link(source="cpu:0/c", destination="cpu:0/a", same_silicon=True, reason=clash),
    )
    text = plain(machine_text(machine(ceiling, links=links, notes=("no ceilings from x: it hung",))), 100)
    expected = """
Ceilings, the most that was reached
device  precision      compute  by                      memory  by
──────────────────────────────────────────────────────────────────────────────────────
cpu:0   fp32       150 GFLOP/s  cpu:0/openvino/fp32  32.7 GB/s  cpu:0/onnxruntime/fp32
no ceilings from x: it hung

Handing on a tensor, by its size, beyond what both ends take anyway (<: lost in noise)
from     to       4.00 KiB  64.0 KiB
────────────────────────────────────
cpu:0/a  cpu:0/a         0   <900 ns
cpu:0/a  cpu:0/b   4.15 us         -
cpu:0/a  cpu:0/c         -         -
cpu:0/c  cpu:0/a         -         -
between cpu:0/a and cpu:0/b: from 64.0 KiB on: out of memory
between cpu:0/a and cpu:0/c: backend 'chain': its process was killed by SIGSEGV while asked to open
"""
    assert text.splitlines() == expected.splitlines()


def test_tables_say_so_when_nothing_could_be_measured() -> None:
    text = plain(machine_text(machine(notes=("no ceilings from x: \x1b[2J",))), 100)
    assert "no target could be measured" in text
    assert "\x1b" not in text


def test_devices_writes_the_record_when_asked_to_measure(
    plugins: Plugins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    path = tmp_path / "machine.json"
    assert main(["devices", "--no-proof", "--measure", "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "\nCeilings, the most that was reached\n" in out
    assert "\ncpu:0/fake  cpu:0/fake " in out
    assert err.splitlines()[-1] == f"Wrote {path}"
    record = read_machine(path.read_bytes(), "the file")
    assert [link.reason for link in record.links] == [""]
    kept = path.read_bytes()
    assert main(["devices", "--measure", "--output", str(path)]) == 2
    assert "exists; use --force" in capsys.readouterr().err
    assert path.read_bytes() == kept
    assert main(["devices", "--no-proof", "--measure", "--output", str(path), "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["machine"] == json.loads(path.read_bytes())
    assert [device["backend"] for device in told["devices"]] == ["fake"]


def test_devices_refuses_a_file_when_nothing_is_measured(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "--output", "x.json"]) == 2
    assert capsys.readouterr().err == "error: --output 'x.json' has nothing to write; add --measure\n"


def test_devices_measures_nothing_when_no_device_can_be_used(
    plugins: Plugins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", devices=[{"id": "cuda:0", "unavailable": "no driver"}])
    path = tmp_path / "machine.json"
    assert main(["devices", "--measure", "--output", str(path)]) == 1
    out, _ = capsys.readouterr()
    assert "Ceilings" not in out
    assert not path.exists()
