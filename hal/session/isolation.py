"""Backends of a session in child processes: what ends one is an error here, and it is started again.

Each backend has one process in a session, whatever number of partitions and plans it compiles there. Where it
ends, by a crash or because it hung, the next call starts another one, and each partition is compiled in that
when it is next run.
"""

from __future__ import annotations

import contextlib
import fnmatch
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from hal.backend import Backend, Executable, MemoryUse, Telemetry
from hal.errors import BackendError, InputError, WorkerCrashed, WorkerTimeout
from hal.executor.backend import Spot
from hal.graph.model import Graph
from hal.records.targets import (
    BackendRef,
    Configuration,
    Device,
    OptionSpec,
    Signature,
    Support,
    Target,
)
from hal.session.events import Events
from hal.tensor import Tensor
from hal.worker import Deadlines, WorkerBackend, WorkerExecutable

A = TypeVar("A")
R = TypeVar("R")

#: What ``isolate`` may be: all backends, none, or names and shell patterns.
Isolate = bool | str | Sequence[str]

#: A session's own deadline says when a run hangs; without one nothing does.
_DEADLINES = Deadlines(run_ns=1 << 62)


class Limits(NamedTuple):
    """How often a process is started again.

    Source: ours, after systemd's DefaultStartLimitBurst (5) and the doubling waits of most supervisors: what
    ends more often than that is broken, and starting a process takes a core for about a second.

    Attributes:
        most: Ends within ``within_s`` after which it is left alone until some of them are longer ago.
        within_s: Seconds.
        wait_s: Before the second start in that time; doubled for each further one. The first does not wait.
    """

    most: int = 5
    within_s: float = 60.0
    wait_s: float = 0.05


class Isolation:
    """The processes of a session, shared by all that it compiles.

    Args:
        isolate: True for all backends, else names of backends, or shell patterns of them or of
            ``DEVICE/BACKEND[-VARIANT]``.
        limits: How often processes are started again.
    """

    def __init__(self, isolate: Isolate = False, *, limits: Limits | None = None) -> None:
        self._patterns = _patterns(isolate)
        self._limits = limits or Limits()
        self._children: dict[bytes, tuple[Child, int]] = {}
        self._lock = threading.Lock()

    def covers(self, end: str) -> bool:
        """Whether a place is isolated.

        Args:
            end: ``DEVICE/BACKEND[-VARIANT]``.
        """
        backend = end.partition("/")[2]
        names = (end, backend, backend.partition("-")[0])
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns for name in names)

    def may_cover(self, backend: str) -> bool:
        """Whether a place of a backend may be isolated."""
        # Without a slash it may be a pattern of devices' names too.
        parts = (pattern.rpartition("/")[2] for pattern in self._patterns)
        return any(
            fnmatch.fnmatchcase(backend, name) or name.endswith("*")
            for part in parts
            for name in (part, part.partition("-")[0])
        )

    def check(self, ends: Sequence[str]) -> None:
        """Refuse what matches nothing, which would not isolate what it was to.

        Args:
            ends: ``DEVICE/BACKEND[-VARIANT]`` of all that is here.

        Raises:
            InputError: A name or pattern matches none of them.
        """
        bad = [one for one in self._patterns if not any(Isolation(one).covers(end) for end in ends)]
        if bad and ends:
            raise InputError(
                f"isolate has {', '.join(map(repr, bad))}, which matches nothing here; expected True, or "
                f"names or patterns of {', '.join(ends)}"
            )

    def open(self, end: str, spot: Spot, events: Events, *, retries: bool) -> IsolatedBackend:
        """The backend of a place, in the session's process for it; to be closed.

        Args:
            end: ``DEVICE/BACKEND[-VARIANT]``.
            spot: Names the backend.
            events: Told where the process is started again.
            retries: Whether a run whose process ended is run again in the next one.

        Raises:
            PluginError: The backend cannot be opened.
        """
        key = msgspec.json.encode(spot.ref)
        with self._lock:
            child, n_users = self._children.get(key) or (Child(spot.ref, self._limits), 0)
            self._children[key] = child, n_users + 1
        try:
            return IsolatedBackend(end, child, events, retries=retries, close=lambda: self._close(key))
        except BaseException:
            self._close(key)
            raise

    def _close(self, key: bytes) -> None:
        with self._lock:
            child, n_users = self._children.pop(key)
            if n_users > 1:
                self._children[key] = child, n_users - 1
                return
        child.close()


