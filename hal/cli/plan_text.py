"""A plan as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from hal.cli import figures
from hal.cli.output import cell, indented, line, one_line, table
from hal.records.plan import Finalist, Plan
from hal.report.plan_words import gap_text, throughput_text
from hal.units import format_bytes, format_ns

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from hal.planning.explain import NodeExplanation

#: Rows of each table; the JSON has all.
_PARTITIONS_LISTED, _TRANSFERS_LISTED = 40, 12
_VALUE_CHARACTERS = 40


def plan_text(plan: Plan) -> Iterator[RenderableType]:
    """Everything ``hal plan`` prints.

    Args:
        plan: Measured, or predicted only.
    """
    asked = plan.constraints
    yield line(
        f"{one_line(plan.model.name, 60)}, {plan.model.n_nodes} nodes, digest {plan.model.digest[:12]}: "
        f"a plan for {asked.objective}",
        "bold",
    )
    limits = [f"at most {format_bytes(n)} on {where}" for where, n in asked.memory_bytes.items()]
    limits += [f"{node} on {target}" for node, target in asked.pinned.items()]
    if asked.max_partitions:
        limits.append(f"at most {asked.max_partitions} partitions")
    limits.append(f"error at most {asked.max_error:g}" if asked.max_error else "fp32 only (--max-error 0)")
    yield indented(f"constraints: {'; '.join(limits)}")
    yield indented(f"costs: {plan.machine}{', estimated' if plan.estimated else ''}")
    yield line("")
    yield line("Partitions, in the order of execution; all times are predictions", "bold")
    yield _partitions(plan)
    yield from _reasons(plan)
    moved = [t for t in plan.transfers if t.source >= 0]
    if moved:
        yield line("")
        n_bytes = sum(t.n_bytes or 0 for t in moved)
        yield line(
            f"{len(moved)} {'tensor' if len(moved) == 1 else 'tensors'} handed over, "
            f"{format_bytes(n_bytes)} in all",
            "bold",
        )
        yield _transfers(plan)
    if plan.predicted.memory_bytes:
        yield line("")
        yield line("Memory, highest predicted use", "bold")
        for pool, n in plan.predicted.memory_bytes.items():
            yield indented(f"{pool}: {format_bytes(n)}")
    if plan.finalists:
        yield line("")
        yield line("Measured in turn; ratio: over the plan that was chosen", "bold")
        yield _finalists(plan)
        for one in plan.finalists:
            if one.failure:
                yield indented(f"{one.name} was out: {one.failure}")
    for note in plan.notes:
        yield indented(f"note: {note}")
    if load := throughput_text(plan):
        yield line("")
        yield line("Under load", "bold")
        yield indented(load)
    yield line("")
    yield line(_result(plan), "bold")


def _partitions(plan: Plan) -> Table:
    made = table(
        ("#", "number"),
        ("target", "text"),
        ("nodes", "number"),
        ("starts", "number"),
        ("computes", "number"),
        ("hands over", "number"),
        ("weights", "number"),
        ("runner-up", "text"),
    )
    for number, part in enumerate(plan.partitions[:_PARTITIONS_LISTED]):
        runner = figures.NOTHING
        if part.runner_up is not None:
            change = part.runner_up.objective / plan.objective - 1 if plan.objective else 0.0
            runner = f"{part.runner_up.target} {change:+.1%}"
        made.add_row(
            cell(str(number)),
            cell(part.target),
            cell(str(len(part.nodes))),
            cell(figures.time_text(part.start_ns)),
            cell(figures.time_text(part.compute_ns)),
            cell(figures.time_text(part.handoff_ns)),
            cell(format_bytes(part.weight_bytes)),
            cell(runner),
        )
    return made


def _reasons(plan: Plan) -> Iterator[RenderableType]:
    left_out = len(plan.partitions) - _PARTITIONS_LISTED
    for number, part in enumerate(plan.partitions[:_PARTITIONS_LISTED]):
        if part.reason:
            yield indented(f"{number}: {part.reason}")
    if left_out > 0:
        yield indented(f"and {left_out} more partitions; --json has all")


def _transfers(plan: Plan) -> Table:
    made = table(
        ("tensor", "name"), ("from", "number"), ("to", "number"), ("size", "number"), ("takes", "number")
    )
    moved = sorted((t for t in plan.transfers if t.source >= 0), key=lambda t: -(t.n_bytes or 0))
    for t in moved[:_TRANSFERS_LISTED]:
        made.add_row(
            cell(t.value, _VALUE_CHARACTERS),
            cell(str(t.source)),
            cell(str(t.destination)),
            cell(figures.NOTHING if t.n_bytes is None else format_bytes(t.n_bytes)),
            cell(figures.time_text(t.end_ns - t.start_ns)),
        )
    return made


def _finalists(plan: Plan) -> Table:
    made = table(
        ("plan", "text"),
        ("partitions", "number"),
        ("predicted", "number"),
        ("measured", "number"),
        ("p10-p90", "number"),
        ("ratio", "number"),
    )
    for one in plan.finalists:
        made.add_row(
            cell(one.name if one.n_partitions < 2 else f"{one.name}: {one.placement}", 80),
            cell(str(one.n_partitions)),
            cell(figures.time_text(one.predicted_ns)),
            cell(figures.median_text(one.measured)),
            cell(figures.spread_text(one.measured)),
            cell(_ratio(one)),
        )
    return made


def _ratio(one: Finalist) -> str:
    return figures.NOTHING if one.ratio is None else figures.ratio_text(one.ratio)


def _result(plan: Plan) -> str:
    n = len(plan.partitions)
    where = f"everything on {plan.targets[0]}" if n == 1 else f"{n} partitions on {', '.join(plan.targets)}"
    predicted = format_ns(plan.predicted.latency_ns) if plan.predicted.latency_ns else "0"
    times = f"predicted {predicted}"
    if plan.constraints.objective == "throughput":
        times += f", {1e9 / max(plan.predicted.interval_ns, 1):.1f} requests/s"
    if plan.throughput is not None:
        times += f", measured {plan.throughput.requests_per_s:,.1f} requests/s"
    elif plan.measured is not None:
        times += f", measured {format_ns(plan.measured.median_ns)} ({figures.spread_text(plan.measured)})"
    return f"the result is: {where}; {times}; {gap_text(plan)}"


def explanations_text(plan: Plan, told: Sequence[NodeExplanation]) -> Iterator[RenderableType]:
    """What ``--explain`` prints of each node.

    Args:
        plan: The plan.
        told: One per node asked for.
    """
    from hal.planning.explain import format_objective

    for one in told:
        yield line("")
        yield line(f"{one_line(one.node, 60)} ({one.op}): partition {one.partition} on {one.target}", "bold")
        if not one.unit:
            yield indented(one.reason)
            continue
        others = len(one.nodes) - 1
        yield indented(
            f"placed with {others} other nodes as unit {one.unit}" if others else "a unit of its own"
        )
        if one.reason:
            yield indented(f"why: {one.reason}")
        made = table(
            ("its unit on", "text"), ("computes", "number"), ("plan becomes", "number"), ("", "text")
        )
        for cost in one.targets:
            made.add_row(
                cell(cost.target),
                cell(figures.NOTHING if cost.compute_ns is None else figures.time_text(cost.compute_ns)),
                cell(
                    figures.NOTHING
                    if cost.objective is None
                    else format_objective(plan.constraints.objective, cost.objective)
                ),
                cell("as planned" if cost.target == one.target else cost.reason),
            )
        yield made


def plan_json(plan: Plan, told: Sequence[NodeExplanation]) -> str:
    """The plan as JSON; with ``--explain``, the plan and the explanations under their names."""
    found = {"plan": plan, "explanations": told} if told else plan
    return msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n"
