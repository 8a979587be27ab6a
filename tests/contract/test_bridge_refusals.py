"""What the bridge refuses, and what it says then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from hal.errors import UnsupportedGraph
from hal_torch.bridge import bridge, refusals, unsupported
from tests.contract.bridge_models import conditional, floats, model, single

# What is refused: operator, input, operator set, constants, attributes, and the reason.
X = floats(2, 3, 4, 4)
C = floats(3)
I4 = np.array([1, 2, 3, 4], np.int64)
IDS = np.zeros((2, 4, 4), np.int64)
NONE = np.zeros(0, np.float32)
TWICE = np.array([1, 1, 2, 2], np.float32)
ODD = np.array([1, 1, 1.1, 1], np.float32)
ROI = np.array([0, 0, 0.1, 0, 1, 1, 0.9, 1], np.float32)
GRAMS = {"mode": "TF", "pool_int64s": [1, 2], "ngram_counts": [0], "ngram_indexes": [0, 1]}
REFUSALS: list[tuple[str, np.ndarray, int, tuple[Any, ...], dict[str, object], str]] = [
    ("NoSuchOp", X, 18, (), {}, "NoSuchOp: the bridge has no translation for operator NoSuchOp of domain ''"),
    ("Relu", X, 99, (), {}, "Relu: operator set 99 is newer than 28, the newest one translated"),
    ("Pow", X, 6, (X,), {}, "Pow: Pow of operator set 6 is not translated, only from 7 on"),
    ("Relu", X.astype(np.uint16), 18, (), {}, "Relu: PyTorch does not compute with torch.uint16 (input x)"),
    ("Cast", X, 18, (), {"to": T.STRING}, "Cast: element type STRING has no PyTorch dtype"),
    (
        "Conv",
        floats(1, 1, 2, 2, 2, 2),
        18,
        (floats(1, 1, 1, 1, 1, 1),),
        {},
        "Conv: a convolution over 4 dimensions",
    ),
    ("Conv", X, 18, (floats(1, 3, 1, 1),), {"auto_pad": "ODD"}, "Conv: auto_pad `ODD` is not one of NOTSET"),
    (
        "MaxPool",
        X,
        18,
        (),
        {"kernel_shape": [2, 2], "auto_pad": "VALID", "ceil_mode": 1},
        "with ceil_mode is read",
    ),
    (
        "AveragePool",
        X,
        19,
        (),
        {"kernel_shape": [1, 1], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        "leave elements out",
    ),
    (
        "AveragePool",
        X,
        19,
        (),
        {"kernel_shape": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_LOWER"},
        "with dilations",
    ),
    ("LRN", X, 13, (), {"size": 2}, "LRN: an even size (2) is centred differently"),
    (
        "Resize",
        X,
        18,
        (np.zeros(0, np.float32), np.ones(4, np.float32)),
        {"mode": "odd"},
        "Resize: mode `odd` is not",
    ),
    ("Resize", X, 18, (), {}, "Resize: neither scales nor sizes are given"),
    (
        "Pad",
        X,
        18,
        (np.zeros(8, np.int64),),
        {"mode": "odd"},
        "Pad: mode `odd` is not one of constant, reflect",
    ),
    (
        "Reshape",
        X,
        18,
        (np.array([96, 1, 1, 1, 0]),),
        {},
        "copies a dimension that the input of shape (2, 3, 4, 4) lacks",
    ),
    (
        "Reshape",
        X,
        18,
        (np.array([7, 7]),),
        {},
        "Reshape: PyTorch refuses it: shape '[7, 7]' is invalid for input",
    ),
    (
        "ReduceMean",
        X.astype(np.int32),
        18,
        (),
        {},
        "ReduceMean: the mean of torch.int32 is not defined the same way",
    ),
    ("Einsum", X, 18, (), {}, "Einsum: attribute `equation` is missing"),
    (
        "ScatterND",
        X,
        18,
        (np.array([[0]]), X[:1]),
        {"reduction": "odd"},
        "ScatterND: reduction `odd` is not one of none",
    ),
    (
        "GridSample",
        X,
        20,
        (floats(2, 4, 4, 2),),
        {"mode": "odd"},
        "GridSample: mode `odd` is not one of linear",
    ),
    (
        "Add",
        X,
        6,
        (X,),
        {"broadcast": 1},
        "Add: attribute `broadcast` of operator sets before 7 is not translated",
    ),
    (
        "Div",
        X,
        6,
        (X,),
        {"broadcast": 1},
        "Div: attribute `broadcast` of operator sets before 7 is not translated",
    ),
    ("Add", X, 18, (), {}, "Add: required input 1 is missing"),
    ("TopK", X, 18, (np.array([1]),), {}, "TopK: a TopK with one output is not translated"),
    ("Pad", X, 2, (), {}, "Pad: attribute `pads` is missing"),
    ("LRN", X, 13, (), {}, "LRN: attribute `size` is missing"),
    (
        "BatchNormalization",
        X,
        8,
        (C, C, C, C),
        {"spatial": 0},
        "attribute `spatial` 0 (statistics per element)",
    ),
    ("Dropout", X, 13, (np.float32(0.5), np.array(True)), {}, "training_mode without `seed` drops elements"),
    ("Unsqueeze", X, 11, (), {}, "Unsqueeze: axes are missing"),
    ("CumSum", X, 14, (), {}, "CumSum: axis is missing"),
    ("Slice", X, 13, (), {}, "Slice: starts or ends are missing"),
    ("AffineGrid", floats(1, 2, 3), 20, (), {}, "AffineGrid: size is missing"),
    ("Col2Im", floats(1, 5, 5), 18, (), {}, "Col2Im: image_shape or block_shape is missing"),
    (
        "RoiAlign",
        X,
        16,
        (floats(1, 4), np.array([0])),
        {"mode": "odd"},
        "RoiAlign: mode `odd` is not one of avg, max",
    ),
    (
        "GridSample",
        floats(1, 1, 2, 2, 2),
        20,
        (floats(1, 2, 2, 2, 3),),
        {"mode": "cubic"},
        "cubic sampling of volumes",
    ),
    (
        "GridSample",
        floats(1, 1, 2),
        20,
        (floats(1, 2, 1),),
        {},
        "GridSample: sampling of rank 3 has no PyTorch",
    ),
    ("DFT", X.astype(np.float16), 20, (), {}, "DFT: PyTorch has no Fourier transform of torch.float16"),
    ("STFT", X[0, 0], 17, (np.array(2),), {}, "STFT: neither window nor frame_length is given"),
    (
        "BitCast",
        X,
        26,
        (),
        {"to": T.INT64},
        "a bit cast from torch.float32 to torch.int64, which differ in size",
    ),
    (
        "QuantizeLinear",
        X,
        23,
        (np.float32(1),),
        {"output_dtype": T.INT32},
        "quantization to torch.int32 is not",
    ),
    (
        "ConvTranspose",
        X,
        11,
        (floats(3, 1, 1, 1),),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        "output of 8 where the windows reach 7 is read differently",
    ),
    (
        "ConvTranspose",
        floats(1, 1, 1, 1, 1, 1),
        11,
        (floats(1, 1, 1, 1, 1, 1),),
        {},
        "a transposed convolution over 4",
    ),
    ("MaxPool", X, 18, (), {}, "MaxPool: pooling over 0 dimensions has no PyTorch function, 1 to 3 have"),
    (
        "Upsample",
        X,
        9,
        (np.ones(3, np.float32),),
        {},
        "Upsample: 3 scales do not fit an input of shape (2, 3, 4, 4)",
    ),
    (
        "Upsample",
        X,
        9,
        (np.ones(4, np.float32),),
        {"mode": "cubic"},
        "Upsample: mode `cubic` is not one of nearest, linear",
    ),
    (
        "Resize",
        X,
        18,
        (NONE, TWICE),
        {"nearest_mode": "odd"},
        "nearest_mode `odd` is not one of round_prefer_floor",
    ),
    (
        "Resize",
        X,
        18,
        (NONE, TWICE),
        {"coordinate_transformation_mode": "odd"},
        "mode `odd` is not translated",
    ),
    (
        "Resize",
        X,
        18,
        (NONE, NONE, I4),
        {"keep_aspect_ratio_policy": "odd"},
        "policy `odd` is not one of stretch",
    ),
    (
        "Resize",
        X,
        18,
        (NONE, NONE, 0 * I4),
        {},
        "resizing shape (2, 3, 4, 4) to (0, 0, 0, 0) has nothing to read",
    ),
    (
        "Resize",
        X,
        18,
        (ROI, ODD),
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
        "gives no whole number",
    ),
    (
        "TensorScatter",
        X,
        24,
        (X,),
        {"mode": "odd"},
        "TensorScatter: mode `odd` is not one of linear, circular",
    ),
    (
        "NegativeLogLikelihoodLoss",
        X,
        22,
        (IDS,),
        {"reduction": "odd"},
        "reduction `odd` is not one of mean, sum, none",
    ),
    (
        "Attention",
        X,
        23,
        (X, X),
        {"qk_matmul_output_mode": 7},
        "qk_matmul_output_mode 7 is not one of 0 to 3",
    ),
    ("If", np.array(True), 18, (), {}, "If: subgraph `then_branch` is missing"),
    ("Cast", X, 24, (), {"to": T.FLOAT8E8M0, "round_mode": "odd"}, "round_mode `odd` is not one of up, down"),
    ("LinearAttention", X[0], 27, (X[0], X[0]), {"update_rule": "odd"}, "`odd` is not one of linear, gated"),
    ("LinearAttention", X[0], 27, (X[0], X[0]), {"update_rule": "gated"}, "does not fit the inputs `decay`"),
    (
        "LinearAttention",
        X[0],
        27,
        (X[0], X[0]),
        {"update_rule": "linear", "q_num_heads": 3, "kv_num_heads": 2},
        "q_num_heads 3 is no multiple of kv_num_heads 2",
    ),
    ("CausalConvWithState", X[0], 27, (X[0],), {"activation": "odd"}, "activation `odd` is not one of none"),
    (
        "DeformConv",
        X[0],
        19,
        (floats(1, 3, 1), X[0]),
        {},
        "a deformable convolution over 1 dimensions is not",
    ),
    ("TfIdfVectorizer", IDS, 9, (), {"mode": "TF", "pool_strings": ["a"]}, "n-grams of strings (attribute"),
    ("TfIdfVectorizer", IDS, 9, (), {**GRAMS, "mode": "odd"}, "mode `odd` is not one of TF, IDF, TFIDF"),
    (
        "TfIdfVectorizer",
        IDS,
        9,
        (),
        {**GRAMS, "min_gram_length": 2},
        "there are no n-grams of the lengths 2 to 1",
    ),
    (
        "Scan",
        X,
        8,
        (X,),
        {"num_scan_inputs": 1},
        "input `sequence_lens` of Scan before operator set 9 is not",
    ),
]


@pytest.mark.parametrize(("op", "x", "opset", "rest", "attributes", "reason"), REFUSALS)
def test_bridge_refuses_with_the_reason_when_it_cannot_be_right(
    op: str,
    x: np.ndarray,
    opset: int,
    rest: tuple[np.ndarray, ...],
    attributes: dict[str, object],
    reason: str,
) -> None:
    onnx_model = single(op, x, opset, *rest, **attributes)
    assert reason in refusals(onnx_model)["node"]
    with pytest.raises(UnsupportedGraph) as caught:
        bridge(onnx_model)
    assert str(caught.value).startswith(f"the model cannot be translated to PyTorch: node 'node' ({op}): ")
    assert str(caught.value).endswith(
        "Run these nodes on another backend, or rewrite them with supported operators."
    )


def test_recurrent_layers_are_refused_when_pytorch_lacks_what_they_ask() -> None:
    x, w, r = floats(2, 1, 3), floats(1, 8, 3), floats(1, 8, 2)
    reasons: dict[str, dict[str, Any]] = {
        "activations ('Relu', 'Tanh', 'Tanh') are not translated": {"activations": ["Relu", "Tanh", "Tanh"]},
        "attribute `clip` is not translated": {"clip": 1.0},
        "attribute `input_forget` is not translated": {"input_forget": 1},
    }
    for reason, attributes in reasons.items():
        assert reason in refusals(single("LSTM", x, 14, w, r, hidden_size=2, **attributes))["node"]


def test_lstm_is_refused_when_sequences_are_shorter() -> None:
    x, w, r, b = floats(2, 1, 3), floats(1, 8, 3), floats(1, 8, 2), floats(1, 16)
    short = single("LSTM", x, 14, w, r, b, np.array([1], np.int32), hidden_size=2)
    assert "sequence_lens (1,) shorter than the 2 steps are not translated" in refusals(short)["node"]


def test_constant_is_refused_when_it_is_no_tensor() -> None:
    node = helper.make_node("Constant", [], ["y"], name="node", value_string="text")
    reason = "constants given as ['value_string'] have no PyTorch tensor"
    assert refusals(model([node], {}, ["y"])) == {"node": f"Constant: {reason}"}


def test_shape_must_be_static_when_a_translation_needs_it() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], name="places"),
        helper.make_node("Cast", ["places"], ["floats"], name="floats", to=T.FLOAT),
        helper.make_node("Resize", ["floats", "", "scales"], ["y"], name="node"),
    ]
    onnx_model = model(nodes, {"x": (T.FLOAT, [3])}, ["y"], {"scales": np.ones(2, np.float32)})
    reason = "the shape of input 0 (floats) must be static, it depends on data"
    assert refusals(onnx_model) == {"node": f"Resize: {reason}"}


def test_bridge_names_every_refused_node_once_when_there_are_several() -> None:
    nodes = [
        helper.make_node("NoSuchOp", ["x"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="reads_first"),
        helper.make_node("OtherOp", ["b"], ["y"], name="second"),
    ]
    onnx_model = model(nodes, {"x": (T.FLOAT, [2])}, ["y"])
    assert list(refusals(onnx_model)) == ["first", "second"]
    with pytest.raises(UnsupportedGraph, match=r"(?s)PyTorch:\n  - node 'first' .*\n  - node 'second' "):
        bridge(onnx_model)


def test_if_is_refused_with_the_inner_reason_when_a_branch_is_refused() -> None:
    for condition in (None, True):
        onnx_model = conditional(condition)
        next(iter(onnx_model.graph.node("choice").attributes["then_branch"].as_graph())).op_type = "NoSuchOp"
        (reason,) = refusals(onnx_model).values()
        assert "NoSuchOp 'then_branch_node': the bridge has no translation" in reason


def test_node_is_refused_when_its_input_has_a_type_that_pytorch_lacks() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"], name="node")]
    onnx_model = model(nodes, {"x": (T.STRING, [2])}, ["y"])
    assert refusals(onnx_model) == {"node": "Identity: input x: STRING has no PyTorch dtype"}


def test_value_must_be_constant_when_a_translation_needs_it() -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="node")]
    onnx_model = model(nodes, {"x": (T.FLOAT, [2, 3]), "axes": (T.INT64, [1])}, ["y"])
    reason = "input `axes` (axes) must be a constant, it is computed from data"
    assert refusals(onnx_model) == {"node": f"ReduceSum: {reason}"}


def test_unsupported_judges_a_node_alone_when_given_one() -> None:
    onnx_model = single("ReduceMean", X.astype(np.int32), 18)
    assert unsupported(onnx_model.graph.node("node"), 18) == (
        "ReduceMean: the mean of torch.int32 is not defined the same way everywhere"
    )
    assert unsupported(single("Relu", X, 18).graph.node("node"), 18) is None


def test_unsupported_is_silent_when_only_the_graph_can_tell() -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="node")]
    onnx_model = model(nodes, {"x": (T.FLOAT, [2, 3]), "axes": (T.INT64, [1])}, ["y"])
    assert unsupported(onnx_model.graph.node("node"), 18) is None


def test_batch_normalization_is_refused_when_several_outputs_mean_training() -> None:
    outputs = ["y", "mean", "var", "saved_mean", "saved_var"]
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], outputs, name="node")
    constants = dict.fromkeys(("s", "b", "m", "v"), C)
    onnx_model = model([node], {"x": (T.FLOAT, X.shape)}, outputs, constants, opset=9)
    reason = "several outputs mean training, translated from operator set 14 on"
    assert refusals(onnx_model) == {"node": f"BatchNormalization: {reason}"}


def test_value_of_nothing_is_refused_when_asked_for() -> None:
    node = helper.make_node("OptionalGetElement", [""], ["y"], name="node")
    reason = "the value of nothing is asked for"
    assert refusals(model([node], {}, ["y"])) == {"node": f"OptionalGetElement: {reason}"}


def test_types_that_pytorch_lacks_are_refused_when_computed_with() -> None:
    cases: list[tuple[str, int, dict[str, Any], str]] = [
        ("Neg", 25, {}, "PyTorch does not compute with INT4 (input four)"),
        ("BitCast", 26, {"to": T.INT8}, "PyTorch has no bits of INT4"),
    ]
    for op, opset, attributes, reason in cases:
        nodes = [
            helper.make_node("Cast", ["x"], ["four"], name="cast", to=T.INT4),
            helper.make_node(op, ["four"], ["y"], name="node", **attributes),
        ]
        found = refusals(model(nodes, {"x": (T.FLOAT, [3])}, ["y"], opset=opset))
        assert found == {"node": f"{op}: {reason}"}
