"""Operators of the domain com.microsoft that exporters and optimisers commonly leave in a model.

Source: ContribOperators.md, ONNX Runtime.
"""

from __future__ import annotations

import numpy as np

from hal.graph.reference.functions import gelu
from hal.graph.reference.normalization import standardise
from hal.graph.reference.operator import Array, ReferenceOp, widen
from hal.graph.reference.recurrent import sigmoid

DOMAIN = "com.microsoft"


class FusedMatMul(ReferenceOp):
    """A scaled matrix product of optionally transposed matrices."""

    op_domain = DOMAIN

    def _run(
        self,
        a: Array,
        b: Array,
        *,
        alpha: float = 1.0,
        transA: int = 0,  # noqa: N803
        transB: int = 0,  # noqa: N803
        transBatchA: int = 0,  # noqa: N803
        transBatchB: int = 0,  # noqa: N803
    ) -> tuple[Array]:
        if transBatchA or transBatchB:
            raise ValueError("FusedMatMul with transBatchA or transBatchB has no reference")
        left = widen(a.swapaxes(-1, -2) if transA and a.ndim > 1 else a)
        right = widen(b.swapaxes(-1, -2) if transB and b.ndim > 1 else b)
        return (np.asarray(float(alpha) * (left @ right)).astype(a.dtype),)


class BiasGelu(ReferenceOp):
    """``Gelu(x + bias)``."""

    op_domain = DOMAIN

    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        return (gelu(widen(x) + widen(bias)).astype(x.dtype),)


class FastGelu(ReferenceOp):
    """``Gelu(x + bias)`` by the tanh approximation."""

    op_domain = DOMAIN

    def _run(self, x: Array, bias: Array | None = None) -> tuple[Array]:
        wide = widen(x) if bias is None else widen(x) + widen(bias)
        return (gelu(wide, "tanh").astype(x.dtype),)


class MicrosoftGelu(ReferenceOp):
    """The exact Gelu, from before the operator entered ONNX."""

    op_domain = DOMAIN

    def _run(self, x: Array, *, approximate: str = "none") -> tuple[Array]:
        return (gelu(widen(x)).astype(x.dtype),)


class QuickGelu(ReferenceOp):
    """``x * sigmoid(alpha * x)``."""

    op_domain = DOMAIN

    def _run(self, x: Array, *, alpha: float = 1.702) -> tuple[Array]:
        wide = widen(x)
        return ((wide * sigmoid(float(alpha) * wide)).astype(x.dtype),)


class SkipLayerNormalization(ReferenceOp):
    """Layer normalisation of ``x + skip + bias`` over the last axis, with that sum as fourth output."""

    op_domain = DOMAIN

    def _run(
        self,
        x: Array,
        skip: Array,
        gamma: Array,
        beta: Array | None = None,
        bias: Array | None = None,
        *,
        epsilon: float = 1e-12,
    ) -> tuple[Array, ...]:
        total = widen(x) + widen(skip)
        if bias is not None:
            total = total + widen(bias)
        result, mean, inverse = standardise(total, (total.ndim - 1,), float(epsilon))
        result = result * widen(gamma)
        if beta is not None:
            result = result + widen(beta)
        kind = np.float32
        return result.astype(x.dtype), mean.astype(kind), inverse.astype(kind), total.astype(x.dtype)
