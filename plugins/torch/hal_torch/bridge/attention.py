"""Attention and rotary embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from hal_torch.bridge.dtypes import torch_dtype_of
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator


def split_heads(x: torch.Tensor, n_heads: int | None) -> torch.Tensor:
    """[batch, time, heads * size] as [batch, heads, time, size]; 4D inputs have that form already."""
    if x.dim() == 4 or n_heads is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], n_heads, -1).transpose(1, 2)


def merge_heads(y: torch.Tensor, rank: int) -> torch.Tensor:
    """Back to the rank of the input."""
    return y if rank == 4 else y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def padded_mask(mask: torch.Tensor | None, n_keys: int) -> torch.Tensor | None:
    """A mask that covers all keys: those beyond its end are not attended."""
    if mask is None or mask.shape[-1] >= n_keys:
        return mask
    return functional.pad(
        mask, (0, n_keys - mask.shape[-1]), value=False if mask.dtype == torch.bool else -math.inf
    )


def with_past(x: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
    """Keys or values after those of earlier steps."""
    return x if past is None else torch.cat((past.to(x.dtype), x), 2)


def fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
    heads: tuple[int | None, int | None],
    causal: bool,
    scale: float | None,
    n_outputs: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Attention by PyTorch's fused kernels.

    Args:
        q: float32[batch, heads, time, size], or float32[batch, time, heads * size].
        k: Keys, like q.
        v: Values, like q.
        mask: Additive, or boolean with true where a key is attended.
        past_k: Keys of earlier steps, 4D.
        past_v: Values of earlier steps, 4D.
        heads: Number of heads of queries and of keys, for 3D inputs.
        causal: Whether queries attend only keys up to their own place.
        scale: Factor of the scores; None for 1 / sqrt(size).
        n_outputs: 1 for the result alone, 3 for the keys and values too.
    """
    rank = q.dim()
    q, k, v = split_heads(q, heads[0]), split_heads(k, heads[1]), split_heads(v, heads[1])
    k, v = with_past(k, past_k), with_past(v, past_v)
    mask = padded_mask(mask, k.shape[2])
    y = functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    y = merge_heads(y, rank)
    return y if n_outputs == 1 else (y, k, v)[:n_outputs]


class Score(NamedTuple):
    """How scores are treated, as the attributes say.

    Attributes:
        causal: Whether queries attend only keys up to their own place.
        scale: Factor of the scores; None for 1 / sqrt(size).
        softcap: Limit of the scores, 0 for none.
        precision: dtype of the softmax, None for that of the scores.
        window: How far queries see to the left and right, -1 for everything.
        shown: What the fourth output holds: 0 raw scores, 1 capped, 2 with bias, 3 probabilities.
    """

    causal: bool
    scale: float | None
    softcap: float
    precision: torch.dtype | None
    window: tuple[int, int]
    shown: int


