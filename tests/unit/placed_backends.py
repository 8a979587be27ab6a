"""Fake backends for executors: they note what they run, wait for each other, and tell where tensors lie."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from hal.backend import BackendRef, Configuration, Device, OptionSpec, Tensor
from hal.executor.executor import Place
from hal.graph.model import Graph
from hal.tensor import HostTensor, as_numpy
from hal.testing import FakeBackend
from hal.testing.fake import FakeExecutable


class Noting(FakeBackend):
    """Notes the graphs it compiles with their options, and each run with its thread and what it was given.

    Args:
        log: Where runs are noted, shared by backends whose order matters.
        meet: Runs wait here until as many as it has parties are under way.
        fields: As for FakeBackend.

    Attributes:
        compiled: Graph and configuration of each compilation.
        given: Inputs of each run.
        made: Outputs of all runs.
        alive: Executables that are not closed.
    """

    def __init__(
        self, *, log: list[str] | None = None, meet: threading.Barrier | None = None, **fields: Any
    ) -> None:
        super().__init__(**fields)
        self.log = [] if log is None else log
        self.meet = meet
        self.compiled: list[tuple[Graph, Configuration]] = []
        self.given: list[list[Tensor]] = []
        self.made: list[Tensor] = []
        self.threads: set[str] = set()
        self.alive = 0

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        self.compiled.append((graph, configuration))
        self.alive += 1
        return _Noting(self, device, graph, configuration)


class OnDevice(HostTensor):
    """A tensor in the memory of a device."""


class _Noting(FakeExecutable):
    backend: Noting

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        self.backend.log.append(f"{self.device.id}:{self._signature.outputs[0].name}")
        self.backend.given.append(list(inputs))
        self.backend.threads.add(threading.current_thread().name)
        if self.backend.meet is not None:
            self.backend.meet.wait(timeout=60)
        made = super().run(inputs, outputs)
        self.backend.made += made
        return made

    def place(self, tensor: Tensor) -> Tensor:
        return OnDevice(as_numpy(super().place(tensor)))

    def close(self) -> None:
        if self.model is not None:
            self.backend.alive -= 1
        super().close()


def places(*backends: FakeBackend) -> dict[str, Place]:
    """Every device of these backends, by ``DEVICE/BACKEND``."""
    return {
        f"{device.id}/{backend.name}": Place(BackendRef(f"tests:{backend.name}"), backend, device)
        for backend in backends
        for device in backend.discover()
    }


def on_one_chip(**fields: Any) -> tuple[Noting, Noting]:
    """Backends ``a`` and ``b``, which share a processor and a log."""
    log: list[str] = []
    device = {"id": "cpu:0", "silicon": "chip", "memory_pool": "host", "precisions": ["fp32", "bf16"]}
    return (
        Noting(name="a", devices=[device], log=log, **fields),
        Noting(name="b", devices=[device], log=log, **fields),
    )


class OneClock(Noting):
    """Devices that live by one clock of their own, as an emulator's do."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        clock = next(iter(self.clocks.values()))
        self.clocks = dict.fromkeys(self.clocks, clock)
        self.clock = clock


class Threaded(OneClock):
    """A processor with two threads that spin: with one, nodes cost another share of their time.

    Args:
        one_thread: What one thread takes over two.
        fields: As for OneClock.
    """

    def __init__(self, *, one_thread: float, **fields: Any) -> None:
        super().__init__(**fields)
        self.one_thread = one_thread

    def options(self, device: Device) -> Sequence[OptionSpec]:
        return (
            OptionSpec(name="threads", kind="int", default=2),
            OptionSpec(name="spinning", kind="bool", default=True),
        )

    def check_options(self, configuration: Configuration) -> None:
        assert {name for name, _ in configuration.options} <= {"threads", "spinning"}

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        made = super().executable(device, graph, configuration)
        if configuration.option("threads", 2) == 1:
            made.costs_ns = {name: round(ns * self.one_thread) for name, ns in made.costs_ns.items()}
        return made
