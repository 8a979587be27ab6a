"""Normalisations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator


def batch_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Normalise each channel with stored statistics."""
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


@operator("BatchNormalization", 7)
def batch_norm_node(node: OpNode) -> Call:
    """Batch normalisation with stored statistics."""
    if node.int("training_mode", 0) or (node.version < 14 and len(node.node.outputs) > 1):
        raise Refused("training_mode updates statistics, only inference is translated")
    if node.version < 9 and not node.int("spatial", 1):
        raise Refused("attribute `spatial` 0 (statistics per element) is not translated")
    operands = [node.input(i) for i in range(5)]
    return call(batch_norm, *operands, node.float("epsilon", 1e-5))


@operator("InstanceNormalization", 6)
def instance_norm(node: OpNode) -> Call:
    """Normalise each channel of each sample."""
    epsilon = node.float("epsilon", 1e-5)
    x, scale, bias = (node.input(i) for i in range(3))
    return call(F.instance_norm, x, weight=scale, bias=bias, eps=epsilon)


def layer_norm_with_stats(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, axis: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer normalisation with the mean and the inverse standard deviation."""
    dims = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(dims, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(dims, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def layer_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, axis: int, epsilon: float
) -> torch.Tensor:
    """Layer normalisation over the dimensions from `axis` on."""
    shape = x.shape[axis % x.dim() :]
    scale = scale.expand(shape)
    return F.layer_norm(x, shape, scale, None if bias is None else bias.expand(shape), epsilon)


@operator("LayerNormalization", 17)
def layer_norm_node(node: OpNode) -> Call:
    """Layer normalisation."""
    function = layer_norm if node.single else layer_norm_with_stats
    operands = (node.input(0), node.input(1), node.optional(2))
    return call(function, *operands, node.int("axis", -1), node.float("epsilon", 1e-5))


def rms_norm(x: torch.Tensor, scale: torch.Tensor, axis: int, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale over the dimensions from `axis` on."""
    shape = x.shape[axis % x.dim() :]
    return F.rms_norm(x, shape, scale.expand(shape), epsilon)


@operator("RMSNormalization", 23)
def rms_norm_node(node: OpNode) -> Call:
    """Root mean square normalisation."""
    return call(rms_norm, node.input(0), node.input(1), node.int("axis", -1), node.float("epsilon", 1e-5))


@operator("GroupNormalization", 21)
def group_norm(node: OpNode) -> Call:
    """Normalise groups of channels; scale and bias per channel."""
    x, scale, bias = (node.input(i) for i in range(3))
    return call(F.group_norm, x, node.int("num_groups", 1), scale, bias, node.float("epsilon", 1e-5))


def group_norm_scaled_by_group(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, n_groups: int, epsilon: float
) -> torch.Tensor:
    """Group normalisation with one scale and bias per group."""
    y = F.group_norm(x, n_groups, None, None, epsilon)
    grouped = y.reshape(x.shape[0], n_groups, -1)
    return (grouped * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)


@operator("GroupNormalization", 18)
def group_norm_18(node: OpNode) -> Call:
    """Normalise groups of channels; scale and bias per group."""
    operands = [node.input(i) for i in range(3)]
    n_groups = node.int("num_groups", 1)
    return call(group_norm_scaled_by_group, *operands, n_groups, node.float("epsilon", 1e-5))


def lrn(x: torch.Tensor, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """Divide by the energy of neighbouring channels. Source: ONNX specification of LRN.

    F.local_response_norm differs for even sizes, where ONNX looks further ahead than back.
    """
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    square = F.pad(x * x, (0, 0) * (x.dim() - 2) + (before, after))
    n, c = square.shape[:2]
    flat = square.reshape(n, 1, c, -1)
    energy = F.avg_pool2d(flat, (size, 1), stride=1).reshape(x.shape)
    return x / (energy * alpha + bias).pow(beta)


@operator("LRN")
def lrn_node(node: OpNode) -> Call:
    """Local response normalisation."""
    size = node.int("size", 0)
    if size < 1:
        raise Refused("attribute `size` is missing")
    parameters = (node.float("alpha", 1e-4), node.float("beta", 0.75), node.float("bias", 1.0))
    return call(lrn, node.input(0), size, *parameters)


def lp_norm(x: torch.Tensor, axis: int, p: int) -> torch.Tensor:
    """Divide by the Lp norm along an axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("LpNormalization")
def lp_norm_node(node: OpNode) -> Call:
    """Normalise to length one."""
    return call(lp_norm, node.input(0), node.int("axis", -1), node.int("p", 2))


def mean_variance_norm(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """(x - mean) / (standard deviation + 1e-9). Source: ONNX function body."""
    mean = x.mean(axes, keepdim=True)
    variance = (x * x).mean(axes, keepdim=True) - mean * mean
    return (x - mean) / (variance.sqrt() + 1e-9)


@operator("MeanVarianceNormalization", 9)
def mean_variance_norm_node(node: OpNode) -> Call:
    """Mean and variance normalisation."""
    return call(mean_variance_norm, node.input(0), node.ints("axes") or (0, 2, 3))


