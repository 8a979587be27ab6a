"""Every version of every translated operator from operator set 7 on, against the ONNX reference.

The node tests of the onnx package are of the newest versions. Here their models are declared to be of an
older operator set, as far as the older schema allows them, and ONNX's reference of that version says what is
right. What no node test can be declared to be is written by hand.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hal_torch.bridge import TABLE, bridge
from tests.contract.bridge_models import floats
from tests.contract.test_bridge_ops import cases, difference, judge, tensor_of

OLDEST = 7
N_CASES = 3  # node tests tried per version

# Versions that the reference of onnx 1.23 gets wrong or lacks: the truth is written out below or elsewhere.
NOT_BY_REFERENCE = {
    # It computes the training mode, whatever was asked; test_bridge_module.py
    ("BatchNormalization", 7),
    ("BatchNormalization", 9),
    # It has no versions that flatten before they sum
    ("Hardmax", 7),
    ("Hardmax", 11),
    ("LogSoftmax", 7),
    ("LogSoftmax", 11),
    ("Softmax", 7),
    ("Softmax", 11),
    # It has no implementation; test_bridge_module.py, and test_bridge_ops.py with the node test's own answer
    ("Scatter", 9),
    ("Scan", 8),
    # No node test that fits, no implementation of the reference; test_bridge_module.py
    ("Resize", 10),
    ("Upsample", 7),
    ("GlobalLpPool", 7),
    ("GlobalLpPool", 22),
}

# Tests of their own below: a body has to be written; the reference reads coordinates as later versions do.
ALONE = {("Loop", 7), ("RoiAlign", 10)}

# test_bridge_sequences.py
SEQUENCES = {
    ("ConcatFromSequence", 11),
    ("Optional", 15),
    ("Optional", 28),
    ("SequenceAt", 11),
    ("SequenceConstruct", 11),
    ("SequenceEmpty", 11),
    ("SequenceErase", 11),
    ("SequenceLength", 11),
}

# The reference wraps an optional value in a list.
NOT_RESTAMPED = {"test_if_opt"}

X = floats(2, 3, 4, 4)
SCALES = np.array([1, 1, 2, 0.5], np.float32)
ROIS, PLACES = np.array([[0, 0, 3, 3], [1, 0, 2, 3]], np.float32), np.array([1, 0], np.int64)
NARROW = floats(2, 1, 4, 1)
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Mean", "Sum", "SumSquare")

# (operator, operator set, inputs, attributes, number of outputs)
BY_HAND: list[tuple[str, int, tuple[np.ndarray, ...], dict[str, object], int]] = [
    ("Clip", 7, (X,), {"min": -0.5, "max": 0.5}, 1),
    ("DepthToSpace", 7, (floats(1, 8, 2, 3),), {"blocksize": 2}, 1),
    ("MeanVarianceNormalization", 13, (X,), {}, 1),
    ("Pad", 7, (X,), {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 2.0}, 1),
    ("Pad", 7, (X,), {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "mode": "reflect"}, 1),
    ("Resize", 11, (X, np.zeros(0, np.float32), SCALES), {"mode": "linear"}, 1),
    ("Slice", 7, (X,), {"starts": [1, -3], "ends": [3, 1000], "axes": [1, 3]}, 1),
    ("Squeeze", 7, (NARROW,), {"axes": [1, 3]}, 1),
    ("Squeeze", 11, (NARROW,), {"axes": [-1]}, 1),
    ("TopK", 7, (X,), {"k": 2, "axis": 2}, 2),
    ("Unsqueeze", 7, (X,), {"axes": [0, 4]}, 1),
    ("Unsqueeze", 11, (X,), {"axes": [-1, 1]}, 1),
    *(
        (f"Reduce{name}", version, (np.abs(X),), {"axes": axes, "keepdims": keep}, 1)
        for name in REDUCTIONS
        for version in (7, 11, 13)
        for axes, keep in (([1], 1), ([1, 3], 0))
        if (name, version) != ("Sum", 13)
    ),
]

INT8 = np.arange(-6, 6, dtype=np.int8).reshape(2, 6)
BY_FORMULA: list[tuple[str, int, tuple[Any, ...], dict[str, object], np.ndarray]] = [
    (
        "DequantizeLinear",
        10,
        (INT8, np.float32(0.5), np.int8(3)),
        {},
        (INT8 - np.float32(3)) * np.float32(0.5),
    ),
    (
        "DequantizeLinear",
        13,
        (INT8, np.array([0.5, 2], np.float32), np.array([3, -1], np.int8)),
        {"axis": 0},
        (INT8 - np.array([[3], [-1]], np.float32)) * np.array([[0.5], [2]], np.float32),
    ),
]


def of_rest(function: str, axis: int) -> np.ndarray:
    """Softmax and its kin of X over all dimensions from an axis on, as operator sets before 13 have them."""
    flat = X.reshape(int(np.prod(X.shape[:axis])), -1)
    result: np.ndarray
    if function == "Hardmax":
        result = np.eye(flat.shape[1], dtype=np.float32)[flat.argmax(1)]
    else:
        result = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
    return (np.log(result) if function == "LogSoftmax" else result).reshape(X.shape)


for _name in ("Hardmax", "LogSoftmax", "Softmax"):
    BY_FORMULA += [
        (_name, _version, (X,), {"axis": _axis}, of_rest(_name, _axis))
        for _version in (7, 11)
        for _axis in (0, 1, 2, 3)
    ]


def versions() -> dict[str, list[int]]:
    """Versions of each translated operator that an operator set from OLDEST on uses."""
    found: dict[str, list[int]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and ("", schema.name) in TABLE and not schema.deprecated:
            found[schema.name].append(schema.since_version)
    used: dict[str, list[int]] = {}
    for name, starts in found.items():
        ordered = sorted(starts)
        pairs = zip(ordered, (*ordered[1:], OLDEST + 1000), strict=True)
        used[name] = [max(start, OLDEST) for start, following in pairs if following > OLDEST]
    return used


def array_of(value: Any) -> Any:
    """A test's value as the reference takes it."""
    if isinstance(value, list):
        return [array_of(part) for part in value]
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


