"""The module that the bridge makes: nodes, parameters, folding, control flow, precision, refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto as T
from onnx import helper

from hal_torch.bridge import bridge, lower_weights
from tests.contract.bridge_models import conditional, floats, model, single


def calls(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The fx nodes that compute."""
    return [node for node in module.graph.nodes if node.op.startswith("call")]


def perceptron() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Two matrix products with a reshape computed from the input's shape."""
    constants = {"w1": floats(6, 5), "b1": floats(5), "w2": floats(5, 3), "two": np.array([2], np.int64)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"], name="batch"),
        helper.make_node("Concat", ["batch", "minus"], ["wanted"], name="wanted", axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
        helper.make_node("MatMul", ["positive", "w2"], ["y"], name="second"),
    ]
    ints = {name: np.array([v], np.int64) for name, v in {"zero": 0, "one": 1, "minus": -1}.items()}
    return model(nodes, {"x": (T.FLOAT, [4, 2, 3])}, ["y"], {**constants, **ints}), constants


def test_bridge_makes_one_fx_node_per_onnx_node_when_shapes_are_static() -> None:
    module = bridge(perceptron()[0])
    assert [(node.meta["onnx_node"], node.meta["onnx_op"]) for node in calls(module)] == [
        ("flat", "Reshape"),
        ("first", "Gemm"),
        ("relu", "Relu"),
        ("second", "MatMul"),
    ]


def test_bridge_reads_shapes_as_python_ints_when_they_fold() -> None:
    reshape = calls(bridge(perceptron()[0]))[0]
    assert reshape.args[1] == (4, -1)


def test_bridge_computes_the_model_when_called() -> None:
    onnx_model, constants = perceptron()
    x = floats(4, 2, 3)
    (y,) = bridge(onnx_model)(torch.from_numpy(x))
    hidden = np.maximum(x.reshape(4, 6) @ constants["w1"] + constants["b1"], 0)
    np.testing.assert_allclose(y.numpy(), hidden @ constants["w2"], rtol=1e-5, atol=1e-6)


def test_bridge_computes_the_model_when_dimensions_are_dynamic() -> None:
    onnx_model, constants = perceptron()
    onnx_model.graph.inputs[0].shape = ir.Shape(["batch", 2, 3])
    x = floats(7, 2, 3)
    (y,) = bridge(onnx_model)(torch.from_numpy(x))
    hidden = np.maximum(x.reshape(7, 6) @ constants["w1"] + constants["b1"], 0)
    np.testing.assert_allclose(y.numpy(), hidden @ constants["w2"], rtol=1e-5, atol=1e-6)


def test_float_initializers_are_parameters_without_gradient_when_bridged() -> None:
    parameters = dict(bridge(perceptron()[0]).named_parameters())
    assert sorted(parameters) == ["b1", "w1", "w2"]
    assert not any(parameter.requires_grad for parameter in parameters.values())


def test_bridge_leaves_the_model_as_it_was_when_done() -> None:
    onnx_model, _ = perceptron()
    before = ir.to_proto(onnx_model).SerializeToString()
    bridge(onnx_model)
    assert ir.to_proto(onnx_model).SerializeToString() == before


def test_weight_is_held_once_when_two_nodes_read_it() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], name="embed"),
        helper.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["embedded", "turned"], ["y"], name="head"),
    ]
    table = floats(11, 4)
    module = bridge(model(nodes, {"ids": (T.INT64, [2, 3])}, ["y"], {"table": table}))
    assert len({parameter.data_ptr() for parameter in module.parameters()}) == 1
    ids = np.array([[0, 5, 10], [-1, 3, 2]])
    (y,) = module(torch.from_numpy(ids))
    np.testing.assert_allclose(y.numpy(), table[ids] @ table.T, rtol=1e-5, atol=1e-6)


def test_module_is_one_graph_when_dynamo_traces_it() -> None:
    module = bridge(perceptron()[0])
    x = torch.from_numpy(floats(4, 2, 3))
    traced = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_weights_casts_only_weights_of_products_when_asked(dtype: torch.dtype) -> None:
    module = bridge(perceptron()[0])
    x = torch.from_numpy(floats(4, 2, 3))
    (exact,) = module(x)
    assert sorted(lower_weights(module, dtype)) == ["b1", "w1", "w2"]
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    with torch.autocast("cpu", dtype):
        (y,) = module(x)
    assert torch.linalg.norm(y.float() - exact) / torch.linalg.norm(exact) < 0.02


