"""Backends that children of tests open."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from hal.backend import Configuration, Device
from hal.graph.model import Graph
from hal.tensor import Tensor
from hal.testing import FakeBackend
from hal.testing.fake import FakeExecutable


class Meeting(FakeBackend):
    """Its runs answer once several of them are under way.

    Args:
        n_meeting: How many.
    """

    def __init__(self, *, n_meeting: int, **fields: Any) -> None:
        super().__init__(**fields)
        self.barrier = threading.Barrier(n_meeting)

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        return _Meeting(self, device, graph, configuration)


class _Meeting(FakeExecutable):
    backend: Meeting

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        self.backend.barrier.wait(timeout=60)
        return super().run(inputs, outputs)
