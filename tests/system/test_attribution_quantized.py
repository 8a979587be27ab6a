"""Quantized models on every backend: answers near the reference's, and kernels attributed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest

from hal import plugins
from hal.backend import KernelTimes, Target
from hal.graph.facts import facts
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.profiling.kernels import table
from hal.tensor import Array, as_numpy
from hal.worker import WorkerBackend
from tests.models import MODELS, QUANTIZED

TARGETS = ("cpu:0/cpu/fp32", "cpu:0/openvino/fp32", "cpu:0/onnxruntime/fp32", "cpu:0/openvino/bf16")
#: Share of kernel time that must be mapped to nodes of the model.
ATTRIBUTED = 0.98
#: Relative L2 from the reference. A value near a tie is rounded either way, by 1/255 of its tensor's range,
#: and that carries on; bf16 rounds between the steps, too. The limits are of the order of what quantizing did
#: to the models' own answers on these inputs: 0.003 for ppocr_cls, 0.04 for ppocr_rec, 0.28 for minilm.
LIMITS = {"digits_int8": 0.02, "ppocr_cls_int8": 0.02, "ppocr_rec_int8": 0.1, "minilm_int8": 0.3}


@functools.cache
def known(name: str) -> tuple[Graph, tuple[Array, ...], tuple[Array, ...]]:
    """The bound graph, its inputs, and the reference's answers, by position."""
    model = QUANTIZED[name].require()
    graph = Graph.load(model.path()).bind(model.shapes)
    given = model.inputs()
    answers = reference_outputs(graph.to_proto(), given)
    inputs = tuple(given[spec.name] for spec in graph.signature.inputs)
    return graph, inputs, tuple(answers[spec.name] for spec in graph.signature.outputs)


def relative_l2(answers: Sequence[Array], truth: Sequence[Array]) -> float:
    return max(
        float(np.linalg.norm(np.float64(answer) - np.float64(want)) / np.linalg.norm(np.float64(want)))
        for answer, want in zip(answers, truth, strict=True)
    )


@pytest.mark.parametrize("written", TARGETS)
@pytest.mark.parametrize("name", sorted(QUANTIZED))
def test_quantized_model_is_right_and_attributed_when_run(name: str, written: str) -> None:
    graph, inputs, truth = known(name)
    target = Target.parse(written)
    with WorkerBackend(plugins.reference(target.backend)) as backend:
        device = next(d for d in backend.discover() if d.id == target.device and not d.variant)
        if target.configuration.precision not in device.precisions:
            pytest.skip(f"{device.name} does not compute in {target.configuration.precision}")
        executable = backend.compile(device, graph, target.configuration)
        answers = [as_numpy(output) for output in executable.run(inputs)]
        timer = executable.ability(KernelTimes)
        assert timer is not None
        found = table(timer.kernel_runs(inputs, 3), facts(graph))
    assert relative_l2(answers, truth) <= LIMITS[name]
    assert found.total_ns > 0
    assert found.unattributed_ns <= (1 - ATTRIBUTED) * found.total_ns
    assert not found.unknown
    covered = {node for kernel in found.kernels for node in kernel.nodes}
    assert covered | set(found.folded) == set(graph.nodes)


@pytest.mark.parametrize("name", sorted(QUANTIZED))
def test_quantized_model_has_pairs_and_scales_per_channel_when_made(name: str) -> None:
    graph, inputs, _ = known(name)
    operators = [node.op_type for node in graph.nodes.values()]
    assert operators.count("DequantizeLinear") > operators.count("QuantizeLinear") > 0
    weights = graph.model.graph.initializers
    scales = [
        weights[str(node.inputs[1].name)].const_value
        for node in graph.nodes.values()
        if node.op_type == "DequantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[0].name in weights
    ]
    assert any(scale is not None and scale.size > 1 for scale in scales)
    assert all(np.isfinite(value).all() for value in inputs if value.dtype.kind == "f")


def test_quantized_model_answers_like_its_model_when_it_is_shallow() -> None:
    real = MODELS["ppocr_cls"].require()
    given = real.inputs()
    expected = reference_outputs(Graph.load(real.path()).bind(real.shapes).to_proto(), given)
    assert relative_l2(known("ppocr_cls_int8")[2], list(expected.values())) < 0.05
