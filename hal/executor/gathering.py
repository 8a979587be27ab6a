"""Requests in line: several carried out at once, and several in one run where that is faster."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from hal.errors import BackendError

_log = logging.getLogger("hal.executor")

R = TypeVar("R")
A = TypeVar("A")
_Asked = TypeVar("_Asked", contravariant=True)
_Told = TypeVar("_Told", covariant=True)

#: Seconds for which the end of a program waits for runs under way: native code must not run into the
#: interpreter's end, and what hangs must not keep it. Source: ours.
_END_S = 5.0


class _Alone(Enum):
    ALONE = "alone"


#: In place of an answer: this request is to be carried out alone.
ALONE = _Alone.ALONE


class Together(Protocol[_Asked, _Told]):
    """Carries out several requests in one run.

    Attributes:
        most: Requests in a run.
        worth_from: Fewer than these are carried out one by one.
    """

    most: int
    worth_from: int

    def run(self, requests: Sequence[_Asked]) -> Sequence[_Told | _Alone]:
        """Answers in order, or :data:`ALONE`; what it raises is not yet the fault of a request."""
        ...


class Line(Generic[R, A]):
    """Requests that wait for one of a few threads. Any thread may add some.

    A thread takes what waits: one request, or, where several in one run are faster, as many as go into a run.
    It never waits for more to come. Where a run of several fails, each of them is carried out alone, so that
    none fails for another.

    Args:
        one: Carries out one request; called by several threads at once.
        n_at_once: Threads; they are started when they are first needed.
        together: Carries out several; None where all are carried out one by one.
        closed: What is said to whoever comes too late.
    """

    def __init__(
        self,
        one: Callable[[R], A],
        n_at_once: int,
        together: Together[R, A] | None = None,
        *,
        closed: str = "this line of requests is closed",
    ) -> None:
        self._one, self._together, self._closed = one, together, closed
        self.n_at_once = n_at_once
        # Threads know this alone while they wait, so that a line that nobody has any more can go.
        self._desk: _Desk[R, A] = _Desk(n_at_once)
        weakref.finalize(self, self._desk.close)

    @property
    def most(self) -> int:
        """Requests in a run."""
        return 1 if self._together is None else self._together.most

    @property
    def window(self) -> int:
        """Requests under way or waiting that keep all threads busy: those in a run, and one run's more."""
        return (self.n_at_once + 1) * self.most

    def submit(self, request: R) -> Future[A]:
        """Put a request in line.

        Raises:
            BackendError: The line is closed.
        """
        future: Future[A] = Future()
        if not self._desk.add((self, request, future)):
            raise BackendError(self._closed)
        return future

    def close(self) -> None:
        """Take no more, and wait for those in line; called by one of its threads it does not wait."""
        self._desk.close()
        if threading.current_thread() not in self._desk.threads:
            for thread in self._desk.threads:
                thread.join()

    def take(self, waiting: deque[_Item[R, A]]) -> list[_Item[R, A]]:
        """What one thread carries out now; the desk is locked.

        Args:
            waiting: At least one.
        """
        n = 1
        if self._together is not None:
            n = min(len(waiting), self._together.most)
            n = n if n >= self._together.worth_from else 1
        return [waiting.popleft() for _ in range(n)]

    def carry_out(self, items: Sequence[_Item[R, A]]) -> None:
        """Answer some requests."""
        going = [(request, future) for _, request, future in items if future.set_running_or_notify_cancel()]
        if len(going) > 1 and self._together is not None:
            try:
                answers = self._together.run([request for request, _ in going])
            except Exception as error:  # noqa: BLE001  each is carried out alone, and raises what is its own
                _log.info("a run of %d requests failed, each is run alone: %s", len(going), error)
            else:
                for (request, future), answer in zip(going, answers, strict=True):
                    if isinstance(answer, _Alone):
                        self._alone(request, future)
                    else:
                        future.set_result(answer)
                return
        for request, future in going:
            self._alone(request, future)

    def _alone(self, request: R, future: Future[A]) -> None:
        try:
            answer = self._one(request)
        except BaseException as error:  # noqa: BLE001  it is raised where the answer is asked for
            future.set_exception(error)
        else:
            future.set_result(answer)


_Item = tuple[Line[R, A], R, "Future[A]"]


class _Desk(Generic[R, A]):
    """What the threads of a line share.

    Args:
        most: Threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[_Item[R, A]] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._n_idle = 0
        self._is_closed = False
        self.threads: list[threading.Thread] = []
        _DESKS.add(self)

    def add(self, item: _Item[R, A]) -> bool:
        """Put a request in line; whether it was not too late."""
        with self._ready:
            if self._is_closed:
                return False
            self._waiting.append(item)
            if self._n_idle:
                self._n_idle -= 1  # here, so that the next request calls another thread
                self._ready.notify()
            elif len(self.threads) < self._most:
                thread = threading.Thread(target=self._serve, name="hal-session", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    if not self.threads:
                        self._waiting.pop()
                        raise BackendError(
                            f"no thread can be started for a request: {error}; there are "
                            f"{threading.active_count()}: close sessions or send fewer requests at once"
                        ) from error
                else:
                    self.threads.append(thread)
        return True

    def forked(self) -> None:
        """Begin anew in a process that was forked: the threads, and what waits for them, are its parent's."""
        self._waiting, self._ready = deque(), threading.Condition(threading.Lock())
        self._n_idle, self.threads = 0, []

    def close(self) -> None:
        """Take no more; the threads end when nothing waits."""
        with self._ready:
            self._is_closed = True
            self._ready.notify_all()

    def drop(self) -> None:
        """Take no more, and forget what waits."""
        with self._ready:
            waiting, self._waiting = list(self._waiting), deque()
        for _, _, future in waiting:
            future.cancel()
        self.close()

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._waiting:
                    if self._is_closed:
                        return
                    self._n_idle += 1
                    self._ready.wait()
                line = self._waiting[0][0]
                taken = line.take(self._waiting)
            line.carry_out(taken)
            del line, taken  # an idle thread keeps no request


_DESKS: weakref.WeakSet[_Desk[Any, Any]] = weakref.WeakSet()


def _end() -> None:
    """At the program's end: what waits is dropped, what runs is waited for."""
    until_s = time.monotonic() + _END_S
    desks = list(_DESKS)
    for desk in desks:
        desk.drop()
    for desk in desks:
        for thread in desk.threads:
            thread.join(max(until_s - time.monotonic(), 0))


def _forked() -> None:
    for desk in list(_DESKS):
        desk.forked()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

__all__ = ["ALONE", "Line", "Together"]
