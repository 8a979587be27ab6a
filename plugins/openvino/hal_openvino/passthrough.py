"""Inputs that OpenVINO's reader renames, and outputs that would share memory with an input.

Two faults follow from how OpenVINO 2026.4 reads ONNX operators that do nothing, ``Dropout`` among them.
The reader makes no operation for such a node and gives the node's input the name of the node's output,
so an input of the graph is not to be found by its own name. And where a ``Result`` reads a ``Parameter``,
a request has one tensor for both: binding memory to the output takes the input's place.

Source: seen with ``Core.read_model`` on ``Dropout``, ``Sum``, ``Max`` and ``Min`` of one input, and on
graphs whose output is an input.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hal.errors import BackendError
from hal.graph.model import Graph


def separate(graph: Graph, model: Any) -> None:
    """Give inputs of a freshly read model their own names, and outputs memory of their own.

    Raises:
        BackendError: The reader gave an input a name that does not lead back to an input of the graph.
    """
    from openvino import opset16

    wanted = [str(value.name) for value in graph.model.graph.outputs]
    _name_inputs(graph, model)
    copied: dict[str, Any] = {}
    for position, result in enumerate(model.get_results()):
        source = result.input(0).get_source_output()
        if source.get_node().get_type_name() != "Parameter":
            continue
        name = wanted[position]
        if name not in copied:
            copied[name] = opset16.identity(source).output(0)
            if name not in source.get_names():  # else the input itself is an output, and keeps the name
                copied[name].get_tensor().set_names({name})
        result.input(0).replace_source_output(copied[name])


def maker(value: ir.Value) -> ir.Node | None:
    """The node whose operation carries a value's name in OpenVINO; None for inputs and weights.

    That is the node before a ``Dropout``, which has no operation of its own, wherever there is one.
    """
    producer = value.producer()
    while producer is not None and producer.op_type == "Dropout" and value is producer.outputs[0]:
        before = producer.inputs[0]
        if before is None or before.producer() is None:
            break
        value, producer = before, before.producer()
    return producer


def _name_inputs(graph: Graph, model: Any) -> None:
    inputs = {str(value.name) for value in graph.model.graph.inputs}
    values = {str(value.name): value for node in graph.nodes.values() for value in node.outputs}
    taken: set[str] = set()
    for parameter in model.get_parameters():
        tensor = parameter.output(0).get_tensor()
        names = tensor.get_names()
        origins = names & inputs or {_origin(values[name]) for name in names if name in values}
        if len(origins) != 1 or not origins <= inputs - taken:
            raise BackendError(
                f"OpenVINO calls an input of model {graph.name!r} {', '.join(sorted(names)) or 'nothing'}; "
                f"expected to find one of {', '.join(sorted(inputs))} behind it: use another backend"
            )
        taken |= origins
        tensor.set_names(origins)


def _origin(value: ir.Value) -> str:
    """Where the chain of first inputs behind a value begins."""
    producer = value.producer()
    while producer is not None and producer.inputs and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return str(value.name)
