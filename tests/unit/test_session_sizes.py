"""Sessions for ranges of sizes, on fake devices: what is compiled for which request, and what fails."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import hal
from hal.backend import Configuration, DynamicShapes
from hal.errors import BackendError, InputError
from hal.graph.model import Graph
from hal.profiling.imagined import estimated
from hal.records.machines import combine
from hal.records.plan import Constraints
from hal.session.events import Events
from hal.session.runner import runner_of
from hal.session.session import Session
from hal.session.sizes import AnySize, Model
from hal.tensor import Array
from hal.testing import FakeBackend, small_graph, true_outputs
from hal.testing.graphs import GRAPHS
from tests.throwaway import Plugins
from tests.unit.imagined_machines import machine
from tests.unit.surviving import Rig
from tests.unit.test_choosing import one_plugin

RANGE = {"x": [(1, 8), 8]}


def free_chain() -> Graph:
    """Three products in a row, of any number of rows."""
    proto = GRAPHS["chain"]()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    return Graph.load(proto, name="chain")


def rows(n: int) -> Array:
    return np.random.default_rng(n).normal(size=(n, 8)).astype(np.float32)


class Sized(Rig):
    """A rig whose model takes from one to eight rows.

    Args:
        source: The model.
        without: Devices whose backends compile for bound sizes only.
        options: As for Rig.
    """

    def __init__(self, source: Graph | None = None, without: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.source = source or free_chain()
        self.graph = self.source.bind({"x": (8, 8)})
        self.profile = estimated(self.graph, combine([("m", machine(2))]))
        for device in without:
            self.backends[device].abilities = frozenset({"DeviceTime"})

    def session(self, *devices: str, **options: Any) -> Session:
        strict = options.get("strict", False)
        runner = self.runner(*devices, **options)
        carry = functools.partial(_carried, self.constraints, options.get("deadline_s"), self.events.append)
        model = Model(self.source, *self.source.bind_ranges(RANGE), self.profile, self.spots, carry)
        sizes = AnySize(model, self.graph, runner, strict=strict, events=Events(self.events.append))
        return Session(runner, self.graph, self.profile, sizes=sizes)

    def n_compiled(self) -> int:
        return sum(len(backend.made) for backend in self.backends.values())

    def close(self, session: Session) -> None:
        session.close()
        for backend in self.backends.values():
            for one in backend.made:
                assert one.is_closed.wait(60)
        assert self.all_closed()


def _carried(
    constraints: Constraints, deadline_s: float | None, on_event: Any, *given: Any, strict: bool
) -> Any:
    return runner_of(*given, constraints=constraints, strict=strict, deadline_s=deadline_s, on_event=on_event)


def check(session: Session, n: int) -> None:
    (want,) = true_outputs(free_chain(), [rows(n)])
    np.testing.assert_allclose(session(rows(n)), want, rtol=1e-5, atol=1e-6)


# --- compiled once for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cpu:0", "cuda:1")])
def test_new_sizes_compile_nothing_when_all_targets_take_ranges(devices: tuple[str, ...]) -> None:
    rig = Sized()
    session = rig.session(*devices)
    n_compiled = rig.n_compiled()
    assert n_compiled == 2 * len(session.plan.partitions)
    for n in (1, 8, 3, 7, 1, 2, 8, 5, 4, 6):
        check(session, n)
    (want,) = true_outputs(rig.source, [rows(3)])
    np.testing.assert_allclose(session.run(None, {"x": rows(3)})[0], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session(np.asfortranarray(rows(3))), want, rtol=1e-5, atol=1e-6)
    assert rig.n_compiled() == n_compiled
    assert list(session.events) == []
    rig.close(session)
    with pytest.raises(BackendError, match="this session is closed"):
        session(rows(3))


def test_the_largest_size_runs_on_what_was_measured() -> None:
    rig = Sized()
    session = rig.session("cuda:0")
    exact, ranged = rig.backends["cuda:0"].made
    assert [one.signature.inputs[0].shape for one in (exact, ranged)] == [(8, 8), ("rows", 8)]
    for n in (8, 8, 5):
        check(session, n)
    assert [exact._n_runs, ranged._n_runs] == [2, 1]
    rig.close(session)


# --- compiled size by size ---------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cpu:0", "cuda:1")])
def test_each_size_is_compiled_once_when_a_target_takes_no_ranges(devices: tuple[str, ...]) -> None:
    rig = Sized(without=["cuda:0"])
    session = rig.session(*devices)
    (event,) = session.events
    assert event.kind == "sizes"
    assert "each size is compiled when it first comes" in event.text
    assert "emulator compiles for bound sizes only" in event.text
    for n in (3, 8, 5, 3, 5, 3, 8):
        check(session, n)
    made = rig.backends["cuda:0"].made
    shapes = [one.signature.inputs[0].shape for one in made]
    assert shapes == [(8, 8), (3, 8), (5, 8)]
    assert [one.kind for one in session.events] == ["sizes"]
    rig.close(session)


def test_the_least_recently_used_size_is_closed_when_there_are_more_than_eight() -> None:
    source = free_chain()
    rig = Sized(source, without=["cuda:0"])
    rig.graph = source.bind({"x": (12, 8)})
    rig.profile = estimated(rig.graph, combine([("m", machine(2))]))
    runner = rig.runner("cuda:0")
    carry = functools.partial(_carried, rig.constraints, None, None)
    model = Model(source, *source.bind_ranges({"x": [(1, 12), 8]}), rig.profile, rig.spots, carry)
    sizes = AnySize(model, rig.graph, runner, strict=False, events=Events())
    session = Session(runner, rig.graph, rig.profile, sizes=sizes)
    for n in range(1, 10):
        check(session, n)
    made = rig.backends["cuda:0"].made
    assert made[1].is_closed.wait(60)
    assert [one.is_closed.is_set() for one in made] == [False, True] + 8 * [False]
    rig.close(session)


def test_sizes_are_compiled_one_by_one_when_other_tensors_would_pass_between_partitions() -> None:
    # What is added is a weight of both partitions where sizes are bound; else one computes it for the other.
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="s"),
        helper.make_node("Expand", ["c", "s"], ["e"], name="e"),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("Add", ["a", "e"], ["b"], name="b"),
        helper.make_node("MatMul", ["b", "w"], ["d"], name="d"),
        helper.make_node("Add", ["d", "e"], ["y"], name="y"),
    ]
    weights = [
        numpy_helper.from_array(np.eye(8, dtype=np.float32) * 2, "w"),
        numpy_helper.from_array(np.ones(1, np.float32), "c"),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ("rows", 8))] for name in "xy"]
    proto = helper.make_graph(nodes, "shaped", *ends, weights)
    onnx_model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    source = Graph.load(onnx_model)
    rig = Sized(source)
    session = rig.session("cuda:0", "cpu:0")
    assert len(session.plan.partitions) > 1
    (event,) = session.events
    assert "other tensors pass between the partitions than were measured" in event.text
    for n in (2, 8, 5):
        (want,) = true_outputs(source.bind({"x": (n, 8)}), [rows(n)])
        np.testing.assert_allclose(session(rows(n)), want, rtol=1e-5)
    rig.close(session)


def test_answers_are_right_when_sixteen_threads_bring_sizes_of_every_kind() -> None:
    for without in ([], ["cuda:0"]):
        rig = Sized(without=without)
        session = rig.session("cuda:0", "cpu:0", "cuda:1")
        start = threading.Barrier(16)

        def work(thread: int, session: Session = session, start: threading.Barrier = start) -> None:
            start.wait(60)
            for n in range(1, 9):
                check(session, 1 + (n + thread) % 8)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        rig.close(session)


# --- what fails --------------------------------------------------------------------------------------


def test_requests_outside_are_refused_with_the_ranges() -> None:
    rig = Sized()
    session = rig.session("cuda:0")
    for bad in (rows(9), np.ones((0, 8), np.float32), np.ones((3, 9), np.float32), np.ones(8, np.float32)):
        with pytest.raises(InputError, match=r"expected float32\[rows=1\.\.8, 8\]; the session was compiled"):
            session(bad)
    with pytest.raises(InputError, match=r"input 'x' is float64\[3, 8\]; expected float32\[rows=1\.\.8, 8\]"):
        session(rows(3).astype(np.float64))
    rig.close(session)


def test_a_request_is_answered_for_its_own_size_when_what_is_compiled_for_all_fails() -> None:
    rig = Sized()
    session = rig.session("cuda:0")
    ranged = rig.backends["cuda:0"].made[1]
    rig.backends["cuda:0"].on_run = lambda number: _fail_when(number == 2)
    for n in (3, 4, 4, 5, 8):
        check(session, n)
    assert [event.kind for event in session.events] == ["retried", "sizes"]
    assert "no luck" in session.events[0].text
    assert ranged.is_closed.wait(60)
    assert [one.signature.inputs[0].shape for one in rig.backends["cuda:0"].made[2:]] == [(4, 8), (5, 8)]
    rig.close(session)


def test_requests_go_on_elsewhere_when_a_device_is_lost() -> None:
    rig = Sized()
    session = rig.session("cuda:0")
    rig.backends["cuda:0"].on_run = lambda number: _fail_when(True)
    for n in (3, 8, 4):
        check(session, n)
    kinds = {event.kind for event in session.events}
    assert {"retried", "replanned", "failed", "sizes"} <= kinds
    assert {target.partition("/")[0] for target in session.plan.targets} <= {"cuda:1", "cpu:0"}
    rig.close(session)


def test_what_a_backend_raises_is_raised_when_strict() -> None:
    rig = Sized()
    session = rig.session("cuda:0", strict=True)
    rig.backends["cuda:0"].on_run = lambda number: _fail_when(number == 1)
    with pytest.raises(RuntimeError, match="no luck"):
        session(rows(3))
    check(session, 3)
    rig.close(session)


def test_a_request_is_answered_when_what_is_compiled_for_all_hangs() -> None:
    rig = Sized()
    session = rig.session("cuda:0", deadline_s=0.5)
    let_go = threading.Event()
    rig.backends["cuda:0"].on_run = lambda number: _wait_when(number == 1, let_go)
    check(session, 3)
    assert "sizes" in [event.kind for event in session.events]
    let_go.set()
    session.close()


def _fail_when(yes: bool) -> None:
    if yes:
        raise RuntimeError("no luck")


def _wait_when(yes: bool, event: threading.Event) -> None:
    if yes:
        event.wait(60)


# --- the fake has the ability ------------------------------------------------------------------------


def test_the_fake_backend_takes_ranges_and_refuses_free_dimensions_else() -> None:
    fake = FakeBackend()
    free, ranges = free_chain().bind_ranges(RANGE)
    able = fake.ability(DynamicShapes)
    assert able is not None
    made = able.compile_ranges(fake.devices[0], free, Configuration("fp32"), ranges.limits)
    for n in (2, 5):
        np.testing.assert_allclose(made.run([rows(n)])[0], true_outputs(free, [rows(n)])[0], rtol=1e-5)
    with pytest.raises(Exception, match=r"'chain' has free dimensions: x\[rows, 8\]; bind them"):
        fake.compile(fake.devices[0], free, Configuration("fp32"))


# --- hal.compile -------------------------------------------------------------------------------------


@pytest.fixture
def one(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hal_one_module", raising=False)
    one_plugin(plugins, default_ns=1_000_000)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("isolate", [False, True])
def test_a_model_is_measured_once_for_all_sizes_within_the_ranges(isolate: bool) -> None:
    with hal.compile(free_chain(), shapes=RANGE, isolate=isolate) as session:
        assert session.signature.inputs[0].shape == (8, 8)
        for n in (8, 1, 5):
            check(session, n)
        with pytest.raises(InputError, match=r"is float32\[9, 8\]; expected float32\[rows=1\.\.8, 8\]"):
            session(rows(9))
        assert list(session.events) == []
    profile = hal.profile(free_chain(), shapes=RANGE)
    assert profile.model.inputs[0].shape == (8, 8)
    # A plan made for the largest sizes, by hand or by hal plan, serves them too.
    with hal.compile(free_chain(), shapes=RANGE, plan=hal.choose(free_chain(), shapes=RANGE)) as session:
        check(session, 3)


@pytest.mark.usefixtures("one")
def test_sizes_outside_are_planned_for_when_that_was_asked_for() -> None:
    with hal.compile(free_chain(), shapes=RANGE, new_shapes="replan") as session:
        for n in (3, 11, 8, 11):
            check(session, n)


def test_ranges_are_refused_with_the_reason_when_the_model_has_fixed_sizes() -> None:
    with pytest.raises(InputError, match=r"x: float32\[4, 8\] is fixed to 4 where \[8, 8\] has 8"):
        hal.compile(small_graph("chain"), shapes=RANGE)
    with pytest.raises(
        InputError, match=r"x: float32\[4, 8\] is fixed to 4 where 1\.\.4 is given; expected 4"
    ):
        hal.compile(small_graph("chain"), shapes={"x": [(1, 4), 8]})


@pytest.mark.parametrize("size", [(8, 1), (1, 2, 3), "8", (0.5, 2), True])
def test_what_is_no_range_is_refused(size: Any) -> None:
    with pytest.raises(
        InputError, match=r"'x' has .* at position 0; expected a size, or a pair of the lowest"
    ):
        hal.compile(free_chain(), shapes={"x": [size, 8]})
