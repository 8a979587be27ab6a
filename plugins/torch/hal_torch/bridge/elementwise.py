"""Arithmetic, comparison, logic and casts, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from hal_torch.bridge.dtypes import CARRIED, torch_dtype, torch_dtype_of
from hal_torch.bridge.narrow import FLOAT8, to_float8, to_float8e8m0, to_narrow
from hal_torch.bridge.node import Argument, Call, Operand, OpNode, Refused, call
from hal_torch.bridge.table import add, operator
from hal_torch.bridge.unsigned import UNSIGNED

UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "BitwiseNot": torch.bitwise_not,
}
"""Operators that are one PyTorch function of one tensor."""

BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
"""Operators that are one PyTorch function of two tensors that broadcast both ways."""

LOGICAL: dict[str, Callable[..., torch.Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
"""Like BINARY, on booleans only."""


_NO_NUMBERS = frozenset({torch.bool}) | UNSIGNED


def scalar_or(operand: Operand, other: Operand) -> Argument:
    """A Python number for a constant with one element, where that changes neither shape nor type.

    Numbers spare a broadcast and, unlike tensors, never widen a result under autocast.
    """
    const = operand.const
    if const is None or const.numel() != 1 or other.const is not None or const.dtype in _NO_NUMBERS:
        return operand
    if other.rank is None or other.rank < const.dim() or other.dtype != const.dtype:
        return operand
    return const.item()


def _unary(function: Callable[..., torch.Tensor]) -> Callable[[OpNode], Call]:
    return lambda node: call(function, node.input(0))


def _binary(function: Callable[..., torch.Tensor], *, scalars: bool = True) -> Callable[[OpNode], Call]:
    def translate(node: OpNode) -> Call:
        left, right = node.input(0), node.input(1)
        if node.version < 7 and node.attribute("broadcast") is not None:
            raise Refused("attribute `broadcast` of operator sets before 7 is not translated")
        # A number is taken on the right only: torch.sub(1.0, x) is no function of PyTorch.
        return call(function, left, scalar_or(right, left) if scalars else right)

    return translate


for _name, _function in UNARY.items():
    add(_name, 1, _unary(_function))
for _name, _function in BINARY.items():
    add(_name, 1, _binary(_function))
for _name, _function in LOGICAL.items():
    add(_name, 1, _binary(_function, scalars=False))


def quotient(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Quotient of a type that is known only while the model runs."""
    return torch.div(left, right, rounding_mode=None if left.is_floating_point() else "trunc")


@operator("Div")
def div(node: OpNode) -> Call:
    """Quotient; integers are cut towards zero."""
    left, right = node.input(0), node.input(1)
    if node.version < 7 and node.attribute("broadcast") is not None:
        raise Refused("attribute `broadcast` of operator sets before 7 is not translated")
    if left.dtype is None:
        return call(quotient, left, right)
    if left.dtype.is_floating_point:
        return call(torch.div, left, scalar_or(right, left))
    return call(torch.div, left, scalar_or(right, left), rounding_mode="trunc")


def power(base: torch.Tensor, exponent: torch.Tensor | float) -> torch.Tensor:
    """Power in the type of the base."""
    if isinstance(exponent, torch.Tensor) and exponent.dtype in UNSIGNED:
        exponent = exponent.to(torch.float64 if base.is_floating_point() else torch.int64)
    if base.dtype in UNSIGNED:
        return torch.pow(base.to(torch.int64), exponent).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Pow", 7)
def pow_(node: OpNode) -> Call:
    """Power; the result has the type of the base."""
    base, exponent = node.input(0), node.input(1)
    value = scalar_or(exponent, base)
    if isinstance(value, float) and node.dtype(0).is_floating_point:
        return call(torch.pow, base, int(value) if value.is_integer() else value)
    return call(power, base, exponent)


@operator("Mod", 10)
def mod(node: OpNode) -> Call:
    """Remainder with the sign of the divisor, or of the dividend when `fmod` is set."""
    function = torch.fmod if node.integer("fmod", 0) else torch.remainder
    return call(function, node.input(0), node.input(1))


@operator("BitShift", 11)
def bit_shift(node: OpNode) -> Call:
    """Shift of the bits of unsigned integers."""
    left = node.text("direction", "") == "LEFT"
    return call(torch.bitwise_left_shift if left else torch.bitwise_right_shift, node.input(0), node.input(1))


def maximum(*tensors: torch.Tensor) -> torch.Tensor:
    """Largest of several tensors that broadcast."""
    return functools.reduce(torch.maximum, tensors)


def minimum(*tensors: torch.Tensor) -> torch.Tensor:
    """Smallest of several tensors that broadcast."""
    return functools.reduce(torch.minimum, tensors)


def total(*tensors: torch.Tensor) -> torch.Tensor:
    """Sum of several tensors that broadcast."""
    return functools.reduce(torch.add, tensors)


def mean(*tensors: torch.Tensor) -> torch.Tensor:
    """Mean of several tensors that broadcast."""
    return total(*tensors) / len(tensors)


def _variadic(function: Callable[..., torch.Tensor]) -> Callable[[OpNode], Call]:
    return lambda node: call(function, *(node.input(i) for i in range(len(node.inputs))))


for _name, _function in {"Max": maximum, "Min": minimum, "Sum": total, "Mean": mean}.items():
    add(_name, 1, _variadic(_function))


