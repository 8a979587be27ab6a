"""A plan as one HTML file: what runs where, over time and in the graph, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hal.records.facts import ModelFacts
from hal.records.plan import Finalist, Plan
from hal.report.plan_drawing import Drawing, bars, colours, graph
from hal.report.plan_words import gap_text, throughput_text
from hal.report.template import read, render, safe
from hal.report.text import visible
from hal.units import format_bytes, format_ns

NOTHING = "–"
#: Rows of the table of transfers; the JSON has all.
_TRANSFERS_LISTED = 200


@dataclass(frozen=True)
class PlanView:
    """Everything that the template places, as texts."""

    title: str
    subtitle: str
    cards: tuple[tuple[str, str, str], ...]
    legend: tuple[tuple[str, str], ...]
    bars: Drawing
    graph: Drawing
    partitions: tuple[tuple[str, ...], ...]
    transfers: tuple[tuple[str, ...], ...]
    transfers_left_out: int
    memory: tuple[tuple[str, str], ...]
    finalists: tuple[tuple[str, ...], ...]
    load: str
    notes: tuple[str, ...]
    version: str


def plan_html(plan: Plan, facts: ModelFacts | None = None) -> str:
    """The plan as a self-contained page without scripts.

    Args:
        plan: The plan.
        facts: Of the model; the graph is drawn node by node where they are given, else by partitions.
    """
    return render("plan.html", view=_view(plan, facts), style=safe(read("report.css")))


def _view(plan: Plan, facts: ModelFacts | None) -> PlanView:
    seen = visible
    transfers = [t for t in plan.transfers if t.source >= 0]
    return PlanView(
        title=seen(plan.model.name),
        subtitle=seen(
            f"{plan.model.n_nodes} nodes, digest {plan.model.digest[:12]}, planned {plan.created[:16]} by "
            f"hal {plan.hal_version} for {plan.constraints.objective}; costs: {plan.machine}"
        ),
        cards=_cards(plan),
        legend=tuple((colour, seen(target)) for target, colour in colours(plan).items()),
        bars=_safe(bars(plan)),
        graph=_safe(graph(plan, facts)),
        partitions=tuple(_partition(plan, number) for number in range(len(plan.partitions))),
        transfers=tuple(
            (
                seen(t.value),
                str(t.source),
                str(t.destination),
                NOTHING if t.n_bytes is None else format_bytes(t.n_bytes),
                _time(t.end_ns - t.start_ns),
            )
            for t in transfers[:_TRANSFERS_LISTED]
        ),
        transfers_left_out=max(len(transfers) - _TRANSFERS_LISTED, 0),
        memory=tuple((seen(pool), format_bytes(n)) for pool, n in plan.predicted.memory_bytes.items()),
        finalists=tuple(_finalist(one) for one in plan.finalists),
        load=throughput_text(plan),
        notes=tuple(map(seen, plan.notes)),
        version=plan.hal_version,
    )


def _cards(plan: Plan) -> tuple[tuple[str, str, str], ...]:
    measured = "not measured" if plan.measured is None else format_ns(plan.measured.median_ns)
    spread = (
        "a prediction only"
        if plan.measured is None
        else f"p10–p90 {format_ns(plan.measured.p10_ns)} – {format_ns(plan.measured.p90_ns)}"
    )
    n = len(plan.partitions)
    return (
        (
            "Placement",
            f"{n} {'partition' if n == 1 else 'partitions'} on {len(plan.targets)} "
            f"{'target' if len(plan.targets) == 1 else 'targets'}",
            visible(f"found by {plan.solver}"),
        ),
        ("Measured", measured, spread),
        ("Predicted", _time(plan.predicted.latency_ns), "estimated costs" if plan.estimated else ""),
        ("Proven", gap_text(plan), visible(plan.bound.source)),
    )


def _partition(plan: Plan, number: int) -> tuple[str, ...]:
    part = plan.partitions[number]
    runner = part.runner_up
    other = NOTHING
    if runner is not None:
        change = runner.objective / plan.objective - 1 if plan.objective else 0.0
        other = f"{runner.target} ({change:+.1%})"
    return (
        str(number),
        visible(part.target),
        f"{len(part.nodes)}",
        _time(part.start_ns),
        _time(part.compute_ns),
        _time(part.handoff_ns),
        format_bytes(part.weight_bytes),
        visible(other),
        visible(part.reason),
    )


def _finalist(one: Finalist) -> tuple[str, ...]:
    return (
        visible(one.name),
        visible(one.placement),
        _time(one.predicted_ns),
        NOTHING if one.measured is None else format_ns(one.measured.median_ns),
        NOTHING if one.ratio is None else f"{one.ratio:.3f}x",
        visible(one.failure),
    )


def _time(duration_ns: int) -> str:
    return format_ns(duration_ns) if duration_ns > 0 else "0"


def _safe(drawing: Drawing) -> Drawing:
    """The drawing with its texts made visible; the template escapes them."""
    import dataclasses

    def told(one: Any) -> Any:
        return dataclasses.replace(one, title=visible(one.title))

    return dataclasses.replace(
        drawing,
        shapes=tuple(map(told, drawing.shapes)),
        lines=tuple(map(told, drawing.lines)),
        rows=tuple((visible(name), y) for name, y in drawing.rows),
    )
