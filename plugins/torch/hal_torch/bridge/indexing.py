"""Operators that read or write at places given by indices."""

from __future__ import annotations

import torch

from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.shape import scalar_int
from hal_torch.bridge.table import operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Take slices along an axis; negative indices count from the end."""
    at = axis if axis >= 0 else axis + x.dim()
    # int64 because index tensors of uint8 would be read as masks.
    return x[(slice(None),) * at + (index.to(torch.int64),)]


@operator("Gather", any_type=True)
def gather_node(node: OpNode) -> Call:
    """Take slices along an axis."""
    x, index, axis = node.input(0), node.input(1), node.integer("axis", 0)
    if index.const is not None and index.const.dim() == 0 and x.rank is not None:
        return call(torch.select, x, axis, int(index.const.item()))
    return call(gather, x, index, axis)


def wrapped(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices counted from the end made positive."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def gather_elements(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Take elements along an axis."""
    return torch.gather(x, axis, wrapped(index, x.shape[axis]))


@operator("GatherElements", 11)
def gather_elements_node(node: OpNode) -> Call:
    """Take elements along an axis."""
    return call(gather_elements, node.input(0), node.input(1), node.integer("axis", 0))


def gather_nd(x: torch.Tensor, index: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """Take slices at index tuples."""
    places = tuple(index.to(torch.int64).unbind(-1))
    if batch_dims == 0:
        return x[places]
    batch = []
    for dim in range(batch_dims):
        view = [1] * (index.dim() - 1)
        view[dim] = -1
        batch.append(torch.arange(x.shape[dim], device=x.device).view(view))
    return x[(*batch, *places)]


@operator("GatherND", 11)
def gather_nd_node(node: OpNode) -> Call:
    """Take slices at index tuples."""
    return call(gather_nd, node.input(0), node.input(1), node.integer("batch_dims", 0))


def same_type(x: torch.Tensor, updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the wider dtype: under autocast they may differ, and scatters do not promote."""
    if x.dtype == updates.dtype:
        return x, updates
    wide = torch.promote_types(x.dtype, updates.dtype)
    return x.to(wide), updates.to(wide)


def scatter_elements(
    x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, axis: int, reduction: str
) -> torch.Tensor:
    """Write elements along an axis, over the old ones or reduced with them."""
    x, updates = same_type(x, updates)
    index = wrapped(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[reduction])


@operator("Scatter", 9)
@operator("ScatterElements", 11)
def scatter_elements_node(node: OpNode) -> Call:
    """Write elements along an axis."""
    operands = (node.input(0), node.input(1), node.input(2))
    return call(scatter_elements, *operands, node.integer("axis", 0), _reduction(node))


def _reduction(node: OpNode) -> str:
    reduction = node.text("reduction", "none")
    if reduction != "none" and reduction not in _REDUCE:
        raise Refused(f"reduction `{reduction}` is not one of none, {', '.join(_REDUCE)}")
    return reduction


def scatter_nd(x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, reduction: str) -> torch.Tensor:
    """Write slices at index tuples, over the old ones or reduced with them."""
    x, updates = same_type(x, updates)
    depth = index.shape[-1]
    index = index.to(torch.int64)
    if reduction == "none":
        return x.index_put(tuple(index.unbind(-1)), updates)
    lead, rest = x.shape[:depth], x.shape[depth:]
    flat_index = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
    for dim in range(depth):
        flat_index = flat_index * lead[dim] + wrapped(index[..., dim], lead[dim])
    flat = x.reshape(-1, *rest)
    source = updates.reshape(-1, *rest)
    place = flat_index.reshape(-1, *([1] * len(rest))).expand(source.shape)
    return flat.scatter_reduce(0, place, source, _REDUCE[reduction]).reshape(x.shape)


@operator("ScatterND", 11)
def scatter_nd_node(node: OpNode) -> Call:
    """Write slices at index tuples."""
    return call(scatter_nd, node.input(0), node.input(1), node.input(2), _reduction(node))


def non_zero(x: torch.Tensor) -> torch.Tensor:
    """int64[rank, count], the places that are not zero."""
    return torch.nonzero(x).t()


@operator("NonZero", 9)
def non_zero_node(node: OpNode) -> Call:
    """Places that are not zero."""
    return call(non_zero, node.input(0))


def one_hot(index: torch.Tensor, depth: int | torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """The second value at the index along a new axis, else the first; out of range is nowhere."""
    size = int(depth)
    at = axis if axis >= 0 else axis + index.dim() + 1
    # trunc: indices may be floats.
    place = wrapped(index.to(torch.int64), size).unsqueeze(at)
    view = [1] * place.dim()
    view[at] = size
    hit = place == torch.arange(size, device=index.device).view(view)
    return torch.where(hit, values[1], values[0])


@operator("OneHot", 9)
def one_hot_node(node: OpNode) -> Call:
    """One hot encoding."""
    return call(one_hot, node.input(0), scalar_int(node.input(1)), node.input(2), node.integer("axis", -1))


def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Slices where a condition holds, which may be shorter than the axis."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@operator("Compress", 9)
def compress_node(node: OpNode) -> Call:
    """Slices where a condition holds."""
    axis = node.attribute("axis")
    return call(compress, node.input(0), node.input(1), None if axis is None else axis.as_int())


def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, time: int, batch: int) -> torch.Tensor:
    """Reverse the first `lengths` steps of each batch entry."""
    moved = x.movedim((batch, time), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)
    limit = lengths.to(torch.int64).unsqueeze(1)
    order = torch.where(steps < limit, limit - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    return moved[rows, order].movedim((0, 1), (batch, time))


@operator("ReverseSequence", 10)
def reverse_sequence_node(node: OpNode) -> Call:
    """Reverse part of each sequence."""
    time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)
    return call(reverse_sequence, node.input(0), node.input(1), time, batch)


def largest(
    x: torch.Tensor, k: int | torch.Tensor, axis: int, descending: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k first of a stable sort: of equal elements the one with the lower index comes first."""
    values, index = torch.sort(x, dim=axis, descending=descending, stable=True)
    count = int(k)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


@operator("TopK")
def top_k(node: OpNode) -> Call:
    """The largest or smallest elements with their places, sorted."""
    k = node.integer("k", 0) if node.version < 10 else scalar_int(node.input(1))
    if node.single:
        raise Refused("a TopK with one output is not translated")
    return call(largest, node.input(0), k, node.integer("axis", -1), bool(node.integer("largest", 1)))


def unique(x: torch.Tensor, axis: int | None, ascending: bool, n_outputs: int) -> tuple[torch.Tensor, ...]:
    """Distinct elements or slices, their first places, the place of each in them, and counts."""
    found, inverse, counts = torch.unique(x, True, True, True, dim=axis)
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.zeros_like(counts).scatter_reduce(0, inverse, places, "amin", include_self=False)
    if not ascending:
        order = torch.argsort(first)
        found = found.index_select(axis or 0, order)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=x.device))
        first, inverse, counts = first[order], rank[inverse], counts[order]
    return (found, first, inverse, counts)[:n_outputs]


