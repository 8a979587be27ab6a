"""Operators that treat each element alike.

The counts are those of the definitions in ONNX's operator reference, function by function, with the weights
of :mod:`hal.graph.flops.node`: a sigmoid ``1 / (1 + exp(-x))`` is a sign (1), an exponential (8), an addition
(1) and a division (4). Runtimes use other, often cheaper, expressions.
"""

from __future__ import annotations

import math

from hal.graph.flops.node import DIVIDE, SQRT, TRANSCENDENTAL, OpNode, enter

SIGMOID = 1 + TRANSCENDENTAL + 1 + DIVIDE
SOFTPLUS = TRANSCENDENTAL + 1 + TRANSCENDENTAL
#: x / 2 * (1 + erf(x / sqrt(2))). Source: ONNX operator reference, Gelu.
GELU = 1 + TRANSCENDENTAL + 1 + 2
#: x / 2 * (1 + tanh(c * (x + 0.044715 x^3))). Source: the same, approximate="tanh".
GELU_TANH = 2 + 1 + 1 + 1 + TRANSCENDENTAL + 1 + 2

#: Operations per element of the output. Source: the module's docstring.
PER_ELEMENT: dict[str, int] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Neg", "Abs", "Relu", "Sign", "Floor", "Ceil", "Round"), 1),
    **dict.fromkeys(("And", "Or", "Xor", "Not", "IsNaN", "IsInf", "Where"), 1),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"), 1),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), 1),
    **dict.fromkeys(("Div", "Reciprocal", "Mod"), DIVIDE),
    "Sqrt": SQRT,
    **dict.fromkeys(("Exp", "Log", "Erf", "Tanh", "Sin", "Cos", "Tan", "Sinh", "Cosh"), TRANSCENDENTAL),
    **dict.fromkeys(("Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh"), TRANSCENDENTAL),
    "LeakyRelu": 2,  # compare, multiply
    "PRelu": 2,
    "ThresholdedRelu": 1,
    "Shrink": 3,  # two comparisons, an addition
    "HardSigmoid": 4,  # multiply, add, two comparisons
    "HardSwish": 5,  # and a product
    "Sigmoid": SIGMOID,
    "Swish": SIGMOID + 2,  # alpha x, and the product
    "Softplus": SOFTPLUS,
    "Softsign": 1 + 1 + DIVIDE,
    "Mish": SOFTPLUS + TRANSCENDENTAL + 1,
    "Elu": 1 + TRANSCENDENTAL + 1 + 1,
    "Celu": DIVIDE + TRANSCENDENTAL + 1 + 1 + 3,  # max(0, x) + min(0, alpha (exp(x / alpha) - 1))
    "Selu": 1 + TRANSCENDENTAL + 1 + 2,
}


@enter(PER_ELEMENT)
def _per_element(node: OpNode) -> int:
    return PER_ELEMENT[node.op] * node.out_size()


@enter("Gelu")
def _gelu(node: OpNode) -> int:
    return (GELU_TANH if node.text("approximate", "none") == "tanh" else GELU) * node.out_size()


@enter("SwiGLU")
def _swiglu(node: OpNode) -> int:
    """The product swish(a) * b of two halves. Source: ONNX operator reference, SwiGLU."""
    return (SIGMOID + 3) * node.out_size()


@enter("Clip")
def _clip(node: OpNode) -> int:
    """A comparison for each limit; limits are attributes before op set 11."""
    limits = sum(node.has(index) for index in (1, 2)) or sum(
        name in node.node.attributes for name in ("min", "max")
    )
    return limits * node.out_size()


@enter("Pow")
def _power(node: OpNode) -> int:
    """A small whole exponent is products, one half is a square root, any other an exponential's like.

    Source: for whole ones, repeated squaring: Knuth, The Art of Computer Programming 2, section 4.6.3.
    """
    exponent = node.known.constant(node.node.inputs[1]) if node.node.inputs[1] is not None else None
    each = TRANSCENDENTAL
    if exponent is not None and exponent.size == 1:
        value = abs(float(exponent.item()))
        if value == 0.5:
            each = SQRT
        elif value.is_integer() and value <= 64:
            n = int(value)
            each = max(n.bit_length() - 1 + n.bit_count() - 1, 0)
        each += DIVIDE if exponent.item() < 0 else 0
    return each * node.out_size()


@enter(["Sum", "Max", "Min", "Mean"])
def _of_several(node: OpNode) -> int:
    """Any number of inputs: one operation for each but the first, and a division for the mean."""
    return (node.n_inputs - 1 + (DIVIDE if node.op == "Mean" else 0)) * node.out_size()


@enter("QuantizeLinear")
def quantize(node: OpNode) -> int:
    """saturate(round(x / scale) + zero_point). Source: ONNX operator reference, QuantizeLinear."""
    return (DIVIDE + 1 + int(node.has(2)) + 2) * node.out_size()


@enter("DequantizeLinear")
def dequantize(node: OpNode) -> int:
    """(x - zero_point) * scale. Source: ONNX operator reference, DequantizeLinear."""
    return (1 + int(node.has(2))) * node.out_size()


@enter("DynamicQuantizeLinear")
def _dynamic_quantize(node: OpNode) -> int:
    """Minimum and maximum, then as QuantizeLinear with a zero point; the few scalars are left out."""
    return (2 + DIVIDE + 1 + 1 + 2) * node.size(0)


@enter(["CumSum", "CumProd"])
def _running(node: OpNode) -> int:
    return node.size(0)


@enter("Range")
def _arange(node: OpNode) -> int:
    """Elements are start + i * delta. Source: ONNX operator reference, Range."""
    return 2 * node.out_size()


@enter("RotaryEmbedding")
def rotary(node: OpNode) -> int:
    """Two products and an addition per turned element. Source: ONNX operator reference, RotaryEmbedding."""
    shape, share = node.shape(0), node.integer("rotary_embedding_dim", 0)
    heads = node.integer("num_heads", 0)
    head = shape[3] if len(shape) == 4 else shape[-1] // heads if heads else 0
    if not share:
        return 3 * math.prod(shape)
    return 3 * math.prod(shape) * share // head if head else 3 * math.prod(shape)
