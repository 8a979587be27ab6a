"""Recurrent layers, through PyTorch's fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hal_torch.bridge.node import Argument, Call, Operand, OpNode, Refused, call
from hal_torch.bridge.table import operator

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each gate of PyTorch, its place in ONNX: LSTM ifgo from iofc, GRU rzn from zrh."""

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def in_torch_order(weight: torch.Tensor, op: str) -> torch.Tensor:
    """float32[gates * hidden, ...] with the gates in PyTorch's order."""
    gates = weight.chunk(len(GATES[op]), 0)
    return torch.cat([gates[i] for i in GATES[op]], 0)


def flat_weights(
    w: torch.Tensor, r: torch.Tensor, b: torch.Tensor | None, op: str
) -> tuple[torch.Tensor, ...]:
    """Weights as PyTorch's kernels take them: input, hidden and the two biases per direction."""
    flat = []
    for direction in range(w.shape[0]):
        flat += [in_torch_order(w[direction], op), in_torch_order(r[direction], op)]
        if b is not None:
            flat += [in_torch_order(half, op) for half in b[direction].chunk(2, 0)]
    return tuple(flat)


def _weights(node: OpNode) -> tuple[Argument, ...]:
    """Constant weights arranged now, others as they come, to be arranged at each call."""
    w, r, b = node.input(1), node.input(2), node.optional(3)
    if w.const is None or r.const is None or (b is not None and b.const is None):
        return (w, r, b)
    kinds = ("input", "hidden", "bias_input", "bias_hidden") if b is not None else ("input", "hidden")
    arranged = flat_weights(w.const, r.const, None if b is None else b.const, node.op)
    return tuple(
        w.derived(weight.contiguous(), f"_{kinds[i % len(kinds)]}_{i // len(kinds)}", lower=True)
        for i, weight in enumerate(arranged)
    )


def _check(node: OpNode) -> tuple[bool, str]:
    """Whether the batch comes first, and the direction.

    Raises:
        Refused: The node asks for something that PyTorch's kernels lack.
    """
    direction = node.text("direction", "forward")
    wanted = _ACTIVATIONS[node.op] * (2 if direction == "bidirectional" else 1)
    given = node.texts("activations")
    if given is not None and given != wanted and not (node.op == "RNN" and set(given) == {"Relu"}):
        raise Refused(f"activations {given} are not translated, only {wanted}")
    if node.attribute("clip") is not None:
        raise Refused("attribute `clip` is not translated")
    if node.integer("input_forget", 0):
        raise Refused("attribute `input_forget` is not translated")
    _check_lengths(node)
    return bool(node.integer("layout", 0)), direction


def _check_lengths(node: OpNode) -> None:
    lengths = node.const_ints(4, "sequence_lens")
    if lengths is None:
        return
    n_steps = node.shape(0)[1 if node.integer("layout", 0) else 0]
    if any(length != n_steps for length in lengths):
        raise Refused(f"sequence_lens {lengths} shorter than the {n_steps} steps are not translated")


