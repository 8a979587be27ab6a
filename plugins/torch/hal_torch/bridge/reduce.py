"""Reductions and running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import add

Axes = tuple[int, ...]


def reduce_sum(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Sum in the input's type."""
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def reduce_mean(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Mean."""
    return torch.mean(x, axes, keepdim=keep)


def reduce_max(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Largest element; of nothing it is the least value of the type."""
    if x.numel() == 0:
        return _of_nothing(x, axes, keep, -1)
    return torch.amax(x, axes, keepdim=keep)


def reduce_min(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Smallest element; of nothing it is the greatest value of the type."""
    if x.numel() == 0:
        return _of_nothing(x, axes, keep, 1)
    return torch.amin(x, axes, keepdim=keep)


def _of_nothing(x: torch.Tensor, axes: Axes, keep: bool, sign: int) -> torch.Tensor:
    if x.dtype.is_floating_point:
        value: float = sign * float("inf")
    elif x.dtype == torch.bool:
        value = sign > 0
    else:
        info = torch.iinfo(x.dtype)
        value = info.max if sign > 0 else info.min
    return torch.full_like(torch.sum(x, axes, keepdim=keep), value, dtype=x.dtype)


def reduce_prod(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Product in the input's type."""
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def reduce_l1(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Sum of absolute values."""
    return reduce_sum(torch.abs(x), axes, keep)


def reduce_l2(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Root of the sum of squares."""
    return torch.sqrt(reduce_sum(x * x, axes, keep)).to(x.dtype)


def reduce_log_sum(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Logarithm of the sum."""
    return torch.log(reduce_sum(x, axes, keep)).to(x.dtype)


def reduce_log_sum_exp(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Logarithm of the sum of exponentials, without overflow."""
    return torch.logsumexp(x, axes, keepdim=keep).to(x.dtype)


def reduce_sum_square(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Sum of squares."""
    return reduce_sum(x * x, axes, keep)


_REDUCE: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
    "ReduceSum": (reduce_sum, 13),
    "ReduceMean": (reduce_mean, 18),
    "ReduceMax": (reduce_max, 18),
    "ReduceMin": (reduce_min, 18),
    "ReduceProd": (reduce_prod, 18),
    "ReduceL1": (reduce_l1, 18),
    "ReduceL2": (reduce_l2, 18),
    "ReduceLogSum": (reduce_log_sum, 18),
    "ReduceLogSumExp": (reduce_log_sum_exp, 18),
    "ReduceSumSquare": (reduce_sum_square, 18),
}
"""The function, and the operator set from which on the axes are an input."""


def over_all(x: torch.Tensor, name: str, keep: bool) -> torch.Tensor:
    """Reduce all dimensions; a scalar counts as one element."""
    function = _REDUCE[name][0]
    if x.dim() == 0:
        return function(x.reshape(1), (0,), False)
    return function(x, tuple(range(x.dim())), keep)


def _reduction(name: str, function: Callable[..., torch.Tensor], since: int) -> Callable[[OpNode], Call]:
    def translate(node: OpNode) -> Call:
        x, keep = node.input(0), bool(node.integer("keepdims", 1))
        axes = node.integers("axes") if node.version < since else node.const_ints(1, "axes")
        if name == "ReduceMean" and x.dtype is not None and not x.dtype.is_floating_point:
            raise Refused(f"the mean of {x.dtype} is not defined the same way everywhere")
        if axes:
            return call(function, x, axes, keep)
        if node.integer("noop_with_empty_axes", 0):
            # Without axes nothing is summed, but squares, logarithms and absolute values are taken.
            return call(each_alone, x, name)
        return call(over_all, x, name, keep)

    return translate


def each_alone(x: torch.Tensor, name: str) -> torch.Tensor:
    """Reduce over nothing: each element is its own group."""
    return _REDUCE[name][0](x.unsqueeze(-1), (-1,), False)


for _name, (_function, _since) in _REDUCE.items():
    add(_name, 1, _reduction(_name, _function, _since))


def arg_max(x: torch.Tensor, axis: int, keep: bool, last: bool) -> torch.Tensor:
    """int64 place of the first, or last, largest element."""
    if last:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=keep)
    return torch.argmax(x, axis, keepdim=keep)


def arg_min(x: torch.Tensor, axis: int, keep: bool, last: bool) -> torch.Tensor:
    """int64 place of the first, or last, smallest element."""
    if last:
        return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, keepdim=keep)
    return torch.argmin(x, axis, keepdim=keep)


def _arg(function: Callable[..., torch.Tensor]) -> Callable[[OpNode], Call]:
    def translate(node: OpNode) -> Call:
        keep, last = bool(node.integer("keepdims", 1)), bool(node.integer("select_last_index", 0))
        return call(function, node.input(0), node.integer("axis", 0), keep, last)

    return translate


add("ArgMax", 1, _arg(arg_max))
add("ArgMin", 1, _arg(arg_min))


def running_sum(x: torch.Tensor, axis: int, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Cumulative sum, without the element itself when exclusive, from the end when reverse."""
    y = torch.flip(x, (axis,)) if reverse else x
    total = torch.cumsum(y, axis, dtype=x.dtype)
    if exclusive:
        total = _shifted(total, axis, 0)
    return torch.flip(total, (axis,)) if reverse else total


def running_product(x: torch.Tensor, axis: int, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Cumulative product, with the options of running_sum."""
    y = torch.flip(x, (axis,)) if reverse else x
    total = torch.cumprod(y, axis, dtype=x.dtype)
    if exclusive:
        total = _shifted(total, axis, 1)
    return torch.flip(total, (axis,)) if reverse else total


def _shifted(x: torch.Tensor, axis: int, first: int) -> torch.Tensor:
    """One place later along an axis, starting with a value."""
    head = torch.full_like(x.narrow(axis, 0, 1), first)
    return torch.cat((head, x.narrow(axis, 0, x.shape[axis] - 1)), axis)


def _running(function: Callable[..., torch.Tensor]) -> Callable[[OpNode], Call]:
    def translate(node: OpNode) -> Call:
        axis = node.const_ints(1, "axis")
        if axis is None:
            raise Refused("axis is missing")
        exclusive, reverse = bool(node.integer("exclusive", 0)), bool(node.integer("reverse", 0))
        return call(function, node.input(0), axis[0], exclusive, reverse)

    return translate


add("CumSum", 11, _running(running_sum))
add("CumProd", 26, _running(running_product))
