"""Watched sessions as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from hal.cli.figures import NOTHING
from hal.cli.output import cell, line, table
from hal.units import format_bytes, format_ns

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hal.session.asking import Told
    from hal.session.metrics import DeviceMetrics, Latency, Metrics, PartitionMetrics


def as_json(found: Sequence[Told]) -> str:
    """What all processes tell, on one line."""
    return msgspec.json.encode({"processes": found}).decode()


def top_text(found: Sequence[Told], before: Sequence[Told]) -> Iterator[RenderableType]:
    """What ``hal top`` shows.

    Args:
        found: What processes tell now.
        before: What they told last time: rates and latencies are those since then. Of sessions that are not
            there they are those since the session was made.
    """
    sessions = [(told.pid, session) for told in found for session in told.sessions]
    if not sessions:
        yield line("no session is watched; compile one with hal.compile(..., watch=True)", "yellow")
        return
    earlier = {(told.pid, session.session): session for told in before for session in told.sessions}
    yield _sessions(sessions, earlier)
    if any(len(session.partitions) > 1 or _is_slow(session) for _, session in sessions):
        yield line("")
        yield _partitions(sessions, earlier)
    yield line("")
    yield _devices([session for _, session in sessions])


def _sessions(
    sessions: Sequence[tuple[int, Metrics]], earlier: dict[tuple[int, int], Metrics]
) -> RenderableType:
    made = table(
        ("process", "number"),
        ("session", "name"),
        ("requests", "number"),
        ("per s", "number"),
        ("in flight", "number"),
        ("p50", "number"),
        ("p95", "number"),
        ("p99", "number"),
        ("errors", "number"),
        ("events", "text"),
        ("targets", "text"),
    )
    for pid, session in sessions:
        was = earlier.get((pid, session.session))
        latency = session.latency if was is None else session.latency.since(was.latency)
        seconds = session.at - (session.since if was is None else was.at)
        events = ", ".join(f"{n} {kind}" for kind, n in session.events.items())
        made.add_row(
            cell(str(pid)),
            cell(f"{session.session} {session.model}", 30),
            cell(str(session.n_requests)),
            cell(f"{latency.n / seconds:.1f}" if seconds > 0 else NOTHING),
            cell(str(session.n_in_flight)),
            *(cell(time) for time in _times(latency)),
            cell(str(session.n_errors), style="red" if session.n_errors else ""),
            cell(events or NOTHING, 40, "yellow" if events else ""),
            cell(", ".join(session.targets), 60),
        )
    return made


def _times(latency: Latency) -> list[str]:
    if not latency.n:
        return [NOTHING] * 3
    return [format_ns(latency.p50_ns), format_ns(latency.p95_ns), format_ns(latency.p99_ns)]


def _partitions(
    sessions: Sequence[tuple[int, Metrics]], earlier: dict[tuple[int, int], Metrics]
) -> RenderableType:
    made = table(
        ("process", "number"),
        ("session", "name"),
        ("partition", "number"),
        ("target", "name"),
        ("mean", "number"),
        ("expected", "number"),
        ("slower", "number"),
    )
    for pid, session in sessions:
        was = earlier.get((pid, session.session))
        for part in session.partitions:
            made.add_row(
                cell(str(pid)),
                cell(f"{session.session} {session.model}", 30),
                cell(str(part.number)),
                cell(part.target, 50),
                cell(_mean(part, was)),
                cell(format_ns(part.expected_ns) if part.expected_ns else NOTHING),
                cell(f"{part.slowdown:.2f}x" if part.slowdown > 1 else NOTHING, style="yellow"),
            )
    return made


def _mean(part: PartitionMetrics, was: Metrics | None) -> str:
    """Of its runs since the last look; of all where there was none, or the plan is another one since."""
    n_runs, total_ns = part.n_runs, part.total_ns
    if was is not None and part.number < len(was.partitions):
        past = was.partitions[part.number]
        if past.target == part.target and past.n_runs <= n_runs:
            n_runs, total_ns = n_runs - past.n_runs, total_ns - past.total_ns
    return format_ns(total_ns / n_runs) if n_runs else NOTHING


def _devices(sessions: Sequence[Metrics]) -> RenderableType:
    made = table(
        ("device", "name"),
        ("name", "text"),
        ("memory", "number"),
        ("of", "number"),
        ("use", "number"),
        ("temperature", "number"),
        ("power", "number"),
    )
    for device in {device.id: device for session in sessions for device in session.devices}.values():
        made.add_row(cell(device.id, 20), cell(device.name, 50), *(cell(one) for one in _readings(device)))
    return made


def _readings(device: DeviceMetrics) -> list[str]:
    used, total, use = device.memory_used_bytes, device.memory_bytes, device.utilisation_percent
    heat, power = device.temperature_celsius, device.power_mw
    return [
        NOTHING if used is None else format_bytes(used),
        NOTHING if total is None else format_bytes(total),
        NOTHING if use is None else f"{use} %",
        NOTHING if heat is None else f"{heat} C",
        NOTHING if power is None else f"{power / 1000:.1f} W",
    ]


def _is_slow(session: Metrics) -> bool:
    return any(part.slowdown > 1 for part in session.partitions)


__all__ = ["as_json", "top_text"]
