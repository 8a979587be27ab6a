"""A machine of fake devices for sessions: every step can fail, wait or be counted."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hal.backend import BackendRef, Configuration, Device
from hal.errors import HalError
from hal.executor.backend import Spot
from hal.graph.model import Graph
from hal.planning.costs import model
from hal.planning.plans import plan_of
from hal.planning.problem import Assignment
from hal.profiling.imagined import estimated
from hal.records.machines import combine
from hal.records.plan import Constraints, Plan
from hal.records.profile import Profile
from hal.session.events import Event
from hal.session.runner import SurvivingRunner, runner_of
from hal.tensor import Tensor, as_numpy
from hal.testing import FakeBackend, example_inputs, small_graph, true_outputs
from hal.testing.fake import FakeExecutable
from tests.unit.imagined_machines import machine

#: Estimated profiles are of this backend; here fake ones answer to its name.
NAME = "emulator"
#: Three matrix products, each a unit.
GRAPH = small_graph("chain")
CUDA0, CUDA1, CPU = (f"{device}/{NAME}/fp32" for device in ("cuda:0", "cuda:1", "cpu:0"))
#: Backends by a key that a BackendRef can carry.
_BACKENDS: dict[str, Recorder] = {}


class Recorder(FakeBackend):
    """Counts what is compiled, run and closed.

    Attributes:
        on_compile: Called with the number of the compilation, from 1, before it.
        on_run: Called with the number of the run on this backend, from 1, before it.
        made: Executables.
        closed: Those that were closed.
        wrongs: What must not happen and did.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.on_compile: Callable[[int], None] = lambda number: None
        self.on_run: Callable[[int], None] = lambda number: None
        self.made: list[Recorded] = []
        self.wrongs: list[str] = []
        self.runs, self._compilations = itertools.count(1), itertools.count(1)

    @property
    def closed(self) -> list[Recorded]:
        return [one for one in self.made if one.is_closed.is_set()]

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        self.on_compile(next(self._compilations))
        made = Recorded(self, device, graph, configuration)
        self.made.append(made)
        return made


class Recorded(FakeExecutable):
    backend: Recorder

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_closed = threading.Event()
        self._n_inside, self._lock = 0, threading.Lock()

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        with self._lock:
            self._n_inside += 1
        try:
            self.backend.on_run(next(self.backend.runs))
            return super().run(inputs, outputs)
        finally:
            with self._lock:
                self._n_inside -= 1

    def close(self) -> None:
        if self._n_inside:
            self.backend.wrongs.append("closed under a call")
        if self.is_closed.is_set():
            self.backend.wrongs.append("closed twice")
        self.is_closed.set()
        super().close()


def opened(key: str) -> Recorder:
    """Entry point of the backends here."""
    return _BACKENDS[key]


class Rig:
    """Two GPUs and a processor, each with a backend of its own.

    Args:
        fail: Failures on demand by device, as FakeBackend takes them.
        constraints: Asked of plans.
        silicon: Of all devices, where they share one; else each has its own.
    """

    def __init__(
        self,
        fail: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
        *,
        constraints: Constraints | None = None,
        silicon: str = "",
    ) -> None:
        self.graph = GRAPH
        self.profile: Profile = estimated(GRAPH, combine([("m", machine(2))]))
        self.constraints = constraints or Constraints()
        self.events: list[Event] = []
        self.backends: dict[str, Recorder] = {}
        self.spots: dict[str, Spot] = {}
        for device in ("cuda:0", "cuda:1", "cpu:0"):
            fields = {"id": device, "memory_pool": "host" if device == "cpu:0" else device}
            fields |= {"silicon": silicon or device}
            backend = Recorder(name=NAME, devices=[fields], fail=(fail or {}).get(device, ()))
            key = uuid.uuid4().hex
            _BACKENDS[key] = backend
            self.backends[device] = backend
            ref = BackendRef(f"{__name__}:opened", {"key": key})
            self.spots[f"{device}/{NAME}"] = Spot(ref=ref, device=backend.devices[0])

    def plan(self, *devices: str) -> Plan:
        """Units on devices in turn; one device for all."""
        return placed(self.profile, devices, self.constraints)

    def runner(self, *devices: str, **options: Any) -> SurvivingRunner:
        """A runner of such a plan."""
        made = runner_of(
            self.graph,
            self.plan(*devices),
            self.profile,
            self.spots,
            constraints=self.constraints,
            on_event=options.pop("on_event", self.events.append),
            **options,
        )
        assert isinstance(made, SurvivingRunner)
        return made

    def kinds(self) -> list[str]:
        """Kinds of the events, in order."""
        return [event.kind for event in self.events]

    def all_closed(self) -> bool:
        """Whether every executable was closed once, none under a call."""
        backends = self.backends.values()
        assert not [wrong for backend in backends for wrong in backend.wrongs]
        return all(one.is_closed.is_set() for backend in backends for one in backend.made)


def placed(profile: Profile, devices: Sequence[str], constraints: Constraints | None = None) -> Plan:
    """The plan that has units on devices in turn, in the order of the graph; one device for all."""
    modelled = model(profile, constraints)
    problem = modelled.problem
    names = [name.partition("/")[0] for name in problem.target_names]
    each = list(devices) * problem.n_units if len(devices) == 1 else list(devices)
    target = np.zeros(problem.n_units, np.int32)
    partition = np.zeros(problem.n_units, np.int32)
    number, before = -1, None
    for unit, device in zip(problem.order, each, strict=True):
        number, before = (number, before) if device == before else (number + 1, device)
        target[unit], partition[unit] = names.index(device), number
    return plan_of(modelled, Assignment(target, partition), solver="by hand")


def check(runner: Any, seed: int, graph: Graph = GRAPH) -> None:
    """One request, rightly answered: inputs differ by seed, so that no two answers are alike."""
    inputs = example_inputs(graph, seed)
    (got,) = runner.run(inputs)
    np.testing.assert_allclose(as_numpy(got), true_outputs(graph, inputs)[0], rtol=1e-5, atol=1e-6)


def ask(runner: Any, n_threads: int, n_requests: int, graph: Graph = GRAPH) -> list[HalError | None]:
    """Requests from threads that start together; for each that it was rightly answered, or its error."""
    start = threading.Barrier(n_threads)

    def work(thread: int) -> list[HalError | None]:
        start.wait(timeout=60)
        found: list[HalError | None] = []
        for number in range(thread, n_requests, n_threads):
            try:
                check(runner, number, graph)
                found.append(None)
            except HalError as error:
                found.append(error)
        return found

    with ThreadPoolExecutor(n_threads) as pool:
        return [one for found in pool.map(work, range(n_threads)) for one in found]
