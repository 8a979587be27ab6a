"""Operators that rearrange values or make them from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch.nn import functional

from hal_torch.bridge.dtypes import to_torch, torch_dtype_of
from hal_torch.bridge.node import Argument, Call, Operand, OpNode, Refused, call
from hal_torch.bridge.table import operator

Ints: TypeAlias = Sequence[int] | torch.Tensor
"""Ints known at bridge time, or a tensor of them that is read at each call."""


def as_ints(values: Ints) -> list[int]:
    """Python ints of either kind."""
    return [int(v) for v in values.reshape(-1).tolist()] if isinstance(values, torch.Tensor) else list(values)


def scalar_int(operand: Operand) -> Argument:
    """A Python int when the operand is known, else the operand."""
    return operand if operand.const is None else int(operand.const.item())


def reshape(x: torch.Tensor, shape: Ints, allow_zero: bool) -> torch.Tensor:
    """Reshape where 0 copies the input's size, unless zeros are allowed to mean zero."""
    sizes = as_ints(shape)
    if not allow_zero:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Reshape", 5, any_type=True)
def reshape_node(node: OpNode) -> Call:
    """Same values, other shape."""
    x, shape = node.input(0), node.ints_or_operand(1)
    allow_zero = bool(node.integer("allowzero", 0))
    if isinstance(shape, tuple) and x.shape is not None and not allow_zero:
        if any(size == 0 and i >= len(x.shape) for i, size in enumerate(shape)):
            raise Refused(f"shape {shape} copies a dimension that the input of shape {x.shape} lacks")
        shape = tuple(x.shape[i] if size == 0 else size for i, size in enumerate(shape))
        return call(torch.reshape, x, shape)
    if isinstance(shape, tuple) and 0 not in shape:
        return call(torch.reshape, x, shape)
    return call(reshape, x, shape, allow_zero)


