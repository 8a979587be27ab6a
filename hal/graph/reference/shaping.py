"""Operators that move elements without computing, where onnx differs from the standard at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp


class Pad(ReferenceOp):
    """Pad from op set 2 on; negative padding removes elements.

    Source: Pad-2, -11, -18 and -19, ONNX operator reference.
    """

    def _run(
        self,
        x: Array,
        pads_input: Array | None = None,
        constant: Array | None = None,
        axes: Array | None = None,
        *,
        mode: str = "constant",
        pads: Sequence[int] | None = None,
        value: float = 0.0,
    ) -> tuple[Array]:
        amounts = [int(n) for n in (pads_input if pads_input is not None else pads or ())]
        where = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        widths = [(0, 0)] * x.ndim
        keep = [slice(None)] * x.ndim
        for i, axis in enumerate(where):
            before, after = amounts[i], amounts[len(amounts) // 2 + i]
            widths[axis] = (max(0, before), max(0, after))
            keep[axis] = slice(max(0, -before), x.shape[axis] - max(0, -after))
        kept = x[tuple(keep)]
        if mode != "constant":
            return (np.pad(kept, widths, mode=_pad_mode(mode)),)
        fill = np.asarray(value if constant is None else constant.reshape(())).astype(x.dtype)
        result = np.full(
            [n + sum(width) for n, width in zip(kept.shape, widths, strict=True)], fill, dtype=x.dtype
        )
        inner = (slice(first, first + n) for (first, _), n in zip(widths, kept.shape, strict=True))
        result[tuple(inner)] = kept
        return (result,)


def _pad_mode(mode: str) -> Literal["edge", "reflect", "wrap"]:
    if mode == "edge":
        return "edge"
    if mode == "reflect":
        return "reflect"
    if mode == "wrap":
        return "wrap"
    raise ValueError(f"unknown padding mode {mode!r}; known: constant, edge, reflect, wrap")


class Slice(ReferenceOp):
    """Slice from op set 1 on; positions outside the axis are clamped, which Python's slices do otherwise.

    Source: Slice-1, -10 and -13, ONNX operator reference.
    """

    def _run(
        self,
        data: Array,
        first: Array | None = None,
        last: Array | None = None,
        along_axes: Array | None = None,
        steps: Array | None = None,
        *,
        starts: Sequence[int] = (),
        ends: Sequence[int] = (),
        axes: Sequence[int] | None = None,
    ) -> tuple[Array]:
        begin = [int(v) for v in (starts if first is None else first)]
        end = [int(v) for v in (ends if last is None else last)]
        chosen = axes if along_axes is None else along_axes
        where = range(len(begin)) if chosen is None else [int(axis) % data.ndim for axis in chosen]
        stride = [1] * len(begin) if steps is None else [int(v) for v in steps]
        keep = [slice(None)] * data.ndim
        for axis, start, stop, step in zip(where, begin, end, stride, strict=True):
            size = data.shape[axis]
            start, stop = (v + size if v < 0 else v for v in (start, stop))
            if step > 0:
                keep[axis] = slice(min(max(start, 0), size), min(max(stop, 0), size), step)
            else:
                start, stop = min(max(start, 0), size - 1), min(max(stop, -1), size - 1)
                keep[axis] = slice(start, stop if stop >= 0 else None, step)
        return (data[tuple(keep)],)


class Shape(ReferenceOp):
    """The shape of a tensor, or a part of it.

    Source: Shape-15, ONNX operator reference.
    """

    def _run(self, data: Array, *, start: int = 0, end: int | None = None) -> tuple[Array]:
        limits = [start, data.ndim if end is None else end]
        first, last = (min(max(v + data.ndim if v < 0 else v, 0), data.ndim) for v in limits)
        return (np.array(data.shape[first:last], dtype=np.int64),)


class Squeeze(ReferenceOp):
    """Squeeze; the axes are an attribute before op set 13, an input from then on."""

    def _run(
        self, data: Array, given: Array | None = None, *, axes: Sequence[int] | None = None
    ) -> tuple[Array]:
        chosen = axes if given is None else given.reshape(-1)
        if chosen is None or len(chosen) == 0:
            return (np.asarray(np.squeeze(data)),)
        return (np.asarray(np.squeeze(data, axis=tuple(int(axis) for axis in chosen))),)


class Unsqueeze(ReferenceOp):
    """Unsqueeze; the axes are an attribute before op set 13, an input from then on."""

    def _run(self, data: Array, given: Array | None = None, *, axes: Sequence[int] = ()) -> tuple[Array]:
        chosen = axes if given is None else given.reshape(-1)
        return (np.expand_dims(data, tuple(int(axis) for axis in chosen)),)
