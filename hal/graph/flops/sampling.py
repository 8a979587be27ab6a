"""Resize, sampling at places that are no grid points, and Fourier transforms."""

from __future__ import annotations

import math

from hal.graph.flops.node import OpNode, UnknownCount, enter

#: A linear interpolation a + t * (b - a).
_LERP = 3


def interpolation(mode: str, n_axes: int) -> int:
    """Operations per element between 2 or 4 neighbours along each axis; weights are shared and left out.

    Linear: 2^n - 1 steps of ``a + t (b - a)``. Cubic: a product and an addition for each of 4^n neighbours.
    Source: ONNX operator reference, Resize and GridSample.
    """
    if mode in ("nearest",) or not n_axes:
        return 0
    if mode in ("linear", "bilinear"):
        return _LERP * ((1 << n_axes) - 1)
    if mode in ("cubic", "bicubic"):
        return 2 << (2 * n_axes)
    raise UnknownCount(f"mode {mode}")


@enter(["Resize", "Upsample"])
def _resize(node: OpNode) -> int:
    """Only axes whose size changes are interpolated; with antialias the neighbours grow as it shrinks."""
    before, after = node.shape(0), node.out()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    mode = node.text("mode", "nearest")
    if node.integer("antialias", 0) and mode != "nearest":
        support = {"linear": 2, "cubic": 4}.get(mode, 0)
        if not support:
            raise UnknownCount(f"mode {mode}")
        taps = math.prod(math.ceil(support * max(a / b, 1)) for a, b in changed if b)
        return 2 * taps * node.out_size() if changed else 0
    return interpolation(mode, len(changed)) * node.out_size()


@enter("GridSample")
def _grid_sample(node: OpNode) -> int:
    """Each coordinate is scaled and shifted, each element interpolated."""
    axes = node.shape(1)[-1]
    mode = node.text("mode", "linear")
    return interpolation(mode, axes) * node.out_size() + 2 * node.size(1)


@enter("RoiAlign")
def _roi_align(node: OpNode) -> int:
    """sampling_ratio^2 bilinear samples for each element, added or compared.

    Without a ratio, the number of samples depends on the size of each region.
    """
    ratio = node.integer("sampling_ratio", 0)
    if not ratio:
        raise UnknownCount("sampling ratio")
    return ratio**2 * (interpolation("linear", 2) + 1) * node.out_size()


def fourier(n: int, *, real: bool) -> int:
    """5 n log2 n for complex input, half of it for real input.

    Source: the convention of the FFTW benchmark, M. Frigo and S. G. Johnson, benchFFT.
    """
    return round((2.5 if real else 5.0) * n * math.log2(n)) if n > 1 else 0


@enter("DFT")
def _dft(node: OpNode) -> int:
    """One transform along the axis for each row; the last axis holds the real and imaginary part."""
    shape = node.shape(0)
    if node.opset >= 20:
        axis = int(node.constant(2).item()) if node.has(2) else -2
    else:
        axis = node.integer("axis", 1)
    length = int(node.constant(1).item()) if node.has(1) else shape[axis]
    rows = math.prod(shape[:-1]) // shape[axis] if shape[axis] else 0
    return rows * fourier(length, real=shape[-1] == 1)


@enter("STFT")
def _stft(node: OpNode) -> int:
    """A window's products and a transform for each frame: the output is [batch, frames, bins, 2]."""
    batch, frames = node.out()[:2]
    length = int(node.constant(3).item()) if node.has(3) else node.shape(2)[0]
    signal = node.shape(0)
    real = len(signal) == 2 or signal[-1] == 1
    window = length * (1 if real else 2) if node.has(2) else 0
    return batch * frames * (fourier(length, real=real) + window)


@enter("Col2Im")
def _column_to_image(node: OpNode) -> int:
    """Each element is added to its place."""
    return node.size(0)
