"""Operations that a node does per run, from its operator and shapes; a multiply-add counts as two.

Each formula stands with its source in the module of its family. An operator without a formula, or one whose
work depends on values, has no count: a guess would look like a fact.
"""

from __future__ import annotations

import onnx_ir as ir

from hal.graph.flops import (  # noqa: F401  they enter themselves into the table
    attention,
    contrib,
    elementwise,
    movement,
    normalization,
    products,
    recurrent,
    sampling,
)
from hal.graph.flops.node import TABLE, OpNode, UnknownCount
from hal.graph.shapes import Known


def count(node: ir.Node, known: Known, opset: int) -> int | None:
    """Operations per run of a node.

    What is the same in each run is computed once, when the model is compiled, and counts nothing.

    Args:
        node: The node.
        known: Shapes and constants of its graph.
        opset: Version of the node's operator set.

    Returns:
        The count; None where the operator, a shape, or the number of trips of a loop is not known.
    """
    if node.outputs and all(known.is_fixed(value) for value in node.outputs if value.name):
        return 0
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == "" and node.op_type in ("If", "Loop", "Scan"):
        return _nested(node, known, opset)
    formula = TABLE.get((domain, node.op_type))
    if formula is None:
        return None
    try:
        return formula(OpNode(node, known, opset))
    except (UnknownCount, IndexError, ValueError):
        # Malformed nodes are the checker's affair; here they are nodes of which nothing is known.
        return None


def _nested(node: ir.Node, known: Known, opset: int) -> int | None:
    if node.op_type == "If":
        taken = known.taken(node)
        if taken is not None:
            return _graph(taken, known, opset)
        both = {
            _graph(node.attributes[name].as_graph(), known, opset) for name in ("then_branch", "else_branch")
        }
        return both.pop() if len(both) == 1 else None
    trips = known.trips(node)
    if trips is None:
        return None
    once = _graph(node.attributes["body"].as_graph(), known, opset)
    return None if once is None else trips * once


def _graph(graph: ir.Graph, known: Known, opset: int) -> int | None:
    counts = [count(node, known, opset) for node in graph]
    return None if None in counts else sum(n for n in counts if n is not None)