def bias_of(
    score: Score,
    q: torch.Tensor,
    n_keys: int,
    mask: torch.Tensor | None,
    n_past: int,
    lengths: torch.Tensor | None,
) -> torch.Tensor:
    """What is added to the scores: 0 where a key is attended, minus infinity where not, or the mask."""
    n_queries = q.shape[2]
    place = torch.arange(n_queries, device=q.device).reshape(-1, 1)
    key = torch.arange(n_keys, device=q.device)
    allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
    offset: torch.Tensor | int = n_past
    if lengths is not None:
        offset = (lengths.reshape(-1, 1, 1, 1) - n_queries).to(q.device)
        allowed = allowed & (key < lengths.reshape(-1, 1, 1, 1))
    if score.causal:
        allowed = allowed & (key <= place + offset)
    left, right = score.window
    if left >= 0:
        allowed = allowed & (place + offset - key <= left)
    if right >= 0:
        allowed = allowed & (key - place - offset <= right)
    never = torch.full((), -math.inf, dtype=q.dtype, device=q.device)
    bias = torch.where(allowed, torch.zeros((), dtype=q.dtype, device=q.device), never)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, never)
    return bias + mask


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
    lengths: torch.Tensor | None,
    heads: tuple[int | None, int | None],
    score: Score,
    n_outputs: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Attention step by step, for what the fused kernels lack. Source: ONNX function body of Attention."""
    rank = q.dim()
    q, k, v = split_heads(q, heads[0]), split_heads(k, heads[1]), split_heads(v, heads[1])
    k, v = with_past(k, past_k), with_past(v, past_v)
    n_past = 0 if past_k is None else past_k.shape[2]
    bias = bias_of(score, q, k.shape[2], padded_mask(mask, k.shape[2]), n_past, lengths)
    groups = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    root = math.sqrt(1 / math.sqrt(q.shape[3]) if score.scale is None else score.scale)
    scores = torch.matmul(q * root, (keys * root).transpose(2, 3))
    shown = scores
    if score.softcap > 0:
        scores = torch.tanh(scores / score.softcap) * score.softcap
        shown = scores if score.shown == 1 else shown
    biased = scores + bias
    weights = torch.softmax(biased, -1, dtype=score.precision)
    masked = torch.isneginf(bias.amax(-1, keepdim=True))
    weights = torch.where(masked, torch.zeros((), dtype=weights.dtype, device=q.device), weights)
    shown = (shown, shown, biased, weights)[score.shown].to(q.dtype)
    y = merge_heads(torch.matmul(weights.to(v.dtype), values), rank)
    return y if n_outputs == 1 else (y, k, v, shown)[:n_outputs]


@operator("Attention", 23)
def attention(node: OpNode) -> Call:
    """Scaled dot product attention, fused where PyTorch's kernel computes the same."""
    precision = node.attribute("softmax_precision")
    scale = node.attribute("scale")
    score = Score(
        causal=bool(node.integer("is_causal", 0)),
        scale=None if scale is None else scale.as_float(),
        softcap=node.number("softcap", 0.0),
        precision=None if precision is None else torch_dtype_of(precision.as_int()),
        window=(node.integer("left_window_size", -1), node.integer("right_window_size", -1)),
        shown=node.integer("qk_matmul_output_mode", 0),
    )
    if score.shown not in range(4):
        raise Refused(f"qk_matmul_output_mode {score.shown} is not one of 0 to 3")
    heads = tuple(
        None if (found := node.attribute(name)) is None else found.as_int()
        for name in ("q_num_heads", "kv_num_heads")
    )
    mask, past, lengths = node.optional(3), node.optional(4), node.optional(6)
    operands = (node.input(0), node.input(1), node.input(2), mask, past, node.optional(5))
    n_outputs = len(node.node.outputs)
    fusible = (
        lengths is None
        and score.softcap == 0
        and score.window == (-1, -1)
        and n_outputs <= 3
        # PyTorch's causal mask starts at the first key and combines with no other.
        and not (score.causal and (mask is not None or past is not None))
        and score.precision in (None, torch.float32)
    )
    if fusible:
        return call(fused_attention, *operands, heads, score.causal, score.scale, n_outputs)
    return call(plain_attention, *operands, lengths, heads, score, n_outputs)


def rotary_embedding(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    places: torch.Tensor | None,
    interleaved: bool,
    n_heads: int,
    size: int,
) -> torch.Tensor:
    """Rotate pairs of features by angles that grow with the place.

    Args:
        x: float32[batch, heads, time, size], or float32[batch, time, heads * size].
        cos: Cosines, float32[batch, time, pairs], or float32[places, pairs] when `places` is given.
        sin: Sines, like cos.
        places: int64[batch, time], rows of cos and sin.
        interleaved: Whether pairs are neighbours, instead of halves apart.
        n_heads: Number of heads, for 3D inputs.
        size: How many features turn; 0 for all.
    """
    y = x.transpose(1, 2) if x.dim() == 4 else x.reshape(x.shape[0], x.shape[1], n_heads, -1)
    if places is not None:
        cos, sin = cos[places], sin[places]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turning, rest = (y, None) if size in (0, y.shape[3]) else (y[..., :size], y[..., size:])
    first, second = (turning[..., 0::2], turning[..., 1::2]) if interleaved else turning.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        turned = torch.stack((real, imaginary), -1).flatten(-2)
    else:
        turned = torch.cat((real, imaginary), -1)
    y = turned if rest is None else torch.cat((turned, rest.to(turned.dtype)), -1)
    return y.transpose(1, 2) if x.dim() == 4 else y.reshape(x.shape)


@operator("RotaryEmbedding", 23)
def rotary_embedding_node(node: OpNode) -> Call:
    """Rotary position embedding."""
    return call(
        rotary_embedding,
        node.input(0),
        node.input(1),
        node.input(2),
        node.optional(3),
        bool(node.integer("interleaved", 0)),
        node.integer("num_heads", 0),
        node.integer("rotary_embedding_dim", 0),
    )
