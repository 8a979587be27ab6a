"""Softmax, normalisations, reductions and pooling.

Source of the counts: the definitions in ONNX's operator reference with the weights of
:mod:`hal.graph.flops.node`; a sum of n is n - 1 additions.
"""

from __future__ import annotations

import math

from hal.graph.flops.node import DIVIDE, SQRT, TRANSCENDENTAL, OpNode, UnknownCount, enter

#: Per element: maximum, difference, exponential, sum, division.
SOFTMAX = 1 + 1 + TRANSCENDENTAL + 1 + DIVIDE
#: Per row of a normalisation: mean of the squares, epsilon, reciprocal of the root.
_ROOT = DIVIDE + 1 + SQRT + DIVIDE


@enter("Softmax")
def _softmax(node: OpNode) -> int:
    return SOFTMAX * node.out_size()


@enter("LogSoftmax")
def _log_softmax(node: OpNode) -> int:
    """Maximum, difference, exponential, sum, difference; a logarithm for each row."""
    shape, axis = node.out(), node.integer("axis", -1 if node.opset >= 13 else 1)
    row = shape[axis] if node.opset >= 13 else math.prod(shape[axis:])
    rows = math.prod(shape) // row if row else 0
    return (1 + 1 + TRANSCENDENTAL + 1 + 1) * math.prod(shape) + TRANSCENDENTAL * rows


@enter("Hardmax")
def _hardmax(node: OpNode) -> int:
    return node.size(0)


def centred(elements: int, rows: int, *, scaled: bool, shifted: bool) -> int:
    """Normalise rows to mean 0 and variance 1: sum, difference, square, sum, product; scale and shift."""
    return (5 + int(scaled) + int(shifted)) * elements + (DIVIDE + _ROOT) * rows


@enter("LayerNormalization")
def _layer_normalization(node: OpNode) -> int:
    shape, axis = node.shape(0), node.integer("axis", -1)
    rows = math.prod(shape[: axis % len(shape)])
    return centred(math.prod(shape), rows, scaled=node.has(1), shifted=node.has(2))


@enter(["RMSNormalization", "SimplifiedLayerNormalization"])
def rms_normalization(node: OpNode) -> int:
    """Square, sum, product, scale."""
    shape, axis = node.shape(0), node.integer("axis", -1)
    return 4 * math.prod(shape) + _ROOT * math.prod(shape[: axis % len(shape)])


@enter(["InstanceNormalization", "GroupNormalization"])
def _instance_normalization(node: OpNode) -> int:
    """A row for each sample and channel, or group of channels."""
    shape = node.shape(0)
    per_sample = shape[1] if node.op == "InstanceNormalization" else node.integer("num_groups", 0)
    if not per_sample:
        raise UnknownCount("number of groups")
    return centred(math.prod(shape), shape[0] * per_sample, scaled=True, shifted=True)


@enter("MeanVarianceNormalization")
def _mean_variance_normalization(node: OpNode) -> int:
    shape, axes = node.shape(0), node.integers("axes") or (0, 2, 3)
    row = math.prod(shape[axis] for axis in axes)
    return centred(math.prod(shape), math.prod(shape) // row if row else 0, scaled=False, shifted=False)


@enter("BatchNormalization")
def _batch_normalization(node: OpNode) -> int:
    """A product and an addition; factor and offset of a channel are found once per run."""
    if node.integer("training_mode", 0):
        raise UnknownCount("training mode")
    channels = node.size(1)
    return 2 * node.out_size() + (1 + SQRT + DIVIDE + 2) * channels


@enter("LpNormalization")
def _lp_normalization(node: OpNode) -> int:
    shape = node.shape(0)
    row = shape[node.integer("axis", -1)]
    rows = math.prod(shape) // row if row else 0
    return (2 + DIVIDE) * math.prod(shape) + (SQRT * rows if node.integer("p", 2) == 2 else 0)


@enter("LRN")
def _local_response(node: OpNode) -> int:
    """Elements are x / (bias + alpha / size * sum of ``size`` squares) ^ beta."""
    return (1 + node.integer("size", 1) + 2 + TRANSCENDENTAL + DIVIDE) * node.out_size()


#: Operations per element of the input and per element of the output, besides the n - 1 that join n.
_REDUCE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"), (0, 0)),
    "ReduceMean": (0, DIVIDE),
    "ReduceL1": (1, 0),
    "ReduceL2": (1, SQRT),
    "ReduceSumSquare": (1, 0),
    "ReduceLogSum": (0, TRANSCENDENTAL),
    "ReduceLogSumExp": (2 + TRANSCENDENTAL, TRANSCENDENTAL + 1),  # maximum and difference first
}


