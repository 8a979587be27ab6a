"""``hal compare`` of two plans."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hal.cli import figures
from hal.cli.compare_text import unlike_text
from hal.cli.output import cell, emit, indented, line, one_line, show, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hal.records.plan_comparison import PlanComparison

#: Nodes named per move, and moves listed; the JSON has all.
_NODES_NAMED, _MOVES_LISTED = 4, 20


def is_plan(text: str) -> bool:
    """Whether a word names a file that ``hal plan`` wrote, by its keys."""
    import msgspec

    try:
        path = Path(text)
        if not path.is_file():
            return False
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):  # whoever reads it as a profile says what is wrong
        return False
    return isinstance(found, dict) and "partitions" in found


def compare_plan_files(a: str, b: str, *, anyway: bool, limit: float | None, json: bool) -> int:
    """Compare two plans and print what differs.

    Args:
        a: File of the baseline.
        b: File of the other.
        anyway: Compare although they are unlike.
        limit: Share by which B may be slower.
        json: Data on stdout as JSON.

    Returns:
        Exit code: 1 where B is slower than the limit allows.
    """
    from hal.profiling.compare_plans import compare_plans
    from hal.records import files
    from hal.records.reading import read_plan

    one, other = (read_plan(Path(text).read_bytes(), repr(text)) for text in (a, b))
    found = compare_plans(one, other, anyway=anyway, limit=limit, labels=(a, b))
    if json:
        emit(files.to_json(found).decode(), sys.stdout)
    show(plans_text(found), sys.stderr if json else sys.stdout)
    return 1 if found.too_slow else 0


def plans_text(found: PlanComparison) -> Iterator[RenderableType]:
    """Everything that is printed of two plans."""
    for letter, side in (("A", found.a), ("B", found.b)):
        yield line(
            f"{letter}  {one_line(side.label, 60)}: plan of {one_line(side.model, 40)}, made "
            f"{side.created[:16].replace('T', ' ')} by hal {side.hal_version}",
            "bold",
        )
    yield from unlike_text(found.unlike)
    yield line("")
    made = table(("", "name"), ("A", "number"), ("B", "number"))
    made.add_row(cell("objective"), *map(cell, found.objectives))
    made.add_row(cell("predicted latency"), *(cell(figures.time_text(ns)) for ns in found.predicted_ns))
    if found.measured is not None:
        both = (found.measured.a_ns, found.measured.b_ns)
        made.add_row(cell("measured latency"), *(cell(figures.time_text(ns)) for ns in both))
    made.add_row(cell("gap to the bound"), *(cell(f"{gap:.1%}") for gap in found.bounds))
    made.add_row(cell("partitions"), *(cell(str(n)) for n in found.n_partitions))
    made.add_row(cell("tensors handed over"), *(cell(str(n)) for n in found.n_transfers))
    yield made
    n_moved = sum(len(move.nodes) for move in found.moves)
    yield line("")
    yield line(f"{n_moved} nodes on other targets, {found.n_same} on the same", "bold")
    for move in found.moves[:_MOVES_LISTED]:
        names = ", ".join(one_line(node, 40) for node in move.nodes[:_NODES_NAMED])
        more = f" and {len(move.nodes) - _NODES_NAMED} more" if len(move.nodes) > _NODES_NAMED else ""
        yield indented(f"{move.a or 'not in A'} -> {move.b or 'not in B'}: {len(move.nodes)} ({names}{more})")
    if len(found.moves) > _MOVES_LISTED:
        yield indented(f"and {len(found.moves) - _MOVES_LISTED} more pairs of targets; --json has all")
    yield line("")
    yield line(_result(found), "bold")


def _result(found: PlanComparison) -> str:
    if found.measured is None:
        how, (a, b) = "by prediction", found.predicted_ns
        ratio = figures.ratio_text(b / a) if a else figures.NOTHING
        told = f"B takes {ratio} of A's time {how}"
    elif found.measured.faster and found.measured.ratio is not None:
        which = "slower" if found.measured.faster == "a" else "faster"
        told = f"B is {which}: {figures.ratio_text(found.measured.ratio)} of A's measured time"
    else:
        told = "no difference in time beyond noise"
    if found.limit is None:
        return f"the result is: {told}"
    verdict = "beyond" if found.too_slow else "within"
    return f"the result is: {told}; {verdict} the limit of {found.limit:.1%}"
