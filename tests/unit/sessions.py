"""Sessions over one fake device, whose runs can be counted, held and made to fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hal.backend import BackendRef, Configuration, Device, Signature
from hal.executor.executor import Place
from hal.executor.homes import Homes
from hal.executor.times import Times
from hal.graph.model import Graph
from hal.records.plan import Plan
from hal.session.events import Event
from hal.session.session import Session
from hal.tensor import Tensor
from hal.testing import FakeBackend, small_graph
from tests.unit import compared, planned

TARGET = "cpu:0/fake/fp32"
REF = BackendRef("hal.testing.fake:FakeBackend")


class OnFake:
    """Carries requests out on a fake device.

    Attributes:
        on_run: Called with the inputs before each run.
        n_runs: Runs.
        n_closed: Calls of close.
        most_at_once: The most runs that were under way at once.
    """

    def __init__(self, graph: Graph, *, n_silicons: int = 1, **configuration: Any) -> None:
        backend = FakeBackend(**configuration)
        self._executable = backend.compile(backend.devices[0], graph, Configuration())
        devices = [
            Device(id=f"cpu:{at}", name="fake", kind="cpu", silicon=f"chip {at}", memory_pool="host")
            for at in range(n_silicons)
        ]
        self.plan: Plan = planned.single(TARGET, devices=tuple(devices))
        self.events: list[Event] = []
        self.times = Times([False])
        self.places = {f"{device.id}/fake": Place(REF, backend, device) for device in devices}
        self.slowdowns: list[Mapping[str, float] | None] = []
        self.on_run: Callable[[Sequence[Tensor]], None] = lambda inputs: None
        self.n_runs = self.n_closed = self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    @property
    def signature(self) -> Signature:
        return self._executable.signature

    @property
    def in_force(self) -> tuple[Plan, Times]:
        return self.plan, self.times

    @property
    def homes(self) -> Homes:
        return Homes((), ())

    @property
    def n_events(self) -> dict[str, int]:
        return Counter(event.kind for event in self.events)

    def slow(self, target: str, text: str, slowdown: Mapping[str, float] | None) -> None:
        self.events.append(Event(at=0.0, kind="slow", target=target, text=text))
        self.slowdowns.append(slowdown)

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with self._lock:
            self.n_runs += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.on_run(inputs)
            return self._executable.run(inputs)
        finally:
            with self._lock:
                self._at_once -= 1

    def close(self) -> None:
        self.n_closed += 1
        self._executable.close()


def session(graph: Graph | str = "add", **options: Any) -> tuple[Session, OnFake]:
    """A session of a small graph, and what carries it out; options are those of OnFake and ``again``."""
    again = options.pop("again", None)
    found = small_graph(graph) if isinstance(graph, str) else graph
    runner = OnFake(found, **options)
    return Session(runner, found, compared.profile(), again=again), runner
