"""Operators of com.microsoft, as ONNX Runtime's tools write them into models.

Source: ONNX Runtime, docs/ContribOperators.md, whose definitions are counted as those of ONNX's operators.
"""

from __future__ import annotations

import math

from hal.graph.flops.elementwise import GELU, GELU_TANH, PER_ELEMENT, SIGMOID, dequantize, quantize, rotary
from hal.graph.flops.node import DIVIDE, MICROSOFT, OpNode, UnknownCount, enter
from hal.graph.flops.normalization import SOFTMAX, average_pool, centred, rms_normalization
from hal.graph.flops.products import REQUANTIZE, matrix_product

#: Take a zero point off and scale.
_DEQUANTIZE = 2

enter("QuantizeLinear", MICROSOFT)(quantize)
enter("DequantizeLinear", MICROSOFT)(dequantize)
enter("RotaryEmbedding", MICROSOFT)(rotary)


@enter("MatMulNBits", MICROSOFT)
def _matmul_nbits(node: OpNode) -> int:
    """A [.., K] by packed weights [N, K], each of which is unpacked, shifted and scaled once."""
    n, k = node.integer("N", 0), node.integer("K", 0)
    return 2 * math.prod(node.shape(0)[:-1]) * n * k + _DEQUANTIZE * n * k


@enter("FusedMatMul", MICROSOFT)
def _fused_matmul(node: OpNode) -> int:
    shape = node.shape(0)
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0):
        raise UnknownCount("batch axes moved")
    depth = shape[-2] if node.integer("transA", 0) else shape[-1]
    return node.out_size() * (2 * depth + (1 if node.number("alpha", 1.0) != 1 else 0))


@enter("QGemm", MICROSOFT)
def _qgemm(node: OpNode) -> int:
    a = node.shape(0)
    depth = a[0] if node.integer("transA", 0) else a[1]
    return node.out_size() * (2 * depth + (1 if node.has(6) else 0) + (REQUANTIZE if node.has(7) else 1))


@enter(["MatMulIntegerToFloat", "DynamicQuantizeMatMul"], MICROSOFT)
def _matmul_to_float(node: OpNode) -> int:
    """An integer product and a scale; the dynamic one quantizes its input first (minimum, maximum, and 8)."""
    quantized = (2 + 8) * node.size(0) if node.op == "DynamicQuantizeMatMul" else 0
    bias = node.has(6 if node.op == "MatMulIntegerToFloat" else 4)
    return quantized + matrix_product(node) + (1 + int(bias)) * node.out_size()


@enter(["QLinearAdd", "QLinearMul"], MICROSOFT)
def _qlinear_binary(node: OpNode) -> int:
    return (2 * _DEQUANTIZE + 1 + REQUANTIZE) * node.out_size()


@enter(["QLinearSigmoid", "QLinearLeakyRelu"], MICROSOFT)
def _qlinear_unary(node: OpNode) -> int:
    return (_DEQUANTIZE + PER_ELEMENT[node.op.removeprefix("QLinear")] + REQUANTIZE) * node.out_size()


@enter("QLinearSoftmax", MICROSOFT)
def _qlinear_softmax(node: OpNode) -> int:
    return (_DEQUANTIZE + SOFTMAX + REQUANTIZE) * node.out_size()


@enter("QLinearConcat", MICROSOFT)
def _qlinear_concat(node: OpNode) -> int:
    return (_DEQUANTIZE + REQUANTIZE) * node.out_size()


@enter("QLinearAveragePool", MICROSOFT)
def _qlinear_average_pool(node: OpNode) -> int:
    return average_pool(node) + REQUANTIZE * node.out_size()


@enter("QLinearGlobalAveragePool", MICROSOFT)
def _qlinear_global_average_pool(node: OpNode) -> int:
    n_in, n_out = node.size(0), node.out_size()
    return max(n_in - n_out, 0) + (DIVIDE + REQUANTIZE) * n_out


@enter(["Gelu", "BiasGelu"], MICROSOFT)
def _gelu(node: OpNode) -> int:
    return (GELU + int(node.op == "BiasGelu")) * node.out_size()


@enter("FastGelu", MICROSOFT)
def _fast_gelu(node: OpNode) -> int:
    return (GELU_TANH + int(node.has(1))) * node.out_size()


@enter("QuickGelu", MICROSOFT)
def _quick_gelu(node: OpNode) -> int:
    """The product x * sigmoid(alpha x)."""
    return (SIGMOID + 2) * node.out_size()


@enter("BiasAdd", MICROSOFT)
def _bias_add(node: OpNode) -> int:
    """Bias and residual."""
    return 2 * node.out_size()


@enter(["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"], MICROSOFT)
def _skip_layer_normalization(node: OpNode) -> int:
    """The sum of input and skip (and a bias), normalised over the last axis."""
    elements, simple = node.size(0), node.op == "SkipSimplifiedLayerNormalization"
    if simple:
        return rms_normalization(node) + (1 + int(node.has(3))) * elements
    rows = elements // node.shape(0)[-1] if node.shape(0)[-1] else 0
    return centred(elements, rows, scaled=True, shifted=node.has(3)) + (1 + int(node.has(4))) * elements


@enter("EmbedLayerNormalization", MICROSOFT)
def _embed_layer_normalization(node: OpNode) -> int:
    """The sum of two or three embeddings, normalised over the last axis."""
    shape = node.out()
    elements = math.prod(shape)
    added = 1 + int(node.has(1))
    return centred(elements, math.prod(shape[:-1]), scaled=True, shifted=True) + added * elements
