"""Installed plugins and conformance checks as tables and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.text import Text

from hal.cli.output import cell, line, table
from hal.plugins import Plugin

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hal.testing import CheckResult

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def plugins_text(found: Sequence[Plugin]) -> Iterator[RenderableType]:
    """What ``hal plugins`` prints."""
    if not found:
        yield line(
            "no plugins are installed, or HAL_PLUGINS leaves none; "
            "install one, for example: pip install hal-openvino"
        )
        return
    made = table(
        ("plugin", "name"),
        ("distribution", "name"),
        ("version", "name"),
        ("module", "name"),
        ("state", "text"),
    )
    for plugin in found:
        state = cell(f"refused: {plugin.failure}", style="red") if plugin.failure else cell("installed")
        made.add_row(
            cell(plugin.name, 30),
            cell(plugin.distribution, 40),
            cell(plugin.version, 20),
            cell(plugin.entry_point, 40),
            state,
        )
    yield made


def plugins_json(found: Sequence[Plugin]) -> str:
    """What ``hal plugins --json`` prints."""
    return json.dumps({"plugins": msgspec.to_builtins(tuple(found))}, indent=1) + "\n"


def checks_text(name: str, results: Sequence[CheckResult]) -> Iterator[RenderableType]:
    """What ``hal plugins check`` prints.

    Args:
        name: The plugin.
        results: One per check.
    """
    made = table(("outcome", "name"), ("check", "name"), ("what was found", "text"))
    for result in results:
        found = Text("\n").join(cell(part) for part in result.message.splitlines())
        if result.outcome == "failed" and result.meaning:
            found.append("\n-> ").append_text(cell(result.meaning))
        made.add_row(cell(result.outcome, 10, _STYLES.get(result.outcome, "")), cell(result.name, 50), found)
    yield made
    counts = Counter(result.outcome for result in results)
    listed = ", ".join(f"{counts[outcome]} {outcome}" for outcome in _STYLES if counts[outcome])
    yield line(f"plugin {name}: {listed or 'no checks'}", "bold")


def checks_json(results: Sequence[CheckResult]) -> str:
    """What ``hal plugins check --json`` prints."""
    return json.dumps({"checks": msgspec.to_builtins(tuple(results))}, indent=1) + "\n"
