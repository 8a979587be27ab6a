"""Convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from hal_torch.bridge.node import Call, Operand, OpNode, Refused, call
from hal_torch.bridge.table import operator

CONV: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
"""Convolution by number of spatial dimensions."""

CONV_TRANSPOSE: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
"""Transposed convolution by number of spatial dimensions."""


def pads_of(
    node: OpNode,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial dimension, from `pads` or `auto_pad`.

    Args:
        node: The node.
        sizes: Spatial sizes of the input; read only for auto_pad SAME_UPPER and SAME_LOWER.
        kernel: Kernel sizes.
        strides: Strides.
        dilations: Dilations.
    """
    n_dims = len(kernel)
    mode = node.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.integers("pads") or (0,) * (2 * n_dims)
        return list(pads[:n_dims]), list(pads[n_dims:])
    if mode == "VALID":
        return [0] * n_dims, [0] * n_dims
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Refused(f"auto_pad `{mode}` is not one of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        n_out = -(-size // stride)
        total = max((n_out - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin, end


def spatial(node: OpNode) -> tuple[int, ...]:
    """Spatial sizes of the first input, empty when auto_pad does not need them."""
    return node.shape(0)[2:] if node.text("auto_pad", "NOTSET").startswith("SAME") else ()


def torch_pads(begin: Sequence[int], end: Sequence[int]) -> tuple[int, ...]:
    """Padding in the order of functional.pad: last dimension first."""
    return tuple(p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair)


def kernel_of(node: OpNode, weight_index: int = 1) -> tuple[int, ...]:
    """Kernel sizes, from the attribute or the weight's shape."""
    kernel = node.integers("kernel_shape")
    return node.shape(weight_index)[2:] if kernel is None else kernel


def padded_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pads: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> torch.Tensor:
    """Convolution with padding that differs between the two ends."""
    return CONV[len(stride)](functional.pad(x, pads), weight, bias, stride, 0, dilation, groups)


def weight_of(operand: Operand) -> Operand:
    """Mark a constant as a weight that lower_weights may cast."""
    if operand.const is None:
        return operand
    return operand.derived(operand.const, lower=True)


@operator("Conv")
def conv(node: OpNode) -> Call:
    """Convolution in one to three dimensions."""
    kernel = kernel_of(node)
    n_dims = len(kernel)
    if n_dims not in CONV:
        raise Refused(f"a convolution over {n_dims} dimensions has no PyTorch function, 1 to 3 have")
    stride, dilation = node.integers("strides") or (1,) * n_dims, node.integers("dilations") or (1,) * n_dims
    begin, end = pads_of(node, spatial(node), kernel, stride, dilation)
    bias = node.optional(2)
    operands = (node.input(0), weight_of(node.input(1)), None if bias is None else weight_of(bias))
    groups = node.integer("group", 1)
    if begin == end:
        return call(CONV[n_dims], *operands, stride, tuple(begin), dilation, groups)
    return call(padded_conv, *operands, torch_pads(begin, end), stride, dilation, groups)


def cropped_conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, ...],
    groups: int,
    dilation: tuple[int, ...],
    crop: tuple[int, ...],
) -> torch.Tensor:
    """Transposed convolution without padding, then cut (or, with negative cuts, extended) at each end."""
    y = CONV_TRANSPOSE[len(stride)](x, weight, None, stride, 0, 0, groups, dilation)
    y = functional.pad(y, tuple(-c for c in crop))
    return y if bias is None else y + bias.reshape(-1, *([1] * len(stride)))


@operator("ConvTranspose")
def conv_transpose(node: OpNode) -> Call:
    """Transposed convolution in one to three dimensions."""
    kernel = kernel_of(node)
    n_dims = len(kernel)
    if n_dims not in CONV_TRANSPOSE:
        raise Refused(
            f"a transposed convolution over {n_dims} dimensions has no PyTorch function, 1 to 3 have"
        )
    stride, dilation = node.integers("strides") or (1,) * n_dims, node.integers("dilations") or (1,) * n_dims
    extra = node.integers("output_padding") or (0,) * n_dims
    groups = node.integer("group", 1)
    bias = node.optional(2)
    operands = (node.input(0), weight_of(node.input(1)), None if bias is None else weight_of(bias))
    begin, end = _transposed_pads(node, kernel, stride, dilation, extra)
    plain = begin == end and all(p >= 0 for p in begin)
    # PyTorch wants the extra output smaller than stride or dilation.
    if plain and all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return call(CONV_TRANSPOSE[n_dims], *operands, stride, tuple(begin), extra, groups, dilation)
    crop = torch_pads(begin, [e - x for e, x in zip(end, extra, strict=True)])
    return call(cropped_conv_transpose, *operands, stride, groups, dilation, crop)


def _transposed_pads(
    node: OpNode, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What to cut at each end. Source: the formulas in the ONNX specification of ConvTranspose."""
    n_dims = len(kernel)
    wanted = node.integers("output_shape")
    mode = node.text("auto_pad", "NOTSET")
    if wanted is None and mode in ("NOTSET", "", "VALID"):
        pads = node.integers("pads") or (0,) * (2 * n_dims)
        return list(pads[:n_dims]), list(pads[n_dims:])
    sizes = node.shape(0)[2:]
    begin, end = [], []
    for i in range(n_dims):
        full = stride[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1
        out = sizes[i] * stride[i] if wanted is None else wanted[len(wanted) - n_dims + i]
        total = full - out
        # Runtimes agree on a longer output only where it is what output_padding could ask for.
        if wanted is not None and mode != "SAME_UPPER" and -stride[i] < total < 0:
            begin.append(0)
            end.append(total)
            continue
        if total < 0:
            raise Refused(
                f"output of {out} where the windows reach {full} is read differently by different runtimes"
            )
        if mode == "SAME_UPPER":
            small = math.floor(total / 2)
            begin.append(small)
            end.append(total - small)
        else:
            small = math.floor(total / 2)
            begin.append(total - small)
            end.append(small)
    return begin, end


def fold_2d(
    x: torch.Tensor,
    image: tuple[int, ...],
    block: tuple[int, ...],
    pads: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> torch.Tensor:
    """Sum overlapping columns into an image."""
    return functional.fold(x, image, block, dilation, pads, stride)


def fold(
    x: torch.Tensor,
    image: tuple[int, ...],
    block: tuple[int, ...],
    pads: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> torch.Tensor:
    """Like fold_2d over any number of dimensions, with padding that may differ between the ends."""
    places = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    inside = torch.ones(1, 1, dtype=torch.bool, device=x.device)
    # One axis after the other: the place of each element of a block at each step, in the flattened image.
    for axis, size in enumerate(image):
        reach = dilation[axis] * (block[axis] - 1) + 1
        n_steps = (size + pads[axis] + pads[len(image) + axis] - reach) // stride[axis] + 1
        steps = torch.arange(n_steps, device=x.device) * stride[axis] - pads[axis]
        at = torch.arange(block[axis], device=x.device).unsqueeze(1) * dilation[axis] + steps
        fits = (at >= 0) & (at < size)
        places = (places[:, None, :, None] * size + at[None, :, None]).flatten(2, 3).flatten(0, 1)
        inside = (inside[:, None, :, None] & fits[None, :, None]).flatten(2, 3).flatten(0, 1)
    columns = x.reshape(x.shape[0], -1, places.shape[0], places.shape[1]) * inside
    flat = x.new_zeros(*columns.shape[:2], math.prod(image))
    where = torch.where(inside, places, 0).reshape(-1)
    return flat.index_add(2, where, columns.flatten(2)).reshape(*columns.shape[:2], *image)


@operator("Col2Im", 18)
def col_to_im(node: OpNode) -> Call:
    """Columns to an image."""
    image, block = node.const_ints(1, "image_shape"), node.const_ints(2, "block_shape")
    if image is None or block is None:
        raise Refused("image_shape or block_shape is missing")
    n_dims = len(image)
    pads = node.integers("pads") or (0,) * (2 * n_dims)
    stride, dilation = node.integers("strides") or (1,) * n_dims, node.integers("dilations") or (1,) * n_dims
    if n_dims != 2 or pads[:2] != pads[2:]:
        return call(fold, node.input(0), image, block, pads, stride, dilation)
    return call(fold_2d, node.input(0), image, block, pads[:2], stride, dilation)
