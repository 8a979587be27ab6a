"""Estimates as tables: each figure with a ``~``, each table with the word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from hal.cli import figures
from hal.cli.output import cell, indented, line, one_line, table
from hal.records.estimate import Estimate, ModelEstimate
from hal.units import format_ns

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Groups listed per target.
_GROUPS_LISTED = 5
_OPS_CHARACTERS = 24
_NODE_CHARACTERS = 20


def predict_text(estimates: Sequence[ModelEstimate]) -> Iterator[RenderableType]:
    """Everything ``hal predict`` prints.

    Args:
        estimates: Of one model, fastest first; at least one.
    """
    first = estimates[0]
    yield line(f"{one_line(first.model, 60)}, digest {first.digest[:12]}: estimates; nothing was run", "bold")
    yield line("")
    yield line("Estimates end to end per run; about 8 in 10 truths lie within the error bar", "bold")
    yield _targets(estimates)
    for estimate in estimates:
        yield from _target(estimate)


def predict_json(estimates: Sequence[ModelEstimate]) -> str:
    """The same as JSON: each figure's object says that it is an estimate."""
    return msgspec.json.format(msgspec.json.encode({"estimates": estimates}), indent=2).decode() + "\n"


def estimate_text(duration_ns: float) -> str:
    """``~1.23 ms``: how an estimated duration stands wherever it is printed."""
    return f"~{format_ns(duration_ns)}" if duration_ns else "~0"


def bar_text(estimate: Estimate) -> str:
    """Both ends of the error bar: ``~1.10-1.40 ms``."""
    low, low_unit = format_ns(estimate.low_ns).split(" ")
    high, high_unit = format_ns(estimate.high_ns).split(" ")
    return f"~{low}-{high} {high_unit}" if low_unit == high_unit else f"~{low} {low_unit}-{high} {high_unit}"


def _targets(estimates: Sequence[ModelEstimate]) -> Table:
    made = table(
        ("target", "text"),
        ("estimate", "number"),
        ("error bar", "number"),
        ("in kernels", "number"),
        ("between them", "number"),
        ("kernels", "number"),
    )
    for each in estimates:
        made.add_row(
            cell(each.target),
            cell(estimate_text(each.total.median_ns)),
            cell(bar_text(each.total)),
            cell(estimate_text(each.kernels.median_ns)),
            cell(estimate_text(each.between_ns)),
            cell(f"~{len(each.groups)}"),
        )
    return made


def _target(estimate: ModelEstimate) -> Iterator[RenderableType]:
    shown = estimate.groups[:_GROUPS_LISTED]
    count = f"{len(shown)} most expensive of ~{len(estimate.groups)} kernels"
    yield line("")
    yield line(f"Estimates for {estimate.target}, the {count}", "bold")
    made = table(
        ("estimate", "number"),
        ("error bar", "number"),
        ("share", "number"),
        ("ops", "name"),
        ("nodes", "name"),
        ("grouped as in", "name"),
    )
    for each in shown:
        more = f" +{len(each.nodes) - 1}" if len(each.nodes) > 1 else ""
        made.add_row(
            cell(estimate_text(each.cost.median_ns)),
            cell(bar_text(each.cost)),
            cell(f"~{figures.share_text(each.cost.median_ns, estimate.kernels.median_ns)}"),
            cell(", ".join(dict.fromkeys(each.ops)), _OPS_CHARACTERS),
            cell(f"{one_line(each.nodes[0], _NODE_CHARACTERS - len(more))}{more}"),
            cell(each.cause),
        )
    yield made
    yield indented(f"total from {estimate.total.source}")
    for source, n in _sources(estimate):
        yield indented(f"{n} from {source}", 4)
    for note in estimate.notes:
        yield indented(f"note: {note}")


def _sources(estimate: ModelEstimate) -> list[tuple[str, int]]:
    counted: dict[str, int] = {}
    for each in estimate.groups:
        counted[each.cost.source] = counted.get(each.cost.source, 0) + 1
    return sorted(counted.items(), key=lambda item: -item[1])
