"""Sliding windows: the geometry that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hal.graph.reference.operator import Array, ints


@dataclass(frozen=True)
class Windows:
    """How windows lie over the spatial axes of an input; one entry per spatial axis.

    Attributes:
        kernel: Taps of a window.
        strides: Steps between windows.
        dilations: Steps between the taps of a window.
        begin: Padding before the input.
        end: Padding after the input, as the model declares it.
        out: Windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    out: tuple[int, ...]

    def reach(self, axis: int) -> int:
        """Elements from the start of the padding to the end of the last window along ``axis``."""
        span = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return (self.out[axis] - 1) * self.strides[axis] + span

    def pad(self, x: Array, value: float | int) -> Array:
        """Pad ``[batch, channels, *spatial]`` so that every window lies inside."""
        widths = [(0, 0), (0, 0)]
        for axis, size in enumerate(x.shape[2:]):
            widths.append((self.begin[axis], max(0, self.reach(axis) - size - self.begin[axis])))
        return np.pad(x, widths, constant_values=value) if any(map(any, widths)) else x

    def taps(self, padded: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Yield each tap with the view ``[batch, channels, *out]`` of what it sees in every window."""
        for tap in np.ndindex(*self.kernel):
            where = [slice(None), slice(None)]
            for axis, position in enumerate(tap):
                first = position * self.dilations[axis]
                stop = first + (self.out[axis] - 1) * self.strides[axis] + 1
                where.append(slice(first, stop, self.strides[axis]))
            yield tap, padded[tuple(where)]


def split_padding(total: int, auto_pad: str) -> tuple[int, int]:
    """Share padding between both sides; SAME_UPPER puts the odd element at the end.

    Source: attribute ``auto_pad`` of Conv and ConvTranspose, ONNX operator reference.
    """
    small = total // 2
    return (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)


def windows(
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: bool = False,
) -> Windows:
    """Lay windows over spatial axes of ``size``.

    With ``ceil_mode`` a last window that would start in the padding after the input is dropped.

    Source: Conv-22, MaxPool-22 and AveragePool-22, ONNX operator reference.
    """
    n = len(size)
    steps, spread = ints(strides, 1, n), ints(dilations, 1, n)
    begin, end = [0] * n, [0] * n
    if auto_pad == "NOTSET":
        declared = ints(pads, 0, 2 * n)
        begin, end = declared[:n], declared[n:]
    out = []
    for axis in range(n):
        span = (kernel[axis] - 1) * spread[axis] + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-size[axis] // steps[axis])
            total = max(0, (count - 1) * steps[axis] + span - size[axis])
            begin[axis], end[axis] = split_padding(total, auto_pad)
        else:
            room = size[axis] + begin[axis] + end[axis] - span
            count = room // steps[axis] + 1
            if ceil_mode:
                count = -(-room // steps[axis]) + 1
                if (count - 1) * steps[axis] >= size[axis] + begin[axis]:
                    count -= 1
        if count < 1:
            raise ValueError(
                f"a window of {span} elements does not fit into {size[axis]} elements with padding "
                f"{begin[axis]} and {end[axis]} on spatial axis {axis}"
            )
        out.append(count)
    return Windows(tuple(kernel), tuple(steps), tuple(spread), tuple(begin), tuple(end), tuple(out))
