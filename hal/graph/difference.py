"""How far an answer is from the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorError:
    """The distance of one tensor from its reference.

    Attributes:
        relative_l2: For numbers with a fraction, the norm of the difference over the norm of the reference;
            for integers, booleans and strings, the share of elements that differ. 0 means equal; infinite if
            nothing can be compared, if one side has a NaN or an infinity that the other lacks, or if the
            reference is all zeros and the answer is not.
        max_abs: Largest absolute difference, in the unit of the tensor; 1 for strings that differ.
        sqnr_db: Signal to quantisation noise ratio in dB, ``-20 log10(relative_l2)``; infinite if equal.
        n_nonfinite: Elements where one side is NaN or infinite and the other is not the same.
        same_shape: Whether the shapes agree; if not, nothing else is compared.
        same_dtype: Whether the types agree; numbers with a fraction are compared across their types.
    """

    relative_l2: float
    max_abs: float
    sqnr_db: float
    n_nonfinite: int
    same_shape: bool = True
    same_dtype: bool = True


def _kind(array: Array) -> str:
    """Return what an array holds: fraction, whole, boolean or text."""
    if array.dtype.kind in "OUS":
        return "text"
    if array.dtype.kind == "b":
        return "boolean"
    if array.dtype.kind in "iu" or array.dtype.name in ("int2", "int4", "uint2", "uint4"):
        return "whole"
    return "fraction"


def _sqnr_db(relative: float) -> float:
    if relative == 0.0:
        return math.inf
    return -math.inf if math.isinf(relative) else -20.0 * math.log10(relative)


def _text(array: Array) -> Array:
    flat = [t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else str(t) for t in array.ravel()]
    return np.array(flat, dtype=object).reshape(array.shape)


def tensor_errors(reference: Array, answer: Array) -> TensorError:
    """Compare an answer with its reference.

    A NaN, or an infinity of one sign, at the same place on both sides counts as equal and takes no part in
    the norms. Norms are scaled by the largest magnitude, so that they neither overflow nor vanish.

    Args:
        reference: Trusted values, any shape and type.
        answer: Values to judge.

    Returns:
        The error figures.

    Source: relative error in the 2-norm, N. J. Higham, Accuracy and Stability of Numerical Algorithms,
    section 1.2; ``SQNR = 10 log10(sum(r^2) / sum((r - a)^2))``, A. V. Oppenheim and R. W. Schafer,
    Discrete-Time Signal Processing, section 4.8.
    """
    reference, answer = np.asarray(reference), np.asarray(answer)
    same_dtype = reference.dtype == answer.dtype
    kind = _kind(reference)
    if reference.shape != answer.shape or kind != _kind(answer):
        same_shape = reference.shape == answer.shape
        return TensorError(math.inf, math.inf, -math.inf, 0, same_shape=same_shape, same_dtype=same_dtype)
    if kind != "fraction":
        return _discrete_errors(reference, answer, kind, same_dtype)

    wide = np.complex128 if "c" in (reference.dtype.kind, answer.dtype.kind) else np.float64
    r, a = reference.astype(wide).ravel(), answer.astype(wide).ravel()
    finite = np.isfinite(r) & np.isfinite(a)
    same = (r == a) | (np.isnan(r) & np.isnan(a))
    n_nonfinite = int(np.count_nonzero(~finite & ~same))
    if n_nonfinite:
        return TensorError(math.inf, math.inf, -math.inf, n_nonfinite, same_dtype=same_dtype)
    r, a = r[finite], a[finite]
    with np.errstate(over="ignore"):
        max_abs = float(np.abs(r - a).max(initial=0.0))
    relative = _relative_l2(r, a)
    return TensorError(relative, max_abs, _sqnr_db(relative), 0, same_dtype=same_dtype)


def _relative_l2(r: Array, a: Array) -> float:
    largest = float(np.abs(r).max(initial=0.0))
    if largest == 0.0:
        return math.inf if np.any(a) else 0.0
    with np.errstate(over="ignore", under="ignore"):
        unit = r / largest
        noise = unit - a / largest
        worst = float(np.abs(noise).max())
        if worst == 0.0 or math.isinf(worst):
            return worst
        # The noise has a scale of its own: squares of 1e-200 would vanish.
        return float(worst * np.sqrt(np.sum(np.abs(noise / worst) ** 2) / np.sum(np.abs(unit) ** 2)))


def _discrete_errors(reference: Array, answer: Array, kind: str, same_dtype: bool) -> TensorError:
    if kind == "text":
        reference, answer = _text(reference), _text(answer)
        same_dtype = True
    unequal = np.asarray(reference != answer)
    share = float(np.count_nonzero(unequal)) / max(1, unequal.size)
    largest = 0.0
    if share > 0.0:
        largest = 1.0
        if kind == "whole":
            pairs = zip(reference[unequal].tolist(), answer[unequal].tolist(), strict=True)
            largest = float(max(abs(int(r) - int(a)) for r, a in pairs))
    return TensorError(share, largest, _sqnr_db(share), 0, same_dtype=same_dtype)


__all__ = ["TensorError", "tensor_errors"]
