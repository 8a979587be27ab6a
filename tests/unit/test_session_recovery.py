"""Faults at every step of a session on fake devices: each request is answered once, or has one error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hal.errors import BackendError, HalError, PlanError
from hal.records.plan import Constraints
from hal.session.runner import SurvivingRunner, runner_of
from hal.testing import small_graph
from tests.unit.surviving import CPU, CUDA0, CUDA1, GRAPH, Rig, ask, check

BOTH = ("cuda:0", "cuda:1", "cuda:1")
ALWAYS = [{"at": "run", "how": "raise"}]
NEVER_COMPILES = [{"at": "compile", "how": "raise"}]
N_REQUESTS = 32


def finish(rig: Rig, runner: SurvivingRunner) -> None:
    """Close it; nothing is left open, and nothing was closed under a call."""
    runner.close()
    assert rig.all_closed()


def kinds(runner: SurvivingRunner) -> list[str]:
    return [event.kind for event in runner.events]


# --- without a fault ---------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("cpu:0",), BOTH])
def test_requests_are_answered_on_the_plan_when_nothing_fails(devices: Sequence[str]) -> None:
    rig = Rig()
    runner = rig.runner(*devices)
    assert ask(runner, 16, N_REQUESTS) == [None] * N_REQUESTS
    assert runner.events == ()
    assert runner.signature == GRAPH.signature
    assert [part.target for part in runner.plan.partitions] == (
        [CPU] if devices == ("cpu:0",) else [CUDA0, CUDA1]
    )
    finish(rig, runner)


def test_a_second_close_does_nothing_and_a_run_is_refused_when_a_session_is_closed() -> None:
    rig = Rig()
    runner = rig.runner("cpu:0")
    finish(rig, runner)
    finish(rig, runner)
    with pytest.raises(BackendError, match=r"this session is closed; compile the model again"):
        check(runner, 0)


# --- compiling the first plan ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "bug"])
@pytest.mark.parametrize("failing", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("n_threads", [1, 16])
def test_another_plan_is_compiled_when_the_first_one_cannot_be(
    failing: str, how: str, n_threads: int
) -> None:
    rig = Rig({failing: [{"at": "compile", "how": how}]})
    runner = rig.runner(*BOTH)
    assert kinds(runner) == ["failed", "replanned"]
    assert runner.events[0].target == f"{failing}/emulator/fp32"
    assert f"{failing}/emulator/fp32" not in runner.plan.targets
    assert "told to" in runner.plan.notes[-1]
    assert rig.events == list(runner.events)
    assert ask(runner, n_threads, N_REQUESTS) == [None] * N_REQUESTS
    finish(rig, runner)


def test_the_error_is_raised_when_the_plan_cannot_be_compiled_and_the_session_is_strict() -> None:
    rig = Rig({"cuda:1": NEVER_COMPILES})
    with pytest.raises(BackendError, match=r"partition 1 on cuda:1.*told to fail at 'compile'"):
        rig.runner(*BOTH, strict=True)
    assert rig.all_closed()


def test_the_error_names_all_targets_when_none_can_be_compiled() -> None:
    rig = Rig(dict.fromkeys(("cuda:0", "cuda:1", "cpu:0"), NEVER_COMPILES))
    with pytest.raises(HalError, match=r"no target is left to place 'chain' on") as raised:
        rig.runner(*BOTH)
    assert all(f"{target}: failed: it failed: " in str(raised.value) for target in (CUDA0, CUDA1, CPU))
    assert rig.kinds() == ["failed"] * 3


def test_another_plan_is_compiled_when_a_device_of_the_first_one_is_not_here() -> None:
    rig = Rig()
    del rig.spots["cuda:0/emulator"]
    runner = rig.runner(*BOTH)
    assert kinds(runner) == ["failed", "replanned"]
    assert "the plan needs cuda:0/emulator, which is not here" in runner.events[0].text
    assert CUDA0 not in runner.plan.targets
    check(runner, 0)
    finish(rig, runner)


def test_another_plan_is_compiled_when_a_backend_cannot_be_opened() -> None:
    rig = Rig()
    spot = rig.spots["cuda:0/emulator"]
    rig.spots["cuda:0/emulator"] = type(spot)(
        ref=type(spot.ref)("tests.unit.surviving:nobody"), device=spot.device
    )
    runner = rig.runner(*BOTH)
    assert [event.target for event in runner.events] == [CUDA0, ""]
    check(runner, 0)
    finish(rig, runner)


def test_the_plan_is_refused_when_it_is_of_another_model() -> None:
    rig = Rig()
    plan = rig.plan("cpu:0")
    with pytest.raises(PlanError, match=r"the plan was made for model 'chain'"):
        runner_of(small_graph("add"), plan, rig.profile, rig.spots, constraints=rig.constraints)


# --- runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silicon", ["", "chip"])
@pytest.mark.parametrize("how", ["raise", "bug"])
@pytest.mark.parametrize("at", ["run", "first_run", "run:7"])
@pytest.mark.parametrize("failing", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("n_threads", [1, 16])
def test_requests_are_run_again_when_a_partition_fails(
    failing: str, at: str, how: str, n_threads: int, silicon: str
) -> None:
    rig = Rig({failing: [{"at": at, "how": how}]}, silicon=silicon)
    runner = rig.runner(*BOTH)
    assert ask(runner, n_threads, N_REQUESTS) == [None] * N_REQUESTS
    told = kinds(runner)
    assert told.count("failed") == told.count("replanned") == 1
    assert 1 <= told.count("retried") <= n_threads
    assert len(told) == 2 + told.count("retried")
    assert runner.events[0].target == f"{failing}/emulator/fp32"
    assert f"{failing}/emulator/fp32" not in runner.plan.targets
    assert sorted(rig.events, key=lambda event: event.at) == list(runner.events)
    finish(rig, runner)


@pytest.mark.parametrize("how", ["raise", "bug"])
def test_one_thread_plans_again_when_all_requests_fail_at_once(how: str) -> None:
    n = 16
    rig = Rig({"cuda:0": [{"at": "run", "how": how}]})
    meet = threading.Barrier(n)
    rig.backends["cuda:0"].on_run = lambda number: meet.wait(timeout=60) and None
    runner = rig.runner("cuda:0")
    assert ask(runner, n, n) == [None] * n
    assert kinds(runner) == ["failed", "replanned", *["retried"] * n]
    # Whoever asked compiled nothing: one plan at first, one in its place.
    assert sum(len(backend.made) for backend in rig.backends.values()) == 1 + len(runner.plan.partitions)
    finish(rig, runner)


def test_a_request_finishes_on_the_old_plan_when_it_is_under_way_there() -> None:
    rig = Rig()
    inside, leave = threading.Event(), threading.Event()

    def on_run(number: int) -> None:
        if number == 1:
            inside.set()
            assert leave.wait(timeout=60)
        else:
            raise BackendError("boom")

    rig.backends["cuda:0"].on_run = on_run
    runner = rig.runner("cuda:0")
    slow = threading.Thread(target=check, args=(runner, 1))
    slow.start()
    assert inside.wait(timeout=60)
    check(runner, 2)
    assert kinds(runner) == ["failed", "replanned", "retried"]
    (old,) = rig.backends["cuda:0"].made
    assert not old.is_closed.is_set()
    leave.set()
    slow.join(timeout=60)
    assert old.is_closed.wait(timeout=60)
    # It was not run again: it was answered where it was.
    assert kinds(runner) == ["failed", "replanned", "retried"]
    finish(rig, runner)


def test_a_request_is_run_again_on_the_new_plan_when_it_fails_on_the_old_one_later() -> None:
    rig = Rig()
    inside, leave = threading.Event(), threading.Event()

    def on_run(number: int) -> None:
        if number == 1:
            inside.set()
            assert leave.wait(timeout=60)
        raise BackendError(f"boom {number}")

    rig.backends["cuda:0"].on_run = on_run
    runner = rig.runner("cuda:0")
    slow = threading.Thread(target=check, args=(runner, 1))
    slow.start()
    assert inside.wait(timeout=60)
    check(runner, 2)
    leave.set()
    slow.join(timeout=60)
    assert kinds(runner) == ["failed", "replanned", "retried", "retried"]
    finish(rig, runner)


def test_a_request_is_run_again_on_the_plan_in_force_when_its_own_was_replaced_twice() -> None:
    rig = Rig()
    leave = {device: threading.Event() for device in ("cuda:0", "cpu:0")}
    inside = {device: threading.Event() for device in ("cuda:0", "cpu:0")}

    def failing(device: str, error: bool) -> Callable[[int], None]:
        def on_run(number: int) -> None:
            if number == 1:
                inside[device].set()
                assert leave[device].wait(timeout=60)
            if number > 1 or error:
                raise BackendError(f"boom on {device}")

        return on_run

    # The first request on the first plan fails late; the first on the second one holds it open until then.
    rig.backends["cuda:0"].on_run = failing("cuda:0", error=True)
    rig.backends["cpu:0"].on_run = failing("cpu:0", error=False)
    runner = rig.runner("cuda:0")
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(check, runner, 1)
        assert inside["cuda:0"].wait(timeout=60)
        held = pool.submit(check, runner, 2)
        assert inside["cpu:0"].wait(timeout=60)
        check(runner, 3)
        assert runner.plan.targets == (CUDA1,)
        leave["cuda:0"].set()
        assert late.result() is None
        leave["cpu:0"].set()
        assert held.result() is None
    assert kinds(runner) == ["failed", "replanned", "retried"] * 2 + ["retried"]
    finish(rig, runner)


@pytest.mark.parametrize("n_threads", [1, 16])
def test_the_next_plan_is_taken_when_the_new_one_cannot_be_compiled(n_threads: int) -> None:
    rig = Rig({"cuda:0": ALWAYS, "cpu:0": NEVER_COMPILES})
    runner = rig.runner("cuda:0")
    assert ask(runner, n_threads, N_REQUESTS) == [None] * N_REQUESTS
    assert runner.plan.targets == (CUDA1,)
    failed = [event.target for event in runner.events if event.kind == "failed"]
    assert failed[0] == CUDA0
    assert set(failed) <= {CUDA0, CPU}
    finish(rig, runner)


def test_a_plan_is_not_taken_when_its_target_failed_on_the_old_one_meanwhile() -> None:
    rig = Rig({"cuda:0": ALWAYS})
    runner = rig.runner("cpu:0", "cuda:0", "cuda:0")
    old = runner._engine

    def on_compile(number: int) -> None:
        # The plan that replaces the old one is all on the processor.
        old.watch.blame(CPU, BackendError("a request that was still under way failed"))

    rig.backends["cpu:0"].on_compile = on_compile
    check(runner, 0)
    assert [(event.kind, event.target) for event in runner.events] == [
        ("failed", CUDA0),
        ("failed", CPU),
        ("replanned", ""),
        ("retried", ""),
    ]
    assert runner.plan.targets == (CUDA1,)
    finish(rig, runner)


@pytest.mark.parametrize("n_threads", [1, 16])
def test_one_error_names_both_when_the_second_run_fails_too(n_threads: int) -> None:
    rig = Rig({device: [{"at": "run", "how": "raise"}] for device in ("cuda:0", "cuda:1", "cpu:0")})
    runner = rig.runner("cuda:0")
    errors = ask(runner, n_threads, N_REQUESTS)
    assert all(type(error) is BackendError for error in errors)
    twice = [str(error) for error in errors if "it failed too" in str(error)]
    assert twice
    assert all(text.count("told to fail at 'run'") == 2 for text in twice)
    assert all("a request failed and could not be carried out otherwise:\n  - " in text for text in twice)
    # Once nothing is left, no request waits for plans any more: it is told so at once.
    rest = [str(error) for error in errors if "it failed too" not in str(error)]
    assert all("no other plan can be carried out: no target is left" in text for text in rest)
    (*_, last) = ask(runner, 1, 3)
    assert "no other plan can be carried out: no target is left" in str(last)
    finish(rig, runner)


@pytest.mark.parametrize("n_threads", [1, 16])
def test_one_error_names_both_when_nothing_else_can_be_compiled(n_threads: int) -> None:
    rig = Rig({"cuda:0": ALWAYS, "cuda:1": NEVER_COMPILES, "cpu:0": NEVER_COMPILES})
    runner = rig.runner("cuda:0")
    errors = ask(runner, n_threads, N_REQUESTS)
    for error in errors:
        assert type(error) is BackendError
        assert "told to fail at 'run'" in str(error)
        assert "no other plan can be carried out: no target is left to place 'chain' on" in str(error)
        assert "compile anew once the devices are well" in str(error)
    # Planned once, not once for each request.
    assert kinds(runner) == ["failed"] * 4
    assert runner.plan.targets == (CUDA0,)
    finish(rig, runner)


def test_the_session_goes_on_when_a_fault_passes_and_nothing_else_is_left() -> None:
    rig = Rig(
        {"cuda:0": [{"at": "first_run", "how": "raise"}], "cuda:1": NEVER_COMPILES, "cpu:0": NEVER_COMPILES}
    )
    runner = rig.runner("cuda:0")
    assert [error is None for error in ask(runner, 1, 3)] == [False, True, True]
    finish(rig, runner)


@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
def test_the_original_error_is_raised_when_the_session_is_strict(devices: Sequence[str]) -> None:
    boom = BackendError("boom")

    def on_run(number: int) -> None:
        raise boom

    rig = Rig()
    rig.backends["cuda:0"].on_run = on_run
    runner = rig.runner(*devices, strict=True)
    with pytest.raises(BackendError, match=r"boom") as raised:
        check(runner, 0)
    if len(devices) == 1:
        assert raised.value is boom
    assert [(event.kind, event.target, event.text) for event in runner.events] == [("failed", CUDA0, "boom")]
    assert rig.events == list(runner.events)
    finish(rig, runner)


def test_constraints_are_kept_when_planned_again() -> None:
    limits = {"cuda:0": 1 << 30, "cuda:1": 1 << 30}
    constraints = Constraints(targets=("cuda:*",), memory_bytes=limits)
    rig = Rig({"cuda:0": ALWAYS}, constraints=constraints)
    runner = rig.runner("cuda:0")
    check(runner, 0)
    # The processor was not allowed, and a limit for a device that is out is no reason to fail.
    assert runner.plan.targets == (CUDA1,)
    assert runner.plan.constraints.memory_bytes == {"cuda:1": 1 << 30}
    finish(rig, runner)


def test_the_whole_model_goes_to_one_target_when_nobody_knows_which_partition_failed() -> None:
    rig = Rig()
    runner = rig.runner(*BOTH)
    (first,) = rig.backends["cuda:0"].made
    # Too few outputs: the executor fails, no partition raises.
    first.compute = lambda inputs: ([], {})  # type: ignore[method-assign]
    check(runner, 0)
    assert len(runner.plan.partitions) == 1
    assert "no target is known to be at fault" in runner.events[0].text
    finish(rig, runner)
