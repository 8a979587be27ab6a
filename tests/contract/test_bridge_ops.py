"""Every translated operator against ONNX's own node tests: right, or refused with a reason."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from hal.errors import UnsupportedGraph
from hal_torch.bridge import TABLE, bridge
from hal_torch.bridge.dtypes import to_torch

# Node tests of translated operators that are refused, by what the operator lacks. Everything else passes.
REFUSED = {
    "Equal": 2,  # strings
}

# Operators without a translation, by the reason; N_MOST_REFUSED counts their tests in the standard domain.
NOT_TRANSLATED = {
    "strings": ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"),
    "drawn at random, so that there is no one right answer": ("Bernoulli", "RandomUniformLike"),
    "files of images": ("ImageDecoder",),
}

# Translated, but without a node test of its own; the tests that hold them are named.
WITHOUT_NODE_TEST = {
    "GlobalLpPool",  # test_bridge_module.py
    "SimplifiedLayerNormalization",  # test_bridge_contrib.py
    # test_bridge_sequences.py
    "ConcatFromSequence",
    "Optional",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceLength",
}

# Of 1884 node tests of ONNX 1.23, functions written out included; the rest is refused. 1858 are of the
# standard domain: 98 of 100 pass. The others are 8 of ai.onnx.ml, 7 of training and 11 of ai.onnx.preview.
N_LEAST_PASSED = 1821
N_MOST_REFUSED = 37

# Relative tolerance by type: two units in the last place of the narrow ones.
TOLERANCE = {torch.bfloat16: 2 * 2**-7, torch.float16: 2 * 2**-10}


@dataclass
class Verdict:
    """What became of one node test: passed, refused or wrong, and why."""

    name: str
    kind: str
    why: str = ""


@functools.cache
def cases() -> dict[str, list[Any]]:
    """Node tests by operator; those of several nodes under the empty name."""
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, list[Any]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in load_model_tests(kind="node"):
            nodes = case.model.graph.node
            found[nodes[0].op_type if len(nodes) == 1 else ""].append(case)
    return found


def is_standard(case: Any) -> bool:
    """Whether all nodes of a test are of the standard domain."""
    return all(node.domain in ("", "ai.onnx") for node in case.model.graph.node)


def tensor_of(value: Any) -> torch.Tensor:
    """A test's array or proto as a tensor."""
    return to_torch(
        ir.from_proto(value) if isinstance(value, onnx.TensorProto) else ir.tensor(np.asarray(value))
    )


def given(value: Any) -> Any:
    """A test's value as the module takes and answers it: sequences are lists, what is absent is None."""
    if isinstance(value, list):
        return [given(part) for part in value]
    return None if value is None else tensor_of(value)


def module_of(case: Any, constants: bool) -> tuple[torch.fx.GraphModule, int]:
    """The case's module, shapes bound to its data; and how many inputs are left to give.

    Args:
        case: An ONNX node test.
        constants: Whether all inputs but the first are made initializers.
    """
    model = ir.from_proto(case.model)
    graph = model.graph
    arrays = case.data_sets[0][0]
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for value, array in zip(inputs, arrays, strict=False):
        if isinstance(array, np.ndarray):
            value.shape = ir.Shape(array.shape)
    if constants:
        for value, array in zip(inputs[1:], arrays[1:], strict=True):
            value.const_value = ir.tensor(np.asarray(array), name=value.name)
            graph.register_initializer(value)
            graph.inputs.remove(value)
    return bridge(model), 1 if constants else len(inputs)


def judge(case: Any) -> Verdict:
    """Run one node test."""
    try:
        try:
            module, n_inputs = module_of(case, constants=False)
        except UnsupportedGraph as refusal:
            if "must be a constant" not in str(refusal) and "must be static" not in str(refusal):
                raise
            module, n_inputs = module_of(case, constants=True)
    except UnsupportedGraph as refusal:
        return Verdict(case.name, "refused", str(refusal))
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            results = module(*[given(value) for value in inputs[:n_inputs]])
        why = difference(results, [given(value) for value in outputs], case.rtol)
        if why:
            return Verdict(case.name, "wrong", why)
    return Verdict(case.name, "passed")


@functools.cache
def verdicts(op: str) -> list[Verdict]:
    """Run the node tests of one operator, once per process."""
    return [judge(case) for case in cases().get(op, [])]


def difference(results: Sequence[Any], expected: Sequence[Any], rtol: float) -> str:
    """How outputs differ from what is expected, empty when they agree."""
    if len(results) != len(expected):
        return f"{len(results)} outputs instead of {len(expected)}"
    for result, wanted in zip(results, expected, strict=True):
        if not isinstance(result, torch.Tensor) or not isinstance(wanted, torch.Tensor):
            if not isinstance(result, list) or not isinstance(wanted, list):
                return f"{type(result).__name__} instead of {type(wanted).__name__}"
            if why := difference(result, wanted, rtol):
                return f"in a sequence: {why}"
            continue
        if result.dtype != wanted.dtype or result.shape != wanted.shape:
            return f"{result.dtype}{list(result.shape)} instead of {wanted.dtype}{list(wanted.shape)}"
        wide = torch.complex128 if result.is_complex() else torch.float64
        tolerance = TOLERANCE.get(result.dtype, rtol)
        if not torch.allclose(result.to(wide), wanted.to(wide), tolerance, 1e-6, equal_nan=True):
            return f"{result.flatten()[:8].tolist()} instead of {wanted.flatten()[:8].tolist()}"
    return ""


def test_node_tests_are_right_or_refused_when_all_are_run() -> None:
    found = [verdict for op in cases() for verdict in verdicts(op)]
    wrong = [f"{v.name}: {v.why}" for v in found if v.kind == "wrong"]
    n_passed = sum(v.kind == "passed" for v in found)
    n_refused = sum(v.kind == "refused" for v in found)
    print(f"node tests: {n_passed} passed, {n_refused} refused, {len(wrong)} wrong")
    assert not wrong
    assert n_passed >= N_LEAST_PASSED
    standard = {case.name for of_op in cases().values() for case in of_op if is_standard(case)}
    assert (
        sum(v.kind == "refused" for v in found if v.name in standard)
        <= N_MOST_REFUSED
        <= 0.02 * len(standard)
    )


def test_reason_names_the_operator_when_a_node_test_is_refused() -> None:
    names = [name for of_reason in NOT_TRANSLATED.values() for name in of_reason]
    refused = [v for op in cases() for v in verdicts(op) if v.kind == "refused"]
    standard = {case.name for of_op in cases().values() for case in of_op if is_standard(case)}
    for verdict in refused:
        if verdict.name in standard and "STRING" not in verdict.why:
            assert any(f"no translation for operator {name} of domain" in verdict.why for name in names), (
                verdict
            )


@pytest.mark.parametrize("op", sorted(name for domain, name in TABLE if domain == ""))
def test_operator_passes_its_node_tests_when_not_refused(op: str) -> None:
    found = verdicts(op)
    assert [f"{v.name}: {v.why}" for v in found if v.kind == "wrong"] == []
    refused = [f"{v.name}: {v.why}" for v in found if v.kind == "refused"]
    assert len(refused) <= REFUSED.get(op, 0), refused
    assert len(refused) < len(found) or op in WITHOUT_NODE_TEST


def test_table_of_operators_is_current() -> None:
    from scripts import write_operators

    assert write_operators.PLACE.read_text() == write_operators.text(), (
        "run: python -m scripts.write_operators"
    )
