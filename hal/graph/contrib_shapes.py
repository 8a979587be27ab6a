"""Shapes of the outputs of com.microsoft's operators, which onnx's inference does not know.

Source: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from hal.graph.shapes import Known

#: Operators whose outputs have the shape that an ONNX operator gives their first inputs.
EQUIVALENT: dict[str, tuple[str, int]] = {
    "FusedConv": ("Conv", 2),
    "FusedGemm": ("Gemm", 3),
    "QLinearAveragePool": ("AveragePool", 1),
}

Tensor = tuple[ir.DataType | None, tuple[int, ...] | None]
"""Type and sizes of an output, each None where unknown."""

#: The first output is like the first input.
_SAME_NAMES = """
    Gelu BiasGelu FastGelu QuickGelu BiasAdd SkipLayerNormalization SkipSimplifiedLayerNormalization
    SimplifiedLayerNormalization RotaryEmbedding QLinearSigmoid QLinearLeakyRelu QLinearSoftmax GroupNorm
"""
_SAME = frozenset(_SAME_NAMES.split())


def infer(node: ir.Node, known: Known) -> list[Tensor]:
    """Type and sizes of a node's outputs, as many as can be told.

    Args:
        node: A node of an operator that onnx does not define.
        known: What is known of its inputs.
    """
    shapes = [None if value is None else known.shape(value) for value in node.inputs]
    dtypes = [None if value is None else known.dtype(value) for value in node.inputs]
    if not shapes or (node.domain, node.op_type) not in _KNOWN:
        return []
    if node.op_type in _SAME:
        # Of the four outputs of SkipLayerNormalization the last is the sum it normalised.
        return [(dtypes[0], shapes[0])] + [(None, None)] * 2 + [(dtypes[0], shapes[0])]
    rule = _RULES.get(node.op_type)
    if rule is None:
        return []
    try:
        return rule(node, shapes, dtypes)
    except (IndexError, TypeError, ValueError, KeyError):
        return []  # an input is missing, its shape is unknown, or they do not fit


Shapes = list["tuple[int, ...] | None"]
Dtypes = list["ir.DataType | None"]


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _sized(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is None:
        raise ValueError("unknown shape")
    return shape


def _product(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _matmul_nbits(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    return [(dtypes[0], (*_sized(shapes[0])[:-1], node.attributes["N"].as_int()))]


def _fused_matmul(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    if _int(node, "transBatchA") or _int(node, "transBatchB"):
        return []
    a, b = _sized(shapes[0]), _sized(shapes[1])
    a = (*a[:-2], a[-1], a[-2]) if _int(node, "transA") else a
    b = (*b[:-2], b[-1], b[-2]) if _int(node, "transB") else b
    return [(dtypes[0], _product(a, b))]


def _matmul_to_float(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    return [(dtypes[2], _product(_sized(shapes[0]), _sized(shapes[1])))]


def _qgemm(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    a, b = _sized(shapes[0]), _sized(shapes[3])
    rows = a[1] if _int(node, "transA") else a[0]
    columns = b[0] if _int(node, "transB") else b[1]
    quantized = len(node.inputs) > 7 and node.inputs[7] is not None
    return [(dtypes[0] if quantized else ir.DataType.FLOAT, (rows, columns))]


def _qlinear_binary(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    return [(dtypes[0], tuple(np.broadcast_shapes(_sized(shapes[0]), _sized(shapes[3]))))]


def _qlinear_concat(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    parts = [_sized(shape) for shape in shapes[2::3]]
    axis = node.attributes["axis"].as_int() % len(parts[0])
    return [(dtypes[2], (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :]))]


def _qlinear_global_pool(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    shape = _sized(shapes[0])
    ones = (1,) * (len(shape) - 2)
    return [(dtypes[0], (shape[0], *ones, shape[-1]) if _int(node, "channels_last") else (*shape[:2], *ones))]


def _embed(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    return [(dtypes[2], (*_sized(shapes[0]), _sized(shapes[2])[-1]))]


def _attention(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    sizes = node.attributes.get("qkv_hidden_sizes")
    hidden = sizes.as_ints()[2] if sizes is not None else _sized(shapes[1])[1] // 3
    return [(dtypes[0], (*_sized(shapes[0])[:2], int(hidden)))]


def _multi_head_attention(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    query, value = _sized(shapes[0]), _sized(shapes[2])
    hidden = value[1] * value[3] if len(value) == 4 else value[2]
    return [(dtypes[0], (*query[:2], hidden))]


def _group_query_attention(node: ir.Node, shapes: Shapes, dtypes: Dtypes) -> list[Tensor]:
    query = _sized(shapes[0])
    heads, of_keys = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    packed = shapes[1] is None
    hidden = query[2] // (heads + 2 * of_keys) * heads if packed else query[2]
    return [(dtypes[0], (*query[:2], hidden))]


_RULES: dict[str, Callable[[ir.Node, Shapes, Dtypes], list[Tensor]]] = {
    "MatMulNBits": _matmul_nbits,
    "FusedMatMul": _fused_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "DynamicQuantizeMatMul": _matmul_to_float,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_binary,
    "QLinearMul": _qlinear_binary,
    "QLinearConcat": _qlinear_concat,
    "QLinearGlobalAveragePool": _qlinear_global_pool,
    "EmbedLayerNormalization": _embed,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _group_query_attention,
}

# ONNX Runtime keeps one of them in ONNX's own domain.
_KNOWN = {("com.microsoft", name) for name in {*_SAME, *_RULES}} | {("", "SimplifiedLayerNormalization")}
