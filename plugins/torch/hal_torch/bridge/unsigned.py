"""Arithmetic on unsigned integers that PyTorch stores but does not compute with."""

from __future__ import annotations

from collections.abc import Callable

import torch

UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
"""PyTorch stores and converts these, but computes with few of them."""

WRAPPING = frozenset({"Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Equal"})
"""Operators whose low bits do not depend on the sign, so that int64 stands in for uint64 too."""

ORDERED = frozenset(
    {"Div", "Mod", "Max", "Min", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "BitShift"}
)
"""Operators that are right in int64 as long as every value fits: for uint16 and uint32."""


def computes_in_int64(op: str, dtype: torch.dtype) -> bool:
    """Whether an operator on a dtype of UNSIGNED can be computed in int64 and cut back."""
    return op in WRAPPING or (op in ORDERED and dtype != torch.uint64)


class InInt64(torch.nn.Module):
    """A function computed in int64; its result is cut back to the unsigned type, booleans stay.

    Args:
        function: The function of int64 tensors.
        dtype: The unsigned type.
    """

    def __init__(self, function: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.function = function
        self.dtype = dtype

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The function's result."""
        wide = [arg.to(torch.int64) if isinstance(arg, torch.Tensor) else arg for arg in args]
        result = self.function(*wide, **kwargs)
        return result if result.dtype == torch.bool else result.to(self.dtype)
