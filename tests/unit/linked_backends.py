"""Fake backends for links: they charge for tensors they did not make, and note where tensors lie."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from hal.backend import Configuration, Device, Executable, Tensor
from hal.errors import BackendError
from hal.graph.model import Graph
from hal.tensor import Array, HostTensor, as_numpy
from hal.testing import FakeBackend
from hal.testing.fake import FakeExecutable


class Charging(FakeBackend):
    """Reading a tensor that another backend made costs time on the virtual clock.

    Args:
        handoff_ns: For every such tensor.
        ns_per_kib: For its size.
        fields: As for FakeBackend.
    """

    def __init__(self, *, handoff_ns: int = 0, ns_per_kib: int = 0, **fields: Any) -> None:
        super().__init__(**fields)
        self.handoff_ns, self.ns_per_kib = handoff_ns, ns_per_kib

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        return _Charging(self, device, graph, configuration)


class _Made(HostTensor):
    """A tensor that knows who made it."""

    def __init__(self, array: Array, maker: str) -> None:
        super().__init__(array)
        self.maker = maker


class _Charging(FakeExecutable):
    backend: Charging

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        for tensor in inputs:
            if isinstance(tensor, _Made) and tensor.maker != self.backend.name:
                n_bytes = as_numpy(tensor).nbytes
                self.clock.advance(self.backend.handoff_ns + self.backend.ns_per_kib * n_bytes // 1024)
        results = super().run(inputs)
        assert outputs is None
        return [_Made(as_numpy(result), self.backend.name) for result in results]


class Exclusive(FakeBackend):
    """Ends the process when another of its kind is in it, as runtimes with clashing libraries do."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        if os.environ.setdefault("HAL_TEST_EXCLUSIVE", self.name) != self.name:
            os._exit(5)


class Away(FakeBackend):
    """Tells by its errors where tensors lie: its device has a memory of its own.

    Every run appends to ``log`` what it read and where its outputs went.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.log: list[str] = []

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        return _Away(self, device, graph, configuration)


class OnDevice(HostTensor):
    """A tensor that was placed."""


class _Away(FakeExecutable):
    backend: Away

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        read = "device" if isinstance(inputs[0], OnDevice) else "host"
        self.backend.log.append(f"{read} -> {'host' if outputs is None else 'device'}")
        return super().run(inputs, outputs)

    def place(self, tensor: Tensor) -> Tensor:
        return OnDevice(as_numpy(super().place(tensor)))


class AwayOrFail(Away):
    """Fails where a tensor of a run lies on the host."""

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        class Strict(_Away):
            def run(
                self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None
            ) -> Sequence[Tensor]:
                results = super().run(inputs, outputs)
                if self.backend.log[-1] != "device -> device":
                    raise BackendError(f"a run went {self.backend.log[-1]}")
                return results

        return Strict(self, device, graph, configuration)


class DiesInFp32(FakeBackend):
    """Ends its process when asked for fp32."""

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        if configuration.precision == "fp32":
            os._exit(6)
        return super().compile(device, graph, configuration)


class OnlySmall(FakeBackend):
    """Refuses tensors of more than 4 KiB."""

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        if math.prod(int(size) for size in graph.signature.inputs[0].shape) > 1024:
            raise BackendError("only small tensors fit; use smaller shapes")
        return super().compile(device, graph, configuration)
