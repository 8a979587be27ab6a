"""What a session tells of failures, whose fault they are, and what it does with a device that is lost."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from hal.errors import BackendError, InputError, UserError
from hal.session.events import Event, Events
from hal.session.recovery import misfits
from hal.session.runner import SurvivingRunner, runner_of
from hal.tensor import HostTensor
from hal.testing import example_inputs
from tests.unit.surviving import CPU, CUDA0, CUDA1, GRAPH, Rig, ask, check

BOTH = ("cuda:0", "cuda:1", "cuda:1")
FAILING = {"cuda:0": [{"at": "run", "how": "raise"}]}


# --- the hook ------------------------------------------------------------------------------------------


def test_the_hook_is_told_each_event_once_when_many_requests_fail() -> None:
    rig = Rig(FAILING)
    meet = threading.Barrier(16)
    rig.backends["cuda:0"].on_run = lambda number: meet.wait(timeout=60) and None
    runner = rig.runner("cuda:0")
    assert ask(runner, 16, 16) == [None] * 16
    runner.close()
    assert len(rig.events) == len(runner.events) == 18
    assert {id(event) for event in rig.events} == {id(event) for event in runner.events}


def test_the_request_is_answered_when_the_hook_raises() -> None:
    def on_event(event: Event) -> None:
        raise ZeroDivisionError("a fault of the hook")

    runner = Rig(FAILING).runner("cuda:0", on_event=on_event)
    check(runner, 0)
    told = [(event.kind, event.text) for event in runner.events]
    assert [kind for kind, _ in told].count("failed") == 1 + 3
    for kind in ("failed", "replanned", "retried"):
        text = f"on_event raised ZeroDivisionError: a fault of the hook; it was told of {kind!r}"
        assert ("failed", text) in told


def test_a_hook_may_run_the_session_and_close_it() -> None:
    made: list[SurvivingRunner] = []
    answered = []

    def on_event(event: Event) -> None:
        if event.kind == "replanned":
            check(made[0], 7)
            answered.append(event)
        if event.kind == "retried":
            made[0].close()

    rig = Rig(FAILING)
    made.append(rig.runner("cuda:0", on_event=on_event))
    check(made[0], 0)
    assert len(answered) == 1
    assert rig.all_closed()
    with pytest.raises(BackendError, match=r"this session is closed"):
        check(made[0], 1)


def test_the_oldest_events_are_forgotten_when_there_are_many() -> None:
    events = Events()
    for number in range(1001):
        events.add("retried", "", str(number))
    assert [events.kept[0].text, events.kept[-1].text, len(events.kept)] == ["1", "1000", 1000]


# --- whose fault ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("cuda:0",), BOTH])
@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([np.zeros((9, 8), np.float32)], r"expected x: float32\[4, 8\]"),
        ([np.zeros((4, 8), np.float64)], r"expected x: float32\[4, 8\]"),
        ([], r"expected 1: x: float32\[4, 8\]"),
        ([np.zeros((4, 8), np.float32)] * 2, r"expected 1: x: float32\[4, 8\]"),
    ],
)
def test_the_plan_stays_when_inputs_do_not_fit(
    devices: tuple[str, ...], inputs: list[Any], text: str
) -> None:
    rig = Rig()
    runner = rig.runner(*devices)
    with pytest.raises(InputError, match=text):
        runner.run(inputs)
    assert runner.events == ()
    check(runner, 0)
    runner.close()
    assert rig.all_closed()


class OnDevice(HostTensor):
    """Says that it lies on a device, so that only the partition that reads it finds out what it is."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        super().__init__(np.zeros(shape, dtype))
        self.shape, self.dtype = shape, f"torch.{dtype}"

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


@pytest.mark.parametrize("silicon", ["", "chip"])
@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((9, 8), "float32", r"input 'x' has shape \(9, 8\); expected x: float32\[4, 8\]"),
        ((4, 8), "float64", r"input 'x' is float64; expected x: float32\[4, 8\]"),
    ],
)
def test_no_target_is_blamed_when_a_partition_is_fed_a_tensor_that_does_not_fit(
    silicon: str, shape: tuple[int, ...], dtype: str, text: str
) -> None:
    runner = Rig(silicon=silicon).runner(*BOTH)
    with pytest.raises(InputError, match=rf"the inputs do not fit the model: {text}"):
        runner.run([OnDevice(shape, dtype)])
    assert runner.events == ()
    assert len(runner.plan.partitions) == 2
    # Nor is anything kept that would be held against it later.
    assert runner._engine.watch.faults == {}
    runner.close()


