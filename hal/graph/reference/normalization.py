"""Normalisations and soft maxima in float64."""

from __future__ import annotations

import math

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp, along, widen


def standardise(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """Return ``(x - mean) / sqrt(variance + epsilon)`` over ``axes``, the mean and the inverse deviation."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1.0 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


class BatchNormalization(ReferenceOp):
    """BatchNormalization from op set 6 on, at inference and in training.

    Before op set 14 a node is in training when it has more than its first output (or, in op set 6, says
    that it is no test); since then when ``training_mode`` says so.

    Source: BatchNormalization-6, -7, -9, -14 and -15, ONNX operator reference.
    """

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        *,
        epsilon: float = 1e-5,
        is_test: int = 1,
        momentum: float = 0.9,
        spatial: int = 1,
        training_mode: int = 0,
    ) -> tuple[Array, ...]:
        wide = widen(x)
        old_mean, old_variance = widen(mean), widen(variance)
        training = training_mode if self.opset >= 14 else any(self.output[1:]) or not is_test
        use_mean, use_variance = old_mean, old_variance
        if training:
            axes = tuple(axis for axis in range(x.ndim) if axis != 1) if spatial else (0,)
            use_mean, use_variance = wide.mean(axis=axes), wide.var(axis=axes)
        factor = widen(scale) / np.sqrt(use_variance + float(epsilon))
        shift = widen(bias) - use_mean * factor
        result = (wide * along(factor, 1, x.ndim) + along(shift, 1, x.ndim)).astype(x.dtype)
        if not training:
            return (result,)
        keep = float(momentum)
        running = (
            (old_mean * keep + use_mean * (1 - keep)).astype(mean.dtype),
            (old_variance * keep + use_variance * (1 - keep)).astype(variance.dtype),
        )
        saved = (use_mean.astype(mean.dtype), use_variance.astype(variance.dtype))
        return (result, *running) if self.opset >= 14 else (result, *running, *saved)


class LayerNormalization(ReferenceOp):
    """LayerNormalization with its mean and inverse deviation, which are float32 (``stash_type`` 1)."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array | None = None,
        *,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,
    ) -> tuple[Array, Array, Array]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        result, mean, inverse = standardise(widen(x), axes, float(epsilon))
        result = result * widen(scale)
        if bias is not None:
            result = result + widen(bias)
        return result.astype(x.dtype), mean.astype(np.float32), inverse.astype(np.float32)


class GroupNormalization(ReferenceOp):
    """GroupNormalization: scale and bias per group in op set 18, per channel from 21 on."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        *,
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int = 1,
    ) -> tuple[Array]:
        groups = widen(x).reshape(x.shape[0], num_groups, -1)
        result = standardise(groups, (2,), float(epsilon))[0].reshape(x.shape)
        factor, shift = widen(scale), widen(bias)
        if self.opset < 21:
            factor, shift = (np.repeat(v, x.shape[1] // num_groups) for v in (factor, shift))
        return ((result * along(factor, 1, x.ndim) + along(shift, 1, x.ndim)).astype(x.dtype),)


class _SoftMaximum(ReferenceOp):
    """What Softmax and LogSoftmax share: before op set 13 all axes from ``axis`` on count as one."""

    def _shifted(self, x: Array, axis: int) -> tuple[Array, int]:
        wide = widen(x)
        if self.opset < 13:
            first = axis % x.ndim if axis != x.ndim else axis
            wide = wide.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))
            axis = 1
        return (wide - wide.max(axis=axis, keepdims=True) if wide.size else wide), axis


class Softmax(_SoftMaximum):
    """Softmax.

    Source: Softmax-1, -11 and -13, ONNX operator reference.
    """

    def _run(self, x: Array, *, axis: int = -1) -> tuple[Array]:
        shifted, along_axis = self._shifted(x, axis)
        powers = np.exp(shifted)
        return ((powers / powers.sum(axis=along_axis, keepdims=True)).reshape(x.shape).astype(x.dtype),)


class LogSoftmax(_SoftMaximum):
    """LogSoftmax, without the logarithm of a rounded softmax.

    Source: LogSoftmax-1, -11 and -13, ONNX operator reference.
    """

    def _run(self, x: Array, *, axis: int = -1) -> tuple[Array]:
        shifted, along_axis = self._shifted(x, axis)
        norm = np.log(np.exp(shifted).sum(axis=along_axis, keepdims=True))
        return ((shifted - norm).reshape(x.shape).astype(x.dtype),)


class LRN(ReferenceOp):
    """Local response normalisation over neighbouring channels.

    Source: LRN-13, ONNX operator reference.
    """

    def _run(
        self, x: Array, *, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int = 1
    ) -> tuple[Array]:
        wide = widen(x)
        before, after = (size - 1) // 2, size // 2
        widths = [(0, 0)] * x.ndim
        widths[1] = (before, after)
        squares = np.pad(np.square(wide), widths)
        total = np.zeros_like(wide)
        for offset in range(size):
            total += squares[:, offset : offset + x.shape[1]]
        scale = (float(bias) + float(alpha) / size * total) ** float(beta)
        return ((wide / scale).astype(x.dtype),)


class LpNormalization(ReferenceOp):
    """Division by the p-norm along an axis; what has norm 0 stays 0.

    Source: LpNormalization-22, ONNX operator reference.
    """

    def _run(self, x: Array, *, axis: int = -1, p: int = 2) -> tuple[Array]:
        wide = widen(x)
        norm = np.linalg.norm(wide, ord=p, axis=axis, keepdims=True)
        return ((wide / np.where(norm == 0.0, 1.0, norm)).astype(x.dtype),)


class Hardmax(_SoftMaximum):
    """1 at the first maximum, 0 elsewhere.

    Source: Hardmax-1, -11 and -13, ONNX operator reference.
    """

    def _run(self, x: Array, *, axis: int = -1) -> tuple[Array]:
        shifted, along_axis = self._shifted(x, axis)
        result = np.zeros(shifted.shape, dtype=x.dtype)
        if x.size:
            top = np.expand_dims(shifted.argmax(axis=along_axis), along_axis)
            np.put_along_axis(result, top, np.ones((), dtype=x.dtype), axis=along_axis)
        return (result.reshape(x.shape),)
