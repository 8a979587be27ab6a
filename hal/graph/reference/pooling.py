"""Pooling, tap by tap over strided views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp, along, widen
from hal.graph.reference.windows import windows


def _lowest(kind: np.dtype[Any]) -> float | int:
    return -np.inf if kind.kind == "f" else int(np.iinfo(kind.name).min)


class MaxPool(ReferenceOp):
    """MaxPool with the indices of the maxima; the first of equal maxima counts."""

    def _run(
        self,
        x: Array,
        *,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        storage_order: int = 0,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        size = x.shape[2:]
        layout = windows(
            size,
            kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            ceil_mode=bool(ceil_mode),
        )
        # A maximum is exact in any type; numpy has no maximum of bfloat16 that is as fast.
        values = x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x
        lowest = _lowest(values.dtype)
        padded = layout.pad(values, lowest)
        if len(self.output) == 1:
            best = np.full((*x.shape[:2], *layout.out), lowest, dtype=values.dtype)
            for _, view in layout.taps(padded):
                np.maximum(best, view, out=best)
            return (best.astype(x.dtype, copy=False),)

        order = "C" if storage_order == 0 else "F"
        plane = np.arange(int(np.prod(size)), dtype=np.int64).reshape(size, order=order)  # type: ignore[call-overload]
        where = layout.pad(plane[np.newaxis, np.newaxis], -1)
        best = np.full((*x.shape[:2], *layout.out), lowest, dtype=values.dtype)
        index = np.full(best.shape, -1, dtype=np.int64)
        for (_, view), (_, at) in zip(layout.taps(padded), layout.taps(where), strict=True):
            better = ((view > best) | (index < 0)) & (at >= 0)
            best = np.where(better, view, best)
            index = np.where(better, at, index)
        images = np.arange(x.shape[0] * x.shape[1], dtype=np.int64).reshape(x.shape[:2])
        index += along(images * plane.size, 0, index.ndim)
        return best.astype(x.dtype, copy=False), index


class AveragePool(ReferenceOp):
    """AveragePool; padding counts only if asked, and what lies beyond the padding never does."""

    def _run(
        self,
        x: Array,
        *,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        layout = windows(
            x.shape[2:],
            kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            ceil_mode=bool(ceil_mode),
        )
        total = np.zeros((*x.shape[:2], *layout.out))
        for _, view in layout.taps(layout.pad(widen(x), 0.0)):
            total += view
        for axis, size in enumerate(x.shape[2:]):
            first, last = layout.begin[axis], layout.begin[axis] + size
            if count_include_pad:
                first, last = 0, last + layout.end[axis]
            starts = np.arange(layout.out[axis]) * layout.strides[axis]
            taps = starts[:, np.newaxis] + np.arange(layout.kernel[axis]) * layout.dilations[axis]
            counted = ((taps >= first) & (taps < last)).sum(axis=1)
            total /= along(counted.astype(np.float64), 2 + axis, total.ndim)
        return (total.astype(x.dtype),)


class LpPool(ReferenceOp):
    """The p-norm of each window; padding adds nothing."""

    def _run(
        self,
        x: Array,
        *,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        p: int = 2,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        layout = windows(
            x.shape[2:],
            kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            ceil_mode=bool(ceil_mode),
        )
        total = np.zeros((*x.shape[:2], *layout.out))
        for _, view in layout.taps(layout.pad(np.abs(widen(x)) ** p, 0.0)):
            total += view
        return ((total ** (1.0 / p)).astype(x.dtype),)


class GlobalAveragePool(ReferenceOp):
    """The mean over all spatial axes."""

    def _run(self, x: Array) -> tuple[Array]:
        return (widen(x).mean(axis=tuple(range(2, x.ndim)), keepdims=True).astype(x.dtype),)


class GlobalMaxPool(ReferenceOp):
    """The maximum over all spatial axes."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(ReferenceOp):
    """The p-norm over all spatial axes."""

    def _run(self, x: Array, *, p: int = 2) -> tuple[Array]:
        total = (np.abs(widen(x)) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
        return ((total ** (1.0 / p)).astype(x.dtype),)
