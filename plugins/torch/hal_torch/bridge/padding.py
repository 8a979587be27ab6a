"""Padding and cropping."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal_torch.bridge.node import Argument, Call, OpNode, Refused, call
from hal_torch.bridge.shape import Ints, as_ints
from hal_torch.bridge.table import operator


def source_places(size: int, before: int, after: int, mode: str) -> list[int]:
    """For each place along a padded axis, the place it is copied from."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(p, 0), size - 1) for p in places]
    if mode == "wrap":
        return [p % size for p in places]
    if size == 1:
        return [0 for _ in places]
    period = 2 * (size - 1)
    return [min(p % period, period - p % period) for p in places]


def pad_by_copies(x: torch.Tensor, pads: Ints, axes: tuple[int, ...] | None, mode: str) -> torch.Tensor:
    """Pad with copies of elements: modes edge, wrap and reflect."""
    amounts = as_ints(pads)
    along = range(x.dim()) if axes is None else axes
    n_axes = len(amounts) // 2
    for i, axis in enumerate(along):
        before, after = amounts[i], amounts[n_axes + i]
        if before or after:
            places = source_places(x.shape[axis], before, after, mode)
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


def pad_constant(
    x: torch.Tensor, pads: Ints, axes: tuple[int, ...] | None, value: float | torch.Tensor
) -> torch.Tensor:
    """Pad with one value; negative amounts crop."""
    amounts = as_ints(pads)
    n_axes = len(amounts) // 2
    by_axis = [(0, 0)] * x.dim()
    for i, axis in enumerate(range(x.dim()) if axes is None else axes):
        by_axis[axis] = (amounts[i], amounts[n_axes + i])
    flat = [amount for pair in reversed(by_axis) for amount in pair]
    return functional.pad(x, flat, value=value.item() if isinstance(value, torch.Tensor) else value)


def _pad(node: OpNode, pads: Argument, axes: tuple[int, ...] | None, value: Argument) -> Call:
    mode = node.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise Refused(f"mode `{mode}` is not one of constant, reflect, edge, wrap")
    if mode == "constant":
        return call(pad_constant, node.input(0), pads, axes, value)
    known = node.input(0).shape
    if mode != "wrap" and isinstance(pads, tuple) and axes is None and known is not None:
        quick = _last_only(pads, known, mode)
        if quick is not None:
            return call(functional.pad, node.input(0), quick, {"edge": "replicate"}.get(mode, mode))
    return call(pad_by_copies, node.input(0), pads, axes, mode)


def _last_only(pads: tuple[int, ...], shape: tuple[int, ...], mode: str) -> tuple[int, ...] | None:
    """Padding of the last dimension as functional.pad takes it, when that is all and it can do it."""
    rank = len(shape)
    before, after = pads[rank - 1], pads[-1]
    if rank not in (2, 3) or any(pads[: rank - 1]) or any(pads[rank:-1]) or min(before, after) < 0:
        return None
    if mode == "reflect" and max(before, after) >= shape[-1]:
        return None
    return (before, after)


@operator("Pad", 11)
def pad_node(node: OpNode) -> Call:
    """Padding given as inputs."""
    axes = node.const_ints(3, "axes") if node.version >= 18 else None
    fill = node.optional(2)
    value: Argument = 0.0 if fill is None else fill
    if fill is not None and fill.const is not None:
        value = fill.const.item()
    return _pad(node, node.ints_or_operand(1), axes, value)


@operator("Pad", 2)
def pad_2(node: OpNode) -> Call:
    """Padding given as attributes."""
    pads = node.integers("pads")
    if pads is None:
        raise Refused("attribute `pads` is missing")
    return _pad(node, pads, None, node.number("value", 0.0))


def center_crop_pad(x: torch.Tensor, shape: Ints, axes: tuple[int, ...] | None) -> torch.Tensor:
    """Crop or pad around the middle."""
    for axis, wanted in zip(range(x.dim()) if axes is None else axes, as_ints(shape), strict=True):
        size = x.shape[axis]
        if wanted <= size:
            x = x.narrow(axis, (size - wanted) // 2, wanted)
        else:
            before = (wanted - size) // 2
            flat = [0] * (2 * x.dim())
            at = 2 * (x.dim() - 1 - axis % x.dim())
            flat[at], flat[at + 1] = before, wanted - size - before
            x = functional.pad(x, flat)
    return x


@operator("CenterCropPad", 18)
def center_crop_pad_node(node: OpNode) -> Call:
    """Crop or pad around the middle."""
    return call(center_crop_pad, node.input(0), node.ints_or_operand(1), node.integers("axes"))