def only_unique(x: torch.Tensor, axis: int | None, ascending: bool) -> torch.Tensor:
    """Distinct elements or slices."""
    return unique(x, axis, ascending, 1)[0]


@operator("Unique", 11)
def unique_node(node: OpNode) -> Call:
    """Distinct elements or slices."""
    axis, ascending = node.attribute("axis"), bool(node.integer("sorted", 1))
    along = None if axis is None else axis.as_int()
    if node.single:
        return call(only_unique, node.input(0), along, ascending)
    return call(unique, node.input(0), along, ascending, len(node.node.outputs))


def tensor_scatter(
    past: torch.Tensor, update: torch.Tensor, starts: torch.Tensor | None, axis: int, circular: bool
) -> torch.Tensor:
    """Write an update into a cache, for each sample of the batch from its own place on."""
    past, update = same_type(past, update)
    at = axis % past.dim()
    steps = torch.arange(update.shape[at], device=past.device)
    places = steps.unsqueeze(0) + (0 if starts is None else starts.reshape(-1, 1))
    if circular:
        places = places % past.shape[at]
    view = [1] * past.dim()
    view[0], view[at] = places.shape
    return past.scatter(at, places.reshape(view).expand(update.shape), update)


@operator("TensorScatter", 24)
def tensor_scatter_node(node: OpNode) -> Call:
    """Update of a key-value cache."""
    mode = node.text("mode", "linear")
    if mode not in ("linear", "circular"):
        raise Refused(f"mode `{mode}` is not one of linear, circular")
    operands = (node.input(0), node.input(1), node.optional(2))
    return call(tensor_scatter, *operands, node.integer("axis", -2), mode == "circular")
