"""Calls that are cut off: made on another thread, which is left behind where they do not come back.

Native code cannot be interrupted. What can be had is that nobody waits for it: the caller gets an error, and
the thread stays with the call. If the call ever comes back, what it answers is dropped and the thread serves
others. Threads are daemons, so that a call that hangs does not keep the process from ending.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from hal.errors import RequestTimeout

R = TypeVar("R")


class Call(Generic[R]):
    """A call under way. It is answered to its caller or left behind, never both.

    Args:
        work: What to do.
        late: Given what it answered, where it was left behind.
    """

    def __init__(self, work: Callable[[], R], late: Callable[[R], None] | None = None) -> None:
        self._work, self._late = work, late
        self._done = threading.Lock()
        self._done.acquire()
        # Whoever takes it first decides: the thread that answers, or the caller that leaves.
        self._decided = threading.Lock()
        self._result: R
        self._error: BaseException | None = None

    def answer(self, timeout_s: float, what: str) -> R:
        """What it answers. Asked once, by one thread.

        Args:
            timeout_s: How long to wait, in seconds.
            what: Is done, for the text.

        Raises:
            RequestTimeout: It did not answer in time, and is left behind.
            BaseException: What it raised.
        """
        if not self._done.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            if self._decided.acquire(blocking=False):
                raise RequestTimeout(f"{what} did not answer within {timeout_s:g} s")
            self._done.acquire()  # it was answered at the last moment
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback knows this frame: a cycle that would keep the inputs
        return self._result

    def carry_out(self, rest: Callable[[], None]) -> None:
        """Do it, on the thread that it was given to.

        Args:
            rest: Called just before the caller goes on, so that it finds this thread free again.
        """
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001  it is raised in the caller's thread
            self._error = error
        if self._decided.acquire(blocking=False):
            rest()
            self._done.release()
            return
        is_answered = self._error is None
        self._error = None
        if is_answered and self._late is not None:
            self._late(self._result)
        rest()


class Threads:
    """Daemon threads that make calls, as many as are under way at once; idle ones wait for the next."""

    def __init__(self) -> None:
        self._idle: deque[_Thread] = deque()

    def begin(self, work: Callable[[], R], late: Callable[[R], None] | None = None) -> Call[R]:
        """Start a call.

        Args:
            work: What to do.
            late: Given what it answered, where the caller has left; it must not raise.

        Raises:
            RequestTimeout: The system has no thread left for it.
        """
        call = Call(work, late)
        try:
            thread = self._idle.pop()
        except IndexError:
            thread = _Thread(self._idle)
            try:
                thread.start()
            except RuntimeError as error:
                raise RequestTimeout(
                    f"a request cannot be run under a deadline: {error}; there are "
                    f"{threading.active_count()} threads, those of calls that hang among them; end the "
                    "process, or send fewer requests at once"
                ) from error
        thread.give(call)
        return call

    def forget(self) -> None:
        """Forget idle threads: a forked child has none of them."""
        self._idle.clear()


class _Thread(threading.Thread):
    """Makes calls, one after the other."""

    def __init__(self, idle: deque[_Thread]) -> None:
        super().__init__(name="hal-request", daemon=True)
        self._idle = idle
        self._given: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()

    def give(self, call: Call[Any]) -> None:
        """The next call; it is idle."""
        self._given.put(call)

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self._given.get().carry_out(self._rest)

    def _rest(self) -> None:
        self._idle.append(self)


#: Of this process: sessions come and go, threads stay.
THREADS = Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=THREADS.forget)

__all__ = ["THREADS", "Call", "Threads"]
