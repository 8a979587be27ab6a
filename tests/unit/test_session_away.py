"""Tensors in a device's memory: every copy to or from it is counted, on fake devices the host cannot read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from hal.backend import Configuration, DeviceTensors
from hal.errors import InputError
from hal.executor.homes import Homes, home_of, joined, memory_of
from hal.session.session import Session
from hal.tensor import Array
from hal.testing import FakeBackend, example_inputs, small_graph, true_outputs
from hal.testing.memory import DeviceTensor, Memory
from tests.unit.surviving import GRAPH, Rig
from tests.unit.test_session_sizes import Sized, rows

ZERO, ONE = (12, 0), (12, 1)


class OwnMemory(Rig):
    """A rig whose GPUs have a memory of their own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.memories = {device: Memory(at) for at, device in enumerate(("cuda:0", "cuda:1"))}
        for device, memory in self.memories.items():
            self.backends[device].memories = {device: memory}

    def session(self, *devices: str, **options: Any) -> Session:
        return Session(self.runner(*devices, **options), self.graph, self.profile)

    def counted(self) -> list[Counter[str]]:
        """Copies since the last time, by device."""
        found = [Counter(memory.copies) for memory in self.memories.values()]
        for memory in self.memories.values():
            memory.copies.clear()
        return found


def on(memory: Memory, array: Array) -> DeviceTensor:
    return DeviceTensor(memory, array.copy())


