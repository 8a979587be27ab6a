"""Quantized values: conversion to and from them, and products of them."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch
from torch.nn import functional

from hal_torch.bridge.conv import CONV, kernel_of, pads_of, spatial, torch_pads
from hal_torch.bridge.dtypes import CARRIED, holder, torch_dtype_of
from hal_torch.bridge.narrow import FLOAT8, RANGES, to_float8, to_small_float
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def along(part: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """A scale or zero point so that it broadcasts to x: one, one per index of an axis, or one per block."""
    if part.numel() == 1:
        return part.reshape(())
    if block:
        return part.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    view = [1] * x.dim()
    view[axis] = -1
    return part.reshape(view)


def saturated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers limited to the range of an integer dtype."""
    info = torch.iinfo(dtype)
    return torch.clamp(x, info.min, info.max).to(dtype)


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    kind: ir.DataType | torch.dtype,
    axis: int,
    block: int,
    saturate: bool,
    precision: torch.dtype | None,
) -> torch.Tensor:
    """round(x / scale) + zero, halves to even, limited to the range of the type.

    Args:
        x: Floats.
        scale: One, one per index of an axis, or one per block.
        zero: Like the scale; None for zero.
        kind: The type of the result; an ONNX type where PyTorch has none.
        axis: Of the scale.
        block: Elements per scale along the axis; 0 without blocks.
        saturate: Whether float8 is limited to its range.
        precision: The type to divide in; None for that of x.
    """
    wide = x if precision is None else x.to(precision)
    ratio = wide / along(scale, x, axis, block).to(wide.dtype)
    if isinstance(kind, torch.dtype) and kind in FLOAT8:
        return to_float8(ratio, kind, saturate)
    if isinstance(kind, ir.DataType) and kind not in RANGES:
        return to_small_float(ratio if zero is None else ratio + along(zero, x, axis, block), kind)
    whole = torch.round(ratio).to(torch.float32)
    if zero is not None:
        whole = whole + along(zero.to(torch.float32), x, axis, block)
    if isinstance(kind, torch.dtype):
        return saturated(whole, kind)
    return torch.clamp(whole, *RANGES[kind]).to(CARRIED[kind])


_QUANTIZED = (torch.int8, torch.uint8, torch.int16, torch.uint16, *FLOAT8)


@operator("QuantizeLinear", 10, any_type=True)
def quantize_linear(node: OpNode) -> Call:
    """Quantize."""
    zero = node.optional(2)
    code = node.integer("output_dtype", 0)
    kind = ir.DataType(code) if zero is None else zero.kind
    dtype = node.dtype(2) if zero is not None else holder(kind) if code else torch.uint8
    carried = kind if kind in CARRIED else None
    if carried is None and dtype not in _QUANTIZED:
        raise Refused(f"quantization to {dtype} is not translated")
    precision = node.integer("precision", 0)
    call_ = call(
        quantize,
        node.input(0),
        node.input(1),
        zero,
        carried or dtype,
        node.integer("axis", 1),
        node.integer("block_size", 0),
        bool(node.integer("saturate", 1)),
        torch_dtype_of(precision) if precision else None,
    )
    return replace(call_, kind=carried)


def dequantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: torch.dtype | None,
    axis: int,
    block: int,
) -> torch.Tensor:
    """(x - zero) * scale, in the type of the scale unless told otherwise."""
    wide = x.to(torch.float32)
    if zero is not None:
        wide = wide - along(zero.to(torch.float32), x, axis, block)
    return (wide * along(scale, x, axis, block).to(torch.float32)).to(dtype or scale.dtype)


@operator("DequantizeLinear", 10, any_type=True)
def dequantize_linear(node: OpNode) -> Call:
    """Back to floats; constant weights become float weights at bridge time."""
    code = node.integer("output_dtype", 0)
    dtype = torch_dtype_of(code) if code else None
    if dtype is not None and dtype not in _FLOATS:
        raise Refused(f"dequantization to {dtype} is not translated")
    operands = (node.input(0), node.input(1), node.optional(2))
    return call(dequantize, *operands, dtype, node.integer("axis", 1), node.integer("block_size", 0))


