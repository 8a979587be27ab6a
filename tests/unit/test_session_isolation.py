"""Partitions in child processes: what ends a process is an error here, and costs no request."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hal.backend import BackendRef, Configuration, Device, MemoryUse, Telemetry
from hal.errors import BackendError, InputError, RequestTimeout, WorkerCrashed, WorkerTimeout
from hal.executor.backend import Spot
from hal.session.events import Events
from hal.session.faults import Timed, Watch
from hal.session.isolation import Child, IsolatedBackend, IsolatedExecutable, Isolation, Limits
from hal.session.runner import SurvivingRunner
from hal.testing import example_inputs
from hal.worker.process import MOST_CHANNELS
from tests.unit.isolated import ALWAYS, Box, backend_of, held, kill, process_of
from tests.unit.surviving import CPU, CUDA0, GRAPH, Rig, ask, check

BOTH = ("cuda:0", "cuda:1", "cuda:1")
#: Seconds after which calls that hang are cut off. What does not hang here takes milliseconds.
SOON_S = 2.0
LATE_S = 300.0


@pytest.fixture(scope="module", autouse=True)
def _planner_is_loaded() -> None:
    """The first search of a process loads compiled code, which may take longer than the deadlines here."""
    rig = Rig({"cuda:0": [{"at": "run", "how": "raise"}]})
    runner = rig.runner("cuda:0")
    check(runner, 0)
    runner.close()


def kinds(runner: SurvivingRunner) -> list[str]:
    return [event.kind for event in runner.events]


# --- nothing ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_s", [None, LATE_S])
@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
def test_requests_of_many_threads_are_answered_when_backends_are_isolated(
    devices: Sequence[str], deadline_s: float | None
) -> None:
    before = held()
    runner = Box().runner(*devices, deadline_s=deadline_s)
    assert ask(runner, 16, 64) == [None] * 64
    assert runner.events == ()
    processes = {process_of(runner, device)[0].pid for device in devices}
    assert len(processes) == len(set(devices))
    runner.close()
    assert held() == before


def test_devices_of_one_backend_share_a_process() -> None:
    runner = Box(together=True).runner(*BOTH)
    assert ask(runner, 4, 16) == [None] * 16
    assert process_of(runner, "cuda:0")[0].pid == process_of(runner, "cuda:1")[0].pid
    runner.close()


def test_other_backends_run_in_this_process_when_one_is_isolated_by_name() -> None:
    runner = Box().runner(*BOTH, isolate=["cuda:1/*"])
    check(runner, 0)
    assert [end for end, place in runner.places.items() if isinstance(place.backend, IsolatedBackend)] == [
        "cuda:1/emulator"
    ]
    kill(process_of(runner, "cuda:1")[0])
    check(runner, 1)
    assert kinds(runner) == ["restarted"]
    runner.close()


def test_isolated_backends_tell_their_memory_and_telemetry() -> None:
    runner = Box().runner("cuda:0")
    backend = backend_of(runner, "cuda:0")
    telemetry = backend.ability(Telemetry)
    assert telemetry is not None
    assert telemetry.telemetry(runner.plan.devices[0]) == {"power_mw": 1_000, "utilisation_percent": 50}
    memory = runner._engine._executable.ability(MemoryUse)
    assert memory is not None
    assert memory.memory_bytes() == GRAPH.weight_bytes
    # They go on in the next process.
    kill(process_of(runner, "cuda:0")[0])
    check(runner, 0)
    assert memory.memory_bytes() == GRAPH.weight_bytes
    assert telemetry.telemetry(runner.plan.devices[0])["power_mw"] == 1_000
    runner.close()


# --- a process ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["segfault", "abort", "exit"])
@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
def test_a_request_is_answered_by_another_process_when_its_own_ends(devices: Sequence[str], how: str) -> None:
    box = Box({"cuda:0": [{"at": "run:2", "how": how}]})
    runner = box.runner(*devices)
    check(runner, 0)
    check(runner, 1)
    (event,) = box.wait_for(1)
    ended = {
        "segfault": "was ended by SIGSEGV",
        "abort": "was ended by SIGABRT",
        "exit": "exited with status 7",
    }
    assert (event.kind, event.target) == ("restarted", CUDA0)
    assert event.text == f"its process {ended[how]}; it is compiled in another process now"
    assert runner.events == (event,)
    assert CUDA0 in runner.plan.targets
    runner.close()


def test_all_requests_are_answered_when_a_process_ends_under_many() -> None:
    runner = Box({"cuda:0": [{"at": "run:20", "how": "segfault"}]}).runner(*BOTH)
    assert ask(runner, 16, 32) == [None] * 32
    assert kinds(runner) == ["restarted"]
    runner.close()


def test_the_crash_is_raised_when_the_session_is_strict_and_the_next_request_is_answered() -> None:
    runner = Box({"cuda:0": [{"at": "run:2", "how": "abort"}]}).runner("cuda:0", strict=True)
    check(runner, 0)
    with pytest.raises(WorkerCrashed, match=r"its process was ended by SIGABRT while asked to run"):
        check(runner, 1)
    assert kinds(runner) == ["failed"]
    check(runner, 2)
    assert kinds(runner) == ["failed", "restarted"]
    runner.close()


def test_the_last_words_of_a_process_are_in_the_error() -> None:
    runner = Box({"cuda:0": [{"at": "run:1", "how": "bug"}]}).runner("cuda:0", strict=True)
    with pytest.raises(BackendError, match="ZeroDivisionError: the fake backend was told to have a bug"):
        check(runner, 0)
    # An error that a process survives is no end of it.
    check(runner, 1)
    assert kinds(runner) == ["failed"]
    runner.close()


@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
def test_the_target_is_left_out_when_the_next_process_ends_too(devices: Sequence[str]) -> None:
    runner = Box({"cuda:0": [{"at": "run", "how": "segfault"}]}).runner(*devices)
    assert ask(runner, 1, 3) == [None] * 3
    assert kinds(runner) == ["restarted", "failed", "replanned", "retried"]
    failed = runner.events[1]
    assert failed.target == CUDA0
    assert (
        "ended by SIGSEGV while asked to run; its last words: none; then, in another process: " in failed.text
    )
    assert CUDA0 not in runner.plan.targets
    runner.close()


@pytest.mark.parametrize("how", ["segfault", "exit"])
def test_another_plan_is_compiled_when_a_process_ends_in_compiling(how: str) -> None:
    runner = Box({"cuda:0": [{"at": "compile", "how": how}]}).runner("cuda:0")
    assert kinds(runner) == ["failed", "replanned"]
    assert "while asked to compile" in runner.events[0].text
    assert ask(runner, 4, 8) == [None] * 8
    runner.close()


def test_another_plan_is_compiled_when_a_process_ends_in_its_imports() -> None:
    runner = Box({"cuda:0": [{"at": "import", "how": "exit"}]}).runner("cuda:0")
    assert kinds(runner) == ["failed", "replanned"]
    assert "exited with status 7 while asked to open" in runner.events[0].text
    check(runner, 0)
    runner.close()


def test_a_target_that_ended_is_used_again_when_no_other_is_left() -> None:
    box = Box({"cuda:0": [{"at": "run", "how": "exit"}]})
    for end in list(box.spots):
        if not end.startswith("cuda:0"):
            del box.spots[end]
    runner = box.runner("cuda:0", limits=Limits(most=3, wait_s=0))
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"exited with status 7(.|\n)*no other plan can be carried out"
        ):
            check(runner, 0)
    # That were four ends: it is left alone.
    with pytest.raises(
        BackendError,
        match=r"is not started again for now: its process ended 4 times within 60 s, the last time because "
        r"its process exited with status 7; see what it does there, or use other targets",
    ):
        check(runner, 0)
    runner.close()


@pytest.mark.parametrize("n_ends", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_left_behind_when_processes_end_one_after_the_other(n_ends: int) -> None:
    before = held()
    folders: list[Path] = []
    runner = Box().runner("cuda:0", limits=ALWAYS)
    check(runner, 0)
    settled = held()[1]
    for number in range(n_ends):
        process, shared = process_of(runner, "cuda:0")
        folders += shared
        kill(process)
        check(runner, number)
    assert kinds(runner) == ["restarted"] * n_ends
    assert held()[1] == settled
    assert len(held()[0]) == len(before[0]) + 1
    folders += process_of(runner, "cuda:0")[1]
    runner.close()
    assert held() == before
    assert not [folder for folder in folders if folder.exists()]


def test_nothing_is_left_behind_when_a_session_is_forgotten() -> None:
    before = held()
    runner = Box().runner("cuda:0")
    check(runner, 0)
    folders = process_of(runner, "cuda:0")[1]
    del runner
    gc.collect()
    assert held() == before
    assert not [folder for folder in folders if folder.exists()]


def test_a_request_is_refused_when_the_session_is_closed() -> None:
    runner = Box().runner("cuda:0")
    process = process_of(runner, "cuda:0")[0]
    runner.close()
    runner.close()
    assert not process.is_running()
    with pytest.raises(BackendError, match="this session is closed"):
        check(runner, 0)


# --- a process hangs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
def test_no_thread_and_no_process_is_left_behind_when_a_target_hangs(devices: Sequence[str]) -> None:
    before = held()
    # The processor is in this process: opening another one takes longer than the deadline.
    box = Box({"cuda:0": [{"at": "run:2", "how": "hang"}]})
    runner = box.runner(*devices, deadline_s=SOON_S, isolate="cuda:*")
    check(runner, 0)
    engine, (process, _) = runner._engine, process_of(runner, "cuda:0")
    check(runner, 1)
    assert kinds(runner) == ["timeout", "replanned", "retried"]
    assert runner.events[0].target == CUDA0
    assert runner.events[0].text == "it hangs: it did not answer within 2 s; its process was stopped"
    assert CUDA0 not in runner.plan.targets
    assert not process.is_running()
    # The call came back, so that its plan is closed.
    assert engine.done.wait(timeout=60)
    assert engine.watch.stuck == ()
    runner.close()
    assert held() == before


def test_all_requests_are_answered_when_many_hang_at_once() -> None:
    box = Box({"cuda:0": [{"at": "run", "how": "hang"}]})
    runner = box.runner("cuda:0", deadline_s=SOON_S, isolate="cuda:*")
    assert ask(runner, 16, 16) == [None] * 16
    assert sorted(kinds(runner)) == sorted(["timeout", "replanned", *["retried"] * 16])
    runner.close()


def test_the_next_request_is_answered_when_a_target_of_a_strict_session_hung() -> None:
    runner = Box({"cuda:0": [{"at": "run:2", "how": "hang"}]}).runner(
        "cuda:0", deadline_s=SOON_S, strict=True
    )
    check(runner, 0)
    with pytest.raises(RequestTimeout, match=rf"within 2 s: {CUDA0} hangs, and is cut off") as raised:
        check(runner, 1)
    assert raised.value.targets == (CUDA0,)
    # Starting another process may take longer than a request.
    executable = runner._engine.watch._timed[0].isolated
    assert executable is not None
    executable.memory_bytes()
    check(runner, 2)
    assert kinds(runner) == ["timeout", "restarted"]
    runner.close()


def isolated(child: Child) -> IsolatedExecutable:
    backend = IsolatedBackend("cuda:0/emulator", child, Events(), retries=True, close=child.close)
    (device,) = backend.discover()
    return backend.compile(device, GRAPH, Configuration())


REF = BackendRef("hal.testing.fake:FakeBackend", {"name": "emulator", "devices": [{"id": "cuda:0"}]})


def test_a_target_is_not_blamed_when_its_process_is_being_started() -> None:
    child, watch = Child(REF, ALWAYS), Watch(is_timed=True)
    executable = isolated(child)
    timed = watch.watched(CUDA0, executable)
    assert isinstance(timed, Timed)
    began_s = time.monotonic()
    timed.under_way[1] = began_s
    executable.is_starting = True
    assert watch.hanging(began_s, 1.0) == ()
    assert watch.starting == (CUDA0,)
    executable.is_starting = False
    assert watch.starting == ()
    assert watch.hanging(began_s, 1.0) == (CUDA0,)
    assert watch.stuck == ()
    assert not child._worker.alive  # type: ignore[union-attr]
    child.close()


def test_a_request_is_told_that_a_process_is_started_when_that_takes_too_long() -> None:
    runner = Box().runner("cuda:0", deadline_s=LATE_S)
    check(runner, 0)
    (timed,) = runner._engine.watch._timed
    assert timed.isolated is not None
    hold, real, begun = threading.Event(), timed.isolated._make, threading.Event()

    def slowly(worker):  # type: ignore[no-untyped-def]
        begun.set()
        assert hold.wait(timeout=60)
        return real(worker)

    timed.isolated._make = slowly
    kill(process_of(runner, "cuda:0")[0])
    runner._deadline_s = SOON_S
    with pytest.raises(
        RequestTimeout, match=rf"the process of {CUDA0} ended, and another one is being started"
    ):
        check(runner, 1)
    assert begun.is_set()
    hold.set()
    runner._deadline_s = LATE_S
    check(runner, 2)
    assert kinds(runner) == ["timeout", "restarted"]
    assert runner.plan.targets == (CUDA0,)
    runner.close()


# --- what is isolated ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isolate", "covered"),
    [
        (True, [True, True, True]),
        (False, [False, False, False]),
        ((), [False, False, False]),
        ("openvino", [True, False, False]),
        (["onnxruntime"], [False, True, True]),
        (["onnxruntime-cuda"], [False, False, True]),
        (["cuda:*"], [False, False, True]),
        (["cpu:0/*", "nothing"], [True, True, False]),
    ],
)
def test_backends_are_isolated_when_a_name_or_pattern_matches(
    isolate: bool | str | Sequence[str], covered: Sequence[bool]
) -> None:
    isolation = Isolation(isolate)
    ends = ["cpu:0/openvino", "cpu:0/onnxruntime", "cuda:0/onnxruntime-cuda"]
    assert [isolation.covers(end) for end in ends] == covered
    for end, is_covered in zip(ends, covered, strict=True):
        backend = end.partition("/")[2].partition("-")[0]
        assert isolation.may_cover(backend) or not is_covered


def test_names_are_refused_when_they_match_nothing() -> None:
    with pytest.raises(
        InputError,
        match=r"isolate has 'openvina', which matches nothing here; expected True, or names or patterns of "
        r"cuda:0/emulator, cuda:1/emulator, cpu:0/emulator",
    ):
        Box().runner("cuda:0", isolate=["openvina", "emulator"])
    with pytest.raises(InputError, match=r"isolate is \[1\]; expected True, False, or names"):
        Isolation([1])  # type: ignore[list-item]


# --- the process of a backend ----------------------------------------------------------------------------


def test_the_process_is_left_alone_when_it_ended_too_often() -> None:
    child = Child(REF, Limits(most=2, wait_s=0))
    for number in range(3):
        worker = child.worker(is_limited=True)
        worker.stop(f"it was stopped for the {number}. time")
    with pytest.raises(
        WorkerCrashed, match=r"ended 3 times within 60 s, the last time because it was stopped"
    ):
        child.worker(is_limited=True)
    # Planning asks all the same.
    assert child.worker().alive
    child.close()
    assert not worker.alive
    with pytest.raises(BackendError, match="this session is closed"):
        child.worker()


def test_ends_are_forgotten_when_they_were_long_ago() -> None:
    child = Child(REF, Limits(most=1, within_s=0, wait_s=0))
    for _ in range(3):
        child.worker(is_limited=True).stop("it was stopped")
    assert child.worker(is_limited=True).alive
    child.close()


def test_processes_are_shared_by_what_a_session_compiles_and_end_with_the_last() -> None:
    isolation = Isolation(True)
    device = Device(id="cuda:0", name="x", kind="gpu", silicon="x", memory_pool="x")
    spot = Spot(ref=REF, device=device)
    one = isolation.open("cuda:0/emulator", spot, Events(), retries=True)
    other = isolation.open("cuda:0/emulator", spot, Events(), retries=True)
    worker = one.child.worker()
    assert other.child.worker() is worker
    one.close()
    one.close()
    assert worker.alive
    other.close()
    assert not worker.alive
    again = isolation.open("cuda:0/emulator", spot, Events(), retries=True)
    assert again.child.worker().alive
    again.close()


def test_calls_under_way_come_back_when_a_process_is_stopped() -> None:
    ref = BackendRef(REF.entry_point, {**REF.configuration, "fail": [{"at": "run", "how": "hang"}]})
    child = Child(ref, ALWAYS)
    executable = isolated(child)
    raised: list[Exception] = []

    def work() -> None:
        try:
            executable.run(example_inputs(GRAPH))
        except WorkerTimeout as error:
            raised.append(error)

    # More than there are channels: some of them wait for one.
    threads = [threading.Thread(target=work) for _ in range(MOST_CHANNELS + 2)]
    for thread in threads:
        thread.start()
    process = child.worker()._process
    while process._n_waiting < 2:
        os.sched_yield()
    executable.stop("it did not answer")
    for thread in threads:
        thread.join(timeout=60)
    assert len(raised) == len(threads)
    assert all("it did not answer" in str(error) for error in raised)
    executable.close()
    child.close()


def test_cpu_is_a_target_like_others() -> None:
    runner = Box().runner("cpu:0")
    check(runner, 0)
    assert runner.plan.targets == (CPU,)
    runner.close()
