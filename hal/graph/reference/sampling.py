"""GridSample of any number of axes, vectorised over points."""

from __future__ import annotations

import itertools

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp, widen

#: Source: attribute ``mode`` of GridSample-16 and -20, ONNX operator reference.
_RENAMED = {"bilinear": "linear", "bicubic": "cubic"}
#: Source: GridSample-20, ONNX operator reference (the same as in PyTorch).
_CUBIC_A = -0.75


def _reflected(position: Array, size: int, align_corners: bool) -> Array:
    """Mirror positions at the borders of an axis until they lie inside.

    Source: attribute ``padding_mode`` of GridSample-20, ONNX operator reference.
    """
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    if high == low:
        return np.zeros_like(position)
    period = np.mod(position - low, 2.0 * (high - low))
    return np.minimum(period, 2.0 * (high - low) - period) + low


def _taps(position: Array, mode: str) -> list[tuple[Array, Array]]:
    """Return the whole positions that a point reads along an axis, with their weights.

    Source: R. G. Keys, Cubic convolution interpolation for digital image processing, 1981, equation 4.
    """
    if mode == "nearest":
        return [(np.rint(position), np.ones_like(position))]
    first = np.floor(position)
    share = position - first
    if mode == "linear":
        return [(first, 1.0 - share), (first + 1.0, share)]
    if mode != "cubic":
        raise ValueError(f"unknown mode {mode!r}; known: nearest, linear, cubic")
    a, taps = _CUBIC_A, []
    for offset in (-1.0, 0.0, 1.0, 2.0):
        d = np.abs(share - offset)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        taps.append((first + offset, np.where(d <= 1.0, near, far)))
    return taps


class GridSample(ReferenceOp):
    """GridSample from op set 16 on.

    Points outside are moved inside before interpolation, except that cubic interpolation moves each of
    its neighbours: PyTorch, ONNX Runtime and OpenVINO agree on this, onnx's own code does not for borders.
    """

    def _run(
        self,
        x: Array,
        grid: Array,
        *,
        align_corners: int = 0,
        mode: str = "linear",
        padding_mode: str = "zeros",
    ) -> tuple[Array]:
        name, n_axes = _RENAMED.get(mode, mode), x.ndim - 2
        corners = bool(align_corners)
        wide, points = np.moveaxis(widen(x), 1, -1), widen(grid)
        per_axis = []
        for axis in range(n_axes):
            size = x.shape[2 + axis]
            place = points[..., n_axes - 1 - axis]
            position = (place + 1.0) / 2.0 * (size - 1) if corners else ((place + 1.0) * size - 1.0) / 2.0
            if padding_mode == "reflection" and name != "cubic":
                position = _reflected(position, size, corners)
            if padding_mode != "zeros" and name != "cubic":
                position = np.clip(position, 0.0, size - 1.0)
            taps = []
            for whole, weight in _taps(position, name):
                if padding_mode == "zeros":
                    weight = np.where((whole >= 0) & (whole < size), weight, 0.0)
                elif padding_mode == "reflection":
                    whole = _reflected(whole, size, corners)
                taps.append((np.clip(whole, 0, size - 1).astype(np.intp), weight))
            per_axis.append(taps)
        image = np.arange(x.shape[0]).reshape(-1, *(1 for _ in range(n_axes)))
        result = np.zeros((*points.shape[:-1], x.shape[1]))
        for combination in itertools.product(*per_axis):
            where = (image, *(index for index, _ in combination))
            weight = np.prod([share for _, share in combination], axis=0)
            result += wide[where] * weight[..., np.newaxis]
        return (np.moveaxis(result, -1, 1).astype(x.dtype),)
