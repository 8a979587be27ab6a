"""What alternating between parts of models costs beyond what they hand over.

A runtime that computes the same again and again finds its code and weights in the caches and its branches
predicted. Where parts of a plan alternate, each comes to caches that the other has filled. The handoffs of a
link, measured with one operator on each side, have little of that; a graph of several operators shows it.

Source: measured here, on two cores: parts of demo:digits that take 10 to 40 us alone in a row took 6 us
longer in turn with parts on other backends, beside what handoffs of one operator say.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hal.graph.model import Graph
from hal.records.machine import Handoff, Link, interpolate
from hal.tensor import Array

#: Channels, and rows and columns of the images that the graph takes and gives.
_CHANNELS, _SIZE = 8, 16
#: Bytes of its input and its output.
N_BYTES = 4 * _CHANNELS * _SIZE * _SIZE


def graph() -> Graph:
    """A dozen operators of the kinds that models have most of; its output can be its input."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        values = generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> object:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    around = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w1"], "c1", **around),
        node("Relu", ["c1"], "r1"),
        node("MaxPool", ["r1"], "p1", **around),
        node("Conv", ["p1", "w2"], "c2", **around),
        node("Sigmoid", ["c2"], "s2"),
        node("Mul", ["c2", "s2"], "m2"),
        node("GlobalAveragePool", ["m2"], "g3"),
        node("Flatten", ["g3"], "f3"),
        node("Gemm", ["f3", "w3"], "d3"),
        node("Softmax", ["d3"], "t3"),
        node("Reshape", ["t3", "shape"], "h3"),
        node("Mul", ["m2", "h3"], "m3"),
        node("Add", ["m3", "x"], "y"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, _CHANNELS, _SIZE, _SIZE)) for name in "xy"
    ]
    weights = [
        weight("w1", _CHANNELS, _CHANNELS, 3, 3),
        weight("w2", _CHANNELS, _CHANNELS, 3, 3),
        weight("w3", _CHANNELS, _CHANNELS),
        numpy_helper.from_array(np.array([1, _CHANNELS, 1, 1]), "shape"),
    ]
    proto = helper.make_graph(nodes, "switch", ends[:1], ends[1:], weights)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def values() -> Array:
    """Its input."""
    shape = (1, _CHANNELS, _SIZE, _SIZE)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def switch_ns(link: Link, beyond: Handoff) -> int:
    """What each of the two parts takes longer because they alternate.

    The least of the rounds counts (their 10th percentile), for whatever else disturbs adds to it; and at most
    what the graph takes alone: caches that are cold do not more than double so short a run.

    Args:
        link: With the handoffs of one operator.
        beyond: What the graph takes on both ends in a row beyond each alone.
    """
    most = sum(beyond.alone_ns) / 2
    return round(min(max((beyond.p10_ns - interpolate(link, N_BYTES)) / 2, 0), most))
