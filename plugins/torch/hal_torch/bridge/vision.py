"""Sampling of images and boxes."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal_torch.bridge.node import Argument, Call, OpNode, Refused, call
from hal_torch.bridge.table import operator

_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "cubic": "bicubic",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


@operator("GridSample", 16)
def grid_sample(node: OpNode) -> Call:
    """Sample an image at given places."""
    mode, padding = node.text("mode", "linear"), node.text("padding_mode", "zeros")
    if mode not in _MODES:
        raise Refused(f"mode `{mode}` is not one of {', '.join(_MODES)}")
    if len(node.shape(0)) == 5 and _MODES[mode] == "bicubic":
        raise Refused("cubic sampling of volumes has no PyTorch function")
    if len(node.shape(0)) not in (4, 5):
        raise Refused(f"sampling of rank {len(node.shape(0))} has no PyTorch function, 4 and 5 have")
    corners = bool(node.integer("align_corners", 0))
    return call(functional.grid_sample, node.input(0), node.input(1), _MODES[mode], padding, corners)


@operator("AffineGrid", 20)
def affine_grid(node: OpNode) -> Call:
    """Places of an affine transformation."""
    size = node.const_ints(1, "size")
    if size is None:
        raise Refused("size is missing")
    return call(
        functional.affine_grid, node.input(0), size, align_corners=bool(node.integer("align_corners", 0))
    )


def max_unpool(
    x: torch.Tensor, places: torch.Tensor, sizes: tuple[int, ...], given: tuple[int, ...] | None
) -> torch.Tensor:
    """Values back at the places that a MaxPool took them from.

    Args:
        x: Pooled values.
        places: int64 places in the flattened tensor of shape `sizes`.
        sizes: Shape that the places refer to.
        given: Shape of the result when it is larger; the values stay at their coordinates.
    """
    flat = torch.zeros(sizes, dtype=x.dtype, device=x.device).reshape(-1)
    y = flat.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(sizes)
    if given is None or tuple(given) == tuple(sizes):
        return y
    return functional.pad(
        y, [p for n, s in zip(reversed(given), reversed(sizes), strict=True) for p in (0, n - s)]
    )


@operator("MaxUnpool", 9)
def max_unpool_node(node: OpNode) -> Call:
    """Inverse of MaxPool."""
    kernel = node.integers("kernel_shape") or ()
    n_dims = len(kernel)
    stride, pads = node.integers("strides") or (1,) * n_dims, node.integers("pads") or (0,) * (2 * n_dims)
    shape = node.shape(0)
    spatial = tuple(
        (shape[2 + i] - 1) * stride[i] + kernel[i] - pads[i] - pads[n_dims + i] for i in range(n_dims)
    )
    return call(
        max_unpool, node.input(0), node.input(1), (*shape[:2], *spatial), node.const_ints(2, "output_shape")
    )


def corners_of(boxes: torch.Tensor, centered: bool) -> tuple[torch.Tensor, ...]:
    """Least and greatest coordinates of boxes, whichever corner comes first."""
    a, b, c, d = boxes.unbind(-1)
    if centered:
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return torch.minimum(a, c), torch.minimum(b, d), torch.maximum(a, c), torch.maximum(b, d)


def overlap(boxes: torch.Tensor, centered: bool) -> torch.Tensor:
    """float32[boxes, boxes], intersection over union."""
    x1, y1, x2, y2 = corners_of(boxes, centered)
    area = (x2 - x1) * (y2 - y1)
    width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
    height = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
    shared = width.clamp(min=0) * height.clamp(min=0)
    union = area[:, None] + area - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(shared))


def non_max_suppression(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    limit: int | torch.Tensor | None,
    iou: float | torch.Tensor | None,
    least: float | torch.Tensor | None,
    centered: bool,
) -> torch.Tensor:
    """int64[selected, 3], batch, class and box of what is kept, best first within a class."""
    n_limit = 0 if limit is None else int(limit)
    threshold = 0.0 if iou is None else float(iou)
    floor = None if least is None else float(least)
    chosen: list[list[int]] = []
    for batch in range(boxes.shape[0]):
        shared = overlap(boxes[batch], centered) > threshold
        for label in range(scores.shape[1]):
            score = scores[batch, label]
            alive = torch.ones_like(score, dtype=torch.bool) if floor is None else score > floor
            kept = 0
            for box in torch.sort(score, descending=True, stable=True).indices.tolist():
                if kept >= n_limit:
                    break
                if bool(alive[box]):
                    chosen.append([batch, label, box])
                    alive = alive & ~shared[box]
                    kept += 1
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


@operator("NonMaxSuppression", 10)
def non_max_suppression_node(node: OpNode) -> Call:
    """Greedy suppression of boxes that overlap better ones."""
    return call(
        non_max_suppression,
        node.input(0),
        node.input(1),
        *(_number(node, i) for i in (2, 3, 4)),
        bool(node.integer("center_point_box", 0)),
    )


def _number(node: OpNode, index: int) -> Argument:
    operand = node.optional(index)
    return operand.const.reshape(()).item() if operand is not None and operand.const is not None else operand


def samples(
    start: torch.Tensor, length: torch.Tensor, n_bins: int, n_samples: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where an axis is sampled, moved into the image, and whether that was inside; bin after bin."""
    count = n_samples if n_samples > 0 else max(int(torch.ceil(length / n_bins)), 1)
    step = torch.arange(n_bins * count, dtype=start.dtype, device=start.device)
    place = start + (step + 0.5) * (length / n_bins) / count
    return place.clamp(0, size - 1), (place >= -1) & (place <= size)


