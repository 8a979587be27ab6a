"""Findings as a table and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from hal.backend import Finding
from hal.cli.output import cell, line, table

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"problem": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
#: Worst first; what a plugin calls by another word comes before "ok".
_ORDER = ("problem", "warning", "note", "", "ok")


def doctor_text(findings: Sequence[tuple[str, Finding]]) -> Iterator[RenderableType]:
    """What ``hal doctor`` prints.

    Args:
        findings: Who says it (``hal`` or a plugin), and what.
    """
    made = table(
        ("severity", "name"), ("from", "name"), ("subject", "text"), ("seen, and what to do", "text")
    )
    for source, finding in sorted(findings, key=lambda pair: _rank(pair[1].severity)):
        seen = cell(finding.message)
        if finding.advice:
            seen.append("\n-> ").append_text(cell(finding.advice))
        style = _STYLES.get(finding.severity, "")
        made.add_row(cell(finding.severity, 12, style), cell(source, 20), cell(finding.subject, 40), seen)
    if findings:
        yield made
    counts = Counter(finding.severity for _, finding in findings)
    listed = ", ".join(f"{counts[name]} {name}" for name in _ORDER if counts[name])
    yield line(f"{len(findings)} findings: {listed}" if listed else f"{len(findings)} findings", "bold")


def doctor_json(findings: Sequence[tuple[str, Finding]]) -> str:
    """What ``hal doctor --json`` prints."""
    found = [{"from": source, **msgspec.to_builtins(finding)} for source, finding in findings]
    return json.dumps({"findings": found}, indent=1) + "\n"


def _rank(severity: str) -> int:
    return _ORDER.index(severity if severity in _ORDER else "")
