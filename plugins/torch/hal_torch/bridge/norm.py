"""Normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator


def matched(x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Parameters all of the input's dtype, or else all float32: the kernels take no other mixture.

    Under autocast some of them may have been computed in a narrower dtype.
    """
    if all(parameter.dtype == x.dtype for parameter in parameters):
        return parameters
    return tuple(parameter.to(torch.float32) for parameter in parameters)


def batch_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Normalise each channel with stored statistics."""
    scale, bias, mean, var = matched(x, scale, bias, mean, var)
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def batch_norm_training(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise each channel with its own statistics; also the running ones, moved towards them."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = x.to(mean.dtype)
    own_var, own_mean = torch.var_mean(wide, axes, correction=0)
    y = batch_norm(x, scale, bias, own_mean, own_var, epsilon)
    return y, mean * momentum + own_mean * (1 - momentum), var * momentum + own_var * (1 - momentum)


def batch_norm_training_alone(*args: Any) -> torch.Tensor:
    """The first output of batch_norm_training."""
    return batch_norm_training(*args)[0]


@operator("BatchNormalization", 14)
def batch_norm_14(node: OpNode) -> Call:
    """Batch normalisation with stored statistics, or in training mode with its own."""
    operands, epsilon = [node.input(i) for i in range(5)], node.number("epsilon", 1e-5)
    if not node.integer("training_mode", 0):
        return call(batch_norm, *operands, epsilon)
    function = batch_norm_training_alone if node.single else batch_norm_training
    return call(function, *operands, epsilon, node.number("momentum", 0.9))


@operator("BatchNormalization", 7)
def batch_norm_node(node: OpNode) -> Call:
    """Batch normalisation with stored statistics."""
    if node.version < 14 and len(node.node.outputs) > 1:
        raise Refused("several outputs mean training, translated from operator set 14 on")
    if node.version < 9 and not node.integer("spatial", 1):
        raise Refused("attribute `spatial` 0 (statistics per element) is not translated")
    operands = [node.input(i) for i in range(5)]
    return call(batch_norm, *operands, node.number("epsilon", 1e-5))


def instance_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalise each channel of each sample."""
    scale, bias = matched(x, scale, bias)
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("InstanceNormalization", 6)
def instance_norm_node(node: OpNode) -> Call:
    """Normalise each channel of each sample."""
    return call(instance_norm, *(node.input(i) for i in range(3)), node.number("epsilon", 1e-5))


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
    return functional.layer_norm(x, shape, scale, None if bias is None else bias.expand(shape), epsilon)


@operator("LayerNormalization", 17)
def layer_norm_node(node: OpNode) -> Call:
    """Layer normalisation."""
    function = layer_norm if node.single else layer_norm_with_stats
    operands = (node.input(0), node.input(1), node.optional(2))
    return call(function, *operands, node.integer("axis", -1), node.number("epsilon", 1e-5))


def rms_norm(x: torch.Tensor, scale: torch.Tensor, axis: int, epsilon: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the dimensions from `axis` on."""
    shape = x.shape[axis % x.dim() :]
    return functional.rms_norm(x, shape, scale.expand(shape), epsilon)


@operator("RMSNormalization", 23)
def rms_norm_node(node: OpNode) -> Call:
    """Root mean square normalisation."""
    return call(
        rms_norm, node.input(0), node.input(1), node.integer("axis", -1), node.number("epsilon", 1e-5)
    )


def group_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, n_groups: int, epsilon: float
) -> torch.Tensor:
    """Group normalisation with one scale and bias per channel."""
    scale, bias = matched(x, scale, bias)
    return functional.group_norm(x, n_groups, scale, bias, epsilon)


@operator("GroupNormalization", 21)
def group_norm_node(node: OpNode) -> Call:
    """Normalise groups of channels; scale and bias per channel."""
    operands = [node.input(i) for i in range(3)]
    return call(group_norm, *operands, node.integer("num_groups", 1), node.number("epsilon", 1e-5))


def group_norm_scaled_by_group(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, n_groups: int, epsilon: float
) -> torch.Tensor:
    """Group normalisation with one scale and bias per group."""
    y = functional.group_norm(x, n_groups, None, None, epsilon)
    grouped = y.reshape(x.shape[0], n_groups, -1)
    return (grouped * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)


@operator("GroupNormalization", 18)
def group_norm_18(node: OpNode) -> Call:
    """Normalise groups of channels; scale and bias per group."""
    operands = [node.input(i) for i in range(3)]
    n_groups = node.integer("num_groups", 1)
    return call(group_norm_scaled_by_group, *operands, n_groups, node.number("epsilon", 1e-5))


@operator("LRN")
def lrn_node(node: OpNode) -> Call:
    """Local response normalisation."""
    size = node.integer("size", 0)
    if size < 1:
        raise Refused("attribute `size` is missing")
    if size % 2 == 0:
        raise Refused(
            f"an even size ({size}) is centred differently by the specification and by its reference"
        )
    parameters = (node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0))
    return call(functional.local_response_norm, node.input(0), size, *parameters)


def lp_norm(x: torch.Tensor, axis: int, p: int) -> torch.Tensor:
    """Divide by the Lp norm along an axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("LpNormalization")
def lp_norm_node(node: OpNode) -> Call:
    """Normalise to length one."""
    return call(lp_norm, node.input(0), node.integer("axis", -1), node.integer("p", 2))


def mean_variance_norm(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """(x - mean) / (standard deviation + 1e-9). Source: ONNX function body."""
    mean = x.mean(axes, keepdim=True)
    variance = (x * x).mean(axes, keepdim=True) - mean * mean
    return (x - mean) / (variance.sqrt() + 1e-9)


@operator("MeanVarianceNormalization", 9)
def mean_variance_norm_node(node: OpNode) -> Call:
    """Mean and variance normalisation."""
    return call(mean_variance_norm, node.input(0), node.integers("axes") or (0, 2, 3))
