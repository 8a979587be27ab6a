"""LSTM, GRU and RNN; sequences are taken at their full length."""

from __future__ import annotations

from hal.graph.flops.elementwise import SIGMOID
from hal.graph.flops.node import TRANSCENDENTAL, OpNode, enter

#: Gates of each, and operations per hidden element outside the products, with the default activations.
#: Source: the equations in ONNX's operator reference.
#:   LSTM: 3 sigmoids, 2 tanh, C = f C + i c (3), H = o h(C) (1)
#:   GRU: 2 sigmoids, 1 tanh, r * H (1), H = (1 - z) h + z H (4)
#:   RNN: 1 tanh
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_POINTWISE = {
    "LSTM": 3 * SIGMOID + 2 * TRANSCENDENTAL + 4,
    "GRU": 2 * SIGMOID + TRANSCENDENTAL + 5,
    "RNN": TRANSCENDENTAL,
}


@enter(GATES)
def _recurrent(node: OpNode) -> int:
    """Two products for each gate, step and direction, both their additions, biases, gates' activations.

    Weights are [directions, gates * hidden, input] and [directions, gates * hidden, hidden]. Activations
    other than the default ones are counted as the default ones.
    """
    steps, batch = node.shape(0)[:2]
    if node.integer("layout", 0):
        steps, batch = batch, steps
    n_directions, gates, n_inputs = node.shape(1)
    hidden = node.shape(2)[-1]
    # The sum of the two products, and of both biases (whose own sum is known beforehand).
    each = gates * (2 * n_inputs + 2 * hidden + 1 + (1 if node.has(3) else 0)) + hidden * _POINTWISE[node.op]
    if node.op == "LSTM" and node.has(7):  # peepholes
        each += 3 * 2 * hidden
    return steps * batch * n_directions * each
