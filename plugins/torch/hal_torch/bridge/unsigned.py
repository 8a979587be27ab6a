"""Arithmetic on unsigned integers that PyTorch stores but does not compute with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
"""PyTorch stores and converts these, but computes with few of them."""

WRAPPING = frozenset(
    {"Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Equal", "Sum"}
)
"""Operators whose low bits do not depend on the sign, so that int64 stands in for uint64 too."""

ORDERED = frozenset(
    {"Clip", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "TopK", "Unique"}
)
"""Operators that only compare values, so that any type in the same order stands in."""

DIVIDING = frozenset({"Div", "Mod", "BitShift"})
"""Operators that are right in int64 as long as every value fits, else written out here."""

OWN = frozenset({"Pow"})
"""Operators whose translation looks after unsigned values itself."""

_SIGN = -(2**63)


def quotient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """uint64 by uint64 with the instructions for int64.

    Source: H. Warren, Hacker's Delight, second edition, section 9-3, unsigned from signed division.
    """
    left, right = torch.broadcast_tensors(a.view(torch.int64), b.view(torch.int64))
    # A divisor of 2**63 or more goes in once or not at all; 1 only keeps the other way from dividing by it.
    small = torch.where(right < 0, 1, right)
    guess = torch.div((left >> 1) & ~_SIGN, small, rounding_mode="trunc") << 1
    rest = left - guess * small
    exact = guess + ((rest ^ _SIGN) >= (small ^ _SIGN)).to(torch.int64)
    once = ((left ^ _SIGN) >= (right ^ _SIGN)).to(torch.int64)
    return torch.where(right < 0, once, exact).view(torch.uint64)


def remainder(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What is left of uint64 by uint64."""
    return (a.view(torch.int64) - quotient(a, b).view(torch.int64) * b.view(torch.int64)).view(torch.uint64)


def shifted_right(a: torch.Tensor, n_bits: torch.Tensor) -> torch.Tensor:
    """uint64 shifted right, zeros come in; 64 bits or more leave nothing."""
    left, by = torch.broadcast_tensors(a.view(torch.int64), n_bits.to(torch.int64))
    filled = ((left >> 1) & ~_SIGN) >> (by - 1).clamp(0, 63)
    return torch.where(by == 0, left, filled).view(torch.uint64)


_IN_UINT64: dict[Callable[..., object], Callable[..., torch.Tensor]] = {
    torch.div: quotient,
    torch.remainder: remainder,
    torch.fmod: remainder,
    torch.bitwise_right_shift: shifted_right,
}


def computing(op: str, dtype: torch.dtype, function: Callable[..., object]) -> Callable[..., object] | None:
    """A function that computes an operator on a dtype of UNSIGNED, None when there is none.

    Args:
        op: Operator type, of the standard domain.
        dtype: The first one of UNSIGNED among the inputs.
        function: What computes it on signed integers.
    """
    if op in OWN:
        return function
    if dtype == torch.uint64 and op in ORDERED:
        return InOrder(function)
    if dtype == torch.uint64 and function in _IN_UINT64:
        return Plain(_IN_UINT64[function])
    return InInt64(function) if op in WRAPPING | ORDERED | DIVIDING else None


class Plain(torch.nn.Module):
    """A function of tensors alone.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor, **_: object) -> torch.Tensor:
        """The function's result; how it rounds is not asked, unsigned integers round one way."""
        return self.function(*args)


class InInt64(torch.nn.Module):
    """A function computed in int64; what it answers in int64 is cut back to the first input's type.

    Args:
        function: The function of int64 tensors.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: object) -> Any:
        """The function's result."""
        back = args[0].dtype
        result = self.function(*[_widened(arg) for arg in args], **kwargs)
        if isinstance(result, torch.Tensor):
            return result.to(back) if result.dtype == torch.int64 else result
        first, *others = result  # further outputs are places, which stay int64
        return (first.to(back), *others)


class InOrder(torch.nn.Module):
    """A function of uint64 that only compares, computed in int64 of the same order.

    Args:
        function: The function of int64 tensors.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: object) -> Any:
        """The function's result."""
        result = self.function(*[_ordered(arg) for arg in args], **kwargs)
        if isinstance(result, torch.Tensor):
            return _unordered(result) if result.dtype == torch.int64 else result
        first, *others = result
        return (_unordered(first), *others)


def _widened(arg: Any) -> Any:
    if isinstance(arg, tuple | list):
        return type(arg)(_widened(part) for part in arg)
    return arg.to(torch.int64) if isinstance(arg, torch.Tensor) and arg.dtype in UNSIGNED else arg


def _ordered(arg: Any) -> Any:
    if isinstance(arg, torch.Tensor) and arg.dtype == torch.uint64:
        return arg.view(torch.int64) ^ _SIGN
    return arg


def _unordered(result: torch.Tensor) -> torch.Tensor:
    return (result ^ _SIGN).view(torch.uint64)