@enter(_REDUCE)
def _reduction(node: OpNode) -> int:
    n_in, n_out = node.size(0), node.out_size()
    if node.shape(0) == node.out() and _reduces_nothing(node):
        return 0
    before, after = _REDUCE[node.op]
    return max(n_in - n_out, 0) + before * n_in + after * n_out


def _reduces_nothing(node: OpNode) -> bool:
    """Without axes all are reduced, unless it is asked for that none is."""
    if not node.integer("noop_with_empty_axes", 0):
        return False
    return not node.has(1) or node.size(1) == 0


@enter(["ArgMax", "ArgMin"])
def _argument(node: OpNode) -> int:
    return max(node.size(0) - node.out_size(), 0)


def _taps(node: OpNode) -> int:
    kernel = node.integers("kernel_shape")
    if kernel is None:
        raise UnknownCount("kernel")
    return math.prod(kernel)


@enter("MaxPool")
def _max_pool(node: OpNode) -> int:
    return (_taps(node) - 1) * node.out_size()


@enter("AveragePool")
def average_pool(node: OpNode) -> int:
    """A sum and a division."""
    return (_taps(node) - 1 + DIVIDE) * node.out_size()


@enter("LpPool")
def _lp_pool(node: OpNode) -> int:
    """(sum of |x|^p)^(1/p): for p = 2 squares and a root."""
    taps, p = _taps(node), node.integer("p", 2)
    each, last = {1: (1, 0), 2: (1, SQRT)}.get(p, (1 + TRANSCENDENTAL, TRANSCENDENTAL))
    return (taps * each + taps - 1 + last) * node.out_size()


@enter(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def _global_pool(node: OpNode) -> int:
    n_in, n_out = node.size(0), node.out_size()
    joined = max(n_in - n_out, 0)
    if node.op == "GlobalAveragePool":
        return joined + DIVIDE * n_out
    if node.op == "GlobalLpPool":
        each, last = {1: (1, 0), 2: (1, SQRT)}.get(node.integer("p", 2), (1 + TRANSCENDENTAL, TRANSCENDENTAL))
        return joined + each * n_in + last * n_out
    return joined


@enter("TopK")
def _top_k(node: OpNode) -> int:
    """At most log2(k) + 1 comparisons an element.

    Source: selection with a heap of k elements, Knuth, The Art of Computer Programming 3, section 5.2.3.
    """
    k = node.out()[node.integer("axis", -1)]
    return node.size(0) * max(k.bit_length(), 1)


@enter("NonZero")
def _non_zero(node: OpNode) -> int:
    return node.size(0)


@enter("NegativeLogLikelihoodLoss")
def _likelihood_loss(node: OpNode) -> int:
    """The chosen elements, weighed, added, divided."""
    return node.size(1) * (1 + int(node.has(2))) + DIVIDE


@enter("SoftmaxCrossEntropyLoss")
def _cross_entropy(node: OpNode) -> int:
    """LogSoftmax over axis 1, then as NegativeLogLikelihoodLoss."""
    rows = node.size(1)
    softmaxed = (1 + 1 + TRANSCENDENTAL + 1 + 1) * node.size(0) + TRANSCENDENTAL * rows
    return softmaxed + rows * (1 + int(node.has(2))) + DIVIDE
