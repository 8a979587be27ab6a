"""Matrix products and convolutions: a multiply-add counts as two.

Source of the counts, unless said otherwise: the definitions in ONNX's operator reference, each product with
its addition counted once per element of the result and of the summed axes, as ``torch.utils.flop_counter``
does. Additions of a bias are counted on top.
"""

from __future__ import annotations

import math

from hal.graph.flops.elementwise import SIGMOID
from hal.graph.flops.node import MICROSOFT, OpNode, UnknownCount, enter

#: Scale, round, add a zero point, saturate at both ends.
#: Source: ONNX operator reference, QLinearConv and QLinearMatMul.
REQUANTIZE = 1 + 1 + 1 + 2


def matrix_product(node: OpNode, a: int = 0, b: int = 1) -> int:
    """2 K for each element of the output; K is the last size of input ``a``, whatever ``b`` broadcasts."""
    depth = node.shape(a)[-1]
    node.shape(b)
    return 2 * node.out_size() * depth


@enter(["MatMul", "MatMulInteger"])
def _matmul(node: OpNode) -> int:
    return matrix_product(node)


@enter("QLinearMatMul")
def _qlinear_matmul(node: OpNode) -> int:
    return matrix_product(node, 0, 3) + REQUANTIZE * node.out_size()


@enter("Gemm")
@enter("FusedGemm", MICROSOFT)
def _gemm(node: OpNode) -> int:
    """Sum of alpha A B and beta C; factors of one cost nothing."""
    a = node.shape(0)
    depth = a[0] if node.integer("transA", 0) else a[1]
    each = 2 * depth + (1 if node.number("alpha", 1.0) != 1 else 0)
    if node.has(2):
        each += 1 + (1 if node.number("beta", 1.0) != 1 else 0)
    return each * node.out_size()


def convolution(node: OpNode, weights: int = 1) -> int:
    """2 * (channels / groups) * kernel for each element of the output: weights are [M, C/g, kernel...]."""
    return 2 * node.out_size() * math.prod(node.shape(weights)[1:])


@enter("Conv")
@enter("FusedConv", MICROSOFT)
def _conv(node: OpNode) -> int:
    return convolution(node) + (node.out_size() if node.has(2) else 0)


@enter("ConvInteger")
def _conv_integer(node: OpNode) -> int:
    return convolution(node)


@enter("QLinearConv")
def _qlinear_conv(node: OpNode) -> int:
    return convolution(node, 3) + (REQUANTIZE + (1 if node.has(8) else 0)) * node.out_size()


@enter("ConvTranspose")
def _conv_transpose(node: OpNode) -> int:
    """Each element of the input meets its whole kernel: weights are [C, M/g, kernel...]."""
    products = 2 * node.size(0) * math.prod(node.shape(1)[1:])
    return products + (node.out_size() if node.has(2) else 0)


@enter("CausalConvWithState")
def _causal_conv(node: OpNode) -> int:
    """One kernel per channel; sigmoid and product where the activation is SiLU."""
    each = 2 * node.shape(1)[-1] + (1 if node.has(2) else 0)
    if node.text("activation", "none") != "none":
        each += SIGMOID + 1
    return each * node.out_size()


@enter("DeformConv")
def _deform_conv(node: OpNode) -> int:
    """A convolution whose inputs are sampled: three linear interpolations of 3 for each, and the mask.

    Source: ONNX operator reference, DeformConv: bilinear interpolation at every tap of every output.
    """
    batch, channels = node.shape(0)[:2]
    taps = math.prod(node.shape(1)[2:]) * math.prod(node.out()[2:])
    sampled = batch * channels * taps * (9 + (1 if node.has(4) else 0))
    return convolution(node) + sampled + (node.out_size() if node.has(3) else 0)


@enter("Einsum")
def _einsum(node: OpNode) -> int:
    """All operands multiplied in one pass over all indices, and added up where an index is summed.

    Source: opt_einsum's ``flop_count``; a runtime that contracts more than two operands in pairs does less.
    """
    equation = node.text("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = node.shape(index)
        head, dots, tail = term.partition("...")
        n_dots = len(shape) - len(head) - len(tail)
        if n_dots < 0 or (n_dots and not dots):
            raise UnknownCount(f"equation {equation!r}")
        # Broadcast axes line up at their end.
        labels = [*head, *(f"...{n}" for n in range(n_dots, 0, -1)), *tail]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    if arrow:
        kept = {*right.replace("...", "")} | {label for label in sizes if label.startswith("...")}
    else:
        kept = {label for label in sizes if len(label) > 1 or left.count(label) == 1}
    summed = any(label not in kept for label in sizes)
    return math.prod(sizes.values()) * (len(terms) - 1 + int(summed))


@enter("Det")
def _determinant(node: OpNode) -> int:
    """2/3 n^3 for each matrix. Source: Golub and Van Loan, Matrix Computations, LU factorisation."""
    *batch, n, _ = node.shape(0)
    return math.prod(batch) * 2 * n**3 // 3


@enter("AffineGrid")
def _affine_grid(node: OpNode) -> int:
    """A product of theta and [x, y, (z,) 1] for each point. Source: ONNX operator reference, AffineGrid."""
    return 2 * (node.out()[-1] + 1) * node.out_size()