def test_lower_weights_keeps_normalisation_in_float32_when_asked() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], name="norm"),
    ]
    constants = {"w": floats(4, 2, 3, 3), "s": floats(4), "b": floats(4), "m": floats(4), "v": abs(floats(4))}
    module = bridge(model(nodes, {"x": (T.FLOAT, [1, 2, 8, 8])}, ["y"], constants))
    assert lower_weights(module, torch.bfloat16) == ["w"]
    with torch.autocast("cpu", torch.bfloat16):
        (y,) = module(torch.from_numpy(floats(1, 2, 8, 8)))
    assert torch.isfinite(y).all()


def test_lower_weights_refuses_when_the_dtype_is_no_autocast_dtype() -> None:
    with pytest.raises(
        ValueError, match=r"cannot be lowered to torch.int8: expected torch.bfloat16 or torch.float16"
    ):
        lower_weights(bridge(perceptron()[0]), torch.int8)


@pytest.mark.parametrize("condition", [True, False])
def test_if_takes_the_branch_when_the_condition_is_data(condition: bool) -> None:
    onnx_model = conditional(None)
    module = bridge(onnx_model)
    assert [node.meta["onnx_node"] for node in calls(module) if node.op == "call_module"] == ["choice"]
    x, w = floats(3, 3), onnx_model.graph.initializers["w"].const_value.numpy()
    (y,) = module(torch.from_numpy(x), torch.tensor(condition))
    np.testing.assert_allclose(y.numpy(), -(x @ w) if condition else 1 - x, rtol=1e-5, atol=1e-6)


def test_if_vanishes_when_the_condition_is_constant() -> None:
    module = bridge(conditional(False))
    assert [node.meta["onnx_node"] for node in calls(module)] == ["choice", "minus"]
    x = floats(3, 3)
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].numpy(), 1 - x, rtol=1e-6)


def test_lower_weights_reaches_branches_when_there_is_an_if() -> None:
    module = bridge(conditional(None))
    assert lower_weights(module, torch.bfloat16) == ["choice.then_branch.w"]
    with torch.autocast("cpu", torch.bfloat16):
        (y,) = module(torch.from_numpy(floats(3, 3)), torch.tensor(True))
    assert y.dtype == torch.bfloat16


# Operators as older operator sets have them, which the node tests no longer hold.
X = floats(2, 3, 4, 4)
OLD = [
    ("Clip", 6, X, (), {"min": -0.5, "max": 0.5}, np.clip(X, -0.5, 0.5)),
    ("Slice", 9, X, (), {"starts": [1], "ends": [3], "axes": [2]}, X[:, :, 1:3]),
    ("Pad", 2, X, (), {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 2.0}, None),
    ("Squeeze", 11, X[:1], (), {"axes": [0]}, X[0]),
    ("Unsqueeze", 11, X, (), {"axes": [0, -1]}, X[None, ..., None]),
    ("ReduceSum", 11, X, (), {"axes": [1], "keepdims": 0}, X.sum(1)),
    ("Softmax", 11, X, (), {"axis": 2}, None),
    ("Dropout", 7, X, (), {"ratio": 0.5}, X),
    ("Upsample", 7, X, (), {"scales": [1.0, 1.0, 2.0, 2.0]}, X.repeat(2, 2).repeat(2, 3)),
    ("Upsample", 9, X, (np.array([1, 1, 2, 1], np.float32),), {}, X.repeat(2, 2)),
    ("Resize", 10, X, (np.array([1, 1, 0.5, 0.5], np.float32),), {}, X[:, :, ::2, ::2]),
    ("GlobalLpPool", 2, X, (), {"p": 2}, np.sqrt((X**2).sum((2, 3), keepdims=True))),
    ("Scatter", 9, X[0, 0], (np.array([[1, 0]]), np.array([[9, 8]], np.float32)), {}, None),
]
SOFTMAX = np.exp(X) / np.exp(X).sum((2, 3), keepdims=True)
PADDED = np.pad(X, [(0, 0), (0, 0), (1, 0), (0, 2)], constant_values=2)
SCATTERED = X[0, 0].copy()
SCATTERED[1, 0], SCATTERED[0, 1] = 9, 8
LONG = {"Pad": PADDED, "Softmax": SOFTMAX, "Scatter": SCATTERED}


@pytest.mark.parametrize(("op", "opset", "x", "rest", "attributes", "expected"), OLD)
def test_operator_follows_its_version_when_the_operator_set_is_old(
    op: str,
    opset: int,
    x: np.ndarray,
    rest: tuple[np.ndarray, ...],
    attributes: dict[str, object],
    expected: np.ndarray | None,
) -> None:
    (y,) = bridge(single(op, x, opset, *rest, **attributes))(torch.from_numpy(x))
    wanted = LONG[op] if expected is None else expected
    np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-5, atol=1e-6)
