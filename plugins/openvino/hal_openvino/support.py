"""Which nodes of a graph OpenVINO takes, and why not the others."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hal.backend import Support
from hal.graph.model import Graph
from hal_openvino.atlas import inner_names, inner_operators, operator, owners, reads
from hal_openvino.failures import ReadFailure, summary


def judge(core: Any, openvino_device: str, graph: Graph) -> Mapping[str, Support]:
    """One answer per node.

    OpenVINO reads a whole ONNX graph or raises. Where it raises, the nodes that it names are refused
    with its words; the rest is read as far as it goes, with placeholders for those, and the device is
    asked about it. A node whose input comes from a placeholder cannot be judged and is refused too.
    """
    source = graph.serialized()
    failure: ReadFailure | None = None
    try:
        model = core.read_model(source)
    except RuntimeError as error:
        failure = ReadFailure(error)
        model = _read_partly(source)
    refused = _refused_by_reader(graph, failure) if failure else {}
    if failure and not refused:  # it named nothing, so no node can be trusted
        return {
            name: Support(False, f"OpenVINO cannot read the graph: {failure.summary}") for name in graph.nodes
        }
    refused.update(untransferable(graph))
    unjudged = _behind(graph, refused)
    queried = _query(core, openvino_device, graph, model) if model is not None else {}
    answers: dict[str, Support] = {}
    for name, node in graph.nodes.items():
        if name in refused:
            reason = refused[name]
        elif model is None:
            reason = (
                f"not judged, because OpenVINO cannot read the graph: {failure.summary if failure else ''}"
            )
        elif name in queried and name in unjudged:
            reason = f"not judged, because it reads what node {unjudged[name]!r} makes, which is refused"
        else:
            reason = queried.get(name, "")
        answers[name] = Support(False, f"{operator(node)}: {reason}") if reason else Support(True)
    return answers


def refusals(answers: Mapping[str, Support]) -> list[str]:
    """The refused nodes of an answer, as sentences."""
    return [f"node {name!r}: {support.reason}" for name, support in answers.items() if not support.yes]


def _refused_by_reader(graph: Graph, failure: ReadFailure) -> dict[str, str]:
    around = inner_names(graph)
    producers = {str(value.name): name for name, node in graph.nodes.items() for value in node.outputs}
    found: dict[str, str] = {}
    for name, reason in failure.by_name.items():
        top = name if name in graph.nodes else producers.get(name)
        if top is not None:
            found[top] = reason
        elif name in around:
            found.setdefault(around[name], f"inside it, {name!r}: {reason}")
    for name, node in graph.nodes.items():
        own = failure.by_op.get(operator(node))
        if own:
            found.setdefault(name, own)
        for inside in sorted(inner_operators(node) & failure.by_op.keys()):
            found.setdefault(name, f"inside it, {inside}: {failure.by_op[inside]}")
    return found


def untransferable(graph: Graph) -> dict[str, str]:
    """Nodes on text anywhere, or on types at the graph's edge, that OpenVINO does not pass."""
    from hal_openvino.ports import PASSED

    edge = {id(value) for value in (*graph.model.graph.inputs, *graph.model.graph.outputs)}
    found: dict[str, str] = {}
    for name, node in graph.nodes.items():
        for value in (*reads(node), *node.outputs):
            if value.dtype is None:
                continue
            is_text = value.dtype == ir.DataType.STRING
            kind = "string" if is_text else value.dtype.numpy().name
            if is_text or (id(value) in edge and kind not in PASSED):
                what = f"tensor {value.name!r} is of type {kind}, which OpenVINO does not pass safely"
                found.setdefault(name, what)
    return found


def _behind(graph: Graph, refused: Mapping[str, str]) -> dict[str, str]:
    """Nodes that depend on a refused one, with that one."""
    makers: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, node in graph.nodes.items():
        origin = next((makers[id(value)] for value in reads(node) if id(value) in makers), None)
        if origin is not None:
            found[name] = origin
        if name in refused:
            origin = name
        if origin is not None:
            makers.update((id(value), origin) for value in node.outputs)
    return found


def _read_partly(source: bytes | Path) -> Any:
    """The model with placeholders for what cannot be converted; None where not even that works."""
    from openvino.frontend import FrontEndManager

    try:
        frontend = FrontEndManager().load_by_framework("onnx")
        stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        return frontend.convert_partially(frontend.load(stream))
    except RuntimeError:  # the caller already holds the reader's reasons
        return None


def _query(core: Any, openvino_device: str, graph: Graph, model: Any) -> dict[str, str]:
    """Nodes that the device's plugin does not take, with the reason as far as it is known."""
    owned = owners(graph, model.get_ordered_ops())
    try:
        taken = set(core.query_model(model, openvino_device))
    except RuntimeError as error:
        said = f"OpenVINO's {openvino_device} plugin raised when asked: {summary(error)}"
        return dict.fromkeys(graph.nodes, said)
    found: dict[str, str] = {}
    for operation in model.get_ordered_ops():
        friendly = operation.get_friendly_name()
        if friendly in taken or operation.get_type_name() in ("Parameter", "Result", "Constant"):
            continue
        reason = (
            f"OpenVINO's {openvino_device} plugin has no kernel for its operation "
            f"{operation.get_type_name()} on {_types(operation)}"
        )
        for name in owned[friendly]:
            found.setdefault(name, reason)
    return found


def _types(operation: Any) -> str:
    described = [
        f"{port.get_element_type().get_type_name()}{port.get_partial_shape()}" for port in operation.inputs()
    ]
    return ", ".join(described) or "no inputs"
