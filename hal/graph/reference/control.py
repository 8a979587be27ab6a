"""Loop and Scan, whose onnx versions join scan outputs along the wrong axis or refuse directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from hal.graph.reference.operator import Array


def _empty_scan(body: Any, name: str) -> Array:
    """Return a scan output of no iterations, as far as the body declares its shape and type."""
    for value in body.onnx_graph_.output:
        if value.name == name:
            tensor = value.type.tensor_type
            dims = [dim.dim_value for dim in tensor.shape.dim]
            kind = tensor.elem_type or onnx.TensorProto.FLOAT
            return np.empty((0, *dims), dtype=onnx.helper.tensor_dtype_to_np_dtype(kind))
    raise ValueError(f"the body of the loop has no output {name!r}")


class _WithBody(OpRun):
    """An operator that runs a body and may read every value of the graphs around it."""

    body: Any

    def need_context(self) -> bool:
        """Tell the evaluator to pass the values of the graphs around."""
        return True


class Loop(_WithBody):
    """Loop; either limit may be missing, and scan outputs get a new first axis.

    Source: Loop-25, ONNX operator reference.
    """

    def _run(
        self,
        limit: Array | None = None,
        condition: Array | None = None,
        *carried: Any,
        context: Mapping[str, Any] | None = None,
        body: Any = None,
        attributes: Any = None,
        bindings: Any = None,
    ) -> tuple[Any, ...]:
        body = self.body
        names, results = list(body.input_names), list(body.output_names)
        values: list[Any] = list(carried)
        scanned: list[list[Array]] = [[] for _ in results[1 + len(values) :]]
        go = True if condition is None else bool(np.asarray(condition).item())
        n = None if limit is None else int(np.asarray(limit).item())
        step = 0
        while go and (n is None or step < n):
            feeds = dict(context or {})
            feeds.update(zip(names, (np.array(step, dtype=np.int64), np.array(go), *values), strict=True))
            outputs = body.run(None, feeds, attributes=attributes)
            go = bool(np.asarray(outputs[0]).item())
            values = outputs[1 : 1 + len(values)]
            for kept, output in zip(scanned, outputs[1 + len(values) :], strict=True):
                kept.append(output)
            step += 1
        names_of_scans = results[1 + len(values) :]
        joined = [
            np.stack(kept) if kept else _empty_scan(body, name)
            for kept, name in zip(scanned, names_of_scans, strict=True)
        ]
        return (*values, *joined)


class Scan(_WithBody):
    """Scan from op set 9 on, along any axis and in both directions.

    Source: Scan-25, ONNX operator reference.
    """

    num_scan_inputs: int

    def _run(
        self,
        *inputs: Any,
        context: Mapping[str, Any] | None = None,
        body: Any = None,
        num_scan_inputs: int = 0,
        scan_input_axes: Sequence[int] | None = None,
        scan_input_directions: Sequence[int] | None = None,
        scan_output_axes: Sequence[int] | None = None,
        scan_output_directions: Sequence[int] | None = None,
        attributes: Any = None,
        bindings: Any = None,
    ) -> tuple[Any, ...]:
        body, n_scans = self.body, self.num_scan_inputs
        n_states = len(inputs) - n_scans
        names, results = list(body.input_names), list(body.output_names)
        states: list[Any] = list(inputs[:n_states])
        rows = []
        for i, value in enumerate(inputs[n_states:]):
            moved = np.moveaxis(value, scan_input_axes[i] if scan_input_axes else 0, 0)
            rows.append(moved[::-1] if scan_input_directions and scan_input_directions[i] else moved)
        scanned: list[list[Array]] = [[] for _ in results[n_states:]]
        for t in range(rows[0].shape[0]):
            feeds = dict(context or {})
            feeds.update(zip(names, (*states, *(row[t] for row in rows)), strict=True))
            outputs = body.run(None, feeds, attributes=attributes)
            states = outputs[:n_states]
            for kept, output in zip(scanned, outputs[n_states:], strict=True):
                kept.append(output)
        joined = []
        for i, kept in enumerate(scanned):
            if scan_output_directions and scan_output_directions[i]:
                kept.reverse()
            stacked = np.stack(kept) if kept else _empty_scan(body, results[n_states + i])
            joined.append(np.moveaxis(stacked, 0, scan_output_axes[i] if scan_output_axes else 0))
        return (*states, *joined)