@operator("IsInf", 10)
def is_inf(node: OpNode) -> Call:
    """Whether an element is infinite, of either sign or of one."""
    negative, positive = node.integer("detect_negative", 1), node.integer("detect_positive", 1)
    if negative and positive:
        return call(torch.isinf, node.input(0))
    if not negative and not positive:
        return call(torch.zeros_like, node.input(0), dtype=torch.bool)
    return call(torch.isneginf if negative else torch.isposinf, node.input(0))


@operator("Clip", 11)
def clip(node: OpNode) -> Call:
    """Limit to a range; where the range is empty the upper limit wins."""
    low, high = node.optional(1), node.optional(2)
    if low is None and high is None:
        return call(identity, node.input(0))
    return call(torch.clamp, node.input(0), _limit(low), _limit(high))


def _limit(operand: Operand | None) -> Argument:
    if operand is None or operand.const is None or operand.const.dtype in UNSIGNED:
        return operand
    return operand.const.item()


@operator("Clip", 6)
def clip_6(node: OpNode) -> Call:
    """Limit to a range given as attributes."""
    limits = [node.number(name, 0.0) if node.attribute(name) else None for name in ("min", "max")]
    if limits == [None, None]:
        return call(identity, node.input(0))
    return call(torch.clamp, node.input(0), *limits)


def same_bits(x: torch.Tensor, declared: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    """The bits of the declared type (autocast may have narrowed it) read as another type."""
    return x.to(declared).view(dtype)


@operator("BitCast", 26, any_type=True)
def bit_cast(node: OpNode) -> Call:
    """Read the bits as a type of the same size."""
    dtype = torch_dtype_of(node.integer("to", 0))
    if (kind := node.input(0).kind) is not None:
        raise Refused(f"PyTorch has no bits of {kind.name}")
    if dtype.itemsize != node.dtype(0).itemsize:
        raise Refused(f"a bit cast from {node.dtype(0)} to {dtype}, which differ in size")
    return call(same_bits, node.input(0), node.dtype(0), dtype)


@operator("Where", 9)
def where(node: OpNode) -> Call:
    """Choose element by element."""
    return call(torch.where, node.input(0), node.input(1), node.input(2))


def identity(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    return x


@operator("Identity", any_type=True)
def identity_node(node: OpNode) -> Call:
    """The input."""
    return call(identity, node.input(0))


@operator("Dropout", 7)
def dropout(node: OpNode) -> Call:
    """Nothing at inference; the mask keeps everything."""
    if node.version >= 12:
        training, ratio = node.const(2, "training_mode"), node.const(1, "ratio")
        if training is not None and bool(training.item()):
            return _dropping(node, 0.5 if ratio is None else float(ratio.item()))
    return call(identity if node.single else kept, node.input(0))


def _dropping(node: OpNode, ratio: float) -> Call:
    """Dropout with the mask of its seed, drawn as the ONNX reference does: the same at each call."""
    x, seed = node.input(0), node.attribute("seed")
    if ratio == 0:
        return call(identity if node.single else kept, x)
    if seed is None:
        raise Refused(
            "training_mode without `seed` drops elements at random, so there is no one right answer"
        )
    drawn = np.random.RandomState(seed.as_int()).uniform(0, 1, node.shape(0)) >= ratio
    mask = x.derived(torch.from_numpy(np.asarray(drawn)), "_mask")
    return call(scaled_mask if node.single else scaled_and_mask, x, mask, 1 / (1 - ratio))


def scaled_mask(x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """What the mask leaves, scaled so that the mean stays."""
    return x * mask * scale


def scaled_and_mask(x: torch.Tensor, mask: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the mask leaves, and the mask."""
    return x * mask * scale, mask


def kept(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor and a mask that is true everywhere."""
    return x, torch.ones_like(x, dtype=torch.bool)


def convert(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast; fractions are cut."""
    return x.to(dtype)


def convert_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cast to the dtype of another tensor."""
    return x.to(like.dtype)


def _cast(node: OpNode, dtype: torch.dtype) -> Call:
    saturate = bool(node.integer("saturate", 1))
    if dtype in FLOAT8:
        return call(to_float8, node.input(0), dtype, saturate)
    if dtype == torch.float8_e8m0fnu:
        mode = node.text("round_mode", "up")
        if mode not in ("up", "down", "nearest"):
            raise Refused(f"round_mode `{mode}` is not one of up, down, nearest")
        return call(to_float8e8m0, node.input(0), saturate, mode)
    return call(convert, node.input(0), dtype)


def _cast_to_carried(node: OpNode, kind: ir.DataType) -> Call:
    return Call(to_narrow, (node.input(0), kind), kind=kind)


@operator("Cast", 6, any_type=True)
def cast(node: OpNode) -> Call:
    """Change the element type."""
    kind = ir.DataType(node.integer("to", 0))
    return _cast_to_carried(node, kind) if kind in CARRIED else _cast(node, torch_dtype(kind))


@operator("CastLike", 15, any_type=True)
def cast_like(node: OpNode) -> Call:
    """Change the element type to that of the second input."""
    like = node.input(1)
    if like.kind is not None:
        return _cast_to_carried(node, like.kind)
    if like.dtype is None:
        return call(convert_like, node.input(0), like)
    return _cast(node, like.dtype)
