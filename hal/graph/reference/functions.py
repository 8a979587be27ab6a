"""Element-wise operators that onnx computes slowly or through many nodes."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp, widen

#: Beyond this, erf is 1 in float64: 1 - erf(6) = 2.2e-17 is under half the spacing of float64 below 1.
_ERF_SATURATES = 6.0
#: Cells of the table per unit and terms of the series in each: with |d| <= 1/64 the first term left out
#: is below |H_9(x)| exp(-x^2) d^10 / 10!, under 1e-18 for all x.
_CELLS_PER_UNIT = 32
_TERMS = 9


@cache
def _erf_table() -> Array:
    """Return Taylor coefficients of erf around each cell's centre: ``float64[terms + 1, cells]``.

    Source: the derivatives of erf are Hermite polynomials, ``erf^(n+1)(x) = (-1)^n 2/sqrt(pi) H_n(x)
    exp(-x^2)``, with ``H_(n+1) = 2 x H_n - 2 n H_(n-1)`` (Abramowitz and Stegun, 7.1.19 and 22.7.13).
    """
    centres = np.arange(int(_ERF_SATURATES) * _CELLS_PER_UNIT + 1) / _CELLS_PER_UNIT
    table = np.empty((_TERMS + 1, centres.size))
    table[0] = [math.erf(x) for x in centres]
    scale = 2.0 / math.sqrt(math.pi) * np.exp(-np.square(centres))
    previous, hermite = np.zeros_like(centres), np.ones_like(centres)
    for n in range(_TERMS):
        table[n + 1] = (-1.0) ** n * scale * hermite / math.factorial(n + 1)
        previous, hermite = hermite, 2.0 * centres * hermite - 2.0 * n * previous
    return table


def erf(x: Array) -> Array:
    """Return the error function of ``float64[...]``, to about 2e-16 of 1."""
    table = _erf_table()
    size = np.minimum(np.abs(x), _ERF_SATURATES)
    # NaN has no cell; it comes back through the distance from the centre.
    cell = np.rint(np.nan_to_num(size, nan=0.0) * _CELLS_PER_UNIT).astype(np.intp)
    distance = size - cell / _CELLS_PER_UNIT
    result = table[_TERMS][cell]
    for n in range(_TERMS - 1, -1, -1):
        result = result * distance + table[n][cell]
    return np.copysign(result, x)


def gelu(x: Array, approximate: str = "none") -> Array:
    """Return GELU of ``float64[...]``, exact or by the tanh approximation.

    Source: Gelu-20, ONNX operator reference.
    """
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1.0 + np.tanh(inner))
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


class Erf(ReferenceOp):
    """The error function."""

    def _run(self, x: Array) -> tuple[Array]:
        return (erf(x.astype(np.float64)).astype(x.dtype),)


class Gelu(ReferenceOp):
    """The Gaussian error linear unit."""

    def _run(self, x: Array, *, approximate: str = "none") -> tuple[Array]:
        return (gelu(widen(x), approximate).astype(x.dtype),)


class HardSwish(ReferenceOp):
    """``x * max(0, min(1, x / 6 + 1 / 2))``.

    Source: HardSwish-14, ONNX operator reference.
    """

    def _run(self, x: Array) -> tuple[Array]:
        wide = widen(x)
        return ((wide * np.clip(wide / 6.0 + 0.5, 0.0, 1.0)).astype(x.dtype),)


class MatMulInteger(ReferenceOp):
    """MatMulInteger: products of 8-bit integers and their sums are exact in float64."""

    def _run(
        self, a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
    ) -> tuple[Array]:
        left, right = a.astype(np.float64), b.astype(np.float64)
        if a_zero_point is not None:
            zero = a_zero_point.astype(np.float64)
            # One zero point per row of a; a tensor of two axes or more has its rows last but one.
            left = left - (zero[..., np.newaxis] if zero.ndim == 1 and zero.size > 1 else zero)
        if b_zero_point is not None:
            right = right - b_zero_point.astype(np.float64)
        return (np.asarray(left @ right).astype(np.int32),)
