"""Profiles for speedscope, the flame graph viewer.

Source: speedscope's file-format-spec.ts: sampled profiles, one sample a kernel, weighed by its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from hal.records.facts import NodeFact
from hal.records.profile import KernelTable, Profile
from hal.report.text import all_visible
from hal.report.timeline import Step, facts_of, steps

#: What names the format in a file; speedscope looks for it, nothing is loaded from there.
_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(profile: Profile) -> bytes:
    """Each target with kernel times as one profile of a speedscope file.

    Stacks are modules by path, then operators and nodes, then the kernel, in the order of execution;
    weights are medians. Kernels mapped to no node stand under ``unattributed``.
    """
    facts = facts_of(profile)
    frames = _Frames()
    profiles = [
        _profile(target.target, target.kernels, facts, frames)
        for target in profile.targets
        if target.kernels is not None
    ]
    return msgspec.json.encode(
        all_visible(
            {
                "$schema": _SCHEMA,
                "shared": {"frames": frames.found},
                "profiles": profiles,
                "name": profile.model.name,
                "activeProfileIndex": 0,
                "exporter": f"hal {profile.hal_version}",
            }
        )
    )


def _profile(name: str, table: KernelTable, facts: Mapping[str, NodeFact], frames: _Frames) -> dict[str, Any]:
    line = list(steps(table, facts))
    return {
        "type": "sampled",
        "name": name,
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": sum(step.kernel.median_ns for step in line),
        "samples": [list(_stack(step, frames)) for step in line],
        "weights": [step.kernel.median_ns for step in line],
    }


def _stack(step: Step, frames: _Frames) -> Iterator[int]:
    """Numbers of frames, outermost first."""
    kernel = step.kernel
    for depth in range(len(step.module)):
        # With the whole path, so that views by function do not join the blocks of unlike stages.
        yield frames.number(".".join(step.module[: depth + 1]))
    if kernel.nodes:
        ops = " + ".join(dict.fromkeys(kernel.ops)) or "unknown operator"
        more = f" +{len(kernel.nodes) - 1}" if len(kernel.nodes) > 1 else ""
        yield frames.number(f"{ops} · {kernel.nodes[0]}{more}", *step.sources[:1])
    else:
        yield frames.number("unattributed")
    yield frames.number(f"{kernel.name} ({kernel.type})" if kernel.type else kernel.name)


class _Frames:
    """Frames by name and place, each once."""

    def __init__(self) -> None:
        self.found: list[dict[str, str | int]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, name: str, source: str = "") -> int:
        key = (name, source)
        if key not in self._numbers:
            self._numbers[key] = len(self.found)
            file, _, line = source.rpartition(":")
            place: dict[str, str | int] = {"file": file, "line": int(line)} if file and line.isdigit() else {}
            self.found.append({"name": name or "unnamed", **place})
        return self._numbers[key]
