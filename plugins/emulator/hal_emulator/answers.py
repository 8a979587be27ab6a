"""True answers on this processor: by ONNX Runtime where it is installed and can, else by hal's reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.host import n_usable_cpus
from hal.tensor import Array

_log = logging.getLogger("hal_emulator")
#: What an emulated precision rounds results to.
_ROUND: Mapping[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}

#: Inputs by position to outputs by position.
Answers = Callable[[Sequence[Array]], list[Array]]


def answers(graph: Graph, precision: str) -> Answers:
    """A function that computes a graph; in less than fp32 its results are rounded to the precision."""
    compute = _session(graph) or _reference(graph)
    to = _ROUND.get(precision)

    def rounded(result: Array) -> Array:
        if to is None or result.dtype not in (np.float32, np.float64):
            return result
        return result.astype(to).astype(result.dtype)

    # A copy: a graph may hand back an input or a weight as it is.
    return lambda inputs: [rounded(np.array(result, order="C")) for result in compute(inputs)]


def _reference(graph: Graph) -> Answers:
    model = graph.to_proto()
    inputs, outputs = graph.signature.inputs, graph.signature.outputs

    def compute(given: Sequence[Array]) -> list[Array]:
        named = {spec.name: array for spec, array in zip(inputs, given, strict=True)}
        found = reference_outputs(model, named)
        return [found[spec.name] for spec in outputs]

    return compute


def _session(graph: Graph) -> Answers | None:
    """ONNX Runtime on the processor; None where it is not installed or refuses the graph."""
    signature = graph.signature
    if any(_is_strange(spec.dtype) for spec in (*signature.inputs, *signature.outputs)):
        return None
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_usable_cpus()
    options.log_severity_level = 4
    # Threads that spin would slow the other emulated devices.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = graph.serialized()
    try:
        session = onnxruntime.InferenceSession(
            source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001  it raises classes of its own for what it lacks; the reference can
        _log.info("ONNX Runtime does not take %r, the reference does: %s", graph.name, error)
        return None
    names = [spec.name for spec in signature.inputs]
    return lambda given: session.run(
        None, {name: np.asarray(array, order="C") for name, array in zip(names, given, strict=True)}
    )


def _is_strange(dtype: str) -> bool:
    """A type that numpy has not, which ONNX Runtime's Python interface does not take."""
    return dtype.startswith(("bfloat", "float8", "float4", "int4", "uint4", "int2", "uint2"))