def bin_weights(
    start: torch.Tensor, length: torch.Tensor, n_bins: int, n_samples: int, size: int
) -> torch.Tensor:
    """float32[bins, size], mean weight of each place of an axis in each bin of a region.

    Source: ONNX reference implementation of RoiAlign; its four corners are a product of two axes.
    """
    place, inside = samples(start, length, n_bins, n_samples, size)
    grid = torch.arange(size, dtype=start.dtype, device=start.device)
    weight = (1 - (place.unsqueeze(1) - grid).abs()).clamp(min=0) * inside.unsqueeze(1)
    return weight.reshape(n_bins, -1, size).mean(1)


def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch: torch.Tensor,
    size: tuple[int, int],
    n_samples: int,
    scale: float,
    offset: float,
) -> torch.Tensor:
    """float32[rois, channels, height, width], mean of samples in the bins of each region."""
    pooled = []
    for roi, index in zip(rois * scale - offset, batch, strict=True):
        left, top, right, bottom = roi.unbind()
        width, height = right - left, bottom - top
        if offset == 0:
            width, height = width.clamp(min=1), height.clamp(min=1)
        rows = bin_weights(top, height, size[0], n_samples, x.shape[2])
        columns = bin_weights(left, width, size[1], n_samples, x.shape[3])
        image = x.index_select(0, index.reshape(1))[0].to(rows.dtype)
        pooled.append(rows @ image @ columns.t())
    return torch.stack(pooled).to(x.dtype) if pooled else x.new_zeros(0, x.shape[1], *size)


def corner_weights(
    start: torch.Tensor, length: torch.Tensor, n_bins: int, n_samples: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two places of an axis that each sample of each bin lies between, and their weights.

    Returns:
        int64[bins, samples, 2] and float32[bins, samples, 2]; weights are 0 outside the image.
    """
    place, inside = samples(start, length, n_bins, n_samples, size)
    low = place.floor().to(torch.int64)
    high = (low + 1).clamp(max=size - 1)
    far = place - low
    weights = torch.stack((1 - far, far), -1) * inside.unsqueeze(-1)
    return torch.stack((low, high), -1).reshape(n_bins, -1, 2), weights.reshape(n_bins, -1, 2)


def roi_max(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch: torch.Tensor,
    size: tuple[int, int],
    n_samples: int,
    scale: float,
    offset: float,
) -> torch.Tensor:
    """float32[rois, channels, height, width], largest weighted corner of all samples in each bin.

    Source: ONNX reference implementation of RoiAlign, which takes the corners of a sample one by one.
    """
    pooled = []
    for roi, index in zip(rois * scale - offset, batch, strict=True):
        left, top, right, bottom = roi.unbind()
        width, height = right - left, bottom - top
        if offset == 0:
            width, height = width.clamp(min=1), height.clamp(min=1)
        rows, by_row = corner_weights(top, height, size[0], n_samples, x.shape[2])
        columns, by_column = corner_weights(left, width, size[1], n_samples, x.shape[3])
        image = x.index_select(0, index.reshape(1))[0].to(by_row.dtype)
        read = image[:, rows.reshape(-1)][:, :, columns.reshape(-1)]
        weighted = read * by_row.reshape(-1, 1) * by_column.reshape(-1)
        pooled.append(weighted.reshape(x.shape[1], size[0], -1, size[1], columns[0].numel()).amax((2, 4)))
    return torch.stack(pooled).to(x.dtype) if pooled else x.new_zeros(0, x.shape[1], *size)


@operator("RoiAlign", 10)
def roi_align_node(node: OpNode) -> Call:
    """Pooling of regions."""
    mode = node.text("mode", "avg")
    if mode not in ("avg", "max"):
        raise Refused(f"mode `{mode}` is not one of avg, max")
    pixel = node.text("coordinate_transformation_mode", "half_pixel")
    offset = 0.5 if node.version >= 16 and pixel == "half_pixel" else 0.0
    size = (node.integer("output_height", 1), node.integer("output_width", 1))
    operands = (node.input(0), node.input(1), node.input(2))
    options = (node.integer("sampling_ratio", 0), node.number("spatial_scale", 1.0), offset)
    return call(roi_align if mode == "avg" else roi_max, *operands, size, *options)
