"""Convolutions, tap by tap: one matrix product per tap of the kernel, so that memory stays small."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp, along, ints, widen
from hal.graph.reference.windows import Windows, split_padding, windows

#: Columns of a matrix product to aim for. Source: measured on two x86 cores, 7x7 taps of 3 channels; it
#: bounds memory to this many times the output's positions and changes no result beyond float64 rounding.
_DEPTH_OF_PRODUCT = 64


def at(tap: tuple[int, ...]) -> Any:
    """Return the index of a tap in the last axes of a kernel."""
    return (..., *tap)


def convolve(x: Array, weight: Array, layout: Windows, group: int) -> Array:
    """Return the cross-correlation of ``x`` with ``weight``.

    Args:
        x: ``float64[batch, group * depth, *spatial]``.
        weight: ``float64[group * width, depth, *kernel]``.
        layout: The windows over the spatial axes.
        group: Groups of channels that do not see each other.

    Returns:
        ``float64[batch, group * width, *out]``.

    Source: Conv-22, ONNX operator reference.
    """
    batch, channels = x.shape[:2]
    depth, width = channels // group, weight.shape[0] // group
    padded = layout.pad(x, 0.0)
    grouped = weight.reshape(group, width, depth, *layout.kernel)
    if depth == 1:
        return _convolve_depthwise(padded, grouped[:, :, 0], layout)
    size = math.prod(layout.out)
    result = np.zeros((batch, group, width, size))
    term = np.empty_like(result)
    # Few channels make thin products, which are slow; several taps side by side make thick ones.
    together = max(1, _DEPTH_OF_PRODUCT // depth)
    taps = layout.taps(padded)
    while chunk := list(itertools.islice(taps, together)):
        weights = np.concatenate([grouped[at(tap)] for tap, _ in chunk], axis=2)
        views = [view.reshape(batch, group, depth, size) for _, view in chunk]
        np.matmul(weights, views[0] if len(views) == 1 else np.concatenate(views, axis=2), out=term)
        result += term
    return result.reshape(batch, group * width, *layout.out)


def _convolve_depthwise(padded: Array, weight: Array, layout: Windows) -> Array:
    """Convolve where each group holds one channel: ``weight`` is ``float64[group, width, *kernel]``."""
    batch, group, width = padded.shape[0], weight.shape[0], weight.shape[1]
    result = np.zeros((batch, group, width, *layout.out))
    term = np.empty_like(result)
    for tap, view in layout.taps(padded):
        factor = weight[at(tap)].reshape(group, width, *(1 for _ in layout.out))
        np.multiply(view[:, :, np.newaxis], factor, out=term)
        result += term
    return result.reshape(batch, group * width, *layout.out)


class Conv(ReferenceOp):
    """Conv of any number of spatial axes, with groups, dilations, strides and automatic padding."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        kernel = weight.shape[2:]
        layout = windows(
            x.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
        )
        result = convolve(widen(x), widen(weight), layout, group)
        if bias is not None:
            result += along(widen(bias), 1, result.ndim)
        return (result.astype(x.dtype),)


class ConvInteger(ReferenceOp):
    """ConvInteger: products of 8-bit integers and their sums are exact in float64."""

    def _run(
        self,
        x: Array,
        weight: Array,
        x_zero_point: Array | None = None,
        w_zero_point: Array | None = None,
        *,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        layout = windows(
            x.shape[2:], weight.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
        )
        centred, kernel = x.astype(np.float64), weight.astype(np.float64)
        if x_zero_point is not None:
            centred -= x_zero_point.astype(np.float64).reshape(())
        if w_zero_point is not None:
            kernel -= along(w_zero_point.astype(np.float64).reshape(-1), 0, kernel.ndim)
        return (convolve(centred, kernel, layout, group).astype(np.int32),)


class ConvTranspose(ReferenceOp):
    """ConvTranspose: each tap adds its product onto a strided view of the output."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        n, size, kernel = x.ndim - 2, x.shape[2:], weight.shape[2:]
        steps, spread, extra = ints(strides, 1, n), ints(dilations, 1, n), ints(output_padding, 0, n)
        full = [(size[i] - 1) * steps[i] + (kernel[i] - 1) * spread[i] + 1 for i in range(n)]
        begin, out = _place(full, size, steps, extra, pads, output_shape, auto_pad)
        canvas_size = [max(full[i], begin[i] + out[i]) for i in range(n)]

        batch, channels = x.shape[:2]
        width, positions = weight.shape[1], math.prod(size)
        flat = widen(x).reshape(batch, group, channels // group, positions)
        grouped = widen(weight).reshape(group, channels // group, width, *kernel)
        canvas = np.zeros((batch, group * width, *canvas_size))
        for tap in np.ndindex(*kernel):
            where: list[slice] = [slice(None), slice(None)]
            for i in range(n):
                first = tap[i] * spread[i]
                where.append(slice(first, first + (size[i] - 1) * steps[i] + 1, steps[i]))
            product = grouped[at(tap)].swapaxes(1, 2) @ flat
            canvas[tuple(where)] += product.reshape(batch, group * width, *size)
        crop = tuple(slice(begin[i], begin[i] + out[i]) for i in range(n))
        result = canvas[(slice(None), slice(None), *crop)]
        if bias is not None:
            result = result + along(widen(bias), 1, result.ndim)
        return (result.astype(x.dtype),)


def _place(
    full: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    output_padding: Sequence[int],
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Return where the output of a ConvTranspose begins in its canvas, and its size, per spatial axis.

    Source: ConvTranspose-22, ONNX operator reference: ``total_padding[i]`` and ``output_shape[i]``.
    """
    n = len(size)
    if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        declared = ints(pads, 0, 2 * n) if auto_pad == "NOTSET" else [0] * (2 * n)
        return declared[:n], [full[i] + output_padding[i] - declared[i] - declared[n + i] for i in range(n)]
    out = [size[i] * strides[i] for i in range(n)] if output_shape is None else list(output_shape)[-n:]
    # An output larger than the canvas is filled up at its end, hence no negative padding.
    total = [max(0, full[i] + output_padding[i] - out[i]) for i in range(n)]
    return [split_padding(total[i], auto_pad)[0] for i in range(n)], out
