"""Operators of the domain com.microsoft on floats, which ONNX Runtime's exporters and optimizer write.

Source of all: ONNX Runtime, docs/ContribOperators.md; tests compare with ONNX Runtime itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from hal_torch.bridge.attention import merge_heads, split_heads
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.norm import layer_norm, rms_norm
from hal_torch.bridge.table import operator

MICROSOFT = "com.microsoft"


@operator("Gelu", domain=MICROSOFT)
def gelu(node: OpNode) -> Call:
    """Gaussian error linear unit."""
    return call(functional.gelu, node.input(0))


def biased_gelu(x: torch.Tensor, bias: torch.Tensor | None, approximate: str) -> torch.Tensor:
    """Gaussian error linear unit of `x + bias`."""
    return functional.gelu(x if bias is None else x + bias, approximate=approximate)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(node: OpNode) -> Call:
    """Gaussian error linear unit of `x + bias`."""
    return call(biased_gelu, node.input(0), node.input(1), "none")


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(node: OpNode) -> Call:
    """Gaussian error linear unit by tanh."""
    return call(biased_gelu, node.input(0), node.optional(1), "tanh")


def quick_gelu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """`x * sigmoid(alpha * x)`."""
    return x * torch.sigmoid(alpha * x)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu_node(node: OpNode) -> Call:
    """`x * sigmoid(alpha * x)`."""
    return call(quick_gelu, node.input(0), node.number("alpha", 1.702))


def fused_matmul(a: torch.Tensor, b: torch.Tensor, alpha: float, turn_a: bool, turn_b: bool) -> torch.Tensor:
    """`alpha * a @ b`, the last two dimensions swapped where asked for."""
    product = torch.matmul(a.mT if turn_a and a.dim() > 1 else a, b.mT if turn_b and b.dim() > 1 else b)
    return product if alpha == 1 else product * alpha


@operator("FusedMatMul", domain=MICROSOFT)
def fused_matmul_node(node: OpNode) -> Call:
    """Matrix product with transposition and a factor."""
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0):
        raise Refused("attributes `transBatchA` and `transBatchB` are not translated")
    turns = (bool(node.integer("transA", 0)), bool(node.integer("transB", 0)))
    return call(fused_matmul, node.input(0), node.input(1), node.number("alpha", 1.0), *turns)


def skip_norm(
    x: torch.Tensor,
    skip: torch.Tensor,
    scale: torch.Tensor,
    beta: torch.Tensor | None,
    bias: torch.Tensor | None,
    epsilon: float,
    mean: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalisation of a sum over its last dimension; also the sum.

    Args:
        x: float[batch, time, size].
        skip: Added to x, of its shape or one that broadcasts to it.
        scale: float[size].
        beta: float[size], added after normalisation.
        bias: float[size], added before.
        epsilon: Added to the variance.
        mean: Whether the mean is subtracted: layer normalisation, else RMS normalisation.
    """
    total = x + skip
    if bias is not None:
        total = total + bias
    y = layer_norm(total, scale, beta, -1, epsilon) if mean else rms_norm(total, scale, -1, epsilon)
    return y, total


def skip_norm_alone(*args: Any) -> torch.Tensor:
    """The first output of skip_norm."""
    return skip_norm(*args)[0]


def skip_norm_all(*args: Any) -> tuple[torch.Tensor | None, ...]:
    """The outputs as ONNX Runtime numbers them: the second and third are for training."""
    y, total = skip_norm(*args)
    return y, total, total, total


def _skip_norm(node: OpNode, mean: bool) -> Call:
    if node.has_output(1) or node.has_output(2):
        raise Refused("outputs `mean` and `inv_std_var` are not translated")
    beta, bias = (node.optional(3), node.optional(4)) if mean else (None, node.optional(3))
    operands = (node.input(0), node.input(1), node.input(2), beta, bias)
    function = skip_norm_alone if node.single else skip_norm_all
    return call(function, *operands, node.number("epsilon", 1e-12), mean)


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(node: OpNode) -> Call:
    """Layer normalisation of a sum."""
    return _skip_norm(node, True)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_norm(node: OpNode) -> Call:
    """RMS normalisation of a sum."""
    return _skip_norm(node, False)