def flatten(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Matrix of the dimensions before `axis` by those from it on."""
    first = axis if axis >= 0 else axis + x.dim()
    return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))


@operator("Flatten", any_type=True)
def flatten_node(node: OpNode) -> Call:
    """Make a matrix."""
    return call(flatten, node.input(0), node.integer("axis", 1))


def reverse_dims(x: torch.Tensor) -> torch.Tensor:
    """All dimensions in reverse order."""
    return x.permute(*range(x.dim() - 1, -1, -1))


@operator("Transpose", any_type=True)
def transpose(node: OpNode) -> Call:
    """Permute dimensions."""
    perm = node.integers("perm")
    return call(reverse_dims, node.input(0)) if perm is None else call(torch.permute, node.input(0), perm)


def squeeze_ones(x: torch.Tensor) -> torch.Tensor:
    """Drop every dimension of size 1."""
    return x.squeeze()


def _axes(node: OpNode, index: int, since: int) -> tuple[int, ...] | None:
    """Axes from an input, or in operator sets before `since` from an attribute."""
    return node.integers("axes") if node.version < since else node.const_ints(index, "axes")


def squeeze(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Drop dimensions that must have size 1."""
    if any(x.shape[axis] != 1 for axis in axes):
        raise ValueError(f"Squeeze of axes {axes} needs size 1 there, the shape is {tuple(x.shape)}")
    return x.squeeze(axes)


@operator("Squeeze", any_type=True)
def squeeze_node(node: OpNode) -> Call:
    """Drop dimensions of size 1."""
    axes = _axes(node, 1, 13)
    return call(squeeze_ones, node.input(0)) if axes is None else call(squeeze, node.input(0), axes)


def unsqueeze(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Insert dimensions of size 1 at places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Unsqueeze", any_type=True)
def unsqueeze_node(node: OpNode) -> Call:
    """Insert dimensions of size 1."""
    axes = _axes(node, 1, 13)
    if axes is None:
        raise Refused("axes are missing")
    if len(axes) == 1:
        return call(torch.unsqueeze, node.input(0), axes[0])
    return call(unsqueeze, node.input(0), axes)


@operator("Concat", 4, any_type=True)
def concat(node: OpNode) -> Call:
    """Join along an axis."""
    parts = tuple(node.input(i) for i in range(len(node.inputs)))
    return call(torch.cat, parts, node.integer("axis", 0))


def split(x: torch.Tensor, sizes: Ints, axis: int) -> tuple[torch.Tensor, ...]:
    """Parts of given sizes along an axis."""
    return tuple(torch.split(x, as_ints(sizes), axis))


def split_evenly(x: torch.Tensor, n_parts: int, axis: int) -> tuple[torch.Tensor, ...]:
    """Parts of equal size along an axis, the last one smaller when it does not divide."""
    size = -(-x.shape[axis] // n_parts)
    parts = torch.split(x, size, axis)
    if len(parts) != n_parts:
        raise ValueError(f"{x.shape[axis]} elements cannot be split into {n_parts} parts of {size}")
    return tuple(parts)


@operator("Split", 2, any_type=True)
def split_node(node: OpNode) -> Call:
    """Cut along an axis."""
    axis = node.integer("axis", 0)
    n_parts = len(node.node.outputs)
    sizes = node.integers("split") if node.version < 13 else node.ints_or_operand(1)
    if n_parts == 1:
        return call(torch.clone, node.input(0))
    if sizes is None:
        return call(split_evenly, node.input(0), node.integer("num_outputs", n_parts), axis)
    return call(split, node.input(0), sizes, axis)


def slice_along(
    x: torch.Tensor, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None
) -> torch.Tensor:
    """Slice with Python's rules along some axes; steps may be negative."""
    first, last = as_ints(starts), as_ints(ends)
    along = list(range(len(first))) if axes is None else as_ints(axes)
    by = [1] * len(first) if steps is None else as_ints(steps)
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        start, end, step = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            at = axis if axis >= 0 else axis + x.dim()
            x = x[(slice(None),) * at + (slice(start, max(start, end), step),)]
        else:
            index = torch.tensor(list(range(start, end, step)), dtype=torch.int64, device=x.device)
            x = x.index_select(axis, index)
    return x


@operator("Slice", 10, any_type=True)
def slice_node(node: OpNode) -> Call:
    """Slice along some axes."""
    bounds = [node.ints_or_operand(i) for i in range(1, 5)]
    if bounds[0] is None or bounds[1] is None:
        raise Refused("starts or ends are missing")
    return call(slice_along, node.input(0), *bounds)


@operator("Slice", any_type=True)
def slice_1(node: OpNode) -> Call:
    """Slice with bounds given as attributes."""
    return call(
        slice_along,
        node.input(0),
        node.integers("starts") or (),
        node.integers("ends") or (),
        node.integers("axes"),
        None,
    )


def expand(x: torch.Tensor, shape: Ints) -> torch.Tensor:
    """Broadcast with a shape, both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(as_ints(shape))))


@operator("Expand", 8, any_type=True)
def expand_node(node: OpNode) -> Call:
    """Broadcast."""
    return call(expand, node.input(0), node.ints_or_operand(1))


def tile(x: torch.Tensor, repeats: Ints) -> torch.Tensor:
    """Repeat along each dimension."""
    return x.repeat(as_ints(repeats))


@operator("Tile", 6, any_type=True)
def tile_node(node: OpNode) -> Call:
    """Repeat along each dimension."""
    return call(tile, node.input(0), node.ints_or_operand(1))


def shape_of(x: torch.Tensor, start: int, end: int | None) -> torch.Tensor:
    """int64[rank], the shape or a part of it."""
    return torch.tensor(list(x.shape[start:end]), dtype=torch.int64, device=x.device)


@operator("Shape", any_type=True)
def shape_node(node: OpNode) -> Call | torch.Tensor:
    """The shape; a constant when it is static."""
    end = node.attribute("end")
    start, stop = node.integer("start", 0), None if end is None else end.as_int()
    known = node.input(0).shape
    if known is not None:
        return torch.tensor(known[start:stop], dtype=torch.int64)
    return call(shape_of, node.input(0), start, stop)


def size_of(x: torch.Tensor) -> torch.Tensor:
    """int64[], the number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@operator("Size", any_type=True)
def size_node(node: OpNode) -> Call | torch.Tensor:
    """The number of elements; a constant when the shape is static."""
    known = node.input(0).shape
    if known is not None:
        return torch.tensor(math.prod(known), dtype=torch.int64)
    return call(size_of, node.input(0))


@operator("Constant")
def constant(node: OpNode) -> torch.Tensor:
    """The value of an attribute."""
    if (found := node.attribute("value")) is not None:
        return to_torch(found.as_tensor())
    if (found := node.attribute("value_float")) is not None:
        return torch.tensor(found.as_float(), dtype=torch.float32)
    if (found := node.attribute("value_floats")) is not None:
        return torch.tensor(list(found.as_floats()), dtype=torch.float32)
    if (found := node.attribute("value_int")) is not None:
        return torch.tensor(found.as_int(), dtype=torch.int64)
    if (found := node.attribute("value_ints")) is not None:
        return torch.tensor(list(found.as_ints()), dtype=torch.int64)
    raise Refused(f"constants given as {sorted(node.node.attributes)} have no PyTorch tensor")


def filled(shape: Ints, value: float, dtype: torch.dtype) -> torch.Tensor:
    """A tensor with one value everywhere."""
    device = shape.device if isinstance(shape, torch.Tensor) else None
    return torch.full(as_ints(shape), value, dtype=dtype, device=device)


@operator("ConstantOfShape", 9)
def constant_of_shape(node: OpNode) -> Call:
    """A tensor with one value everywhere."""
    found = node.attribute("value")
    value = torch.zeros(1) if found is None else to_torch(found.as_tensor())
    return call(filled, node.input(0), value.item(), value.dtype)


def arange(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Numbers from start up to limit, without it, in the type of start."""
    first, end, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((end - first) / step), 0)
    return (
        torch.arange(count, dtype=torch.float64 if start.is_floating_point() else torch.int64) * step + first
    ).to(dtype=start.dtype, device=start.device)


@operator("Range", 11)
def range_node(node: OpNode) -> Call:
    """An arithmetic sequence."""
    return call(arange, node.input(0), node.input(1), node.input(2))


def eye(rows: int, columns: int, diagonal: int, dtype: torch.dtype) -> torch.Tensor:
    """Ones on a diagonal."""
    return torch.diagonal_scatter(
        torch.zeros(rows, columns, dtype=dtype),
        torch.ones(_diagonal_length(rows, columns, diagonal), dtype=dtype),
        diagonal,
    )


def _diagonal_length(rows: int, columns: int, diagonal: int) -> int:
    return max(min(rows + min(diagonal, 0), columns - max(diagonal, 0)), 0)


@operator("EyeLike", 9)
def eye_like(node: OpNode) -> torch.Tensor:
    """An identity matrix of the input's static shape."""
    rows, columns = node.shape(0)
    found = node.attribute("dtype")
    dtype = node.dtype(0) if found is None else torch_dtype_of(found.as_int())
    return eye(rows, columns, node.integer("k", 0), dtype)


@operator("Trilu", 14)
def trilu(node: OpNode) -> Call:
    """The upper or lower triangle."""
    function = torch.triu if node.integer("upper", 1) else torch.tril
    k = node.const_ints(1, "k") or (0,)
    return call(function, node.input(0), k[0])


def depth_to_space(x: torch.Tensor, block: int, columns_first: bool) -> torch.Tensor:
    """Move channels into blocks of space; `columns_first` is the mode CRD."""
    if columns_first:
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@operator("DepthToSpace")
def depth_to_space_node(node: OpNode) -> Call:
    """Move channels into space."""
    mode = node.text("mode", "DCR")
    return call(depth_to_space, node.input(0), node.integer("blocksize", 1), mode == "CRD")


def space_to_depth(x: torch.Tensor, block: int, columns_first: bool) -> torch.Tensor:
    """Move blocks of space into channels; `columns_first` is the mode CRD."""
    if columns_first:
        return functional.pixel_unshuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


@operator("SpaceToDepth")
def space_to_depth_node(node: OpNode) -> Call:
    """Move space into channels."""
    return call(
        space_to_depth, node.input(0), node.integer("blocksize", 1), node.text("mode", "DCR") == "CRD"
    )
