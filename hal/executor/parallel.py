"""A run over several silicons: one thread each, and one for the tensors that come to each."""

from __future__ import annotations

import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from hal.backend import Tensor
from hal.errors import BackendError
from hal.executor.program import Handoff, Program, Step

#: Told what failed and why, gives the error to raise.
Explain = Callable[[Step | Handoff, Exception], Exception]


class Lane:
    """A thread that does what it is given, one after the other.

    It is a daemon: a call that hangs in it does not keep the process from ending, as in Python's own pools.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._given: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._given,), name=name, daemon=True)
        self._thread.start()
        # Also when nobody has this object any more.
        self._finish = weakref.finalize(self, self._given.put, None)

    def give(self, work: Callable[[], None]) -> None:
        """Something to do, which must not raise."""
        self._given.put(work)

    def close(self) -> None:
        """End it, after what it has been given. A second call does nothing."""
        self._finish()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _serve(given: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (work := given.get()) is not None:
        work()
        del work  # it knows the tensors of its request


class Threads:
    """The threads of a program, shared by all its runs.

    Args:
        program: What they carry out.
    """

    def __init__(self, program: Program) -> None:
        arrivals = {handoff.silicon for group in program.handoffs.values() for handoff in group}
        self._computing = [Lane(f"hal-silicon-{at}") for at in range(program.n_silicons)]
        self._arriving = {at: Lane(f"hal-arrivals-{at}") for at in arrivals}

    def compute(self, silicon: int, work: Callable[[], None]) -> None:
        """Do something on a silicon's thread, after what it has been given before."""
        self._computing[silicon].give(work)

    def bring(self, silicon: int, work: Callable[[], None]) -> None:
        """Do something on the thread for tensors that come to a silicon."""
        self._arriving[silicon].give(work)

    def close(self) -> None:
        """End them, after what they have been given."""
        for lane in (*self._computing, *self._arriving.values()):
            lane.close()


class Request:
    """One run. Steps of a silicon run in the order of the plan; steps of several requests take turns.

    Args:
        program: What to carry out.
        threads: Who does it.
        explain: Makes errors readable.
        rooms: By step: tensors to write its outputs into.
    """

    def __init__(
        self,
        program: Program,
        threads: Threads,
        explain: Explain,
        rooms: Sequence[Sequence[Tensor] | None],
    ) -> None:
        self._program, self._threads, self._explain, self._rooms = program, threads, explain, rooms
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: Exception | None = None
        self._under_way = 0
        self._n_left = len(program.steps)
        self._uses = list(program.n_uses)
        self._readers: dict[int, list[int]] = {}
        self._missing = [0] * len(program.steps)
        before: dict[int, int] = {}
        self._after: dict[int, int] = {}
        for number, step in enumerate(program.steps):
            for slot in set(step.reads):
                self._readers.setdefault(slot, []).append(number)
                self._missing[number] += 1
            if step.silicon in before:
                self._after[before[step.silicon]] = number
                self._missing[number] += 1
            before[step.silicon] = number
        self.values: list[Tensor | None] = [None] * program.n_slots
        #: When each step began and ended (ns of the host's clock).
        self.times: list[tuple[int, int]] = [(0, 0)] * len(program.steps)
        #: How long each handoff took (ns), by the slot of the copy.
        self.handoffs: dict[int, int] = {}

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Carry it out; the outputs are in their slots afterwards.

        Raises:
            HalError: A step failed. No thread uses the inputs any more.
        """
        with self._lock:
            ready = [number for number, missing in enumerate(self._missing) if not missing]
            for slot, tensor in enumerate(inputs):
                ready += self._arrive(slot, tensor)
            self._start(ready)
            if not self._under_way:
                self._done.set()
        self._done.wait()
        if self._error is not None:
            raise self._error

    # --- with the lock held ----------------------------------------------------------------------------

    def _arrive(self, slot: int, tensor: Tensor) -> list[int]:
        """Keep a tensor where somebody reads it; the steps that wait for nothing else."""
        if not self._uses[slot]:
            return []
        self.values[slot] = tensor
        for handoff in self._program.handoffs.get(slot, ()):
            self._under_way += 1
            self._threads.bring(handoff.silicon, functools.partial(self._bring, handoff))
        return self._less(self._readers.get(slot, ()))

    def _less(self, numbers: Sequence[int]) -> list[int]:
        ready = []
        for number in numbers:
            self._missing[number] -= 1
            if not self._missing[number]:
                ready.append(number)
        return ready

    def _start(self, numbers: Sequence[int]) -> None:
        if self._error is not None:
            return
        for number in sorted(numbers):
            self._under_way += 1
            silicon = self._program.steps[number].silicon
            self._threads.compute(silicon, functools.partial(self._step, number))

    def _release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._uses[slot] -= 1
            if not self._uses[slot]:
                self.values[slot] = None

    def _finish(self, ready: Sequence[int], error: Exception | None) -> None:
        self._under_way -= 1
        if error is not None and self._error is None:
            self._error = error
        self._start(ready)
        if not self._under_way:
            self._done.set()

    # --- on the threads --------------------------------------------------------------------------------

    def _step(self, number: int) -> None:
        step = self._program.steps[number]
        ready: list[int] = []
        failure: Exception | None = None
        try:
            if self._error is None:
                # None of them is None: a step starts when all that it reads is there.
                inputs: list[Tensor] = [self.values[slot] for slot in step.reads]  # type: ignore[misc]
                began_ns = time.perf_counter_ns()
                outputs = step.compiled.executable.run(inputs, self._rooms[number])
                self.times[number] = (began_ns, time.perf_counter_ns())
                del inputs
                with self._lock:
                    for at in step.order:
                        ready += self._arrive(step.writes[at], outputs[at])
                    self._release(tuple(set(step.reads)))
                    if number in self._after:
                        ready += self._less([self._after[number]])
        except BaseException as error:  # noqa: BLE001  whatever a plugin raises reaches the caller of run
            failure = self._explain(step, _caught(error))
        with self._lock:
            self._finish(ready, failure)

    def _bring(self, handoff: Handoff) -> None:
        ready: list[int] = []
        failure: Exception | None = None
        try:
            tensor = self.values[handoff.source]
            if self._error is None and tensor is not None:
                began_ns = time.perf_counter_ns()
                copy = handoff.place(tensor)
                self.handoffs[handoff.destination] = time.perf_counter_ns() - began_ns
                with self._lock:
                    ready = self._arrive(handoff.destination, copy)
                    self._release([handoff.source])
        except BaseException as error:  # noqa: BLE001  as above
            failure = self._explain(handoff, _caught(error))
        with self._lock:
            self._finish(ready, failure)


def _caught(error: BaseException) -> Exception:
    """An error that may be raised in another thread: one that would end this thread ends nothing there."""
    return error if isinstance(error, Exception) else BackendError(f"{type(error).__name__}: {error}")