@functools.cache
def restamped(op: str, version: int) -> list[Any]:
    """Node tests of an operator that an older version allows, with the answers of its reference."""
    found: list[Any] = []
    for case in cases().get(op, []):
        if len(found) == N_CASES:
            break
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for entry in model.opset_import:
            entry.version = version if entry.domain in ("", "ai.onnx") else entry.version
        model.ir_version = min(model.ir_version, 13)
        if case.name in NOT_RESTAMPED or not is_valid(model):
            continue
        inputs = [array_of(value) for value in case.data_sets[0][0]]
        names = [value.name for value in model.graph.input]
        answers = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
        data = [(case.data_sets[0][0], answers)]
        # 1e-3: the reference sums in another order, and some of its old versions in float32 throughout.
        found.append(SimpleNamespace(name=case.name, model=model, data_sets=data, rtol=max(case.rtol, 1e-3)))
    return found


def is_valid(model: onnx.ModelProto) -> bool:
    """Whether a model keeps the schemas of its operator set, types included."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def by_reference() -> Iterator[tuple[str, int]]:
    """What restamped node tests should cover."""
    other = (
        NOT_BY_REFERENCE | ALONE | SEQUENCES | {(op, version) for op, version, *_ in (*BY_HAND, *BY_FORMULA)}
    )
    for op, used in versions().items():
        yield from ((op, version) for version in used if (op, version) not in other)


@pytest.mark.parametrize("op", sorted({op for op, _ in by_reference()}))
def test_operator_answers_as_the_reference_when_declared_to_be_of_any_version(op: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for version in (version for name, version in by_reference() if name == op):
            found = [judge(case) for case in restamped(op, version)]
            assert [f"{version} {v.name}: {v.why}" for v in found if v.kind == "wrong"] == []
            assert any(v.kind == "passed" for v in found), (version, found)


def one_node(
    op: str, version: int, arrays: tuple[np.ndarray, ...], attributes: dict[str, object], n_outputs: int
) -> onnx.ModelProto:
    """A model of one node; all its inputs but the first are constants."""
    names, results = [f"x{i}" for i in range(len(arrays))], [f"y{i}" for i in range(n_outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, name="node", **attributes)],
        "graph",
        [
            helper.make_tensor_value_info(
                "x0", helper.np_dtype_to_tensor_dtype(arrays[0].dtype), arrays[0].shape
            )
        ],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in zip(names[1:], arrays[1:], strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)


def bridged(model: onnx.ModelProto, array: np.ndarray) -> list[torch.Tensor]:
    """What the bridged model answers."""
    with torch.no_grad():
        return list(bridge(ir.from_proto(model))(torch.from_numpy(array)))


@pytest.mark.parametrize(("op", "version", "arrays", "attributes", "n_outputs"), BY_HAND)
def test_operator_answers_as_the_reference_when_its_version_has_other_inputs(
    op: str, version: int, arrays: tuple[np.ndarray, ...], attributes: dict[str, object], n_outputs: int
) -> None:
    model = one_node(op, version, arrays, attributes, n_outputs)
    expected = [tensor_of(array) for array in ReferenceEvaluator(model).run(None, {"x0": arrays[0]})]
    assert difference(bridged(model, arrays[0]), expected, 1e-5) == ""


@pytest.mark.parametrize(("op", "version", "arrays", "attributes", "expected"), BY_FORMULA)
def test_operator_answers_as_its_formula_when_the_reference_lacks_its_version(
    op: str, version: int, arrays: tuple[np.ndarray, ...], attributes: dict[str, object], expected: np.ndarray
) -> None:
    model = one_node(op, version, arrays, attributes, 1)
    assert difference(bridged(model, arrays[0]), [tensor_of(expected)], 1e-5) == ""


def test_loop_collects_slices_when_its_version_is_the_first() -> None:
    text = """<ir_version: 8, opset_import: ["" : 7]> g (float[3] x0) => (float[3] last, float[n, 3] all) {
        limit = Constant<value = int64 {4}>()  go = Constant<value = bool {1}>()
        last, all = Loop(limit, go, x0) <body = b (int64 i, bool c, float[3] v) =>
            (bool more, float[3] w, float[3] s) { more = Identity(c)  w = Add(v, v)  s = Neg(w) }> }"""
    model = onnx.parser.parse_model(text)
    array = floats(3)
    expected = [array * 16, -np.stack([array * 2**step for step in range(1, 5)])]
    assert difference(bridged(model, array), [tensor_of(part) for part in expected], 1e-5) == ""


def test_roi_align_does_not_shift_by_half_a_pixel_when_its_version_is_the_first() -> None:
    attributes: dict[str, object] = {"output_height": 2, "output_width": 3, "sampling_ratio": 2}
    unshifted = {**attributes, "coordinate_transformation_mode": "output_half_pixel"}
    later = one_node("RoiAlign", 16, (X, ROIS, PLACES), unshifted, 1)
    expected = [tensor_of(array) for array in ReferenceEvaluator(later).run(None, {"x0": X})]
    found = bridged(one_node("RoiAlign", 10, (X, ROIS, PLACES), attributes, 1), X)
    assert difference(found, expected, 1e-5) == ""