def check(session: Session, memory: Memory, seed: int = 0) -> None:
    """One request from a device's memory, rightly answered there."""
    (x,) = example_inputs(GRAPH, seed)
    given = on(memory, x)
    for answer in (session(given), session.run(None, {"x": given})[0]):
        assert isinstance(answer, DeviceTensor)
        assert answer.memory is memory
        np.testing.assert_allclose(answer.held, true_outputs(GRAPH, [x])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(given.held, x)


@pytest.mark.parametrize("options", [{}, {"deadline_s": 60.0}])
def test_nothing_is_copied_when_tensors_lie_where_the_model_runs(options: dict[str, Any]) -> None:
    rig = OwnMemory()
    session = rig.session("cuda:0", **options)
    check(session, rig.memories["cuda:0"])
    rig.counted()  # where tensors lie was found out by placing one
    for seed in range(3):
        check(session, rig.memories["cuda:0"], seed)
    assert rig.counted() == [{}, {}]
    session.close()


def test_inputs_and_outputs_are_copied_once_when_they_are_on_the_host() -> None:
    rig = OwnMemory()
    session = rig.session("cuda:0")
    inputs = example_inputs(GRAPH)
    answer = session(*inputs)
    assert isinstance(answer, np.ndarray)
    np.testing.assert_allclose(answer, true_outputs(GRAPH, inputs)[0], rtol=1e-5, atol=1e-6)
    assert rig.counted() == [{"to_device": 1, "to_host": 1}, {}]
    session.close()


def test_tensors_go_over_the_host_when_they_lie_on_another_device() -> None:
    rig = OwnMemory()
    session = rig.session("cuda:0")
    (x,) = example_inputs(GRAPH)
    answer = session(on(rig.memories["cuda:1"], x))
    assert isinstance(answer, DeviceTensor)
    assert answer.memory is rig.memories["cuda:1"]
    first, second = rig.counted()
    assert second == {"to_host": 1, "to_device": 1}
    assert first["to_host"] == 1
    session.close()


@pytest.mark.parametrize(
    ("devices", "copies"),
    [
        # In place at both ends; the middle runs on the processor, from which the device reads directly.
        (("cuda:0", "cpu:0", "cuda:0"), [{"to_host": 1, "to_device": 1}, {}]),
        # The end is on another device: from there to the host, and back to the caller.
        (("cuda:0", "cpu:0", "cuda:1"), [{"to_host": 1, "to_device": 1}, {"to_device": 1, "to_host": 1}]),
        (("cpu:0", "cuda:0", "cuda:0"), [{"to_host": 1, "to_device": 1}, {}]),
    ],
)
def test_only_what_passes_between_devices_is_copied_when_there_are_several_partitions(
    devices: tuple[str, ...], copies: list[dict[str, int]]
) -> None:
    rig = OwnMemory()
    session = rig.session(*devices)
    memory = rig.memories["cuda:0"]
    check(session, memory)
    rig.counted()
    answer = session(on(memory, example_inputs(GRAPH, 1)[0]))
    assert answer.memory is memory
    assert rig.counted() == copies
    session.close()


def test_tensors_of_the_host_and_of_the_device_go_together() -> None:
    graph = small_graph("add")
    fake = FakeBackend(devices=[{"id": "npu:0"}], own_memory=["npu:0"])
    made = fake.compile(fake.devices[0], graph, Configuration("fp32"))
    x, y = example_inputs(graph)
    memory = fake.memories["npu:0"]
    (want,) = true_outputs(graph, [x, y])
    np.testing.assert_allclose(made.run([on(memory, x), y])[0], want)
    assert memory.copies == {"to_device": 1, "to_host": 1}
    room = DeviceTensor(memory, np.zeros_like(want))
    assert made.run([on(memory, x), on(memory, y)], [room])[0] is room
    np.testing.assert_allclose(room.held, want)
    assert memory.copies == {"to_device": 1, "to_host": 1}


def test_inputs_are_refused_with_their_names_when_they_lie_on_a_device_and_do_not_fit() -> None:
    rig = OwnMemory()
    session = rig.session("cuda:0")
    memory = rig.memories["cuda:0"]
    (x,) = example_inputs(GRAPH)
    with pytest.raises(InputError, match=r"input 'x' is float64\[4, 8\]; expected float32\[4, 8\]"):
        session(on(memory, x.astype(np.float64)))
    with pytest.raises(InputError, match=r"input 'x' is float32\[2, 8\]; expected float32\[4, 8\]"):
        session(on(memory, x[:2]))
    session.close()


def test_other_sizes_within_the_ranges_are_answered_on_the_device() -> None:
    rig = Sized()
    memory = Memory(0)
    rig.backends["cuda:0"].memories = {"cuda:0": memory}
    session = rig.session("cuda:0")
    for n in (3, 8, 5):
        answer = session(on(memory, rows(n)))
        assert isinstance(answer, DeviceTensor)
        np.testing.assert_allclose(answer.held, true_outputs(rig.source, [rows(n)])[0], rtol=1e-5, atol=1e-6)
    rig.close(session)


def test_a_request_is_run_again_elsewhere_when_the_device_it_lies_on_fails() -> None:
    rig = OwnMemory()
    session = rig.session("cuda:0")
    memory = rig.memories["cuda:0"]
    check(session, memory)
    rig.backends["cuda:0"].on_run = _fail
    check(session, memory, 1)
    assert [event.kind for event in session.events] == ["failed", "replanned", "retried"]
    check(session, memory, 2)
    session.close()


def test_the_reason_is_told_when_a_tensor_is_lost_with_its_device() -> None:
    rig = OwnMemory()
    session = rig.session("cuda:0")
    memory = rig.memories["cuda:0"]
    check(session, memory)
    rig.backends["cuda:0"].on_run = _fail
    lost = Lost(memory, example_inputs(GRAPH)[0])
    with pytest.raises(InputError, match="Lost cannot be read"):
        session(lost)
    # The plan was replaced all the same, and what can be read is answered.
    check(session, memory)
    session.close()


class Lost(DeviceTensor):
    """A tensor of a device that is gone."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("the device is lost")


def _fail(number: int) -> None:
    raise RuntimeError("no luck")


def test_homes_are_those_of_all_that_read_a_tensor() -> None:
    ends = (["a", "b", "c", "d"], ["y", "z", "d"])
    parts = [
        (["a", "b"], ["m", "z"], ZERO),
        (["b", "c", "m"], ["y"], ONE),
        (["c", "d"], ["n"], ONE),
    ]
    assert joined(ends, parts) == Homes((ZERO, None, ONE, None), (ONE, ZERO, None))
    assert not Homes((None,), (None,)).has_some


def test_memory_is_told_by_a_placed_tensor() -> None:
    graph = small_graph("add")
    for fields, want in (
        ({"own_memory": ["npu:1"]}, ONE),
        ({}, None),
        ({"own_memory": ["npu:1"], "abilities": []}, None),
    ):
        fake = FakeBackend(devices=[{"id": "npu:0"}, {"id": "npu:1"}], **fields)  # type: ignore[arg-type]
        assert memory_of(fake.compile(fake.devices[1], graph, Configuration("fp32"))) == want
    made = FakeBackend(own_memory=["cpu:0"]).compile(FakeBackend().devices[0], graph, Configuration("fp32"))
    able = made.ability(DeviceTensors)
    assert able is not None
    assert home_of(able.place(np.ones(2, np.float32))) == ZERO
    assert home_of(np.ones(2)) is None
    assert home_of("text") is None