class Child:
    """The process of a backend, and the next one where it ended. Any thread may ask for it.

    Args:
        ref: The backend.
        limits: How often it is started again.
    """

    def __init__(self, ref: BackendRef, limits: Limits) -> None:
        self._ref, self._limits = ref, limits
        self._name = ref.entry_point.removeprefix("plugin:")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._worker: WorkerBackend | None = None
        self._ends: deque[float] = deque()
        self._last = ""

    def worker(self, *, is_limited: bool = False) -> WorkerBackend:
        """The process; another one where the last ended.

        Args:
            is_limited: Wait before it is started again, and refuse where it ended too often.

        Raises:
            WorkerCrashed: It ended too often, or ends when it is started.
            PluginError: The backend cannot be opened.
        """
        with self._lock:
            if self._worker is not None and self._worker.alive:
                return self._worker
            if self._closing.is_set():
                raise BackendError("this session is closed; compile the model again")
            if self._worker is not None:
                self._note(self._worker.ended.removesuffix(" earlier"))
                self._worker.close()
                self._worker = None
            n_ends = len(self._ends)
            if is_limited and n_ends > self._limits.most:
                raise WorkerCrashed(
                    f"backend {self._name!r} is not started again for now: its process ended {n_ends} times "
                    f"within {self._limits.within_s:g} s, the last time because {self._last}; see what it "
                    "does there, or use other targets"
                )
            if is_limited and n_ends > 1:
                self._closing.wait(self._limits.wait_s * 2 ** (n_ends - 2))
            try:
                self._worker = WorkerBackend(self._ref, deadlines=_DEADLINES)
            except (WorkerCrashed, WorkerTimeout) as error:
                self._note(error.message)
                raise
            return self._worker

    def close(self) -> None:
        """End it for good."""
        self._closing.set()
        with self._lock:
            if self._worker is not None:
                self._worker.close()

    def _note(self, why: str) -> None:
        """Remember an end, and forget those that were long ago."""
        now_s = time.monotonic()
        self._ends.append(now_s)
        while self._ends[0] < now_s - self._limits.within_s:
            self._ends.popleft()
        self._last = why


