"""RNN, GRU and LSTM in float64, with every attribute of the operators."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp, widen

Activation = Callable[[Array], Array]


def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


#: Activations by name with the defaults of (alpha, beta); None means the activation takes none.
#: Source: attribute ``activations`` of LSTM-14 and the defaults of the operators of the same names,
#: ONNX operator reference. Affine and ScaledTanh are no operators any more and have no defaults.
_ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[str, ...], tuple[float | None, ...]]] = {
    "relu": (lambda x: np.maximum(x, 0.0), (), ()),
    "tanh": (np.tanh, (), ()),
    "sigmoid": (sigmoid, (), ()),
    "softsign": (lambda x: x / (1.0 + np.abs(x)), (), ()),
    "softplus": (lambda x: np.logaddexp(0.0, x), (), ()),
    "leakyrelu": (lambda x, alpha: np.where(x >= 0.0, x, alpha * x), ("alpha",), (0.01,)),
    "thresholdedrelu": (lambda x, alpha: np.where(x > alpha, x, 0.0), ("alpha",), (1.0,)),
    "elu": (lambda x, alpha: np.where(x >= 0.0, x, alpha * np.expm1(x)), ("alpha",), (1.0,)),
    "affine": (lambda x, alpha, beta: alpha * x + beta, ("alpha", "beta"), (None, None)),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), ("alpha", "beta"), (None, None)),
    "hardsigmoid": (
        lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
        ("alpha", "beta"),
        (0.2, 0.5),
    ),
}


def _activations(
    names: Sequence[str],
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> list[Activation]:
    """Bind each activation to its parameters, which are taken in order by those that need one."""
    waiting = {"alpha": iter(alphas or ()), "beta": iter(betas or ())}

    def bind(name: str) -> Activation:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; known: {', '.join(sorted(_ACTIVATIONS))}")
        function, parameters, defaults = _ACTIVATIONS[name.lower()]
        values = [next(waiting[p], default) for p, default in zip(parameters, defaults, strict=True)]
        if None in values:
            raise ValueError(f"activation {name!r} needs a value for each of {', '.join(parameters)}")
        bound = [float(value) for value in values if value is not None]
        return lambda x: function(x, *bound)

    return [bind(name) for name in names]


def _clipped(function: Activation, clip: float | None) -> Activation:
    if clip is None:
        return function
    limit = float(clip)
    return lambda x: function(np.clip(x, -limit, limit))


class _Recurrent(ReferenceOp):
    """The loop over directions and time; subclasses give one step.

    Source: RNN-14, GRU-14 and LSTM-14, ONNX operator reference.
    """

    n_gates: int
    default_activations: tuple[str, ...]

    def _run(
        self,
        x: Array,
        weight: Array,
        recurrence: Array,
        bias: Array | None = None,
        sequence_lens: Array | None = None,
        *states: Array | None,
        activation_alpha: Sequence[float] | None = None,
        activation_beta: Sequence[float] | None = None,
        activations: Sequence[str] | None = None,
        clip: float | None = None,
        direction: str = "forward",
        hidden_size: int | None = None,
        layout: int = 0,
        **options: Any,
    ) -> tuple[Array, ...]:
        n_directions, hidden = weight.shape[0], recurrence.shape[-1]
        wide = widen(x).swapaxes(0, 1) if layout else widen(x)
        steps, batch = wide.shape[:2]
        per_direction = len(self.default_activations)
        names = list(activations) if activations else list(self.default_activations) * n_directions
        # ``clip`` bounds the gates. The standard says "the input of activations", but ONNX Runtime and
        # OpenVINO agree on leaving alone the cell state that goes through the last activation of an LSTM.
        bound = [
            function if i % per_direction == 2 else _clipped(function, clip)
            for i, function in enumerate(_activations(names, activation_alpha, activation_beta))
        ]
        lengths = np.full(batch, steps) if sequence_lens is None else sequence_lens.astype(np.int64)
        n_states = 2 if isinstance(self, LSTM) else 1
        peepholes = states[2] if len(states) > 2 else None

        sequences, finals = [], []
        for d in range(n_directions):
            # A reversed sequence is reversed within its own length.
            order = np.broadcast_to(np.arange(steps)[:, np.newaxis], (steps, batch))
            if direction == "reverse" or d == 1:
                order = np.where(order < lengths, lengths - 1 - order, order)
            columns = np.arange(batch)
            state = []
            for s in range(n_states):
                given = states[s] if s < len(states) else None
                start = np.zeros((batch, hidden))
                if given is not None:
                    start = widen(given[:, d] if layout else given[d])
                state.append(start)
            b = np.zeros(2 * self.n_gates * hidden) if bias is None else widen(bias[d])
            p = np.zeros(3 * hidden) if peepholes is None else widen(peepholes[d])
            projected = wide[order, columns] @ widen(weight[d]).T
            functions = bound[d * per_direction : (d + 1) * per_direction]
            outputs = np.zeros((steps, batch, hidden))
            matrix = widen(recurrence[d]).T
            for t, gates in enumerate(projected):
                new = self._step(gates, matrix, b, p, state, functions, options)
                alive = (t < lengths)[:, np.newaxis]
                state[:] = [np.where(alive, n, old) for n, old in zip(new, state, strict=True)]
                outputs[t] = np.where(alive, state[0], 0.0)
            sequences.append(outputs[order, columns])
            finals.append(list(state))
        y = np.stack(sequences, axis=1)
        last = [np.stack([final[s] for final in finals]) for s in range(n_states)]
        if layout:
            y, last = y.transpose(2, 0, 1, 3), [value.swapaxes(0, 1) for value in last]
        return tuple(value.astype(x.dtype) for value in (y, *last))

    @abc.abstractmethod
    def _step(
        self,
        x: Array,
        recurrence: Array,
        bias: Array,
        peepholes: Array,
        state: list[Array],
        functions: list[Activation],
        options: dict[str, Any],
    ) -> tuple[Array, ...]:
        """Return the states after one step; ``x`` is ``float64[batch, n_gates * hidden]``, projected."""


class RNN(_Recurrent):
    """The simple recurrent layer."""

    n_gates = 1
    default_activations = ("Tanh",)

    def _step(
        self,
        x: Array,
        recurrence: Array,
        bias: Array,
        peepholes: Array,
        state: list[Array],
        functions: list[Activation],
        options: dict[str, Any],
    ) -> tuple[Array, ...]:
        input_bias, hidden_bias = np.split(bias, 2)
        return (functions[0](x + state[0] @ recurrence + input_bias + hidden_bias),)


class GRU(_Recurrent):
    """The gated recurrent unit; gates in the order update, reset, hidden."""

    n_gates = 3
    default_activations = ("Sigmoid", "Tanh")

    def _step(
        self,
        x: Array,
        recurrence: Array,
        bias: Array,
        peepholes: Array,
        state: list[Array],
        functions: list[Activation],
        options: dict[str, Any],
    ) -> tuple[Array, ...]:
        gate, candidate = functions
        hidden = state[0]
        input_bias, hidden_bias = np.split(bias, 2)
        x_update, x_reset, x_hidden = np.split(x + input_bias, 3, axis=-1)
        to_update, to_reset, to_hidden = np.split(recurrence, 3, axis=-1)
        b_update, b_reset, b_hidden = np.split(hidden_bias, 3)
        update = gate(x_update + hidden @ to_update + b_update)
        reset = gate(x_reset + hidden @ to_reset + b_reset)
        if options.get("linear_before_reset"):
            proposal = candidate(x_hidden + reset * (hidden @ to_hidden + b_hidden))
        else:
            proposal = candidate(x_hidden + (reset * hidden) @ to_hidden + b_hidden)
        return ((1.0 - update) * proposal + update * hidden,)


class LSTM(_Recurrent):
    """The long short-term memory; gates in the order input, output, forget, cell."""

    n_gates = 4
    default_activations = ("Sigmoid", "Tanh", "Tanh")

    def _step(
        self,
        x: Array,
        recurrence: Array,
        bias: Array,
        peepholes: Array,
        state: list[Array],
        functions: list[Activation],
        options: dict[str, Any],
    ) -> tuple[Array, ...]:
        gate, candidate, output = functions
        hidden, cell = state
        input_bias, hidden_bias = np.split(bias, 2)
        p_in, p_out, p_forget = np.split(peepholes, 3)
        gates = x + hidden @ recurrence + input_bias + hidden_bias
        g_in, g_out, g_forget, g_cell = np.split(gates, 4, axis=-1)
        let_in = gate(g_in + p_in * cell)
        keep = 1.0 - let_in if options.get("input_forget") else gate(g_forget + p_forget * cell)
        new_cell = keep * cell + let_in * candidate(g_cell)
        let_out = gate(g_out + p_out * new_cell)
        return let_out * output(new_cell), new_cell