@operator("SimplifiedLayerNormalization")
def simplified_layer_norm(node: OpNode) -> Call:
    """RMS normalisation; ONNX Runtime has it in the standard domain, the ONNX standard has it not."""
    if node.has_output(1):
        raise Refused("output `inv_std_var` is not translated")
    if not node.single:
        raise Refused("outputs that nobody reads are not translated: leave them out")
    return call(
        rms_norm, node.input(0), node.input(1), node.integer("axis", -1), node.number("epsilon", 1e-5)
    )


def unpacked(packed: torch.Tensor, n_bits: int) -> torch.Tensor:
    """uint8[..., n] as uint8[..., n * 8 / bits], the lowest bits first."""
    shifts = torch.arange(0, 8, n_bits, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & (2**n_bits - 1)).flatten(-2)


def weight_of_bits(
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    sizes: tuple[int, int],
    n_bits: int,
) -> torch.Tensor:
    """float[out, in], weights from integers of a few bits with a scale per block.

    Args:
        packed: uint8[out, blocks, bytes of a block].
        scales: float[out, blocks], or flat.
        zeros: Zero points, packed along the blocks or floats like the scales; None for the middle.
        sizes: Out and in.
        n_bits: 2, 4 or 8.
    """
    n_out, n_in = sizes
    whole = unpacked(packed, n_bits).to(scales.dtype)
    n_blocks = packed.shape[1]
    middle: torch.Tensor | float = float(2 ** (n_bits - 1))
    if zeros is not None and zeros.dtype == torch.uint8:
        middle = unpacked(zeros.reshape(n_out, -1), n_bits)[:, :n_blocks].to(scales.dtype).unsqueeze(-1)
    elif zeros is not None:
        middle = zeros.reshape(n_out, n_blocks, 1)
    return ((whole - middle) * scales.reshape(n_out, n_blocks, 1)).reshape(n_out, -1)[:, :n_in]


def matmul_of_bits(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    sizes: tuple[int, int],
    n_bits: int,
) -> torch.Tensor:
    """A linear layer whose weights are integers of a few bits."""
    return functional.linear(x, weight_of_bits(packed, scales, zeros, sizes, n_bits).to(x.dtype), bias)


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_of_bits_node(node: OpNode) -> Call:
    """A linear layer; constant weights become floats at bridge time."""
    n_bits, sizes = node.integer("bits", 4), (node.integer("N", 0), node.integer("K", 0))
    if n_bits not in (2, 4, 8):
        raise Refused(f"weights of {n_bits} bits are not translated, of 2, 4 and 8 are")
    if node.optional(4) is not None:
        raise Refused("input `g_idx` is not translated")
    packed, scales, zeros, bias = node.input(1), node.input(2), node.optional(3), node.optional(5)
    if packed.const is None or scales.const is None or (zeros is not None and zeros.const is None):
        return call(matmul_of_bits, node.input(0), packed, scales, zeros, bias, sizes, n_bits)
    given = None if zeros is None else zeros.const
    weight = weight_of_bits(packed.const, scales.const, given, sizes, n_bits)
    return call(functional.linear, node.input(0), packed.derived(weight, "_weight", lower=True), bias)


def masked(mask: torch.Tensor | None, n_keys: int) -> torch.Tensor | None:
    """bool[batch, 1, 1, keys], true where a key is attended.

    Args:
        mask: int32[batch, keys], 0 where not; or int32[batch], how many keys are attended.
        n_keys: How many there are.
    """
    if mask is None:
        return None
    if mask.dim() == 1:
        return (torch.arange(n_keys, device=mask.device) < mask.reshape(-1, 1)).reshape(-1, 1, 1, n_keys)
    return (mask != 0).reshape(mask.shape[0], 1, 1, n_keys)


