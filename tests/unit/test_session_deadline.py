"""Calls that hang: the caller is not kept, nothing is closed under a call, and no answer is given twice."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hal.backend import Configuration
from hal.errors import BackendError, RequestTimeout
from hal.session.deadline import THREADS, Threads
from hal.session.events import Events
from hal.session.faults import Timed, Watch
from hal.session.recovery import Remaining
from hal.testing import example_inputs
from hal.testing.fake import FakeBackend
from tests.unit.surviving import CPU, CUDA0, CUDA1, GRAPH, Rig, ask, check

BOTH = ("cuda:0", "cuda:1", "cuda:1")
#: Seconds after which calls that hang are cut off. What does not hang here takes milliseconds.
SOON_S = 2.0
#: Seconds that no test waits for.
LATE_S = 300.0


class Hanging:
    """Makes runs hang, from one of them on, until they are let go.

    Args:
        first: Number of the first run that hangs.
        last: Number of the last one.
    """

    def __init__(self, first: int = 1, last: int = 1 << 30) -> None:
        self._first, self._last = first, last
        self.n = 0
        self.go = threading.Event()

    def __call__(self, number: int) -> None:
        if self._first <= number <= self._last and not self.go.is_set():
            self.n += 1
            assert self.go.wait(timeout=60)


@pytest.fixture(scope="module", autouse=True)
def _planner_is_loaded() -> None:
    """The first search of a process loads compiled code, which may take longer than the deadlines here."""
    rig = Rig({"cuda:0": [{"at": "run", "how": "raise"}]})
    runner = rig.runner("cuda:0")
    check(runner, 0)
    runner.close()


def until(is_done: Callable[[], bool]) -> None:
    """Wait for other threads, which have nothing left to wait for."""
    end_s = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < end_s
        os.sched_yield()


# --- calls -----------------------------------------------------------------------------------------------


def test_a_call_answers_when_it_is_in_time() -> None:
    threads = Threads()
    assert threads.begin(lambda: 7).answer(LATE_S, "it") == 7
    error = ZeroDivisionError("its own")
    with pytest.raises(ZeroDivisionError) as raised:
        threads.begin(lambda: _raise(error)).answer(LATE_S, "it")
    assert raised.value is error


def _raise(error: BaseException) -> None:
    raise error


def test_calls_share_a_thread_when_they_follow_each_other() -> None:
    threads = Threads()
    found = {threads.begin(threading.get_ident).answer(LATE_S, "it") for _ in range(50)}
    assert len(found) == 1
    assert threading.get_ident() not in found


def test_a_call_is_left_behind_when_it_hangs() -> None:
    threads, go = Threads(), threading.Event()
    answered: list[int] = []
    late = threading.Event()

    def keep(result: int) -> None:
        answered.append(result)
        late.set()

    call = threads.begin(lambda: 7 if go.wait(timeout=60) else 0, late=keep)
    with pytest.raises(RequestTimeout, match=r"the thing did not answer within 0\.01 s"):
        call.answer(0.01, "the thing")
    assert isinstance(RequestTimeout("x"), TimeoutError)
    # Others do not wait for it.
    assert threads.begin(lambda: 8).answer(LATE_S, "it") == 8
    assert answered == []
    go.set()
    assert late.wait(timeout=60)
    assert answered == [7]


def test_each_call_is_answered_or_left_behind_when_it_ends_about_at_the_deadline() -> None:
    threads = Threads()
    late: list[int] = []
    ended = threading.Semaphore(0)
    answered, left = [], []

    def keep(result: int) -> None:
        late.append(result)
        ended.release()

    for number in range(500):
        call = threads.begin(lambda number=number: number, late=keep)  # type: ignore[misc]
        try:
            answered.append(call.answer(0.0, "it"))
        except RequestTimeout:
            left.append(number)
    assert all(ended.acquire(timeout=60) for _ in left)
    assert set(answered) | set(left) == set(range(500))
    assert sorted(late) == left


def test_what_a_call_was_given_is_let_go_when_it_raised() -> None:
    class Input:
        pass

    threads, given = Threads(), Input()
    gone = weakref.ref(given)

    def work(given: Input) -> None:
        raise BackendError("boom")

    gc.disable()
    try:
        with pytest.raises(BackendError) as raised:
            threads.begin(lambda given=given: work(given)).answer(LATE_S, "it")  # type: ignore[misc]
        del raised, given
        threads.begin(lambda: 1).answer(LATE_S, "it")
        assert gone() is None
    finally:
        gc.enable()


def test_a_request_is_refused_when_the_system_has_no_thread_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RequestTimeout, match=r"under a deadline: can't start new thread; there are"):
        Threads().begin(lambda: 7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_idle_threads_are_forgotten_in_a_forked_child() -> None:
    THREADS.begin(lambda: 7).answer(LATE_S, "it")
    assert THREADS._idle
    # What os.fork calls in the child; a fork of a process with threads is no test's business.
    kept = list(THREADS._idle)
    THREADS.forget()
    assert not THREADS._idle
    THREADS._idle.extend(kept)


# --- which target hangs ----------------------------------------------------------------------------------


def timed(watch: Watch, target: str = CUDA0) -> Timed:
    backend = FakeBackend()
    (device,) = backend.discover()
    made = watch.watched(target, backend.compile(device, GRAPH, Configuration()))
    assert isinstance(made, Timed)
    return made


def test_a_target_hangs_when_a_call_is_under_way_and_none_has_ended_since() -> None:
    watch = Watch(is_timed=True)
    one, other = timed(watch), timed(watch, CUDA1)
    began_s = time.monotonic()
    assert watch.hanging(began_s, 1.0) == ()
    one.under_way[1] = began_s
    other.under_way[2] = began_s
    other.ended_s = began_s + 0.5
    # The other one has answered somebody since.
    assert watch.hanging(began_s, 1.0) == (CUDA0,)
    assert watch.stuck == (CUDA0,)
    assert watch.faults[CUDA0].kind == "timeout"
    assert watch.faults[CUDA0].text == "it did not answer within 1 s"
    one.under_way.clear()
    assert watch.stuck == ()


def test_calls_are_seen_while_they_are_under_way() -> None:
    watch = Watch(is_timed=True)
    one = timed(watch)
    seen = []

    def look(inputs: object, outputs: object = None) -> list[object]:
        seen.append(dict(one.under_way))
        return []

    one._run = look  # type: ignore[assignment]
    one.run(example_inputs(GRAPH))
    assert list(seen[0]) == [threading.get_ident()]
    assert one.under_way == {}
    assert one.ended_s >= seen[0][threading.get_ident()]


# --- sessions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("cpu:0",), BOTH])
def test_requests_are_answered_when_a_deadline_is_set_and_nothing_hangs(devices: Sequence[str]) -> None:
    rig = Rig()
    runner = rig.runner(*devices, deadline_s=LATE_S)
    assert ask(runner, 16, 64) == [None] * 64
    assert runner.events == ()
    runner.close()
    assert rig.all_closed()


@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
@pytest.mark.parametrize("failing", ["cuda:0", "cuda:1"])
def test_requests_are_run_again_when_a_partition_fails_and_a_deadline_is_set(
    devices: Sequence[str], failing: str
) -> None:
    if failing not in devices:
        devices = (failing,)
    rig = Rig({failing: [{"at": "run", "how": "raise"}]})
    runner = rig.runner(*devices, deadline_s=LATE_S)
    assert ask(runner, 16, 64) == [None] * 64
    told = [event.kind for event in runner.events]
    assert told.count("failed") == told.count("replanned") == 1
    runner.close()
    assert rig.all_closed()


@pytest.mark.parametrize("silicon", ["", "chip"])
@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
def test_a_request_is_run_again_when_a_target_hangs(devices: Sequence[str], silicon: str) -> None:
    rig = Rig(silicon=silicon)
    hanging = rig.backends["cuda:0"].on_run = Hanging()
    runner = rig.runner(*devices, deadline_s=SOON_S)
    check(runner, 0)
    assert [event.kind for event in runner.events] == ["timeout", "replanned", "retried"]
    assert runner.events[0].target == CUDA0
    assert runner.events[0].text == "it hangs: it did not answer within 2 s; the call is left behind"
    assert CUDA0 not in runner.plan.targets
    # The old plan stays open under the call that hangs, and closing the session does not wait for it.
    check(runner, 1)
    runner.close()
    (old,) = rig.backends["cuda:0"].made
    assert not old.is_closed.is_set()
    hanging.go.set()
    assert old.is_closed.wait(timeout=60)
    assert hanging.n == 1


def test_all_requests_are_answered_when_many_hang_at_once() -> None:
    rig = Rig()
    hanging = rig.backends["cuda:0"].on_run = Hanging()
    runner = rig.runner("cuda:0", deadline_s=SOON_S)
    assert ask(runner, 16, 16) == [None] * 16
    kinds = [event.kind for event in runner.events]
    assert sorted(kinds) == sorted(["timeout", "replanned", *["retried"] * 16])
    hanging.go.set()
    runner.close()


def test_requests_that_wait_behind_one_that_hangs_are_run_again() -> None:
    # On one silicon the executor runs one request at a time: fifteen wait for the one that hangs.
    rig = Rig(silicon="chip")
    hanging = rig.backends["cuda:1"].on_run = Hanging()
    runner = rig.runner(*BOTH, deadline_s=SOON_S)
    assert ask(runner, 16, 16) == [None] * 16
    kinds = [event.kind for event in runner.events]
    assert sorted(kinds) == sorted(["timeout", "replanned", *["retried"] * 16])
    assert runner.events[0].target == CUDA1
    hanging.go.set()
    runner.close()


def test_a_timeout_is_raised_at_once_when_the_session_is_strict_and_a_call_still_hangs() -> None:
    rig = Rig()
    hanging = rig.backends["cuda:0"].on_run = Hanging(first=2, last=2)
    runner = rig.runner("cuda:0", deadline_s=SOON_S, strict=True)
    check(runner, 0)
    with pytest.raises(RequestTimeout, match=rf"not answered within 2 s: {CUDA0} hangs") as raised:
        check(runner, 1)
    assert raised.value.targets == (CUDA0,)
    # The next one makes no call that could hang too.
    with pytest.raises(RequestTimeout, match=rf"an earlier request still hangs in {CUDA0}"):
        check(runner, 2)
    assert hanging.n == 1
    assert [(event.kind, event.target) for event in runner.events] == [("timeout", CUDA0)] * 2
    # It comes back, and so does the session.
    hanging.go.set()
    until(lambda: not runner._engine.watch.stuck)
    check(runner, 3)
    runner.close()
    assert rig.all_closed()


def test_one_error_names_both_when_the_second_plan_hangs_too() -> None:
    rig = Rig()
    all_hang = Hanging()
    for backend in rig.backends.values():
        backend.on_run = all_hang
    runner = rig.runner("cuda:0", deadline_s=SOON_S)
    with pytest.raises(RequestTimeout) as raised:
        check(runner, 0)
    text = str(raised.value)
    assert f"{CUDA0} hangs" in text
    assert f"run again on {CPU} (6 nodes), it failed too: a request was not answered within 2 s" in text
    assert raised.value.targets == (CPU,)
    all_hang.go.set()
    runner.close()


def test_one_error_names_both_when_a_target_hangs_and_nothing_is_left() -> None:
    rig = Rig({"cuda:1": [{"at": "compile", "how": "raise"}], "cpu:0": [{"at": "compile", "how": "raise"}]})
    hanging = rig.backends["cuda:0"].on_run = Hanging()
    runner = rig.runner("cuda:0", deadline_s=SOON_S)
    with pytest.raises(RequestTimeout, match=r"no other plan can be carried out: no target is left"):
        check(runner, 0)
    with pytest.raises(RequestTimeout, match=r"an earlier request still hangs(.|\n)*no target is left"):
        check(runner, 1)
    assert hanging.n == 1
    hanging.go.set()
    runner.close()


def test_a_request_is_told_to_wait_no_longer_when_planning_again_takes_too_long() -> None:
    rig = Rig({"cuda:0": [{"at": "run", "how": "raise"}]})
    go = threading.Event()
    rig.backends["cpu:0"].on_compile = lambda number: go.wait(timeout=60) and None
    runner = rig.runner("cuda:0", deadline_s=0.5)
    with pytest.raises(RequestTimeout, match=r"planning again did not end within 0\.5 s: later requests"):
        check(runner, 0)
    succession = runner._engine.succession
    assert succession is not None
    go.set()
    assert succession.done.wait(timeout=60)
    check(runner, 1)
    assert runner.plan.targets == (CPU,)
    runner.close()


def test_a_target_is_left_out_when_compiling_for_it_hangs() -> None:
    rig = Rig()
    go = threading.Event()
    rig.backends["cuda:0"].on_compile = lambda number: go.wait(timeout=60) and None
    events = Events()
    remaining = Remaining(
        rig.graph, rig.profile, rig.spots, rig.constraints, events, is_timed=True, compile_s=0.5
    )
    engine = remaining.first(rig.plan("cuda:0"), strict=False)
    assert engine.plan.targets == (CPU,)
    assert [(event.kind, event.target) for event in events.kept] == [("timeout", CUDA0)]
    assert "compiling did not end within 0.5 s" in events.kept[0].text
    with pytest.raises(RequestTimeout, match=rf"{CUDA0}: compiling did not end within 0\.5 s"):
        remaining.first(rig.plan("cuda:0"), strict=True)
    # What was compiled late is closed.
    go.set()
    engine.retire()
    assert engine.done.wait(timeout=60)
    made = rig.backends["cuda:0"].made
    until(lambda: len(made) == 2 and all(one.is_closed.is_set() for one in made))


def test_all_requests_are_answered_when_a_target_fails_between_many() -> None:
    rig = Rig({"cuda:0": [{"at": "run:9", "how": "bug"}]})
    runner = rig.runner(*BOTH, deadline_s=LATE_S)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, runner, 8, 40) for _ in range(2)]
        assert [one.result() for one in asked] == [[None] * 40] * 2
    runner.close()
    assert rig.all_closed()
