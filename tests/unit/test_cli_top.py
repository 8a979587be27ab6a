"""hal top: once, as JSON, live in a terminal, and left by Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hal.cli import main
from hal.cli.output import plain
from hal.cli.top_text import top_text
from hal.session.asking import Told
from hal.session.metrics import BOUNDS_NS, Bucket, DeviceMetrics, Latency, Metrics, PartitionMetrics
from hal.session.sockets import announced
from hal.testing import example_inputs, small_graph
from tests.unit.sessions import session
from tests.unit.test_session_sockets import ended, program

ROOT = Path(__file__).parents[2]
HAL = [sys.executable, "-c", "import sys; from hal.cli import main; sys.exit(main())", "top"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)


def metrics(n: int, at: float, slowdown: float = 1.0) -> Metrics:
    return Metrics(
        at=at,
        since=100.0,
        session=2,
        model="resnet\x1b[31m",
        targets=("cuda:0/cuda/fp16", "cpu:0/openvino/fp32"),
        n_requests=n + 1,
        n_errors=1,
        n_in_flight=3,
        oldest_ns=0,
        latency=Latency.of([Bucket(BOUNDS_NS[80], n)], n * 1_000_000),
        partitions=(
            PartitionMetrics(
                number=0,
                target="cuda:0/cuda/fp16",
                n_runs=n,
                total_ns=n * 700_000,
                expected_ns=350_000,
                slowdown=slowdown,
            ),
            PartitionMetrics(number=1, target="cpu:0/openvino/fp32", n_runs=n, total_ns=n * 300_000),
        ),
        devices=(
            DeviceMetrics(
                id="cuda:0",
                name="A GPU",
                memory_used_bytes=1 << 30,
                memory_bytes=8 << 30,
                utilisation_percent=97,
                temperature_celsius=81,
                power_mw=250_400,
            ),
            DeviceMetrics(id="cpu:0", name="A processor"),
        ),
        process_bytes=1 << 20,
        events={"slow": 1, "retried": 2},
    )


def told(*sessions: Metrics) -> list[Told]:
    return [Told(pid=4711, sessions=sessions)]


def test_the_table_tells_of_sessions_partitions_and_devices() -> None:
    lines = plain(top_text(told(metrics(50, 110.0, 2.0)), []), 200).splitlines()
    rows = [" ".join(text.split()) for text in lines]
    assert rows[2] == (
        r"4711 2 resnet\x1b[31m 51 5.0 3 982 us 1.02 ms 1.02 ms 1 1 slow, 2 retried "
        "cuda:0/cuda/fp16, cpu:0/openvino/fp32"
    )
    assert r"4711 2 resnet\x1b[31m 0 cuda:0/cuda/fp16 700 us 350 us 2.00x" in rows
    assert "cuda:0 A GPU 1.00 GiB 8.00 GiB 97 % 81 C 250.4 W" in rows
    assert rows[-1] == "cpu:0 A processor - - - - -"


def test_rates_are_those_since_the_last_look_when_there_was_one() -> None:
    before, now = told(metrics(50, 110.0)), told(metrics(90, 112.0))
    row = plain(top_text(now, before), 200).splitlines()[2].split()
    assert row[3:5] == ["91", "20.0"]
    # Nothing since: no latency.
    row = plain(top_text(now, now), 200).splitlines()[2].split()
    assert row[3:9] == ["91", "-", "3", "-", "-", "-"]


def test_nothing_is_said_to_be_watched_when_nothing_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once"]) == 0
    assert capsys.readouterr().out == (
        "no session is watched; compile one with hal.compile(..., watch=True)\n"
    )
    assert main(["top", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"processes": []}


def test_it_prints_once_when_asked_to_or_when_stdout_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with announced(session()[0], watch=True) as add:
        add(*example_inputs(small_graph("add")))
        for arguments in (["top"], ["top", "--once"]):
            assert main(arguments) == 0
            assert f"{os.getpid()} " in capsys.readouterr().out
        assert main(["top", "--once", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["processes"]
        assert msgspec.convert(found, Told).sessions[0].n_requests == 1


def test_it_shows_other_processes_live_and_ctrl_c_ends_it_cleanly() -> None:
    watched = program()
    ours, theirs = pty.openpty()
    shown = subprocess.Popen(HAL, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    try:
        seen = b""
        while str(watched.pid).encode() not in seen:
            seen += os.read(ours, 1 << 16)
        shown.send_signal(signal.SIGINT)
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        _, said = shown.communicate(timeout=60)
        assert (shown.returncode, said) == (0, b"")
        # The terminal's own screen and cursor are back. Source: xterm, "Alternate Screen Buffer" and DECTCEM.
        assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"\x1b[?1049h")
        assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    finally:
        os.close(ours)
        ended(watched)


def test_it_prints_a_line_of_json_each_second_until_ctrl_c_or_another_end() -> None:
    for number, code, words in ((signal.SIGINT, 0, b""), (signal.SIGTERM, 143, b"ended by SIGTERM\n")):
        lines = subprocess.Popen([*HAL, "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert lines.stdout is not None
        for _ in range(2):
            assert json.loads(lines.stdout.readline()) == {"processes": []}
        lines.send_signal(number)
        _, said = lines.communicate(timeout=60)
        assert (lines.returncode, said) == (code, words)
