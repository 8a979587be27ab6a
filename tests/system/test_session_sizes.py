"""Requests of many sizes on real models and runtimes: compiled once for all, or for each size."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import hal
from hal import plugins
from hal.backend import Configuration, DynamicShapes
from hal.graph.model import Graph
from hal.graph.ranges import Shapes
from hal.profiling.sources import random_inputs
from hal.tensor import as_numpy
from tests.models import MODELS

#: An image classifier of any batch and width, and a text encoder of any batch and length.
RANGES: Mapping[str, Shapes] = {
    "ppocr_cls": {"x": [(1, 3), 3, 48, (96, 192)]},
    "minilm": {name: [(1, 2), (2, 32)] for name in ("input_ids", "attention_mask", "token_type_ids")},
}
SIZES: Mapping[str, Sequence[tuple[int, ...]]] = {
    "ppocr_cls": [(1, 3, 48, 96), (2, 3, 48, 160), (3, 3, 48, 192), (1, 3, 48, 128)],
    "minilm": [(1, 2), (2, 17), (2, 32), (1, 31)],
}
#: Where each model is compiled by a session; measuring one takes half a minute.
TARGETS = {"ppocr_cls": "cpu:0/onnxruntime/fp32", "minilm": "cpu:0/openvino/fp32"}


@functools.cache
def truth(name: str) -> list[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    """Inputs of each size, and ONNX Runtime's answers to them."""
    import onnxruntime

    path = MODELS[name].path()
    theirs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for shape in SIZES[name]:
        bound = Graph.load(path).bind(dict.fromkeys(RANGES[name], shape))
        inputs = random_inputs(bound)
        found.append((inputs, theirs.run(None, inputs)))
    return found


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "cpu"])
@pytest.mark.parametrize("name", RANGES)
def test_answers_are_right_at_every_size_when_a_runtime_compiles_for_ranges(name: str, backend: str) -> None:
    opened = plugins.open_backend(plugins.reference(backend))
    able = opened.ability(DynamicShapes)
    assert able is not None
    device = next(device for device in opened.discover() if not device.unavailable)
    MODELS[name].require()
    free, ranges = Graph.load(MODELS[name].path()).bind_ranges(RANGES[name])
    made = able.compile_ranges(device, free, Configuration("fp32"), ranges.limits)
    for _ in range(2):
        for inputs, want in truth(name):
            answers = made.run([inputs[spec.name] for spec in free.signature.inputs])
            check([as_numpy(answer) for answer in answers], want)
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", RANGES)
def test_answers_are_right_at_every_size_when_a_session_is_compiled_for_ranges(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    MODELS[name].require()
    with hal.compile(MODELS[name].path(), shapes=RANGES[name], targets=[TARGETS[name]]) as session:
        for inputs, want in truth(name):
            check(session.run(None, inputs), want)
            check(session.run(None, inputs), want)
        # The runtime takes any size: nothing was compiled for one.
        assert list(session.events) == []


def check(given: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    for got, want in zip(given, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
