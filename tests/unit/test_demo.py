"""The demo models: what is in the package, and what the loader says."""

from __future__ import annotations

import getpass
import platform
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest

from hal import demo
from hal.errors import InputError, ModelError


def test_import_loads_no_numpy_when_demo_is_imported() -> None:
    code = "import sys, hal.demo; print([m for m in ('numpy', 'onnx', 'torch') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_find_lists_demos_when_name_is_unknown() -> None:
    with pytest.raises(
        ModelError, match=re.escape("no demo model is called 'digit'; hal ships demo:digits: use")
    ):
        demo.find("digit")


@pytest.mark.parametrize("name", sorted(demo.DEMOS))
def test_model_is_small_and_valid_when_checked_in_full(name: str) -> None:
    found = demo.find(name)
    assert found.name == name
    assert found.model.stat().st_size <= 300_000
    onnx.checker.check_model(onnx.load(found.model), full_check=True)


@pytest.mark.parametrize("name", sorted(demo.DEMOS))
def test_model_names_no_machine_when_every_string_is_read(name: str) -> None:
    texts: list[str] = []

    def collect(message: object) -> None:
        for field, value in message.ListFields():  # type: ignore[attr-defined]
            for item in value if field.is_repeated else [value]:
                if field.message_type is not None:
                    collect(item)
                elif isinstance(item, str):
                    texts.append(item)

    collect(onnx.load(demo.find(name).model))
    assert len(texts) > 50
    marks = ("/", "\\", ".py", "File ")
    assert [text for text in texts if any(mark in text for mark in marks)] == []
    names = {platform.node(), getpass.getuser()} - {""}
    assert names.isdisjoint(texts)


@pytest.mark.parametrize("name", sorted(demo.DEMOS))
def test_inputs_fit_the_signature_when_shapes_are_bound(name: str) -> None:
    found = demo.find(name)
    inputs = found.inputs()
    assert {key: value.shape for key, value in inputs.items()} == found.shapes
    for value in onnx.load(found.model).graph.input:
        free = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        fixed = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert free == ["batch", "", "", ""]
        assert found.shapes[value.name] == (1, *fixed[1:])
        assert inputs[value.name].dtype == onnx.helper.tensor_dtype_to_np_dtype(
            value.type.tensor_type.elem_type
        )


def test_digits_operators_are_those_promised_when_graph_is_counted() -> None:
    graph = onnx.load(demo.find("digits").model).graph
    assert Counter(node.op_type for node in graph.node) == {
        "Conv": 3,
        "BatchNormalization": 3,
        "Relu": 4,
        "MaxPool": 1,
        "AveragePool": 1,
        "Reshape": 1,
        "Gemm": 2,
        "Softmax": 1,
    }


def test_digits_inputs_are_a_digit_when_read() -> None:
    image = demo.find("digits").inputs()["image"]
    assert image.dtype == np.float32
    assert (image.min(), image.max()) == (0.0, 1.0)


def test_evaluation_repeats_its_batches_when_iterated_twice() -> None:
    evaluation = demo.find("digits").evaluation()
    first, second = list(evaluation.batches), list(evaluation.batches)
    assert len(first) == len(second) == len(evaluation.labels) == 600
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    assert set(evaluation.labels.tolist()) == set(range(10))


def test_accuracy_counts_right_rows_when_some_are_wrong() -> None:
    evaluation = demo.find("digits").evaluation()
    scores = np.eye(10, dtype=np.float32)[evaluation.labels]
    assert evaluation.accuracy(np.split(scores, 600)) == 1.0
    assert evaluation.accuracy([scores[:400], np.roll(scores[400:], 1, axis=1)]) == pytest.approx(400 / 600)


def test_accuracy_says_what_is_missing_when_rows_do_not_match() -> None:
    evaluation = demo.find("digits").evaluation()
    with pytest.raises(
        InputError, match="cannot score 3 rows of output against 600 labels: run the model on every"
    ):
        evaluation.accuracy([np.zeros((3, 10), np.float32)])