def test_inputs_fit_when_they_have_no_shape_or_an_unknown_type() -> None:
    class Odd(HostTensor):
        dtype = "<dtype: 'float32'>"

    assert misfits(GRAPH.signature, [Odd(np.zeros((4, 8), np.float32))]) == []
    assert misfits(GRAPH.signature, example_inputs(GRAPH)) == []
    assert misfits(GRAPH.signature, []) == ["0 were given; expected 1: x: float32[4, 8]"]


# --- devices -------------------------------------------------------------------------------------------


def test_all_targets_of_a_device_are_out_when_it_is_lost() -> None:
    rig = Rig()
    backend = rig.backends["cuda:0"]

    def on_run(number: int) -> None:
        backend.devices = tuple(msgspec.structs.replace(d, unavailable="fell off") for d in backend.devices)
        raise BackendError("boom")

    backend.on_run = on_run
    # The other GPU is on the same silicon, as another backend's view of it would be.
    spot = rig.spots["cuda:1/emulator"]
    device = msgspec.structs.replace(spot.device, silicon="cuda:0")
    rig.spots["cuda:1/emulator"] = msgspec.structs.replace(spot, device=device)

    def on_compile(number: int) -> None:
        raise BackendError("too large")

    rig.backends["cpu:0"].on_compile = on_compile
    runner = rig.runner("cuda:0")
    with pytest.raises(BackendError) as raised:
        check(runner, 0)
    lost = "failed: cuda:0 is lost: fell off"
    for text in (f"{CUDA0}: {lost}", f"{CUDA1}: {lost}", f"{CPU}: failed: it failed: too large"):
        assert text in str(raised.value)
    assert [(event.kind, event.target) for event in runner.events] == [
        ("lost", CUDA0),
        ("failed", CPU),
        ("failed", ""),
    ]
    runner.close()


@pytest.mark.parametrize("how", ["unlisted", "cannot look"])
def test_a_device_is_lost_when_its_backend_does_not_see_it_any_more(how: str) -> None:
    rig = Rig(FAILING)
    runner = rig.runner("cuda:0")
    if how == "unlisted":
        rig.backends["cuda:0"].devices = ()
        text = "cuda:0 is lost: its backend does not list it any more"
    else:
        rig.backends["cuda:0"].failures._how["discover"] = "raise"
        text = "cuda:0 is lost: its backend cannot look for devices: the fake backend was told"
    check(runner, 0)
    assert runner.events[0].kind == "lost"
    assert runner.events[0].text.startswith(text)
    runner.close()


def test_only_the_backend_is_out_when_the_processor_is_said_to_be_lost() -> None:
    rig = Rig({"cpu:0": [{"at": "run", "how": "raise"}]}, silicon="chip")
    rig.backends["cpu:0"].devices = ()
    runner = rig.runner("cpu:0")
    check(runner, 0)
    assert runner.events[0].kind == "lost"
    assert set(runner.plan.targets) <= {CUDA0, CUDA1}
    runner.close()


def test_an_event_is_told_when_closing_fails() -> None:
    rig = Rig({"cuda:0": [{"at": "run", "how": "raise"}]})
    rig.backends["cuda:0"].failures._how["close"] = "raise"
    runner = rig.runner("cuda:0")
    check(runner, 0)
    runner.close()
    texts = [event.text for event in runner.events if event.kind == "failed"]
    assert any(text.startswith(f"closing {CUDA0} failed: the fake backend was told") for text in texts)


# --- what is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_is_refused_when_it_is_no_time(deadline_s: float) -> None:
    rig = Rig()
    with pytest.raises(UserError, match=r"deadline_s is .*; expected a number of seconds above 0"):
        runner_of(
            rig.graph,
            rig.plan("cpu:0"),
            rig.profile,
            rig.spots,
            constraints=rig.constraints,
            deadline_s=deadline_s,
        )
