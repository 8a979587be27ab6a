"""Operators of the domain com.microsoft on quantized values.

Source of all: ONNX Runtime, docs/ContribOperators.md; tests compare with ONNX Runtime itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from hal_torch.bridge.contrib import MICROSOFT
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.quantize import (
    dequantize,
    dequantize_linear,
    dynamic_quantize,
    matmul_integer,
    quantize_linear,
    requantize,
    saturated,
)
from hal_torch.bridge.table import add, operator

add("QuantizeLinear", 1, quantize_linear, domain=MICROSOFT, any_type=True)
add("DequantizeLinear", 1, dequantize_linear, domain=MICROSOFT, any_type=True)


def back(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    """float32, what quantized values stand for."""
    return dequantize(x, scale, zero, None, 0, 0)


def forth(
    y: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Floats quantized to a type, with one scale."""
    whole = torch.round(y / scale)
    return saturated(whole if zero is None else whole + zero.to(torch.float32), dtype)


def quantized_binary(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor | None,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None,
    product: bool,
) -> torch.Tensor:
    """Sum or product of quantized values, quantized again."""
    left, right = back(a, a_scale, a_zero), back(b, b_scale, b_zero)
    return forth(left * right if product else left + right, y_scale, y_zero, a.dtype)


def _binary(node: OpNode, product: bool) -> Call:
    places = [node.input(i) if i in (0, 1, 3, 4, 6) else node.optional(i) for i in range(8)]
    return call(quantized_binary, *places, product)


@operator("QLinearAdd", domain=MICROSOFT)
def quantized_add(node: OpNode) -> Call:
    """Sum of quantized values."""
    return _binary(node, False)


@operator("QLinearMul", domain=MICROSOFT)
def quantized_mul(node: OpNode) -> Call:
    """Product of quantized values."""
    return _binary(node, True)


def quantized_unary(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None,
    slope: float | None,
) -> torch.Tensor:
    """Sigmoid, or leaky ReLU where a slope is given, of quantized values."""
    wide = back(x, x_scale, x_zero)
    y = torch.sigmoid(wide) if slope is None else functional.leaky_relu(wide, slope)
    return forth(y, y_scale, y_zero, x.dtype)


def _one(node: OpNode) -> list[Any]:
    return [node.input(0), node.input(1), node.optional(2), node.input(3), node.optional(4)]


@operator("QLinearSigmoid", domain=MICROSOFT)
def quantized_sigmoid(node: OpNode) -> Call:
    """Sigmoid of quantized values."""
    return call(quantized_unary, *_one(node), None)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def quantized_leaky_relu(node: OpNode) -> Call:
    """Leaky ReLU of quantized values."""
    return call(quantized_unary, *_one(node), node.number("alpha", 0.01))


def quantized_mean(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None,
) -> torch.Tensor:
    """Mean over all dimensions of space of quantized values."""
    axes = tuple(range(2, x.dim()))
    return forth(back(x, x_scale, x_zero).mean(axes, keepdim=True), y_scale, y_zero, x.dtype)


@operator("QLinearGlobalAveragePool", domain=MICROSOFT)
def quantized_global_average_pool(node: OpNode) -> Call:
    """Mean over space of quantized values."""
    if node.integer("channels_last", 0):
        raise Refused("attribute `channels_last` is not translated")
    return call(quantized_mean, *_one(node))


def quantized_concat(
    y_scale: torch.Tensor, y_zero: torch.Tensor, parts: tuple[torch.Tensor, ...], axis: int
) -> torch.Tensor:
    """Quantized values side by side at one scale; parts are triples of values, scale and zero point."""
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return forth(torch.cat([back(*triple) for triple in triples], axis), y_scale, y_zero, y_zero.dtype)


@operator("QLinearConcat", domain=MICROSOFT)
def quantized_concat_node(node: OpNode) -> Call:
    """Quantized values side by side."""
    parts = tuple(node.input(i) for i in range(2, len(node.inputs)))
    return call(quantized_concat, node.input(0), node.input(1), parts, node.integer("axis", 0))


def matmul_to_float(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    a_zero: torch.Tensor | None,
    b_zero: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Product of quantized matrices as floats."""
    y = matmul_integer(a, b, a_zero, b_zero).to(torch.float32) * (a_scale * b_scale)
    return y if bias is None else y + bias


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_to_float_node(node: OpNode) -> Call:
    """Product of quantized matrices as floats."""
    return call(matmul_to_float, *(node.input(i) for i in range(4)), *(node.optional(i) for i in (4, 5, 6)))


def dynamic_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Product of floats, quantized by their own range, and a quantized matrix."""
    quantized, scale, zero = dynamic_quantize(a)
    return matmul_to_float(quantized, b, scale, b_scale, zero, b_zero, bias)


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_matmul_node(node: OpNode) -> Call:
    """Product of floats, quantized on the way, and a quantized matrix."""
    return call(dynamic_matmul, *(node.input(i) for i in range(3)), node.optional(3), node.optional(4))


def quantized_gemm(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    c: torch.Tensor | None,
    y_scale: torch.Tensor | None,
    y_zero: torch.Tensor | None,
    alpha: float,
    turns: tuple[bool, bool],
) -> torch.Tensor:
    """General product of quantized matrices, quantized again where a scale is given, else floats."""
    left, right = a.t() if turns[0] else a, b.t() if turns[1] else b
    total = matmul_integer(left, right, a_zero, b_zero)
    if c is not None:
        total = total + c
    factor = (alpha * a_scale * b_scale).to(torch.float32)
    if y_scale is None:
        return total.to(torch.float32) * factor
    zero = torch.zeros((), dtype=a.dtype, device=a.device) if y_zero is None else y_zero
    return requantize(total, factor / y_scale, zero, zero.dtype)


@operator("QGemm", domain=MICROSOFT)
def quantized_gemm_node(node: OpNode) -> Call:
    """General product of quantized matrices."""
    operands = [node.input(i) for i in range(6)] + [node.optional(i) for i in (6, 7, 8)]
    turns = (bool(node.integer("transA", 0)), bool(node.integer("transB", 0)))
    return call(quantized_gemm, *operands, node.number("alpha", 1.0), turns)
