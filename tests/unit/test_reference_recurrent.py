"""RNN, GRU and LSTM of the reference against the standard's equations and against their own symmetries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from hal.graph.reference import ReferenceUnavailable, reference_outputs

LAW = settings(max_examples=40, deadline=None, derandomize=True, database=None)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def sigma(x):
    return 1 / (1 + np.exp(-x))


def model_of(op_type, arrays, **attributes):
    names = ["" if array is None else f"x{i}" for i, array in enumerate(arrays)]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
    results = ["y", "h", "c"] if op_type == "LSTM" else ["y", "h"]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, results, **attributes)],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in results],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)]), feeds


def run(op_type, *arrays, **attributes):
    return list(reference_outputs(*model_of(op_type, arrays, **attributes)).values())


def arrays(op_type, seed, directions=1, steps=4, batch=3, width=2, hidden=5):
    rng = np.random.default_rng(seed)
    n = GATES[op_type]
    shapes = [
        (steps, batch, width),
        (directions, n * hidden, width),
        (directions, n * hidden, hidden),
        (directions, 2 * n * hidden),
    ]
    states = [(directions, batch, hidden)] * (2 if op_type == "LSTM" else 1)
    return [rng.standard_normal(shape) for shape in shapes], [rng.standard_normal(s) for s in states]


@LAW
@given(
    st.sampled_from(sorted(GATES)),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.integers(0, 2**31),
)
def test_recurrent_layers_equal_onnx_when_attributes_are_the_ones_it_knows(op_type, direction, seed):
    given_arrays, states = arrays(op_type, seed, directions=2 if direction == "bidirectional" else 1)
    options = {"hidden_size": 5, "direction": direction}
    if op_type == "RNN" and direction == "bidirectional":
        options["activations"] = ["Tanh", "Tanh"]
    model, feeds = model_of(op_type, [*given_arrays, None, *states], **options)
    for got, want in zip(
        reference_outputs(model, feeds).values(), ReferenceEvaluator(model).run(None, feeds), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_lstm_equals_its_equations_when_it_has_peepholes_and_coupled_gates():
    (x, w, r, b), (h, c) = arrays("LSTM", 1, steps=1)
    peepholes = np.random.default_rng(2).standard_normal((1, 15))
    gates = x[0] @ w[0].T + h[0] @ r[0].T + b[0, :20] + b[0, 20:]
    i, o, f, g = np.split(gates, 4, axis=1)
    p_i, p_o, p_f = np.split(peepholes[0], 3)
    for coupled in (0, 1):
        let_in = sigma(i + p_i * c[0])
        keep = 1 - let_in if coupled else sigma(f + p_f * c[0])
        cell = keep * c[0] + let_in * np.tanh(g)
        hidden = sigma(o + p_o * cell) * np.tanh(cell)
        y, last, last_cell = run(
            "LSTM", x, w, r, b, None, h, c, peepholes, hidden_size=5, input_forget=coupled
        )
        np.testing.assert_allclose(y[0, 0], hidden, rtol=1e-12)
        np.testing.assert_allclose(last[0], hidden, rtol=1e-12)
        np.testing.assert_allclose(last_cell[0], cell, rtol=1e-12)


@pytest.mark.parametrize("linear", [0, 1])
def test_gru_equals_its_equations_when_reset_comes_before_or_after(linear):
    (x, w, r, b), (h,) = arrays("GRU", 3, steps=1)
    (w_z, w_r, w_h), (r_z, r_r, r_h) = np.split(w[0], 3), np.split(r[0], 3)
    wb_z, wb_r, wb_h, rb_z, rb_r, rb_h = np.split(b[0], 6)
    z = sigma(x[0] @ w_z.T + h[0] @ r_z.T + wb_z + rb_z)
    reset = sigma(x[0] @ w_r.T + h[0] @ r_r.T + wb_r + rb_r)
    inner = reset * (h[0] @ r_h.T + rb_h) if linear else (reset * h[0]) @ r_h.T + rb_h
    want = (1 - z) * np.tanh(x[0] @ w_h.T + wb_h + inner) + z * h[0]
    y, last = run("GRU", x, w, r, b, None, h, hidden_size=5, linear_before_reset=linear)
    np.testing.assert_allclose(y[0, 0], want, rtol=1e-12)
    np.testing.assert_allclose(last[0], want, rtol=1e-12)


@LAW
@given(
    st.sampled_from(sorted(GATES)),
    st.sampled_from(["forward", "reverse"]),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_sequences_of_a_batch_equal_sequences_run_alone_when_lengths_differ(op_type, direction, lengths):
    given_arrays, states = arrays(op_type, 4)
    options = {"hidden_size": 5, "direction": direction}
    outputs = run(op_type, *given_arrays, np.array(lengths, np.int32), *states, **options)
    for row, length in enumerate(lengths):
        alone = [given_arrays[0][:length, row : row + 1], *given_arrays[1:], None]
        alone += [state[:, row : row + 1] for state in states]
        y, *last = run(op_type, *alone, **options)
        np.testing.assert_allclose(outputs[0][:length, :, row], y[:, :, 0], rtol=1e-12)
        assert not outputs[0][length:, :, row].any()
        for together, single in zip(outputs[1:], last, strict=True):
            np.testing.assert_allclose(together[:, row], single[:, 0], rtol=1e-12)


@pytest.mark.parametrize("op_type", sorted(GATES))
def test_layout_moves_the_batch_first_when_it_is_one(op_type):
    (x, *weights), states = arrays(op_type, 5)
    first = run(op_type, x, *weights, None, *states, hidden_size=5)
    moved = [state.swapaxes(0, 1).copy() for state in states]
    second = run(op_type, x.swapaxes(0, 1).copy(), *weights, None, *moved, hidden_size=5, layout=1)
    np.testing.assert_array_equal(first[0].transpose(2, 0, 1, 3), second[0])
    for a, b in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(a.swapaxes(0, 1), b)


ACTIVATIONS = {
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "Tanh": ({}, np.tanh),
    "Sigmoid": ({}, sigma),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "Softplus": ({}, lambda x: np.log1p(np.exp(x))),
    "LeakyRelu": ({}, lambda x: np.where(x < 0, 0.01 * x, x)),
    "ThresholdedRelu": ({}, lambda x: np.where(x > 1, x, 0)),
    "Elu": ({"activation_alpha": [2.0]}, lambda x: np.where(x < 0, 2 * (np.exp(x) - 1), x)),
    "Affine": ({"activation_alpha": [2.0], "activation_beta": [0.5]}, lambda x: 2 * x + 0.5),
    "ScaledTanh": ({"activation_alpha": [2.0], "activation_beta": [0.5]}, lambda x: 2 * np.tanh(0.5 * x)),
    "HardSigmoid": ({}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_rnn_applies_the_activation_when_it_is_named(name):
    (x, w, r, b), _ = arrays("RNN", 6, steps=1)
    options, function = ACTIVATIONS[name]
    y, _ = run("RNN", x, w, r, b, hidden_size=5, activations=[name], **options)
    want = function(x[0] @ w[0].T + b[0, :5] + b[0, 5:])
    np.testing.assert_allclose(y[0, 0], want, rtol=1e-6, atol=1e-12)


def test_parameters_go_to_the_activations_that_need_them_when_they_are_mixed():
    (x, w, r, b), _ = arrays("RNN", 7, directions=2, steps=1)
    y, _ = run(
        "RNN",
        x,
        w,
        r,
        b,
        hidden_size=5,
        direction="bidirectional",
        activations=["Tanh", "Elu"],
        activation_alpha=[2.0],
    )
    before = [x[0] @ w[d].T + b[d, :5] + b[d, 5:] for d in (0, 1)]
    np.testing.assert_allclose(y[0, 0], np.tanh(before[0]), rtol=1e-12)
    np.testing.assert_allclose(y[0, 1], ACTIVATIONS["Elu"][1](before[1]), rtol=1e-12)


def test_clip_bounds_the_gates_and_not_the_cell_when_it_is_set():
    (x, w, r, b), (h, c) = arrays("LSTM", 8, steps=1)
    gates = np.clip(x[0] @ w[0].T + h[0] @ r[0].T + b[0, :20] + b[0, 20:], -0.5, 0.5)
    i, o, f, g = np.split(gates, 4, axis=1)
    cell = sigma(f) * c[0] * 9 + sigma(i) * np.tanh(g)
    y, _, _ = run("LSTM", x, w, r, b, None, h, c * 9, hidden_size=5, clip=0.5)
    np.testing.assert_allclose(y[0, 0], sigma(o) * np.tanh(cell), rtol=1e-12)


@pytest.mark.parametrize(
    ("activations", "text"),
    [
        (["Cosine"], "unknown activation 'Cosine'; known: affine, elu"),
        (["Affine"], "'Affine' needs a value for each of alpha, beta"),
    ],
)
def test_rnn_is_refused_when_its_activation_is_not_defined(activations, text):
    (x, w, r, b), _ = arrays("RNN", 9)
    with pytest.raises(ReferenceUnavailable, match=text):
        run("RNN", x, w, r, b, hidden_size=5, activations=activations)
