"""Requests in line: how many run at once, which are gathered, and what becomes of those that fail."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from hal.errors import BackendError
from hal.executor.gathering import ALONE, Line


class Doubling:
    """Carries requests out together, and notes which.

    Attributes:
        begun: Set when a run has begun.
        going: Runs wait for it.
    """

    def __init__(self, most: int, worth_from: int = 2) -> None:
        self.most, self.worth_from = most, worth_from
        self.runs: list[list[int]] = []

    def run(self, requests: Sequence[int]) -> list[int]:
        self.runs.append(list(requests))
        if any(request < 0 for request in requests):
            raise BackendError("a negative one")
        return [2 * request for request in requests]


class Gate:
    """Carries requests out one by one; 0 waits until the gate is opened."""

    def __init__(self) -> None:
        self.is_open, self.entered = threading.Event(), threading.Event()
        self.alone: list[int] = []

    def run(self, request: int) -> int:
        if request == 0:
            self.entered.set()
            assert self.is_open.wait(60)
        self.alone.append(request)
        if request < 0:
            raise ValueError(f"request {request}")
        return 2 * request


def held(together: Doubling, requests: Sequence[int]) -> tuple[Gate, list[Future[int]]]:
    """Requests that all wait behind one before they are carried out by one thread."""
    gate = Gate()
    line = Line(gate.run, 1, together)
    first = line.submit(0)
    assert gate.entered.wait(60)
    futures = [line.submit(request) for request in requests]
    gate.is_open.set()
    assert first.result(60) == 0
    line.close()
    return gate, futures


def test_what_waits_is_gathered_when_a_thread_is_free() -> None:
    together = Doubling(4)
    gate, futures = held(together, range(1, 7))
    assert [future.result(0) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert together.runs == [[1, 2, 3, 4], [5, 6]]
    assert gate.alone == [0]


def test_requests_run_alone_when_too_few_wait_for_a_run_to_be_worth_it() -> None:
    together = Doubling(4, worth_from=3)
    gate, futures = held(together, range(1, 7))
    assert [future.result(0) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert together.runs == [[1, 2, 3, 4]]
    assert gate.alone == [0, 5, 6]


def test_only_the_request_that_fails_fails_when_it_was_gathered_with_others() -> None:
    together = Doubling(4)
    gate, futures = held(together, [1, -2, 3, 4])
    assert [future.result(0) for at, future in enumerate(futures) if at != 1] == [2, 6, 8]
    with pytest.raises(ValueError, match="request -2"):
        futures[1].result(0)
    assert gate.alone == [0, 1, -2, 3, 4]


def test_a_request_runs_alone_when_it_cannot_be_gathered() -> None:
    class Picky(Doubling):
        def run(self, requests: Sequence[int]) -> list[int]:
            answers = super().run(requests)
            return [ALONE if answer == 4 else answer for answer in answers]  # type: ignore[misc]

    gate, futures = held(Picky(4), [1, 2, 3])
    assert [future.result(0) for future in futures] == [2, 4, 6]
    assert gate.alone == [0, 2]


def test_a_request_is_not_carried_out_when_it_was_cancelled_in_line() -> None:
    gate = Gate()
    line: Line[int, int] = Line(gate.run, 1)
    line.submit(0)
    assert gate.entered.wait(60)
    futures = [line.submit(request) for request in (1, 2)]
    assert futures[0].cancel()
    gate.is_open.set()
    assert futures[1].result(60) == 4
    line.close()
    assert gate.alone == [0, 2]


@pytest.mark.parametrize("n_at_once", [1, 3])
def test_as_many_run_at_once_as_there_are_threads(n_at_once: int) -> None:
    together = threading.Barrier(n_at_once)
    lock, under_way, most = threading.Lock(), 0, 0

    def run(request: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(60)
        with lock:
            under_way -= 1
        return request

    line: Line[int, int] = Line(run, n_at_once)
    futures = [line.submit(request) for request in range(4 * n_at_once)]
    assert [future.result(60) for future in futures] == list(range(4 * n_at_once))
    assert most == n_at_once
    line.close()


def test_answers_are_right_when_many_threads_put_requests_in_line() -> None:
    line: Line[int, int] = Line(lambda request: 2 * request, 4, Doubling(8))
    start = threading.Barrier(16)
    wrong: list[int] = []

    def ask(thread: int) -> None:
        start.wait(60)
        for number in range(200):
            request = 1000 * thread + number
            if line.submit(request).result(60) != 2 * request:
                wrong.append(request)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    line.close()


def test_nothing_is_taken_when_it_is_closed() -> None:
    line: Line[int, int] = Line(lambda request: request, 1, closed="it is closed; open another")
    line.close()
    line.close()
    with pytest.raises(BackendError, match="it is closed; open another"):
        line.submit(1)


def test_its_threads_end_when_nobody_has_it_any_more() -> None:
    line: Line[int, int] = Line(lambda request: request, 2)
    assert line.submit(1).result(60) == 1
    (thread,) = line._desk.threads
    gone = weakref.ref(line)
    del line
    gc.collect()
    assert gone() is None
    thread.join(60)
    assert not thread.is_alive()


def test_a_request_is_not_kept_when_it_was_answered() -> None:
    class Thing:
        pass

    line: Line[Thing, int] = Line(lambda thing: 1, 1)
    thing = Thing()
    kept = weakref.ref(thing)
    future = line.submit(thing)
    assert future.result(60) == 1
    del thing, future
    # The thread lets go of a request before it takes the next one.
    line.submit(Thing()).result(60)
    line.close()
    assert kept() is None


def test_a_program_ends_when_requests_wait_and_one_hangs() -> None:
    code = (
        "import threading\nfrom hal.executor import gathering\ngathering._END_S = 0.1\n"
        "line = gathering.Line(lambda request: threading.Event().wait(), 1)\n"
        "line.submit(1), line.submit(2)\nprint('over')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("over\n", "")


def test_a_request_is_refused_and_not_left_in_line_when_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    line: Line[int, int] = Line(lambda request: request, 2)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(BackendError, match=r"no thread can be started for a request: can't start new .*"):
            line.submit(1)
    assert line.submit(2).result(60) == 2
    line.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_requests_are_carried_out_by_new_threads_when_the_process_was_forked() -> None:
    code = (
        "import os, threading\nfrom hal.executor.gathering import Line\n"
        "line = Line(lambda request: request, 1)\nassert line.submit(1).result(60) == 1\n"
        "child = os.fork()\n"
        "answer = line.submit(2).result(60)\n"
        "if not child: os._exit(0 if answer == 2 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), answer)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0 2\n"
