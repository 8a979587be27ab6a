"""Profiles for Chrome's tracing page and Perfetto.

Source: "Trace Event Format", the JSON object format with complete events (``ph: X``, microseconds).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from hal.profiling.roofline import ceiling_for, classify
from hal.records.facts import NodeFact
from hal.records.profile import KernelTable, Profile, TargetProfile
from hal.report.text import all_visible
from hal.report.timeline import Step, facts_of, has_order, steps

#: Threads of each target's process, in the order in which a viewer shows them.
_END_TO_END, _MODULES, _KERNELS = 1, 2, 3


def chrome_trace(profile: Profile) -> bytes:
    """One run of each target, made of medians, as JSON for Perfetto or ``chrome://tracing``.

    Each target is a process with up to three tracks: end to end (plain, then with instruments), modules
    nested by path, and kernels in their order of execution, each starting where the one before ends. Targets
    without any times are left out.
    """
    facts = facts_of(profile)
    events = [
        event
        for number, target in enumerate(profile.targets, 1)
        for event in _target(profile, target, number, facts)
    ]
    return msgspec.json.encode(
        all_visible(
            {
                "traceEvents": events,
                "displayTimeUnit": "ns",
                "otherData": {
                    "model": profile.model.name,
                    "digest": profile.model.digest,
                    "created": profile.created,
                    "hal": profile.hal_version,
                    "figures": "medians; kernels laid end to end",
                },
            }
        )
    )


def _target(
    profile: Profile, target: TargetProfile, process: int, facts: Mapping[str, NodeFact]
) -> Iterator[dict[str, Any]]:
    table = target.kernels
    if target.timing is None and table is None:
        return
    name = target.target if target.status == "ok" else f"{target.target} ({target.status})"
    yield _meta("process_name", process, 0, {"name": name})
    yield _meta("process_sort_index", process, 0, {"sort_index": process})
    yield _meta("thread_name", process, _END_TO_END, {"name": "end to end"})
    if target.timing is not None:
        timing = target.timing
        figures = {"p10_ns": timing.p10_ns, "p90_ns": timing.p90_ns, "n": timing.n, "stable": timing.stable}
        yield _span("plain run", process, _END_TO_END, 0, timing.median_ns, figures)
    if table is None:
        return
    start_ns = target.timing.median_ns if target.timing is not None else 0
    slowed = {"overhead": table.overhead, "inflated": table.inflated}
    yield _span(
        "run with instruments", process, _END_TO_END, start_ns, start_ns + table.instrumented_ns, slowed
    )
    line = list(steps(table, facts))
    modules = list(_modules(line, process))
    if modules:
        yield _meta("thread_name", process, _MODULES, {"name": "modules"})
        yield from modules
    order = "in order of execution" if has_order(table) else "most expensive first: no order was recorded"
    yield _meta("thread_name", process, _KERNELS, {"name": f"kernels, {order}"})
    for step in line:
        yield _kernel(profile, target, table, step, process)


def _kernel(
    profile: Profile, target: TargetProfile, table: KernelTable, step: Step, process: int
) -> dict[str, Any]:
    kernel = step.kernel
    ceiling = ceiling_for(profile.ceilings, target.target, kernel.device)
    figures = {
        "type": kernel.type,
        "device": kernel.device,
        "nodes": list(kernel.nodes) or "unattributed",
        "ops": list(kernel.ops),
        "module": ".".join(step.module),
        "source": list(step.sources),
        "share": kernel.median_ns / table.total_ns if table.total_ns else None,
        "p10_ns": kernel.p10_ns,
        "p90_ns": kernel.p90_ns,
        "flops": kernel.flops,
        "moved_bytes": kernel.moved_bytes,
        "flops_per_s": kernel.flops_per_s,
        "bytes_per_s": kernel.bytes_per_s,
        "limit": classify(kernel, ceiling) if ceiling is not None else None,
    }
    told = {name: value for name, value in figures.items() if value not in (None, "", [])}
    return _span(kernel.name, process, _KERNELS, step.start_ns, step.end_ns, told)


def _modules(line: list[Step], process: int) -> Iterator[dict[str, Any]]:
    """A span per stretch of kernels that share a module, outer ones first, as viewers want them nested."""
    open_spans: list[tuple[str, int]] = []
    found: list[tuple[int, int, int, tuple[str, ...]]] = []

    def close(depth: int, at_ns: int) -> None:
        while len(open_spans) > depth:
            path = tuple(part for part, _ in open_spans)
            found.append((open_spans[-1][1], len(open_spans), at_ns, path))
            open_spans.pop()

    end_ns = 0
    for step in line:
        shared = 0
        while (
            shared < min(len(open_spans), len(step.module)) and open_spans[shared][0] == step.module[shared]
        ):
            shared += 1
        close(shared, step.start_ns)
        open_spans += [(part, step.start_ns) for part in step.module[shared:]]
        end_ns = step.end_ns
    close(0, end_ns)
    for start_ns, _, span_end_ns, path in sorted(found, key=lambda span: span[:2]):
        yield _span(path[-1], process, _MODULES, start_ns, span_end_ns, {"path": ".".join(path)})


def _span(
    name: str, process: int, thread: int, start_ns: int, end_ns: int, figures: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name or "unnamed",
        "cat": "hal",
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": start_ns / 1000,
        "dur": (end_ns - start_ns) / 1000,
        "args": figures,
    }


def _meta(name: str, process: int, thread: int, figures: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": figures}
