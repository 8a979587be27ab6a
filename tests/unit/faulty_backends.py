"""A backend that computes values wrongly, always or only where they would be fused, for tests of hal diff."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hal.backend import Configuration, Device
from hal.errors import BackendError
from hal.graph.model import Graph
from hal.testing import FakeBackend
from hal.testing.fake import FakeExecutable


class Faulty(FakeBackend):
    """Right but for its faults.

    Args:
        faults: Mappings with ``value``, the name of the value that is wrong, and ``factor``, what it is
            multiplied by (1.5 unless told, or ``nan``); ``fused``, names of values that must be inside the
            graph, neither inputs nor outputs, for the fault to show; ``n_nodes``, how many nodes the graph
            must have for it; ``named``, the names that the graph may have for it.
        most_outputs: Graphs with more outputs are not run.
        dies: Whether the process ends at such a graph; else it refuses.
    """

    def __init__(
        self,
        *,
        faults: Sequence[Mapping[str, Any]] = (),
        most_outputs: int = 1_000,
        dies: bool = False,
        **configuration: Any,
    ) -> None:
        super().__init__(**configuration)
        self.faults, self.most_outputs, self.dies = faults, most_outputs, dies

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        made = FakeExecutable(self, device, graph, configuration)
        assert made.model is not None
        if len(made.model.graph.output) > self.most_outputs:
            if self.dies:
                os._exit(9)
            raise BackendError(f"{len(made.model.graph.output)} outputs are too many")
        for fault in self.faults:
            if graph.name in fault.get("named", (graph.name,)):
                spoil(made.model.graph, fault)
        return made


def spoil(graph: onnx.GraphProto, fault: Mapping[str, Any]) -> None:
    """Rename a value where it is computed and compute it from that by a factor."""
    value = fault["value"]
    inside = {name for node in graph.node for name in node.output} - {v.name for v in graph.output}
    if len(graph.node) < fault.get("n_nodes", 0) or not set(fault.get("fused", ())) <= inside:
        return
    for index, node in enumerate(graph.node):
        if value in node.output:
            node.output[list(node.output).index(value)] = f"{value}.right"
            factor = numpy_helper.from_array(
                np.array(fault.get("factor", 1.5), np.float32), f"{value}.factor"
            )
            graph.initializer.append(factor)
            graph.node.insert(index + 1, helper.make_node("Mul", [f"{value}.right", factor.name], [value]))
            return
