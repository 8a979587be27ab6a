"""Sessions whose backends run in child processes, on fake devices: processes end where they are told to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from hal.backend import BackendRef
from hal.executor.backend import Spot
from hal.graph.model import Graph
from hal.profiling.imagined import estimated
from hal.records.machines import combine
from hal.records.plan import Constraints
from hal.session.events import Event
from hal.session.isolation import IsolatedBackend, Isolation, Limits
from hal.session.runner import SurvivingRunner, runner_of
from tests.unit.imagined_machines import machine
from tests.unit.surviving import GRAPH, NAME, placed

#: Processes may end as often as a test likes.
ALWAYS = Limits(most=1_000_000, wait_s=0)


class Box:
    """Two GPUs and a processor, as backends that other processes can open.

    Args:
        fail: Failures on demand by device, as FakeBackend takes them.
        together: Whether all devices are of one backend, rather than each of its own.
    """

    def __init__(
        self, fail: Mapping[str, Sequence[Mapping[str, str]]] | None = None, *, together: bool = False
    ) -> None:
        self.graph: Graph = GRAPH
        self.profile = estimated(GRAPH, combine([("m", machine(2))]))
        self.events: list[Event] = []
        self.told = threading.Condition()
        devices = self.profile.devices
        fields = {
            one.id: {"id": one.id, "silicon": one.silicon, "memory_pool": one.memory_pool} for one in devices
        }
        self.spots: dict[str, Spot] = {}
        for device in devices:
            its = list(fields.values()) if together else [fields[device.id]]
            how = [dict(one) for one in (fail or {}).get(device.id, ())]
            ref = BackendRef("hal.testing.fake:FakeBackend", {"name": NAME, "devices": its, "fail": how})
            self.spots[f"{device.id}/{NAME}"] = Spot(ref=ref, device=device)

    def runner(
        self, *devices: str, isolate: Any = True, limits: Limits | None = None, **options: Any
    ) -> SurvivingRunner:
        """A runner of units on devices in turn, isolated."""
        made = runner_of(
            self.graph,
            placed(self.profile, devices),
            self.profile,
            self.spots,
            constraints=Constraints(),
            on_event=self._on_event,
            isolation=Isolation(isolate, limits=limits),
            **options,
        )
        assert isinstance(made, SurvivingRunner)
        return made

    def wait_for(self, n_events: int) -> list[Event]:
        """What the hook was told, once it is so many."""
        with self.told:
            assert self.told.wait_for(lambda: len(self.events) >= n_events, timeout=60)
            return list(self.events)

    def _on_event(self, event: Event) -> None:
        with self.told:
            self.events.append(event)
            self.told.notify_all()


def backend_of(runner: SurvivingRunner, device: str) -> IsolatedBackend:
    """What is isolated of a session."""
    backend = runner.places[f"{device}/{NAME}"].backend
    assert isinstance(backend, IsolatedBackend)
    return backend


def process_of(runner: SurvivingRunner, device: str) -> tuple[psutil.Process, tuple[Path, ...]]:
    """Its process, alive, and the folders of its shared memory."""
    worker = backend_of(runner, device).child.worker()
    return psutil.Process(worker.pid), worker._process.folders


def kill(process: psutil.Process, how: signal.Signals = signal.SIGKILL) -> None:
    """End a process and see it gone."""
    os.kill(process.pid, how)
    # Nobody has waited for it yet: a zombie is what is left of it.
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        os.sched_yield()


def held() -> tuple[list[int], int]:
    """What must be the same before and after: child processes and open descriptors."""
    me = psutil.Process()
    return sorted(one.pid for one in me.children(recursive=True)), me.num_fds()