class IsolatedBackend(Backend):
    """A backend at one place, in a child process. It has the ability Telemetry where the backend has.

    Args:
        end: ``DEVICE/BACKEND[-VARIANT]``.
        child: The process.
        events: Told where it is started again.
        retries: Whether a run whose process ended is run again in the next one.
        close: Called by :meth:`close`, once.

    Raises:
        PluginError: The backend cannot be opened.
    """

    def __init__(
        self, end: str, child: Child, events: Events, *, retries: bool, close: Callable[[], None]
    ) -> None:
        self.child, self.events, self.retries = child, events, retries
        self._target = Target.parse(f"{end}/fp32")
        self._close: Callable[[], None] | None = close
        worker = child.worker()
        self.name, self.api_version = worker.name, worker.api_version
        self._has_telemetry = worker.ability(Telemetry) is not None

    def discover(self) -> Sequence[Device]:
        """The backend's, asked anew in a process that lives."""
        return self.child.worker().discover()

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """The backend's."""
        return self.child.worker().options(device)

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """The backend's."""
        return self.child.worker().capability(device, graph, precision)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> IsolatedExecutable:
        """See :meth:`hal.backend.Backend.compile`; in another process again, each time the last ended."""
        target = str(msgspec.structs.replace(self._target, configuration=configuration))
        return IsolatedExecutable(self, target, lambda worker: worker.compile(device, graph, configuration))

    def telemetry(self, device: Device) -> Mapping[str, int]:
        """See :class:`hal.backend.Telemetry`."""
        return self.child.worker().telemetry(device)

    def ability(self, kind: type[A]) -> A | None:
        """Telemetry alone: what else a backend can do is of no use in a session."""
        return super().ability(kind) if kind is Telemetry and self._has_telemetry else None

    def close(self) -> None:
        """End the process, where nobody else in the session uses it. A second call does nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()


class IsolatedExecutable(Executable):
    """A partition in a child process. It has the ability MemoryUse where the backend has.

    Any number of threads may run it. Inputs and outputs pass through shared memory, copied once each way.

    Args:
        backend: Its backend.
        target: For notes.
        make: Compiles it in a process.

    Raises:
        PluginError: The backend cannot compile it.

    Attributes:
        is_starting: Whether it is compiled again now, in another process than before.
    """

    def __init__(
        self, backend: IsolatedBackend, target: str, make: Callable[[WorkerBackend], WorkerExecutable]
    ) -> None:
        self._backend, self._target, self._make = backend, target, make
        self._lock = threading.Lock()
        self._made = make(backend.child.worker())
        self._signature = self._made.signature
        self._is_closed = self.is_starting = False

    @property
    def signature(self) -> Signature:
        """The backend's."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """See :meth:`hal.backend.Executable.run`.

        Raises:
            WorkerCrashed: The process ended, and where it may be run again, so did the next one; or it ended
                too often to be started again.
            WorkerTimeout: The process was stopped, because a call in it hung.
        """
        made = self._alive()
        try:
            return made.run(inputs, outputs)
        except WorkerCrashed as error:
            if made.backend.was_stopped:  # it waited behind the call that hung
                raise WorkerTimeout(error.message) from error
            if not self._backend.retries or self._is_closed:
                raise
            first = error.message
        try:
            return self._alive().run(inputs, outputs)
        except WorkerCrashed as error:
            raise WorkerCrashed(f"{first}; then, in another process: {error.message}") from error

    def memory_bytes(self) -> int:
        """See :class:`hal.backend.MemoryUse`."""
        return self._alive().memory_bytes()

    def ability(self, kind: type[A]) -> A | None:
        """MemoryUse alone: what else an executable can do is of no use in a session."""
        able = kind is MemoryUse and self._made.ability(MemoryUse) is not None
        return super().ability(kind) if able else None

    def stop(self, why: str) -> None:
        """Kill the process, in which a call hangs: what is under way there raises WorkerTimeout.

        Args:
            why: For the errors' texts, with the process as ``it``.
        """
        self._made.backend.stop(why)

    def close(self) -> None:
        """See :meth:`hal.backend.Executable.close`; nothing is left to close where the process is gone."""
        self._is_closed = True
        with contextlib.suppress(WorkerCrashed, WorkerTimeout):
            self._made.close()

    def _alive(self) -> WorkerExecutable:
        """It in a process that lives; where the last one ended it is compiled again."""
        made = self._made
        if made.backend.alive or self._is_closed:
            return made
        with self._lock:
            made = self._made
            if made.backend.alive:
                return made
            ended = made.backend.ended.removesuffix(" earlier")
            self.is_starting = True
            try:
                self._made = self._make(self._backend.child.worker(is_limited=True))
            finally:
                self.is_starting = False
        self._backend.events.add("restarted", self._target, f"{ended}; it is compiled in another process now")
        # On a thread of its own: here things may be locked that the hook needs.
        threading.Thread(target=self._backend.events.tell, name="hal-events", daemon=True).start()
        return self._made


def _patterns(isolate: Isolate) -> tuple[str, ...]:
    if isinstance(isolate, bool):
        return ("*",) if isolate else ()
    found = (isolate,) if isinstance(isolate, str) else tuple(isolate)
    if not all(isinstance(one, str) and one for one in found):
        raise InputError(f"isolate is {isolate!r}; expected True, False, or names or patterns of backends")
    return found


__all__ = ["Child", "Isolate", "IsolatedBackend", "IsolatedExecutable", "Isolation", "Limits"]
