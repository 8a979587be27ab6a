"""Matrix products."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal_torch.bridge.node import Call, Operand, OpNode, Refused, call
from hal_torch.bridge.table import operator


def _transposed(weight: Operand, const: torch.Tensor) -> Operand:
    """A constant matrix as functional.linear wants it; copied unless someone else reads it too."""
    turned = const.t()
    return weight.derived(turned if weight.n_uses > 1 else turned.contiguous(), lower=True)


@operator("MatMul")
def matmul(node: OpNode) -> Call:
    """Matrix product; a linear layer when the right side is a constant matrix."""
    left, right = node.input(0), node.input(1)
    if right.const is not None and right.const.dim() == 2 and right.const.dtype.is_floating_point:
        return call(functional.linear, left, _transposed(right, right.const))
    return call(torch.matmul, left, right)


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None,
    alpha: float,
    beta: float,
    turn_a: bool,
    turn_b: bool,
) -> torch.Tensor:
    """`alpha * a @ b + beta * c`."""
    product = torch.matmul(a.t() if turn_a else a, b.t() if turn_b else b)
    if alpha != 1:
        product = product * alpha
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else c * beta)


@operator("Gemm", 7)
def gemm_node(node: OpNode) -> Call:
    """General matrix product; a linear layer when it is one."""
    a, b, c = node.input(0), node.input(1), node.optional(2)
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    turn_a, turn_b = bool(node.integer("transA", 0)), bool(node.integer("transB", 0))
    if b.const is not None and b.const.dtype.is_floating_point and not turn_a and alpha == 1.0:
        weight = b.derived(b.const, lower=True) if turn_b else _transposed(b, b.const)
        n_out = (b.const.shape[0] if turn_b else b.const.shape[1],)
        if c is None or beta == 0:
            return call(functional.linear, a, weight)
        if c.const is not None and beta == 1.0 and _is_bias(c.const, n_out[0]):
            return call(functional.linear, a, weight, c.derived(c.const.reshape(n_out), lower=True))
    return call(gemm, a, b, c, alpha, beta, turn_a, turn_b)


def _is_bias(const: torch.Tensor, n_out: int) -> bool:
    """Whether a constant adds one number per output feature."""
    return const.numel() == n_out and const.dim() >= 1 and const.shape[-1] == n_out


@operator("Einsum", 12)
def einsum(node: OpNode) -> Call:
    """Einstein summation."""
    equation = node.text("equation", "")
    if not equation:
        raise Refused("attribute `equation` is missing")
    operands = [node.input(i) for i in range(len(node.inputs))]
    return call(torch.einsum, equation.replace(" ", ""), *operands)


def det(x: torch.Tensor) -> torch.Tensor:
    """Determinant; in float32 at least, which is what PyTorch's solver has."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.det(x.to(wide)).to(x.dtype)


@operator("Det", 11)
def det_node(node: OpNode) -> Call:
    """Determinant."""
    return call(det, node.input(0))
