"""What every operator of the reference shares: widening to float64 and the attributes of its op set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, np.dtype[Any]]

_FLOATS = frozenset(np.dtype(kind) for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16))


def is_float(array: Array) -> bool:
    """Tell whether the reference computes with this tensor in float64."""
    return array.dtype in _FLOATS


def widen(array: Array) -> Array:
    """Return ``array`` as float64 if it holds floating point numbers of 16 bits or more, else unchanged."""
    return array.astype(np.float64, copy=False) if is_float(array) else array


class ReferenceOp(OpRun):
    """An operator whose arithmetic is ours: in float64, rounded once to the type of the tensor.

    onnx takes the attributes' defaults from the newest schema of an operator; defaults have moved between
    op sets (the axis of Softmax), so this class takes them from the schema that the model imports.
    """

    def __init__(self, onnx_node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        self.opset: int = run_params["opsets"][onnx_node.domain]
        schema = None
        if onnx.defs.has(onnx_node.op_type, onnx_node.domain):
            schema = onnx.defs.get_schema(onnx_node.op_type, self.opset, onnx_node.domain)
        super().__init__(onnx_node, run_params, schema)


def along(vector: Array, axis: int, rank: int) -> Array:
    """Reshape ``float[n, ...]`` so that its first axis lies at ``axis`` of a tensor of ``rank`` axes."""
    return vector.reshape((1,) * axis + vector.shape + (1,) * (rank - axis - vector.ndim))


def ints(values: Sequence[int] | None, default: int, n: int) -> list[int]:
    """Return an attribute of integers, or ``n`` times ``default`` where it is missing or empty."""
    return [int(v) for v in values] if values is not None and len(values) else [default] * n
