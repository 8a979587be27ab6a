"""Layers that carry a state from step to step: linear attention and causal convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from hal_torch.bridge.attention import merge_heads, split_heads
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator

_RULES = ("linear", "gated", "delta", "gated_delta")


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past: torch.Tensor | None,
    decay: torch.Tensor | None,
    beta: torch.Tensor | None,
    heads: tuple[int, int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention without softmax, as a recurrence over the steps.

    Args:
        q: float[batch, time, heads * size].
        k: Keys, like q.
        v: Values, float[batch, time, heads * size of a value].
        past: State, float[batch, heads, size, size of a value]; None for zeros.
        decay: Logarithm of what is kept at each step, per head or per size; None keeps everything.
        beta: How much of the error is written, per head or one for all; None writes the values.
        heads: Number of heads of queries, of keys.
        scale: Factor of the results; 0 for 1 / sqrt(size).

    Source: ONNX specification of LinearAttention; computed in float32 as its reference is.
    """
    query, key, value = (
        split_heads(x, n).to(torch.float32) for x, n in ((q, heads[0]), (k, heads[1]), (v, heads[1]))
    )
    size = query.shape[3]
    factor = scale or 1 / math.sqrt(size)
    kept = None if decay is None else split_heads(decay, heads[1]).to(torch.float32).exp().unsqueeze(-1)
    written = None if beta is None else beta.to(torch.float32).transpose(1, 2).unsqueeze(-1)
    if past is None:
        state = value.new_zeros(value.shape[0], heads[1], size, value.shape[3])
    else:
        state = past.to(torch.float32)
    results = []
    for step in range(query.shape[2]):
        at_k, at_v = key[:, :, step].unsqueeze(-1), value[:, :, step].unsqueeze(-2)
        if kept is not None:
            state = state * kept[:, :, step]
        if written is not None:
            at_v = written[:, :, step].unsqueeze(-1) * (at_v - (at_k * state).sum(2, keepdim=True))
        state = state + at_k * at_v
        read = state.repeat_interleave(heads[0] // heads[1], 1)
        results.append(factor * (query[:, :, step].unsqueeze(-2) @ read))
    y = torch.cat(results, 2) if results else value.new_zeros(*query.shape[:3], value.shape[3])
    return merge_heads(y, 3).to(q.dtype), state.to(q.dtype if past is None else past.dtype)


def linear_attention_alone(*args: Any) -> torch.Tensor:
    """The first output of linear_attention."""
    return linear_attention(*args)[0]


@operator("LinearAttention", 27)
def linear_attention_node(node: OpNode) -> Call:
    """Attention without softmax."""
    rule = node.text("update_rule", "gated_delta")
    if rule not in _RULES:
        raise Refused(f"update_rule `{rule}` is not one of {', '.join(_RULES)}")
    decay, beta = node.optional(4), node.optional(5)
    if (decay is not None) != rule.startswith("gated") or (beta is not None) != rule.endswith("delta"):
        raise Refused(f"update_rule `{rule}` does not fit the inputs `decay` and `beta` that are given")
    heads = (node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0))
    if min(heads) < 1 or heads[0] % heads[1]:
        raise Refused(f"q_num_heads {heads[0]} is no multiple of kv_num_heads {heads[1]}")
    operands = (node.input(0), node.input(1), node.input(2), node.optional(3), decay, beta)
    function = linear_attention_alone if node.single else linear_attention
    return call(function, *operands, heads, node.number("scale", 0.0))


def causal_conv(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, past: torch.Tensor | None, silu: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolution of each channel with what came before.

    Args:
        x: float[batch, channels, time].
        w: float[channels, 1, kernel].
        bias: float[channels].
        past: The last `kernel - 1` steps before x; None for zeros.
        silu: Whether the result goes through SiLU.

    Returns:
        float[batch, channels, time], and the last `kernel - 1` steps.
    """
    n_past = w.shape[2] - 1
    padded = functional.pad(x, (n_past, 0)) if past is None else torch.cat((past, x), 2)
    y = functional.conv1d(padded, w, bias, groups=w.shape[0])
    state = padded[:, :, padded.shape[2] - n_past :]
    return (functional.silu(y) if silu else y), state


def causal_conv_alone(*args: Any) -> torch.Tensor:
    """The first output of causal_conv."""
    return causal_conv(*args)[0]


@operator("CausalConvWithState", 27)
def causal_conv_node(node: OpNode) -> Call:
    """Convolution of each channel with what came before."""
    activation = node.text("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise Refused(f"activation `{activation}` is not one of none, silu, swish")
    operands = (node.input(0), node.input(1), node.optional(2), node.optional(3))
    return call(causal_conv_alone if node.single else causal_conv, *operands, activation != "none")