def dynamic_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 values with their own scale and zero point. Source: ONNX specification."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    low, high = torch.minimum(x.amin(), zero), torch.maximum(x.amax(), zero)
    scale = (high - low) / 255
    shift = saturated(torch.round(-low / scale), torch.uint8)
    return saturated(torch.round(x / scale) + shift.to(x.dtype), torch.uint8), scale, shift


@operator("DynamicQuantizeLinear", 11)
def dynamic_quantize_node(node: OpNode) -> Call:
    """Quantize to uint8 by the range of the data."""
    return call(dynamic_quantize, node.input(0))


def _column(part: torch.Tensor) -> torch.Tensor:
    """One number per row of the left matrix."""
    return part.unsqueeze(-1) if part.dim() == 1 and part.numel() > 1 else part


def matmul_integer(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """int32 product of integers; float64 holds sums of 16-bit products exactly."""
    left, right = a.to(torch.float64), b.to(torch.float64)
    if a_zero is not None:
        left = left - _column(a_zero.to(torch.float64))
    if b_zero is not None:
        right = right - b_zero.to(torch.float64)
    return torch.matmul(left, right).to(torch.int32)


@operator("MatMulInteger", 10)
def matmul_integer_node(node: OpNode) -> Call:
    """Product of integer matrices."""
    return call(matmul_integer, node.input(0), node.input(1), node.optional(2), node.optional(3))


def requantize(
    total: torch.Tensor, factor: torch.Tensor, zero: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """An integer sum at the scale of the output."""
    return saturated(torch.round(total.to(torch.float32) * factor) + zero.to(torch.float32), dtype)


def quantized_matmul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
) -> torch.Tensor:
    """Product of quantized matrices, quantized again."""
    factor = _column(a_scale) * b_scale / y_scale
    total = matmul_integer(a, b, a_zero, b_zero)
    return requantize(total, factor.to(torch.float32), y_zero, y_zero.dtype)


@operator("QLinearMatMul", 10)
def quantized_matmul_node(node: OpNode) -> Call:
    """Product of quantized matrices."""
    return call(quantized_matmul, *(node.input(i) for i in range(8)))


Moves = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Padding in functional.pad order, strides, dilations, groups."""


def conv_integer(
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero: torch.Tensor | None,
    w_zero: torch.Tensor | None,
    moves: Moves,
) -> torch.Tensor:
    """int32 convolution of integers; padding has the value of the zero point."""
    pads, stride, dilation, groups = moves
    signal, kernel = x.to(torch.float64), w.to(torch.float64)
    if x_zero is not None:
        signal = signal - x_zero.to(torch.float64)
    if w_zero is not None:
        kernel = kernel - along(w_zero.to(torch.float64), w, 0, 0)
    return CONV[len(stride)](functional.pad(signal, pads), kernel, None, stride, 0, dilation, groups).to(
        torch.int32
    )


def _moves(node: OpNode, weight_index: int) -> Moves:
    kernel = kernel_of(node, weight_index)
    n_dims = len(kernel)
    if n_dims not in CONV:
        raise Refused(f"a convolution over {n_dims} dimensions has no PyTorch function, 1 to 3 have")
    stride, dilation = node.integers("strides") or (1,) * n_dims, node.integers("dilations") or (1,) * n_dims
    begin, end = pads_of(node, spatial(node), kernel, stride, dilation)
    return torch_pads(begin, end), stride, dilation, node.integer("group", 1)


@operator("ConvInteger", 10)
def conv_integer_node(node: OpNode) -> Call:
    """Convolution of integers."""
    operands = (node.input(0), node.input(1), node.optional(2), node.optional(3))
    return call(conv_integer, *operands, _moves(node, 1))


def quantized_conv(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
    bias: torch.Tensor | None,
    moves: Moves,
) -> torch.Tensor:
    """Convolution of quantized values, quantized again."""
    total = conv_integer(x, w, x_zero, w_zero, moves)
    view = (1, -1, *([1] * len(moves[1])))
    if bias is not None:
        total = total + bias.reshape(view)
    factor = x_scale * w_scale / y_scale
    factor = factor.reshape(view) if factor.numel() > 1 else factor.reshape(())
    return requantize(total, factor, y_zero, y_zero.dtype)


@operator("QLinearConv", 10)
def quantized_conv_node(node: OpNode) -> Call:
    """Convolution of quantized values."""
    return call(quantized_conv, *(node.input(i) for i in range(8)), node.optional(8), _moves(node, 3))
