"""Which nodes a provider can run. ONNX Runtime only tells by making a session, so that is asked.

On the CPU the whole graph is tried without its weights; if that is refused, each node is tried by
itself, so that every refusal has the runtime's own reason. Other providers are asked with the
whole graph, and tell which nodes they claimed; the rest runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from hal.backend import Configuration, Support
from hal.errors import BackendError, UnsupportedGraph
from hal.graph.model import Graph
from hal_onnxruntime.attribution import FlatGraph
from hal_onnxruntime.loading import Endpoint, open_session, trips_over_sizes, with_free_sizes
from hal_onnxruntime.options import choices_of, session_options
from hal_onnxruntime.providers import CPU, provider_of

_YES = Support(True)
# Weights above this become graph inputs: only their type and shape matter for the question.
# Small ones stay, because some operators want a constant there (shapes, axes, zero points).
_SMALL_BYTES = 1024


def support_on_cpu(graph: Graph, endpoint: Endpoint, options_of: Callable[[], Any]) -> dict[str, Support]:
    """The answer of the runtime's own kernels, node by node."""
    model = _without_weights(graph)
    whole = _refusal(model, endpoint, options_of)
    # `compile` withholds sizes where the runtime trips over them, so the answer must too.
    if not whole or (
        trips_over_sizes(whole)
        and not _refusal(_without_weights(with_free_sizes(graph)), endpoint, options_of)
    ):
        return dict.fromkeys(graph.nodes, _YES)
    types = _types(model.graph)
    answers: dict[str, Support] = {}
    for node in model.graph.node:
        alone = _alone(model, node, types)
        reason = alone if isinstance(alone, str) else _refusal(alone, endpoint, options_of)
        answers[node.name] = Support(False, reason) if reason else _YES
    if all(answer.yes for answer in answers.values()):
        return _blame(graph, answers, whole)
    return answers


def support_on_provider(graph: Graph, endpoint: Endpoint, precision: str) -> dict[str, Support]:
    """The answer of a provider, asked with the whole graph.

    A node that it leaves to the CPU is a yes, because the session runs it, and the reason says where;
    the executable's fallbacks say it again.
    """
    name = endpoint.provider.name
    # Providers are asked after the basic rewrites, which fold constants: so is this question.
    options = session_options(
        choices_of(Configuration.of(precision, {"threads": 1, "optimization": "basic"}))
    )
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = open_session(graph.serialized(), options, endpoint, precision)
    except UnsupportedGraph as error:
        # A provider may leave nodes to the CPU, so what is refused as a whole, the CPU cannot run either.
        on_cpu = support_on_cpu(graph, Endpoint(provider_of(CPU)), lambda: plain_options("fp32"))
        if not all(answer.yes for answer in on_cpu.values()):
            return on_cpu
        return dict.fromkeys(graph.nodes, Support(False, f"{name}: {error}"))
    except BackendError as error:
        return dict.fromkeys(graph.nodes, Support(False, f"{name}: {error}"))
    flat = FlatGraph(graph.model.graph)
    elsewhere = {
        flat.top(node.name): part.ep_name
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name not in (name, *endpoint.provider.then)
        for node in part.get_nodes()
    }
    return {
        node: Support(True, f"{name} leaves it to {elsewhere[node]}") if node in elsewhere else _YES
        for node in graph.nodes
    }


def plain_options(precision: str) -> Any:
    """Session options that rewrite nothing, so that errors name the graph's own nodes."""
    return session_options(choices_of(Configuration.of(precision, {"threads": 1, "optimization": "disable"})))


def _blame(graph: Graph, answers: Mapping[str, Support], whole: str) -> dict[str, Support]:
    """Each node passes alone and the graph does not: refuse the nodes named, or all."""
    named = [
        name for name in graph.nodes if f"({name})" in whole or f"'{name}'" in whole or f'"{name}"' in whole
    ]
    refused = named or list(graph.nodes)
    return {**answers, **dict.fromkeys(refused, Support(False, whole))}


def _refusal(model: onnx.ModelProto, endpoint: Endpoint, options_of: Callable[[], Any]) -> str:
    try:
        open_session(model.SerializeToString(), options_of(), endpoint, endpoint.provider.precisions[0])
    except (UnsupportedGraph, BackendError) as error:
        return str(error)
    return ""


def _without_weights(graph: Graph) -> onnx.ModelProto:
    model = graph.model.clone()
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES:
            shape, dtype = value.const_value.shape.numpy(), value.const_value.dtype
            del model.graph.initializers[name]
            value.const_value = None
            value.shape, value.dtype = ir.Shape(shape), dtype
            model.graph.inputs.append(value)
    return ir.serde.serialize_model(model)


def _types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    known = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    return {name: kind for name, kind in known.items() if kind.WhichOneof("value")}


def _alone(
    model: onnx.ModelProto, node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]
) -> onnx.ModelProto | str:
    """A model of one node, or why there is none."""
    graph = model.graph
    constants = {
        output: other for other in graph.node if other.op_type == "Constant" for output in other.output
    }
    small = {tensor.name: tensor for tensor in graph.initializer}
    alone = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    alone.graph.name = "node"
    for name in dict.fromkeys(_reads(node)):
        if name in small:
            alone.graph.initializer.append(small[name])
        elif name in constants:
            alone.graph.node.append(constants[name])
        elif name in types:
            alone.graph.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
        else:
            return f"the type of its input {name!r} is not known: no shape inference covers what makes it"
    alone.graph.node.append(node)
    for name in filter(None, node.output):
        alone.graph.output.append(onnx.ValueInfoProto(name=name, type=types.get(name)))
    return alone


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs of a node, and what its subgraphs read from outside."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            inside |= {output for inner in body.node for output in inner.output}
            read = [name for inner in body.node for name in _reads(inner)]
            yield from (
                name for name in (*read, *(v.name for v in body.output)) if name and name not in inside
            )


def unsupported(graph: Graph, answers: Mapping[str, Support], endpoint: Endpoint) -> str:
    """The text of an UnsupportedGraph: at most five nodes by name, the rest counted."""
    refused = [(name, answer.reason) for name, answer in answers.items() if not answer.yes]
    shown = "; ".join(f"{name} ({graph.nodes[name].op_type}): {reason}" for name, reason in refused[:5])
    more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
    where = "onnxruntime" if endpoint.provider.name == CPU else endpoint.provider.name
    return f"{where} refuses {len(refused)} of {len(answers)} nodes of model {graph.name!r}: {shown}{more}"
