"""Every node test of the onnx package through the plugin contract, on `cpu`: loaded, judged, run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from hal.backend import Configuration
from hal.errors import ModelError
from hal.graph.model import Graph
from hal.tensor import as_numpy
from hal_cpu.backend import CpuBackend
from hal_torch.bridge.dtypes import to_torch
from tests.contract.test_bridge_ops import Verdict, cases, difference

# Of 1884. Fewer than through the bridge alone: hal takes and gives tensors, so that sequences and optional
# values are refused at the ends of a model (29 tests).
N_LEAST_PASSED = 1792

FP32 = Configuration.of("fp32")
BACKEND = CpuBackend()


def array_of(value: Any) -> np.ndarray:
    """A test's value as an array."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def tensors_of(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Arrays as tensors, types of ml_dtypes included."""
    return [to_torch(ir.tensor(np.ascontiguousarray(array))) for array in arrays]


def judge(case: Any, *, constants: bool = False) -> Verdict:
    """Run one node test.

    Args:
        case: An ONNX node test.
        constants: Whether all inputs but the first become initializers.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    values = case.data_sets[0][0]
    if constants:
        inputs = list(proto.graph.input)
        del proto.graph.input[1:]
        for value, given in zip(inputs[1:], values[1:], strict=True):
            proto.graph.initializer.append(numpy_helper.from_array(array_of(given), value.name))
        values = values[:1]
    try:
        graph = Graph.load(proto)
    except ModelError as error:
        return Verdict(case.name, "not loaded", str(error))
    arrays = [array_of(value) for value in values]
    if graph.unbound:
        specs = graph.signature.inputs
        graph = graph.bind({spec.name: a.shape for spec, a in zip(specs, arrays, strict=True)})
    device = BACKEND.discover()[0]
    reasons = [s.reason for s in BACKEND.capability(device, graph, "fp32").values() if not s.yes]
    if reasons:
        if not constants and ("must be a constant" in reasons[0] or "must be static" in reasons[0]):
            return judge(case, constants=True)
        return Verdict(case.name, "refused", reasons[0])
    found = [as_numpy(result) for result in BACKEND.compile(device, graph, FP32).run(arrays)]
    expected = [array_of(value) for value in case.data_sets[0][1]]
    # Told apart here: as tensors, types that PyTorch lacks look like those that carry them.
    names = [[array.dtype.name for array in arrays] for arrays in (found, expected)]
    why = difference(tensors_of(found), tensors_of(expected), case.rtol)
    if names[0] != names[1]:
        why = f"{names[0]} instead of {names[1]}"
    return Verdict(case.name, "wrong" if why else "passed", why)


@pytest.mark.slow
def test_node_tests_are_right_or_refused_when_run_through_the_plugin() -> None:
    found = [judge(case) for of_op in cases().values() for case in of_op]
    assert [f"{verdict.name}: {verdict.why}" for verdict in found if verdict.kind == "wrong"] == []
    counts = Counter(verdict.kind for verdict in found)
    print(f"node tests through the contract: {dict(counts)}")
    assert all("only tensors can be given" in v.why for v in found if v.kind == "not loaded")
    assert counts["passed"] >= N_LEAST_PASSED
