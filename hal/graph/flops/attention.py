"""Attention of ONNX and of com.microsoft.

Products with the keys and with the values, scaling, mask, softmax (15 an element, see
:mod:`hal.graph.flops.normalization`). A causal mask is counted as if all products were computed.
Source: Vaswani et al., "Attention Is All You Need", equation 1.
"""

from __future__ import annotations

import math

from hal.graph.flops.node import DIVIDE, MICROSOFT, TRANSCENDENTAL, OpNode, UnknownCount, enter
from hal.graph.flops.normalization import SOFTMAX


def scaled_products(
    batch: int, heads: int, n_queries: int, n_keys: int, head: int, value_head: int, *, masked: bool
) -> int:
    """Operations of softmax(Q K^T / sqrt(head) + mask) V."""
    scores = batch * heads * n_queries * n_keys
    return scores * (2 * head + 2 * value_head + 1 + SOFTMAX + int(masked))


@enter("Attention")
def _attention(node: OpNode) -> int:
    """Q, K and V are [batch, heads, length, head], or [batch, length, heads * head]."""
    query, key, value = node.shape(0), node.shape(1), node.shape(2)
    past = node.shape(4)[2] if node.has(4) else 0
    if len(query) == 4:
        (batch, heads, length, head), n_keys, value_head = query, key[2], value[3]
    else:
        heads, of_keys = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
        if not heads or not of_keys:
            raise UnknownCount("number of heads")
        (batch, length, hidden), n_keys = query, key[1]
        head, value_head = hidden // heads, value[2] // of_keys
    total = n_keys + past
    capped = (
        batch * heads * length * total * (DIVIDE + TRANSCENDENTAL + 1) if node.number("softcap", 0) else 0
    )
    return capped + scaled_products(batch, heads, length, total, head, value_head, masked=node.has(3))


@enter("LinearAttention")
def _linear_attention(node: OpNode) -> int:
    """For each token and key-value head the update of a state [d_k, d_v], for each query head its reading.

    Source: the recurrences in ONNX's operator reference, token by token; chunked forms do more.
    """
    batch, length, hidden = node.shape(0)
    heads, of_keys = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    if not heads or not of_keys:
        raise UnknownCount("number of heads")
    state = (hidden // heads) * (node.shape(2)[2] // of_keys)
    rule = node.text("update_rule", "gated_delta")
    update = 2 * state + (state if "gated" in rule else 0) + (2 * state if "delta" in rule else 0)
    return batch * length * (of_keys * update + heads * 2 * state)


@enter("Attention", MICROSOFT)
def _fused_attention(node: OpNode) -> int:
    """With its projection: input [b, s, in] by weights [in, 3 * hidden] and a bias."""
    batch, length, n_inputs = node.shape(0)
    projected, heads = node.shape(1)[1], node.integer("num_heads", 0)
    sizes = node.integers("qkv_hidden_sizes") or (projected // 3,) * 3
    if not heads:
        raise UnknownCount("number of heads")
    past = node.shape(4)[3] if node.has(4) else 0
    projection = batch * length * projected * (2 * n_inputs + (1 if node.has(2) else 0))
    return projection + scaled_products(
        batch,
        heads,
        length,
        length + past,
        sizes[0] // heads,
        sizes[2] // heads,
        masked=node.has(3) or node.has(5) or bool(node.integer("unidirectional", 0)),
    )


@enter("MultiHeadAttention", MICROSOFT)
def _multi_head_attention(node: OpNode) -> int:
    """Query [b, s, hidden], key [b, t, hidden] (or [b, heads, t, head]), value likewise; nothing packed."""
    if not (node.has(1) and node.has(2)) or len(node.shape(0)) != 3:
        raise UnknownCount("packed query, key and value")
    (batch, length, hidden), key, value = node.shape(0), node.shape(1), node.shape(2)
    heads = node.integer("num_heads", 0)
    if not heads or len(key) == 5:
        raise UnknownCount("number of heads")
    n_keys = key[2] if len(key) == 4 else key[1]
    value_head = value[3] if len(value) == 4 else value[2] // heads
    past = node.shape(6)[2] if node.has(6) else 0
    bias = math.prod(node.shape(0)) + math.prod(key) + math.prod(value) if node.has(3) else 0
    return bias + scaled_products(
        batch, heads, length, n_keys + past, hidden // heads, value_head, masked=node.has(4) or node.has(5)
    )


@enter("GroupQueryAttention", MICROSOFT)
def _group_query_attention(node: OpNode) -> int:
    """Over the whole of the cache, whose used part is a value; rotary embeddings are 3 an element.

    Without a separate key, the query holds all three: [b, s, (heads + 2 * key heads) * head].
    """
    batch, length, hidden = node.shape(0)
    heads, of_keys = node.integer("num_heads", 0), node.integer("kv_num_heads", 0)
    if not heads or not of_keys:
        raise UnknownCount("number of heads")
    head = hidden // heads if node.has(1) else hidden // (heads + 2 * of_keys)
    total = node.out(1)[2] if len(node.node.outputs) > 1 else length
    turned = 3 * batch * length * (heads + of_keys) * head if node.integer("do_rotary", 0) else 0
    return turned + scaled_products(batch, heads, length, total, head, head, masked=True)
