"""Where two targets part, as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hal.cli.output import cell, indented, line, one_line, table
from hal.records.divergence import Divergence, NodeDifference, Reproduction, ValueDifference

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Outputs and nodes listed before "and N more".
_LISTED = 10
_NAME_CHARACTERS = 44
_OP_CHARACTERS = 20

_EXTENTS = {
    "node": "one node",
    "part": "{n} nodes",
    "prefix": "the model up to there, {n} nodes",
    "model": "the model itself, {n} nodes: nothing smaller parts",
}
_WAYS = {
    "exposing": "found with all values as outputs",
    "bisecting": "found by cutting the model shorter and shorter",
}


def diff_text(record: Divergence) -> Iterator[RenderableType]:
    """Everything ``hal diff`` prints but the command that replays it, which comes last and is not folded."""
    yield line(
        f"{one_line(record.model, 60)}: {record.n_nodes} nodes, digest {record.digest[:12]}, "
        f"inputs: {one_line(record.inputs_from)}",
        "bold",
    )
    other = next((target for target in record.targets if target != record.against), record.targets[1])
    yield line(
        f"{other} against {record.against}, tolerance {record.tolerance:g} relative L2 "
        f"({record.tolerance_from})"
    )
    yield line("")
    yield _outputs(record)
    if record.growth or record.n_compared:
        yield from _inside(record)
    if record.notes:
        yield line("")
        yield line("Notes:", "bold")
        for note in record.notes:
            yield indented(note)
    yield line("")
    yield from _result(record)


def _outputs(record: Divergence) -> Table:
    made = table(("output", "text"), ("relative L2", "number"), ("max abs", "number"), ("", "name"))
    listed = sorted(record.outputs, key=lambda output: -_size(output.relative_l2))[:_LISTED]
    for output in listed:
        parted = _size(output.relative_l2) > record.tolerance
        made.add_row(
            cell(output.name, 60),
            cell(_figure(output.relative_l2)),
            cell(_figure(output.max_abs)),
            cell(_state(output, parted), style="bold red" if parted else "green"),
        )
    if len(record.outputs) > len(listed):
        made.add_row(cell(f"and {len(record.outputs) - len(listed)} more, closer"))
    return made


def _state(output: ValueDifference, parted: bool) -> str:
    if output.n_nonfinite:
        return f"parts: {output.n_nonfinite} NaN or infinite on one side only"
    return "parts" if parted else "agrees"


def _inside(record: Divergence) -> Iterator[RenderableType]:
    left_out = f", {record.n_left_out} could not be" if record.n_left_out else ""
    yield line("")
    if not record.growth:
        yield line(
            f"{record.n_compared} values inside the model were compared{left_out}; at no node it grows"
        )
    else:
        yield line(
            f"Where the difference grows most ({record.n_compared} values inside were compared{left_out}); "
            "growth: error out over error in, at least one rounding",
            "bold",
        )
        yield _nodes(record.growth)
    if record.worst is not None:
        yield line(
            f"Furthest apart inside: {_named(record.worst)}, relative L2 {_figure(record.worst.error_out)}"
        )


def _nodes(nodes: Sequence[NodeDifference]) -> Table:
    made = table(
        ("node", "name"),
        ("op", "name"),
        ("#", "number"),
        ("in", "number"),
        ("out", "number"),
        ("growth", "number"),
    )
    for node in nodes:
        made.add_row(
            cell(node.node, _NAME_CHARACTERS),
            cell(node.op, _OP_CHARACTERS),
            cell(str(node.position)),
            cell(_figure(node.error_in)),
            cell(_figure(node.error_out)),
            cell(f"{_figure(node.growth)}x"),
        )
    return made


def _result(record: Divergence) -> Iterator[RenderableType]:
    worst = record.worst_output
    if not record.parted:
        yield line("the result is: the targets agree", "bold")
        if worst is not None:
            yield indented(
                f"worst output: {one_line(worst.name, 60)}, relative L2 {_figure(worst.relative_l2)}"
            )
        return
    yield line("the result is: the targets part", "bold")
    if record.first is None:
        yield indented("no first node was found")
    else:
        first = record.first
        yield indented(
            f"first node: {_named(first)}, {first.position} of {record.n_nodes} in the file's order; "
            f"{_WAYS[record.found_by]}"
        )
        yield indented(
            f"its output {one_line(first.value, 60)} is off by {_figure(first.error_out)}, "
            f"its inputs by {_figure(first.error_in)}"
        )
    if record.reproduction is not None:
        yield from _reproduction(record.reproduction)


def _reproduction(found: Reproduction) -> Iterator[RenderableType]:
    extent = _EXTENTS[found.extent].format(n=len(found.nodes))
    given = f", its inputs as {found.inputs_from} computes them" if found.inputs_from else ""
    sizes = ", ".join(_figure(output.relative_l2) for output in found.outputs[:_LISTED])
    yield indented(f"reproduced by {extent}{given}: off by {sizes}")
    if found.extent != "model" and len(found.nodes) > 1:
        more = f" and {len(found.nodes) - _LISTED} more" if len(found.nodes) > _LISTED else ""
        yield indented(", ".join(one_line(node, 40) for node in found.nodes[:_LISTED]) + more, 4)
    if found.command:
        yield indented(f"{'replayed' if found.replayed else 'NOT reproduced when replayed'}; again with:")


def _named(node: NodeDifference) -> str:
    return f"{one_line(node.node, 60)} ({one_line(node.op, 40)})"


def _size(error: float | None) -> float:
    return float("inf") if error is None else error


def _figure(error: float | None) -> str:
    return "inf" if error is None else f"{error:.3g}"
