"""Devices that are lost or full under a session, on an emulated machine: two partitions, really run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hal.backend import BackendRef
from hal.errors import BackendError
from hal.executor.backend import Spot
from hal.profiling.imagined import estimated
from hal.records.files import to_json
from hal.records.machines import combine
from hal.records.plan import Constraints
from hal.session.runner import Runner, runner_of
from hal.testing import small_graph
from tests.unit.imagined_machines import machine
from tests.unit.surviving import ask, placed

GRAPH = small_graph("chain")
BOTH = ("cuda:0", "cuda:1", "cuda:1")
N_REQUESTS = 32


@pytest.fixture(autouse=True)
def _emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs and a processor."""
    file = tmp_path / "machine.json"
    file.write_bytes(to_json(combine([("m", machine(2))])))
    monkeypatch.setenv("HAL_EMULATE", str(file))


def runner(
    devices: Sequence[str],
    fail: Sequence[Mapping[str, str]],
    *,
    limits: Mapping[str, int] | None = None,
    **options: Any,
) -> Runner:
    """A session of the units on devices in turn."""
    profile = estimated(GRAPH, combine([("m", machine(2))]))
    constraints = Constraints(memory_bytes=dict(limits or {}))
    ref = BackendRef("hal_emulator.backend:EmulatorBackend", {"fail": [dict(one) for one in fail]})
    spots = {f"{device.id}/emulator": Spot(ref=ref, device=device) for device in profile.devices}
    plan = placed(profile, devices, constraints)
    return runner_of(GRAPH, plan, profile, spots, constraints=constraints, **options)


def told(session: Runner) -> list[tuple[str, str]]:
    return [(event.kind, event.target) for event in session.events if event.kind != "retried"]


@pytest.mark.parametrize("n_threads", [1, 16])
@pytest.mark.parametrize("at", ["run", "run:1", "run:7"])
@pytest.mark.parametrize("lost", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("deadline_s", [None, 300.0])
def test_every_request_is_answered_when_a_device_is_lost(
    lost: str, at: str, n_threads: int, deadline_s: float | None
) -> None:
    session = runner(BOTH, [{"device": lost, "at": at, "how": "lost"}], deadline_s=deadline_s)
    assert len(session.plan.partitions) == 2
    assert ask(session, n_threads, N_REQUESTS, GRAPH) == [None] * N_REQUESTS
    assert told(session) == [("lost", f"{lost}/emulator/fp32"), ("replanned", "")]
    assert session.events[0].text.startswith(f"{lost} is lost: it was lost at run:")
    assert not any(target.startswith(lost) for target in session.plan.targets)
    session.close()


@pytest.mark.parametrize("n_threads", [1, 16])
def test_every_request_is_answered_when_a_device_runs_out_of_memory(n_threads: int) -> None:
    session = runner(BOTH, [{"device": "cuda:1", "at": "run:5", "how": "out_of_memory"}])
    assert ask(session, n_threads, N_REQUESTS, GRAPH) == [None] * N_REQUESTS
    assert told(session) == [("failed", "cuda:1/emulator/fp32"), ("replanned", "")]
    assert "cuda:1 is out of memory at run:5" in session.events[0].text
    session.close()


def test_every_request_is_answered_when_one_device_after_the_other_is_lost() -> None:
    fail = [
        {"device": "cuda:0", "at": "run:3", "how": "lost"},
        {"device": "cpu:0", "at": "run:9", "how": "lost"},
    ]
    session = runner(("cuda:0", "cpu:0", "cpu:0"), fail)
    assert ask(session, 1, N_REQUESTS, GRAPH) == [None] * N_REQUESTS
    assert told(session)[0] == ("lost", "cuda:0/emulator/fp32")
    assert ("lost", "cpu:0/emulator/fp32") in told(session)
    assert session.plan.targets == ("cuda:1/emulator/fp32",)
    session.close()


def test_another_plan_is_compiled_when_a_device_is_full_at_first() -> None:
    session = runner(BOTH, [{"device": "cuda:1", "at": "compile", "how": "out_of_memory"}])
    assert told(session) == [("failed", "cuda:1/emulator/fp32"), ("replanned", "")]
    assert ask(session, 16, N_REQUESTS, GRAPH) == [None] * N_REQUESTS
    session.close()


def test_a_limit_for_a_lost_device_is_no_reason_to_fail() -> None:
    fail = [{"device": "cuda:0", "at": "run:2", "how": "lost"}]
    session = runner(BOTH, fail, limits={"cuda:0": 1 << 30, "cuda:1": 1 << 30})
    assert ask(session, 1, N_REQUESTS, GRAPH) == [None] * N_REQUESTS
    session.close()


def test_the_error_names_every_device_when_all_are_lost() -> None:
    fail = [{"device": device, "at": "run", "how": "lost"} for device in ("cuda:0", "cuda:1", "cpu:0")]
    session = runner(BOTH, fail)
    errors = ask(session, 16, N_REQUESTS, GRAPH)
    assert all(isinstance(error, BackendError) for error in errors)
    # Whatever fell to which request before: now nothing is left.
    (*_, last) = ask(session, 1, 3, GRAPH)
    for device in ("cuda:0", "cuda:1", "cpu:0"):
        assert f"{device} is lost: it was lost at run:" in str(last)
    assert [kind for kind, _ in told(session)].count("lost") == 3
    session.close()


def test_the_error_is_raised_when_a_device_is_lost_and_the_session_is_strict() -> None:
    session = runner(BOTH, [{"device": "cuda:0", "at": "run:2", "how": "lost"}], strict=True)
    answers = ask(session, 1, 3, GRAPH)
    assert [answer is None for answer in answers] == [True, False, False]
    assert "cuda:0 is gone: it was lost at run:2" in str(answers[1])
    assert len(session.plan.partitions) == 2
    session.close()
