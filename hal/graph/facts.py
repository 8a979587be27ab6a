"""What is known of a bound graph's nodes without running them."""

from __future__ import annotations

import onnx_ir as ir

from hal.graph import flops, nested, origin
from hal.graph.cost_signature import signature
from hal.graph.model import Graph
from hal.graph.shapes import Known, known
from hal.records.facts import ModelFacts, NodeFact


def facts(graph: Graph) -> ModelFacts:
    """Work, bytes, modules and source lines of each node of the main graph.

    Weights are the initializers, and everything that is computed from them and from the bound shapes alone:
    runtimes fold it when they compile. Where the module and the line come from says
    :mod:`hal.graph.origin`; how operations are counted, :mod:`hal.graph.flops`.

    Args:
        graph: The graph, its inputs bound; with free dimensions, most counts and sizes are unknown.
    """
    model = graph.model
    found = known(model)
    opsets = {("" if name == "ai.onnx" else name): number for name, number in model.opset_imports.items()}
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs if value.name]
    sizes = {str(value.name): found.n_bytes(value) for value in values}
    return ModelFacts(
        nodes=tuple(_fact(node, found, opsets) for node in model.graph),
        value_bytes={name: size for name, size in sizes.items() if size is not None},
        weights=frozenset(str(value.name) for value in values if found.is_fixed(value)),
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )


def _fact(node: ir.Node, found: Known, opsets: dict[str, int]) -> NodeFact:
    domain = "" if node.domain == "ai.onnx" else node.domain
    read = [value for value in node.inputs if value is not None] + nested.captured(node)
    return NodeFact(
        name=str(node.name),
        op=node.op_type,
        domain=domain,
        module=origin.module_of(node),
        source=origin.source_of(node),
        flops=flops.count(node, found, opsets.get(domain, 1)),
        reads=tuple(dict.fromkeys(str(value.name) for value in read if value.name)),
        writes=tuple(str(value.name) for value in node.outputs if value.name),
        signature=signature(node, found, opsets),
    )