def _with_time_first(
    x: torch.Tensor, states: Sequence[torch.Tensor | None], batch_first: bool, n_directions: int, hidden: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Input as [time, batch, features] and states as [directions, batch, hidden], zeros when left out."""
    if batch_first:
        x = x.transpose(0, 1)
        states = [None if s is None else s.transpose(0, 1) for s in states]
    zeros = x.new_zeros(n_directions, x.shape[1], hidden)
    return x, [zeros if s is None else s for s in states]


def _as_onnx(
    y: torch.Tensor, states: Sequence[torch.Tensor], batch_first: bool, n_directions: int
) -> tuple[torch.Tensor, ...]:
    """PyTorch's [time, batch, directions * hidden] as ONNX has it."""
    y = y.reshape(y.shape[0], y.shape[1], n_directions, -1)
    if batch_first:
        return y.transpose(0, 1), *(s.transpose(0, 1) for s in states)
    return y.transpose(1, 2), *states


def recurrent(
    x: torch.Tensor,
    weights: tuple[Any, ...],
    states: tuple[torch.Tensor | None, ...],
    kind: str,
    arranged: bool,
    has_bias: bool,
    batch_first: bool,
    direction: str,
) -> tuple[torch.Tensor, ...]:
    """One recurrent layer.

    Args:
        x: float32[time, batch, features], or batch first.
        weights: As flat_weights makes them, or ONNX's W, R and B when not arranged.
        states: Initial hidden state, and cell state for an LSTM; None for zeros.
        kind: LSTM, GRU, RNN (tanh) or RELU.
        arranged: Whether the weights are in PyTorch's order.
        has_bias: Whether there are biases.
        batch_first: ONNX's layout 1.
        direction: forward, reverse or bidirectional.

    Returns:
        All outputs, then the last states.
    """
    flat = (
        weights
        if arranged
        else flat_weights(weights[0], weights[1], weights[2], "RNN" if kind == "RELU" else kind)
    )
    n_directions = 2 if direction == "bidirectional" else 1
    hidden = flat[1].shape[1]
    # lower_weights may have cast the weights; the kernels want one dtype for everything.
    dtype = flat[0].dtype
    flat = tuple(weight.to(dtype) for weight in flat)
    x, first = _with_time_first(x.to(dtype), states, batch_first, n_directions, hidden)
    first = [state.to(dtype) for state in first]
    if direction == "reverse":
        x = x.flip(0)
    options = (has_bias, 1, 0.0, False, n_directions == 2, False)
    # Autocast would hand oneDNN's layer dtypes that not every processor has, whatever the weights are.
    with torch.autocast(x.device.type, enabled=False):
        if kind == "LSTM":
            y, *last = torch.lstm(x, first, flat, *options)
        elif kind == "GRU":
            y, *last = torch.gru(x, first[0], flat, *options)
        elif kind == "RNN":
            y, *last = torch.rnn_tanh(x, first[0], flat, *options)
        else:
            y, *last = torch.rnn_relu(x, first[0], flat, *options)
    if direction == "reverse":
        y = y.flip(0)
    return _as_onnx(y, last, batch_first, n_directions)


def only(index: int, *args: Any) -> torch.Tensor:
    """One output of a recurrent layer."""
    return recurrent(*args)[index]


def _layer(node: OpNode, kind: str, states: tuple[Operand | None, ...]) -> Call:
    batch_first, direction = _check(node)
    weights = _weights(node)
    arranged = len(weights) != 3
    options = (kind, arranged, node.optional(3) is not None, batch_first, direction)
    if node.single:
        return call(only, 0, node.input(0), weights, states, *options)
    return call(recurrent, node.input(0), weights, states, *options)


def lstm_with_peepholes(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None,
    states: tuple[torch.Tensor | None, ...],
    p: torch.Tensor,
    batch_first: bool,
    direction: str,
) -> tuple[torch.Tensor, ...]:
    """LSTM whose gates see the cell state, step by step. Source: ONNX specification of LSTM.

    Args:
        x: float[time, batch, features], or batch first.
        w: float[directions, 4 * hidden, features], gates in the order iofc.
        r: float[directions, 4 * hidden, hidden].
        b: float[directions, 8 * hidden]; None for zeros.
        states: Initial hidden and cell state, None for zeros.
        p: float[directions, 3 * hidden], peepholes in the order iof.
        batch_first: ONNX's layout 1.
        direction: forward, reverse or bidirectional.
    """
    n_directions, hidden = r.shape[0], r.shape[2]
    x, first = _with_time_first(x, states, batch_first, n_directions, hidden)
    outputs, last_h, last_c = [], [], []
    for d in range(n_directions):
        backwards = direction == "reverse" or d == 1
        bias = x.new_zeros(4 * hidden) if b is None else b[d].reshape(2, -1).sum(0)
        products = torch.matmul(x, w[d].t()) + bias
        to_i, to_o, to_f = p[d].chunk(3)
        h, c, steps = first[0][d], first[1][d], []
        for step in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
            i, o, f, g = (products[step] + h @ r[d].t()).chunk(4, -1)
            seen = c
            c = torch.sigmoid(f + to_f * seen) * seen + torch.sigmoid(i + to_i * seen) * torch.tanh(g)
            h = torch.sigmoid(o + to_o * c) * torch.tanh(c)
            steps.append(h)
        outputs.append(torch.stack(steps[::-1] if backwards else steps))
        last_h.append(h)
        last_c.append(c)
    last = [torch.stack(last_h), torch.stack(last_c)]
    return _as_onnx(torch.cat(outputs, -1), last, batch_first, n_directions)


def only_with_peepholes(*args: Any) -> torch.Tensor:
    """The first output of lstm_with_peepholes."""
    return lstm_with_peepholes(*args)[0]


@operator("LSTM", 7)
def lstm(node: OpNode) -> Call:
    """Long short-term memory, fused unless gates see the cell state."""
    peephole = node.optional(7)
    if peephole is not None and (peephole.const is None or bool(peephole.const.any())):
        batch_first, direction = _check(node)
        states = (node.optional(5), node.optional(6))
        operands = (node.input(0), node.input(1), node.input(2), node.optional(3), states, peephole)
        function = only_with_peepholes if node.single else lstm_with_peepholes
        return call(function, *operands, batch_first, direction)
    return _layer(node, "LSTM", (node.optional(5), node.optional(6)))


@operator("RNN", 7)
def rnn(node: OpNode) -> Call:
    """Elman network."""
    relu = "Relu" in (node.texts("activations") or ())
    return _layer(node, "RELU" if relu else "RNN", (node.optional(5),))


def gru_reset_first(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None,
    state: torch.Tensor | None,
    batch_first: bool,
    direction: str,
) -> tuple[torch.Tensor, ...]:
    """GRU that resets the state before the product with R. Source: ONNX specification of GRU."""
    n_directions, hidden = r.shape[0], r.shape[2]
    x, (first,) = _with_time_first(x, [state], batch_first, n_directions, hidden)
    outputs, last = [], []
    for d in range(n_directions):
        backwards = direction == "reverse" or d == 1
        bias = x.new_zeros(6 * hidden) if b is None else b[d]
        products = torch.matmul(x, w[d].t()) + bias[: 3 * hidden]
        h, steps = first[d], []
        for step in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
            xz, xr, xh = products[step].chunk(3, -1)
            rz, rr, rh = r[d].chunk(3, 0)
            bz, br, bh = bias[3 * hidden :].chunk(3, 0)
            update = torch.sigmoid(xz + h @ rz.t() + bz)
            reset = torch.sigmoid(xr + h @ rr.t() + br)
            h = (1 - update) * torch.tanh(xh + (reset * h) @ rh.t() + bh) + update * h
            steps.append(h)
        outputs.append(torch.stack(steps[::-1] if backwards else steps))
        last.append(h)
    return _as_onnx(torch.cat(outputs, -1), [torch.stack(last)], batch_first, n_directions)


def only_gru(index: int, *args: Any) -> torch.Tensor:
    """One output of gru_reset_first."""
    return gru_reset_first(*args)[index]


@operator("GRU", 7)
def gru(node: OpNode) -> Call:
    """Gated recurrent unit; fused when the reset comes after the product, as in PyTorch."""
    state = node.optional(5)
    if node.integer("linear_before_reset", 0):
        return _layer(node, "GRU", (state,))
    batch_first, direction = _check(node)
    operands = (node.input(0), node.input(1), node.input(2), node.optional(3), state)
    if node.single:
        return call(only_gru, 0, *operands, batch_first, direction)
    return call(gru_reset_first, *operands, batch_first, direction)
