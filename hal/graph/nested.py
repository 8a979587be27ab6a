"""Graphs inside nodes: what they read from around them, and what is known of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from hal.graph.shapes import Walk


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Graphs among a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured(node: ir.Node) -> list[ir.Value]:
    """Values that a node's subgraphs read from around them, each once, in order of use."""
    found: dict[ir.Value, None] = {}
    for graph in subgraphs(node):
        found.update(dict.fromkeys(_outer(graph)))
    return list(found)


def _outer(graph: ir.Graph) -> list[ir.Value]:
    own = set(graph.inputs) | set(graph.initializers.values())
    read: dict[ir.Value, None] = {}
    for node in graph:
        read.update(dict.fromkeys(value for value in node.inputs if value is not None))
        read.update(dict.fromkeys(captured(node)))
        own.update(node.outputs)
    read.update(dict.fromkeys(graph.outputs))
    return [value for value in read if value not in own]


def _if(walk: Walk, node: ir.Node) -> None:
    found = walk.found
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        walk.graph(branch)
    condition = found.constant(node.inputs[0]) if node.inputs[0] is not None else None
    if condition is not None:
        taken = branches[0] if condition.item() else branches[1]
        walk.set_taken(node, taken)
        for value, source in zip(node.outputs, taken.outputs, strict=True):
            walk.alias(value, source)
        return
    for value, one, other in zip(node.outputs, branches[0].outputs, branches[1].outputs, strict=True):
        same = found.shape(one) == found.shape(other)
        walk.set(value, found.dtype(one), found.shape(one) if same else None)


def _loop(walk: Walk, node: ir.Node) -> None:
    body = node.attributes["body"].as_graph()
    n_carried = len(node.inputs) - 2
    starts, ends = body.inputs[2:], body.outputs[1 : 1 + n_carried]
    steady = _walk_body(walk, body, dict(zip(starts, node.inputs[2:], strict=True)), ends)
    trips = _loop_trips(walk, node, body)
    if trips is not None:
        walk.set_trips(node, trips)
    for index, (value, inner) in enumerate(zip(node.outputs, body.outputs[1:], strict=True)):
        shape = walk.found.shape(inner)
        if index < n_carried:
            shape = shape if starts[index] in steady else None
        elif shape is not None:
            shape = None if trips is None else (trips, *shape)
        walk.set(value, walk.found.dtype(inner), shape)


def _loop_trips(walk: Walk, node: ir.Node, body: ir.Graph) -> int | None:
    """Trips of a loop that nothing but its count ends, and of one that never begins."""
    limit, start = node.inputs[0], node.inputs[1]
    begins = None if start is None else walk.found.constant(start)
    if start is not None and begins is None:
        return None
    if begins is not None and not begins.item():
        return 0
    goes_on = body.outputs[0]
    while (maker := goes_on.producer()) is not None and maker.op_type == "Identity":
        goes_on = maker.inputs[0] or goes_on
    kept = walk.found.constant(goes_on)
    if goes_on is not body.inputs[1] and (kept is None or not kept.item()):
        return None
    count = None if limit is None else walk.found.constant(limit)
    return None if count is None else max(int(count.item()), 0)


def _scan(walk: Walk, node: ir.Node) -> None:
    body = node.attributes["body"].as_graph()
    if walk.opset < 9:  # had a batch axis and an input of lengths
        walk.graph(body)
        return
    n_scanned = node.attributes["num_scan_inputs"].as_int()
    n_states = len(node.inputs) - n_scanned
    trips = None
    for value, axis in zip(node.inputs[n_states:], _axes(node, "scan_input_axes", n_scanned), strict=True):
        shape = walk.found.shape(value) if value is not None else None
        trips = shape[axis] if shape is not None else trips
    if trips is not None:
        walk.set_trips(node, trips)
    steady = _walk_body(
        walk, body, dict(zip(body.inputs[:n_states], node.inputs, strict=False)), body.outputs[:n_states]
    )
    axes = _axes(node, "scan_output_axes", len(node.outputs) - n_states)
    for index, (value, inner) in enumerate(zip(node.outputs, body.outputs, strict=True)):
        shape = walk.found.shape(inner)
        if index < n_states:
            shape = shape if body.inputs[index] in steady else None
        elif shape is not None:
            at = axes[index - n_states] % (len(shape) + 1)
            shape = None if trips is None else (*shape[:at], trips, *shape[at:])
        walk.set(value, walk.found.dtype(inner), shape)


def _axes(node: ir.Node, name: str, n: int) -> list[int]:
    attribute = node.attributes.get(name)
    return list(attribute.as_ints()) if attribute is not None else [0] * n


def _walk_body(
    walk: Walk,
    body: ir.Graph,
    begins: dict[ir.Value, ir.Value | None],
    ends: Sequence[ir.Value],
) -> set[ir.Value]:
    """Walk a body; the carried inputs whose shape is the same in each trip.

    Args:
        walk: The walk.
        body: The body.
        begins: Carried input to its value before the first trip.
        ends: What each becomes after a trip, in the same order.
    """
    like = {inner: value for inner, value in begins.items() if value is not None}
    for _ in range(len(begins) + 1):
        walk.graph(body, like)
        changing = {
            start
            for start, end in zip(begins, ends, strict=True)
            if start in like and walk.found.shape(start) != walk.found.shape(end)
        }
        if not changing:
            break
        like = {inner: value for inner, value in like.items() if inner not in changing}
    return set(like)


#: What is known of the outputs of each operator that holds graphs.
RULES: dict[str, Callable[[Walk, ir.Node], None]] = {"If": _if, "Loop": _loop, "Scan": _scan}
