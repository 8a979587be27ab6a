"""A plan as shapes: bars over time by silicon, and the graph in layers, coloured by target."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hal.records.facts import ModelFacts
from hal.records.plan import Plan
from hal.records.targets import Target

#: Colours of the style sheet that targets take in turn (classes ``t0`` to ``t7``).
N_COLOURS = 8
#: Above this many nodes the graph shows partitions: a browser draws some thousand shapes fluently.
_MOST_NODES = 2_500
#: Height of a layer, and width and gap of a node, in the picture's own units.
_LAYER, _WIDTH, _GAP = 30.0, 22.0, 10.0
_LANE, _HEAD = 34, 26
#: Width of the chart of bars in the picture's own units.
_CHART = 1000


@dataclass(frozen=True)
class Shape:
    """A rectangle with a text that shows on hover."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str
    label: str = ""


@dataclass(frozen=True)
class Line:
    """An edge or a transfer."""

    x1: float
    y1: float
    x2: float
    y2: float
    crosses: bool
    title: str = ""


@dataclass(frozen=True)
class Tick:
    """A mark on the time axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """A picture in its own units.

    Attributes:
        rows: Heading and height of each lane of bars.
    """

    width: float
    height: float
    shapes: tuple[Shape, ...]
    lines: tuple[Line, ...]
    rows: tuple[tuple[str, float], ...] = ()
    ticks: tuple[Tick, ...] = ()
    caption: str = ""


def colours(plan: Plan) -> dict[str, str]:
    """A class of the style sheet for each target."""
    return {target: f"t{number % N_COLOURS}" for number, target in enumerate(plan.targets)}


def bars(plan: Plan) -> Drawing:
    """Partitions over predicted time, one lane per silicon and one for transfers beside computing."""
    from hal.units import format_ns

    colour = colours(plan)
    lanes = _lanes(plan)
    last = max([p.end_ns for p in plan.partitions] + [t.end_ns for t in plan.transfers] + [1])
    top = {name: _HEAD + number * _LANE for number, name in enumerate(lanes)}
    shapes = []
    for number, part in enumerate(plan.partitions):
        width = max((part.end_ns - part.start_ns) / last * _CHART, 1)
        text = f"{number}"
        shapes.append(
            Shape(
                x=part.start_ns / last * _CHART,
                y=top[_lane(plan, part.target)],
                width=width,
                height=_LANE - 8,
                colour=colour[part.target],
                title=(
                    f"partition {number} on {part.target}: {len(part.nodes)} nodes, "
                    f"{format_ns(part.start_ns) if part.start_ns else '0'} to {format_ns(part.end_ns or 1)}, "
                    f"of that {format_ns(part.handoff_ns) if part.handoff_ns else '0'} handing over"
                ),
                label=text if width > 8 * len(text) + 6 else "",
            )
        )
    lines = []
    for transfer in plan.transfers:
        if transfer.source < 0:
            continue
        source, sink = plan.partitions[transfer.source], plan.partitions[transfer.destination]
        lines.append(
            Line(
                x1=(transfer.start_ns or source.end_ns) / last * _CHART,
                y1=top[_lane(plan, source.target)] + (_LANE - 8) / 2,
                x2=(transfer.end_ns or sink.start_ns) / last * _CHART,
                y2=top[_lane(plan, sink.target)] + (_LANE - 8) / 2,
                crosses=_lane(plan, source.target) != _lane(plan, sink.target),
                title=f"{transfer.value}: partition {transfer.source} to {transfer.destination}",
            )
        )
    ticks = tuple(
        Tick(_CHART * share / 4, format_ns(round(last * share / 4)) if share else "0") for share in range(5)
    )
    return Drawing(
        width=_CHART,
        height=_HEAD + len(lanes) * _LANE,
        shapes=tuple(shapes),
        lines=tuple(lines),
        rows=tuple((name, y) for name, y in top.items()),
        ticks=ticks,
    )


def graph(plan: Plan, facts: ModelFacts | None) -> Drawing:
    """The model in layers from its inputs down: a node stands below all that it reads."""
    if facts is not None and len(facts.nodes) <= _MOST_NODES:
        names, edges, home = _node_edges(plan, facts)
        titles = {
            node.name: f"{node.name} ({node.op}){f' in {node.module}' if node.module else ''}"
            for node in facts.nodes
        }
        caption = "Every box is a node of the model."
    else:
        names = [str(number) for number in range(len(plan.partitions))]
        edges = [(str(t.source), str(t.destination)) for t in plan.transfers if t.source >= 0]
        edges = list(dict.fromkeys(edges))
        home = {name: int(name) for name in names}
        titles = {name: f"partition {name}: {len(plan.partitions[int(name)].nodes)} nodes" for name in names}
        caption = "Every box is a partition: the model has too many nodes to draw, or they are not known."
    place, width, height = _layered(names, edges)
    colour = colours(plan)
    shapes = []
    for name in names:
        number = home.get(name)
        target = "" if number is None else plan.partitions[number].target
        x, y = place[name]
        where = f"partition {number} on {target}" if target else "computed when compiling"
        shapes.append(
            Shape(x, y, _WIDTH, _LAYER - 14, colour.get(target, "fixed"), f"{titles[name]}: {where}")
        )
    lines = tuple(
        Line(
            place[a][0] + _WIDTH / 2,
            place[a][1] + _LAYER - 14,
            place[b][0] + _WIDTH / 2,
            place[b][1],
            crosses=home.get(a) != home.get(b) and a in home and b in home,
        )
        for a, b in edges
    )
    return Drawing(width=width, height=height, shapes=tuple(shapes), lines=lines, caption=caption)


def _lane(plan: Plan, target: str) -> str:
    """The silicon of a target; its device where the plan does not know it."""
    parsed = Target.parse(target)
    for device in plan.devices:
        if device.id == parsed.device:
            return f"{device.id} ({device.name})"
    return parsed.device


def _lanes(plan: Plan) -> list[str]:
    return list(dict.fromkeys(_lane(plan, target) for target in plan.targets))


def _node_edges(plan: Plan, facts: ModelFacts) -> tuple[list[str], list[tuple[str, str]], dict[str, int]]:
    home = {node: number for number, part in enumerate(plan.partitions) for node in part.nodes}
    maker = {value: node.name for node in facts.nodes for value in node.writes}
    edges = [
        (maker[value], node.name)
        for node in facts.nodes
        for value in dict.fromkeys(node.reads)
        if value in maker
    ]
    return [node.name for node in facts.nodes], edges, home


def _layered(
    names: list[str], edges: list[tuple[str, str]]
) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Where each box stands. Names come in topological order.

    Source: the layers and barycentres of Sugiyama, Tagawa, Toda, "Methods for visual understanding of
    hierarchical system structures", IEEE Trans. SMC 11 (1981), one sweep down.
    """
    above: dict[str, list[str]] = defaultdict(list)
    for source, sink in edges:
        above[sink].append(source)
    layer: dict[str, int] = {}
    for name in names:
        layer[name] = max((layer[source] + 1 for source in above[name] if source in layer), default=0)
    rows: dict[int, list[str]] = defaultdict(list)
    for name in names:
        rows[layer[name]].append(name)
    centre: dict[str, float] = {}
    for number in sorted(rows):
        row = rows[number]
        want = {
            name: sum(centre[source] for source in above[name]) / len(above[name]) if above[name] else 0.0
            for name in row
        }
        row.sort(key=lambda name: want[name])
        middle = sum(want.values()) / len(row)
        for at, name in enumerate(row):
            centre[name] = middle + (at - (len(row) - 1) / 2) * (_WIDTH + _GAP)
    left = min(centre.values(), default=0.0)
    place = {name: (centre[name] - left + _GAP, layer[name] * _LAYER + _GAP) for name in names}
    width = max((x for x, _ in place.values()), default=0.0) + _WIDTH + _GAP
    height = max((y for _, y in place.values()), default=0.0) + _LAYER + _GAP
    return place, width, height
