"""What alternating between parts of models costs beyond what they hand over.

A runtime that computes the same again and again finds its code and data in the caches and its branches
predicted. Where parts of a plan take turns, each comes to caches that the others have filled: the more ran
before, and the more there is to come back, the longer it takes. The handoffs of a link, measured with one
operator on each side, have little of that.

So graphs of several sizes, of the kinds of operators that models have most of, run on both ends of a link in
turn, every size after every other, and each alone in a row.

Source: measured here, on two cores. A part of 40 us on ONNX Runtime takes 12 us longer where as small a part
of OpenVINO runs in turn with it, 25 us with PyTorch, and 150 us where PyTorch computed for 8 ms. Of random
plans over three runtimes the median error of the predicted latency falls from 10% to 3% (MiniLM), from 11%
to 6% (PP-OCR classifier) and from 31% to 10% (digits) with these figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hal import stats
from hal.backend import KernelRuns
from hal.graph.model import Graph
from hal.records.machine import Link, Switching, interpolate
from hal.tensor import Array

#: Blocks of operators that a part has; 0 is one operator. They take 10 us to 10 ms on one core, as the parts
#: of models do, in even steps of the logarithm.
SIZES = (0, 1, 6, 32)
#: Nodes of a block.
_BLOCK = 13
#: Channels, and rows and columns of the images that a part takes and gives.
_CHANNELS, _SIZE = 16, 16
#: Bytes of its input and its output.
N_BYTES = 4 * _CHANNELS * _SIZE * _SIZE
#: Two parts that take longer in a row end the sizes: parts of models that are so slow notice no caches.
LONGEST_NS = 50_000_000
#: Runs of one pair of sizes: as many as fit into the time, within these bounds.
_TIME_NS, _RUNS_MIN, _RUNS_MAX = 15_000_000, 5, 60


def graph(first: int, second: int) -> tuple[Graph, int]:
    """Two parts in a row.

    Args:
        first: Blocks of the first part.
        second: Of the second.

    Returns:
        The graph, and how many of its nodes are the first part's.
    """
    generator = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = [numpy_helper.from_array(np.array([1, _CHANNELS, 1, 1]), "shape")]

    def weight(*shape: int) -> str:
        values = generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{len(weights)}"))
        return str(weights[-1].name)

    def node(op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    around = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}

    def block(value: str) -> str:
        made = node("Relu", node("Conv", value, weight(_CHANNELS, _CHANNELS, 3, 3), **around))
        made = node("MaxPool", made, **around)
        made = node("Conv", made, weight(_CHANNELS, _CHANNELS, 3, 3), **around)
        made = node("Mul", made, node("Sigmoid", made))
        scale = node("Flatten", node("GlobalAveragePool", made))
        scale = node("Softmax", node("Gemm", scale, weight(_CHANNELS, _CHANNELS)))
        return node("Add", node("Mul", made, node("Reshape", scale, "shape")), value)

    value, n_first = "x", 0
    for n_blocks in (first, second):
        n_first = len(nodes)
        if not n_blocks:
            value = node("Relu", value)
        for _ in range(n_blocks):
            value = block(value)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, _CHANNELS, _SIZE, _SIZE))
        for name in ("x", value)
    ]
    proto = helper.make_graph(nodes, "switch", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return Graph.load(helper.make_model(proto, opset_imports=opsets, ir_version=8)), n_first


def values() -> Array:
    """The input of a first part."""
    shape = (1, _CHANNELS, _SIZE, _SIZE)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def n_runs(seen: KernelRuns) -> int:
    """How often a pair of parts runs, from runs that were seen."""
    return int(min(max(_TIME_NS / max(stats.median(seen.run_ns), 1), _RUNS_MIN), _RUNS_MAX))


class Pair:
    """What was seen of two parts in turn, the first on one end, the second on another.

    Args:
        runs: Two kernels per part: in turn, then alone.
    """

    def __init__(self, runs: KernelRuns) -> None:
        taken = [stats.median(kernel.durations_ns) for kernel in runs.kernels]
        self.in_turn, self.alone = taken[:2], taken[2:]


def switching(link: Link, blocks: Sequence[int], pairs: dict[tuple[int, int], Pair], end: int) -> Switching:
    """What alternating costs at one end of a link.

    Args:
        link: To that end.
        blocks: That parts have, rising.
        pairs: By the numbers, in these blocks, of the first and the second part.
        end: 0 for the first part, which follows the second of the run before; 1 for the second, which the
            first hands its output to.
    """
    sizes = range(len(blocks))
    handed = interpolate(link, N_BYTES) if end else 0
    alone = [
        [stats.median([_of(pairs, at, size, one).alone[one] for at in sizes]) for size in sizes]
        for one in (0, 1)
    ]
    extra = [[0.0] * len(sizes) for _ in sizes]
    for source in sizes:
        for destination in sizes:
            pair = _of(pairs, source, destination, end)
            extra[source][destination] = max(pair.in_turn[end] - pair.alone[end] - handed, 0.0)
    return Switching(
        n_nodes=tuple(max(n_blocks * _BLOCK, 1) for n_blocks in blocks),
        source_ns=_rising(alone[1 - end]),
        destination_ns=_rising(alone[end]),
        extra_ns=tuple(tuple(round(ns) for ns in row) for row in extra),
    )


def _of(pairs: dict[tuple[int, int], Pair], other: int, size: int, end: int) -> Pair:
    """The pair whose part at the end has the size, and whose other part the other size."""
    return pairs[other, size] if end else pairs[size, other]


def _rising(durations: list[float]) -> tuple[int, ...]:
    """Whole nanoseconds, each at least one above the one before: noise must not turn the grid around."""
    found: list[int] = []
    for duration in durations:
        found.append(max(round(duration), found[-1] + 1 if found else 1))
    return tuple(found)
