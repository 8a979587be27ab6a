"""Resize and Upsample: per axis a table of places and weights, or PyTorch's interpolate where it agrees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How Resize maps places, as its attributes say. Source: ONNX specification of Resize."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@dataclass(frozen=True)
class Taps:
    """For each place of a resized axis the places it reads.

    Attributes:
        places: int64[out, taps].
        weights: float64[out, taps]; all 1 with a single tap.
        outside: bool[out], where the extrapolation value stands instead.
    """

    places: npt.NDArray[np.int64]
    weights: Floats
    outside: npt.NDArray[np.bool_]


def source_coordinates(rule: Rule, n_in: int, n_out: int, scale: float, roi: tuple[float, float]) -> Floats:
    """float64[out], where each place of the output lies in the input."""
    x = np.arange(n_out, dtype=np.float64)
    match rule.coordinates:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            # Keeps the centre although n_out is rounded.
            adjustment = n_out / (scale * n_in)
            return n_in / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if n_out > 1 else np.zeros(1)
        case "align_corners":
            # With scales the length is not rounded. Source: ONNX reference implementation.
            length = n_in * scale
            return x * (n_in - 1) / (length - 1) if length != 1 else np.zeros(n_out)
        case "asymmetric":
            return x / scale
        case "tf_half_pixel_for_nn":
            return (x + 0.5) / scale
        case "tf_crop_and_resize":
            start, end = roi
            if n_out > 1:
                return start * (n_in - 1) + x * (end - start) * (n_in - 1) / (n_out - 1)
            return np.full(n_out, 0.5 * (start + end) * (n_in - 1))
        case other:
            raise Refused(f"coordinate_transformation_mode `{other}` is not translated")


_ROUNDING: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def triangle(x: Floats) -> Floats:
    """Weights of linear interpolation by distance."""
    return np.maximum(1 - np.abs(x), 0.0)


def cubic(x: Floats, a: float) -> Floats:
    """Weights of cubic convolution by distance. Source: Keys 1981, as the ONNX specification cites it."""
    d = np.abs(x)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def taps(rule: Rule, n_in: int, n_out: int, scale: float, roi: tuple[float, float]) -> Taps:
    """The table for one axis."""
    x = source_coordinates(rule, n_in, n_out, scale, roi)
    outside = np.zeros(n_out, dtype=np.bool_)
    if rule.coordinates == "tf_crop_and_resize":
        outside = (x < 0) | (x > n_in - 1)
    if rule.mode == "nearest":
        if rule.nearest not in _ROUNDING:
            raise Refused(f"nearest_mode `{rule.nearest}` is not one of {', '.join(_ROUNDING)}")
        places = np.clip(_ROUNDING[rule.nearest](x), 0, n_in - 1).astype(np.int64)[:, None]
        return Taps(places, np.ones((n_out, 1)), outside)
    radius = 1 if rule.mode == "linear" else 2
    shrink = min(scale, 1.0) if rule.antialias else 1.0
    reach = math.ceil(radius / shrink)
    places = np.floor(x)[:, None] + np.arange(1 - reach, reach + 1)
    distance = (places - x[:, None]) * shrink
    weights = triangle(distance) if rule.mode == "linear" else cubic(distance, rule.cubic_a)
    if rule.exclude_outside:
        weights = np.where((places < 0) | (places > n_in - 1), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return Taps(np.clip(places, 0, n_in - 1).astype(np.int64), weights, outside)


def resized(
    x: torch.Tensor,
    axes: tuple[int, ...],
    places: tuple[torch.Tensor, ...],
    weights: tuple[torch.Tensor, ...],
    outside: torch.Tensor | None,
    extrapolation: float,
) -> torch.Tensor:
    """Resize axis after axis: choose places, or add weighted ones."""
    dtype = x.dtype
    for axis, place, weight in zip(axes, places, weights, strict=True):
        if place.shape[1] == 1:
            x = x.index_select(axis, place[:, 0])
            continue
        view = [1] * x.dim()
        view[axis] = -1
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        x = torch.zeros(())
        for k in range(place.shape[1]):
            part = wide.index_select(axis, place[:, k]) * weight[:, k].reshape(view)
            x = part if k == 0 else x + part
    if outside is not None:
        x = torch.where(outside, torch.full((), extrapolation, dtype=x.dtype), x)
    if not dtype.is_floating_point and x.dtype.is_floating_point:
        info = torch.iinfo(dtype)
        x = torch.clamp(torch.round(x), info.min, info.max)
    return x.to(dtype)


@dataclass(frozen=True)
class Axis:
    """One axis that changes: its number, sizes and table."""

    axis: int
    n_in: int
    n_out: int
    table: Taps


def _interpolate_mode(rule: Rule, rank: int, changed: list[Axis]) -> tuple[str, bool | None] | None:
    """Mode and align_corners with which functional.interpolate gives the same answers, tried on numbers."""
    first_spatial = min(item.axis for item in changed)
    if (
        rank not in (3, 4, 5)
        or first_spatial < 2
        or rule.antialias
        or rule.coordinates == "tf_crop_and_resize"
    ):
        return None
    names = {
        "nearest": ["nearest", "nearest-exact"],
        "linear": [{3: "linear", 4: "bilinear", 5: "trilinear"}[rank]],
        "cubic": ["bicubic"] if rank == 4 else [],
    }[rule.mode]
    corners = [None] if rule.mode == "nearest" else [False, True]
    for name in names:
        for corner in corners:
            if all(_agrees(item, rule.mode, name, corner) for item in changed):
                return name, corner
    return None


def _agrees(item: Axis, mode: str, name: str, corner: bool | None) -> bool:
    """Whether functional.interpolate along one axis reads the same places with the same weights.

    Tried on two vectors of random numbers, which another table would not map to the same result.
    """
    probe = np.random.default_rng(0).standard_normal((2, item.n_in))
    expected = (probe[:, item.table.places] * item.table.weights).sum(axis=-1)
    x = torch.from_numpy(probe.astype(np.float32))
    if mode == "cubic":
        y = functional.interpolate(x[:, None, None], (1, item.n_out), mode=name, align_corners=corner)
    elif mode == "linear":
        y = functional.interpolate(x[:, None], item.n_out, mode="linear", align_corners=corner)
    else:
        y = functional.interpolate(x[:, None], item.n_out, mode=name)
    # 1e-4: float32 coordinates are off by 1e-7 of up to 1000 places; a wrong place is off by about 1.
    return bool(np.abs(y.reshape(2, -1).numpy() - expected).max() < 1e-4)


def resize_like(node: OpNode, rule: Rule, scales: list[float], sizes: list[int], roi: list[float]) -> Call:
    """The call for full lists of scales, output sizes and regions (starts, then ends)."""
    x, shape = node.input(0), node.shape(0)
    rank = len(shape)
    changed = []
    for axis in range(rank):
        region = (roi[axis], roi[rank + axis])
        cropped = rule.coordinates == "tf_crop_and_resize" and region != (0.0, 1.0)
        if sizes[axis] == shape[axis] and scales[axis] == 1.0 and not cropped:
            continue
        if cropped and abs(shape[axis] * scales[axis] - sizes[axis]) > 1e-3:
            raise Refused(
                f"scale {scales[axis]} of {shape[axis]} places gives no whole number of them, which "
                "tf_crop_and_resize of different runtimes reads differently; give sizes instead"
            )
        if shape[axis] == 0 or sizes[axis] == 0:
            raise Refused(f"resizing shape {shape} to {tuple(sizes)} has nothing to read or to write")
        table = taps(rule, shape[axis], sizes[axis], scales[axis], region)
        changed.append(Axis(axis, shape[axis], sizes[axis], table))
    if not changed:
        return call(torch.clone, x)
    if node.dtype(0) == torch.float32:
        found = _interpolate_mode(rule, rank, changed)
        if found is not None:
            name, corner = found
            options = {} if corner is None else {"align_corners": corner}
            return call(functional.interpolate, x, tuple(sizes[2:]), mode=name, **options)
    places = tuple(x.derived(torch.from_numpy(item.table.places), "_places") for item in changed)
    weights = tuple(
        x.derived(torch.from_numpy(item.table.weights).to(torch.float32), "_weights") for item in changed
    )
    outside = None
    if any(item.table.outside.any() for item in changed):
        mask = torch.zeros([1] * rank, dtype=torch.bool)
        for item in changed:
            view = [1] * rank
            view[item.axis] = -1
            mask = mask | torch.from_numpy(item.table.outside).reshape(view)
        outside = x.derived(mask, "_outside")
    axes = tuple(item.axis for item in changed)
    return call(resized, x, axes, places, weights, outside, rule.extrapolation)


@operator("Resize", 11)
def resize(node: OpNode) -> Call:
    """Resize along any axes."""
    mode = node.text("mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise Refused(f"mode `{mode}` is not one of nearest, linear, cubic")
    rule = Rule(
        mode,
        node.text("coordinate_transformation_mode", "half_pixel"),
        node.text("nearest_mode", "round_prefer_floor"),
        node.number("cubic_coeff_a", -0.75),
        bool(node.integer("exclude_outside", 0)),
        bool(node.integer("antialias", 0)),
        node.number("extrapolation_value", 0.0),
    )
    shape = node.shape(0)
    rank = len(shape)
    axes = [axis % rank for axis in node.integers("axes") or range(rank)]
    given_scales, given_sizes = node.const(2, "scales"), node.const_ints(3, "sizes")
    scales, sizes = [1.0] * rank, list(shape)
    if given_sizes:
        wanted = _kept_aspect(node, [shape[axis] for axis in axes], list(given_sizes))
        for axis, (size, scale) in zip(axes, wanted, strict=True):
            sizes[axis], scales[axis] = size, scale
    elif given_scales is not None and given_scales.numel():
        for axis, scale in zip(axes, given_scales.tolist(), strict=True):
            sizes[axis], scales[axis] = math.floor(shape[axis] * scale), scale
    else:
        raise Refused("neither scales nor sizes are given")
    roi = [0.0] * rank + [1.0] * rank
    if rule.coordinates == "tf_crop_and_resize":
        region = node.const(1, "roi")
        values = [] if region is None else region.tolist()
        for i, axis in enumerate(axes if values else []):
            roi[axis], roi[rank + axis] = values[i], values[len(axes) + i]
    return resize_like(node, rule, scales, sizes, roi)


def _kept_aspect(node: OpNode, old: list[int], new: list[int]) -> list[tuple[int, float]]:
    """Size and scale per axis under keep_aspect_ratio_policy."""
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    ratios = [n / o if o else 1.0 for n, o in zip(new, old, strict=True)]
    if policy == "stretch":
        return list(zip(new, ratios, strict=True))
    if policy not in ("not_larger", "not_smaller"):
        raise Refused(f"keep_aspect_ratio_policy `{policy}` is not one of stretch, not_larger, not_smaller")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(math.floor(scale * o + 0.5), scale) for o in old]


@operator("Resize", 10)
@operator("Upsample", 7)
def upsample(node: OpNode) -> Call:
    """Resize by scales, asymmetric and rounding down."""
    mode = node.text("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise Refused(f"mode `{mode}` is not one of nearest, linear")
    shape = node.shape(0)
    if node.op == "Upsample" and node.version < 9:
        scales = list(node.numbers("scales") or ())
    else:
        given = node.const(1, "scales")
        scales = [] if given is None else given.tolist()
    if len(scales) != len(shape):
        raise Refused(f"{len(scales)} scales do not fit an input of shape {shape}")
    rule = Rule(mode, "asymmetric", "floor", -0.75, False, False, 0.0)
    sizes = [math.floor(size * scale) for size, scale in zip(shape, scales, strict=True)]
    rank = len(shape)
    return resize_like(node, rule, scales, sizes, [0.0] * rank + [1.0] * rank)
