"""Convolution that reads at learned places."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal_torch.bridge.conv import kernel_of
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator

Moves = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Padding at the beginning, strides, dilations."""


def deform_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    moves: Moves,
    groups: int,
    offset_groups: int,
) -> torch.Tensor:
    """Two-dimensional convolution whose windows read beside their regular places, linearly interpolated.

    Args:
        x: float[batch, channels, height, width].
        w: float[out, channels / groups, rows, columns].
        offset: float[batch, offset_groups * rows * columns * 2, out height, out width], in pixels.
        bias: float[out].
        mask: Factors of what is read, like offset without the 2; None for 1.
        moves: Padding, strides and dilations.
        groups: Groups of channels.
        offset_groups: Groups of channels that share offsets.

    Source: ONNX specification of DeformConv.
    """
    pads, stride, dilation = moves
    n, channels, height, width = x.shape
    rows, columns = w.shape[2:]
    out_h, out_w = offset.shape[2:]
    shift = offset.reshape(n * offset_groups, rows, columns, 2, out_h, out_w)

    def regular(axis: int, n_out: int, n_kernel: int) -> torch.Tensor:
        out = torch.arange(n_out, device=x.device) * stride[axis] - pads[axis]
        kernel = torch.arange(n_kernel, device=x.device) * dilation[axis]
        return (kernel.unsqueeze(1) + out).to(x.dtype)  # [kernel, out]

    y = shift[:, :, :, 0] + regular(0, out_h, rows).reshape(rows, 1, out_h, 1)
    across = shift[:, :, :, 1] + regular(1, out_w, columns).reshape(1, columns, 1, out_w)
    # In units of half the image from its middle, where the borders of the outer pixels are -1 and 1.
    grid = torch.stack(((2 * across + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    image = x.reshape(n * offset_groups, channels // offset_groups, height, width)
    read = functional.grid_sample(
        image, grid.reshape(n * offset_groups, rows * columns * out_h, out_w, 2), align_corners=False
    ).reshape(n, offset_groups, channels // offset_groups, rows * columns, out_h * out_w)
    if mask is not None:
        read = read * mask.reshape(n, offset_groups, 1, rows * columns, out_h * out_w)
    windows = read.reshape(n, groups, -1, out_h * out_w)
    result = (w.reshape(groups, w.shape[0] // groups, -1) @ windows).reshape(n, w.shape[0], out_h, out_w)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


@operator("DeformConv", 19)
def deform_conv_node(node: OpNode) -> Call:
    """Convolution that reads at learned places."""
    kernel = kernel_of(node, 1)
    if len(kernel) != 2:
        raise Refused(f"a deformable convolution over {len(kernel)} dimensions is not translated, over 2 is")
    moves = (
        (node.integers("pads") or (0, 0, 0, 0))[:2],
        node.integers("strides") or (1, 1),
        node.integers("dilations") or (1, 1),
    )
    operands = (node.input(0), node.input(1), node.input(2), node.optional(3), node.optional(4))
    return call(deform_conv, *operands, moves, node.integer("group", 1), node.integer("offset_group", 1))
