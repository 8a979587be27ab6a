"""Resize and Upsample by nearest neighbour and linear interpolation, one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx.reference.ops.op_resize import Resize as OnnxResize

from hal.graph.reference.operator import Array, ReferenceOp, along, is_float, widen

#: What the fast path computes; the rest is left to onnx.
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")


def source_positions(n_in: int, n_out: int, scale: float, coordinates: str) -> Array:
    """Return where each output element lies along an axis of the input: ``float64[n_out]``.

    Source: attribute ``coordinate_transformation_mode`` of Resize-19, ONNX operator reference.
    """
    x = np.arange(n_out, dtype=np.float64)
    if coordinates == "asymmetric":
        return x / scale
    if coordinates == "align_corners":
        # The standard divides by length_resized - 1, a whole number, and so do PyTorch, ONNX Runtime and
        # OpenVINO; onnx's own code and its test data divide by the fraction scale * n_in - 1.
        return np.zeros(n_out) if n_out == 1 else x * (n_in - 1) / (n_out - 1)
    if coordinates == "pytorch_half_pixel" and n_out == 1:
        return np.full(n_out, -0.5)
    positions = (x + 0.5) / scale - 0.5
    if coordinates == "half_pixel_symmetric":
        positions += n_in / 2 * (1 - n_out / (scale * n_in))
    return positions


def nearest(positions: Array, rounding: str) -> Array:
    """Round positions as ``nearest_mode`` says."""
    if rounding == "floor":
        return np.floor(positions)
    if rounding == "ceil":
        return np.ceil(positions)
    if rounding == "round_prefer_ceil":
        return np.floor(positions + 0.5)
    return np.ceil(positions - 0.5)


def _resize_axis(
    x: Array, axis: int, n_out: int, scale: float, mode: str, coordinates: str, rounding: str
) -> Array:
    n_in = x.shape[axis]
    positions = source_positions(n_in, n_out, scale, coordinates)
    if mode == "nearest":
        index = np.clip(nearest(positions, rounding), 0, n_in - 1).astype(np.intp)
        return x.take(index, axis=axis)
    low = np.floor(positions)
    share = along(positions - low, axis, x.ndim)
    before = np.clip(low, 0, n_in - 1).astype(np.intp)
    after = np.clip(low + 1, 0, n_in - 1).astype(np.intp)
    return x.take(before, axis=axis) * (1.0 - share) + x.take(after, axis=axis) * share


class Resize(OnnxResize):
    """Resize from op set 10 on."""

    def _run(
        self,
        x: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
        antialias: int | None = None,
        axes: Sequence[int] | None = None,
        coordinate_transformation_mode: str | None = None,
        cubic_coeff_a: float | None = None,
        exclude_outside: int | None = None,
        extrapolation_value: float | None = None,
        keep_aspect_ratio_policy: str | None = None,
        mode: str | None = None,
        nearest_mode: str | None = None,
    ) -> tuple[Array]:
        coordinates = coordinate_transformation_mode or "half_pixel"
        rounding = nearest_mode or "round_prefer_floor"
        if self.run_params["opsets"][""] < 11:
            # Op set 10 has the scales as second input, and one way to place and to round.
            # Source: Resize-10, ONNX operator reference (output = floor(input * scale)).
            scales, roi, coordinates, rounding = roi, None, "asymmetric", "floor"
        scales = None if scales is None or scales.size == 0 else scales
        plain = mode in ("nearest", "linear") and coordinates in _COORDINATES and not antialias
        stretch = scales is not None or keep_aspect_ratio_policy in (None, "stretch")
        if coordinates == "align_corners" and scales is not None:
            # As in source_positions: what counts are the whole sizes.
            resized = axes if axes is not None else range(x.ndim)
            sizes = np.array([int(x.shape[a] * float(s)) for a, s in zip(resized, scales, strict=True)])
            scales, keep_aspect_ratio_policy, stretch = None, "stretch", True
        if not (plain and stretch) or exclude_outside or not (is_float(x) or mode == "nearest"):
            return OnnxResize._run(
                self,
                x,
                roi,
                scales,
                sizes,
                antialias,
                axes,
                coordinates,
                cubic_coeff_a,
                exclude_outside,
                extrapolation_value,
                keep_aspect_ratio_policy,
                mode,
                rounding,
            )
        result = x if mode == "nearest" else x.astype(np.float64)
        for i, axis in enumerate(axes if axes is not None else range(x.ndim)):
            n_in = x.shape[axis]
            if scales is not None:
                scale = float(scales[i])
                n_out = int(n_in * scale)
            elif sizes is not None:
                n_out = int(sizes[i])
                scale = n_out / n_in
            else:
                raise ValueError("Resize has neither scales nor sizes")
            if n_out != n_in or scale != 1.0:
                result = _resize_axis(result, axis % x.ndim, n_out, scale, str(mode), coordinates, rounding)
        return (result.astype(x.dtype, copy=False),)


class Upsample(ReferenceOp):
    """Upsample of op sets 7 to 9: the scales are an attribute before op set 9, an input in it.

    Source: Upsample-7 and -9, ONNX operator reference.
    """

    def _run(
        self,
        x: Array,
        given: Array | None = None,
        *,
        mode: str = "nearest",
        scales: Sequence[float] | None = None,
    ) -> tuple[Array]:
        factors = given if given is not None else scales
        if factors is None:
            raise ValueError("Upsample has no scales")
        result = x if mode == "nearest" else widen(x)
        for axis, factor in enumerate(factors):
            n_out = int(x.shape[axis] * float(factor))
            if n_out != x.shape[axis]:
                result = _resize_axis(result, axis, n_out, float(factor), mode, "asymmetric", "floor")
        return (result.astype(x.dtype, copy=False),)
