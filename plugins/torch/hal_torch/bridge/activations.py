"""Activation functions and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from hal_torch.bridge.node import Call, OpNode, call
from hal_torch.bridge.table import add, operator

SIMPLE: dict[str, Callable[..., torch.Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Softsign": functional.softsign,
}
"""Activations without parameters."""


def _simple(function: Callable[..., torch.Tensor]) -> Callable[[OpNode], Call]:
    return lambda node: call(function, node.input(0))


for _name, _function in SIMPLE.items():
    add(_name, 1, _simple(_function))


@operator("LeakyRelu")
def leaky_relu(node: OpNode) -> Call:
    """x, or alpha * x below zero."""
    return call(functional.leaky_relu, node.input(0), node.number("alpha", 0.01))


@operator("Elu")
def elu(node: OpNode) -> Call:
    """x, or alpha * (exp(x) - 1) below zero."""
    return call(functional.elu, node.input(0), node.number("alpha", 1.0))


@operator("Celu", 12)
def celu(node: OpNode) -> Call:
    """Continuously differentiable ELU."""
    return call(functional.celu, node.input(0), node.number("alpha", 1.0))


def scaled_elu(x: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """`gamma * ELU(x, alpha)`."""
    return gamma * functional.elu(x, alpha)


@operator("Selu")
def selu(node: OpNode) -> Call:
    """Scaled ELU; the defaults are those of the ONNX operator."""
    alpha = node.number("alpha", 1.67326319217681884765625)
    gamma = node.number("gamma", 1.05070102214813232421875)
    return call(scaled_elu, node.input(0), alpha, gamma)


def linear_clamp(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """`alpha * x + beta`, limited to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("HardSigmoid")
def hard_sigmoid(node: OpNode) -> Call:
    """Piecewise linear sigmoid; one fused call for the slope 1/6 that PyTorch knows."""
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    # 1e-6: the slope is stored as float32, so 1/6 comes back with an error of 1e-8.
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call(functional.hardsigmoid, node.input(0))
    return call(linear_clamp, node.input(0), alpha, beta)


@operator("Softplus")
def softplus(node: OpNode) -> Call:
    """log(1 + exp(x)); linear above 20, where float32 cannot tell the difference."""
    if node.input(0).dtype == torch.float64:
        return call(functional.softplus, node.input(0), 1, 50)
    return call(functional.softplus, node.input(0))


def zero_up_to(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Keep x where it is above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator("ThresholdedRelu", 10)
def thresholded_relu(node: OpNode) -> Call:
    """Keep x where it is above alpha, else 0."""
    return call(zero_up_to, node.input(0), node.number("alpha", 1.0))


def slope_below_zero(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """x, or slope * x below zero; the slope broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


@operator("PRelu", 7)
def prelu(node: OpNode) -> Call:
    """Leaky ReLU with learned slopes, one call when there is one per channel."""
    x, slope = node.input(0), node.input(1)
    const, shape = slope.const, x.shape
    if const is not None and shape is not None and len(shape) >= 2:
        per_channel = (shape[1],) + (1,) * (len(shape) - 2)
        if const.numel() == 1 or tuple(const.shape) == per_channel:
            return call(functional.prelu, x, slope.derived(const.reshape(-1)))
    return call(slope_below_zero, x, slope)


@operator("Gelu", 20)
def gelu(node: OpNode) -> Call:
    """Gaussian error linear unit, exact or by tanh."""
    return call(functional.gelu, node.input(0), approximate=node.text("approximate", "none"))


def silu_with(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """`x * sigmoid(alpha * x)`."""
    return x * torch.sigmoid(alpha * x)


@operator("Swish", 24)
def swish(node: OpNode) -> Call:
    """`x * sigmoid(alpha * x)`."""
    alpha = node.number("alpha", 1.0)
    return call(functional.silu, node.input(0)) if alpha == 1.0 else call(silu_with, node.input(0), alpha)


def gated(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """`a * sigmoid(alpha * a) * b`."""
    return (functional.silu(a) if alpha == 1.0 else silu_with(a, alpha)) * b


@operator("SwiGLU", 28)
def swiglu(node: OpNode) -> Call:
    """`a * sigmoid(alpha * a) * b`."""
    return call(gated, node.input(0), node.input(1), node.number("alpha", 1.0))


def shrunk(x: torch.Tensor, lambd: float, bias: float) -> torch.Tensor:
    """Move x towards zero by bias where it is beyond lambd, else 0."""
    moved = torch.where(x < -lambd, x + bias, torch.zeros_like(x))
    return torch.where(x > lambd, x - bias, moved)


@operator("Shrink", 9)
def shrink(node: OpNode) -> Call:
    """Shrinkage, soft or hard."""
    return call(shrunk, node.input(0), node.number("lambd", 0.5), node.number("bias", 0.0))


def one_hot_of_largest(x: torch.Tensor, dim: int) -> torch.Tensor:
    """1 at the first largest element along a dimension, else 0."""
    index = torch.argmax(x, dim, keepdim=True)
    return torch.zeros_like(x).scatter(dim, index, torch.ones_like(x))


SOFTMAX: dict[str, Callable[..., torch.Tensor]] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": one_hot_of_largest,
}
"""Functions along one dimension that sum to one."""


def over_rest(x: torch.Tensor, name: str, axis: int) -> torch.Tensor:
    """Apply a function of SOFTMAX over all dimensions from `axis` on, as operator sets before 13 say."""
    first = axis if axis >= 0 else axis + x.dim()
    flat = x.reshape(*x.shape[:first], -1)
    return SOFTMAX[name](flat, -1).reshape(x.shape)


def _along_axis(function: Callable[..., torch.Tensor]) -> Callable[[OpNode], Call]:
    return lambda node: call(function, node.input(0), node.integer("axis", -1))


def _over_rest(name: str) -> Callable[[OpNode], Call]:
    def translate(node: OpNode) -> Call:
        axis = node.integer("axis", 1)
        rank = node.input(0).rank
        if rank is not None and axis % rank == rank - 1:
            return call(SOFTMAX[name], node.input(0), -1)
        return call(over_rest, node.input(0), name, axis)

    return translate


for _name, _function in SOFTMAX.items():
    add(_name, 13, _along_axis(_function))
    add(_name, 1, _over_rest(_name))