def joint_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    added: torch.Tensor | None,
    n_heads: int,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attention of [batch, time, heads * size].

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: See `masked`.
        added: What is added to the scores.
        n_heads: Number of heads.
        causal: Whether queries attend only keys up to their own place.
        scale: Factor of the scores; None for 1 / sqrt(size).
    """
    query, key, value = (split_heads(part, n_heads) for part in (q, k, v))
    allowed = masked(mask, key.shape[2])
    bias = added
    if allowed is not None:
        filled = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -math.inf)
        bias = filled if added is None else filled + added
    if causal and bias is not None:
        future = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=q.device).triu(1)
        bias = bias.masked_fill(future, -math.inf)
    y = functional.scaled_dot_product_attention(
        query, key, value, bias, is_causal=causal and bias is None, scale=scale
    )
    return merge_heads(y, 3)


def projected_attention(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    added: torch.Tensor | None,
    sizes: tuple[int, ...] | None,
    n_heads: int,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attention after one projection to queries, keys and values."""
    product = torch.matmul(x, weight)
    if bias is not None:
        product = product + bias
    q, k, v = product.chunk(3, -1) if sizes is None else product.split(sizes, -1)
    return joint_attention(q, k, v, mask, added, n_heads, causal, scale)


def _heads_and_scale(node: OpNode) -> tuple[int, bool, float | None]:
    found = node.number("scale", 0.0)
    return node.integer("num_heads", 1), bool(node.integer("unidirectional", 0)), found or None


def _check_mask(node: OpNode, index: int) -> None:
    mask = node.optional(index)
    if mask is not None and mask.rank not in (1, 2):
        raise Refused(f"a mask of rank {mask.rank} is not translated, of 1 and 2 are")
    if mask is not None and mask.rank == 1 and node.input(0).rank is not None:
        shape = mask.shape or ()
        if shape[0] != node.shape(0)[0]:
            raise Refused(f"a mask of shape {shape} is not translated: one number per sample is")


@operator("Attention", domain=MICROSOFT)
def attention(node: OpNode) -> Call:
    """Attention after one projection."""
    if node.optional(4) is not None or node.has_output(1):
        raise Refused("inputs and outputs of earlier keys and values (`past`, `present`) are not translated")
    if node.integer("do_rotary", 0):
        raise Refused("attribute `do_rotary` is not translated")
    if not node.single:
        raise Refused("outputs that nobody reads are not translated: leave them out")
    _check_mask(node, 3)
    operands = (node.input(0), node.input(1), node.optional(2), node.optional(3), node.optional(5))
    return call(projected_attention, *operands, node.integers("qkv_hidden_sizes"), *_heads_and_scale(node))


def biased_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    *options: Any,
) -> torch.Tensor:
    """Attention of projections to which a bias is added first."""
    if bias is not None:
        sizes = (q.shape[-1], k.shape[-1], v.shape[-1])
        q, k, v = (x + part for x, part in zip((q, k, v), bias.split(sizes), strict=True))
    return joint_attention(q, k, v, *options)


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(node: OpNode) -> Call:
    """Attention of projected queries, keys and values."""
    if any(node.optional(i) is not None for i in (6, 7)) or node.has_output(1):
        raise Refused("inputs and outputs of earlier keys and values (`past_key`) are not translated")
    operands = [node.input(i) for i in range(3)]
    if not node.single or any(operand.rank != 3 for operand in operands):
        raise Refused("only queries, keys and values of rank 3 and one output are translated")
    _check_mask(node, 4)
    rest = (node.optional(3), node.optional(4), node.optional(5))
    return call(biased_attention, *operands, *rest, *_heads_and_scale(node))
