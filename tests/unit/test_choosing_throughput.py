"""Plans for throughput over fake plugins on a virtual clock: how many at once, gathered or not, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

import hal
from hal.backend import Configuration, OptionSpec, Target
from hal.choosing.choose import choose
from hal.choosing.finalists import Candidate
from hal.choosing.throughput_load import LoadBackend, load_configuration
from hal.choosing.throughput_ways import ways_of
from hal.errors import InputError, TargetError
from hal.executor.backend import PLAN
from hal.executor.partitions import Piece
from hal.graph.model import Graph
from hal.planning.memory_under_load import excess, memory_at
from hal.profiling.discovery import Discovery, Found
from hal.profiling.store import Store
from hal.records.plan import Plan
from hal.records.targets import Device
from hal.sampling import Policy
from hal.testing import example_inputs, small_graph, true_outputs
from tests.throwaway import Plugins
from tests.unit import planned
from tests.unit.placed_backends import OneClock, places
from tests.unit.test_choosing import FP32, graph, one_plugin

#: Fake devices answer quickly; what is measured is virtual.
POLICY = Policy(warm_up_min_ns=0, min_time_ns=0, min_runs=3, min_bursts=3, burst_ns=0)
CPU0 = Device(id="cpu:0", name="a processor", kind="cpu", silicon="cpu:0", memory_pool="host")


def discovery(*options: OptionSpec, device: Device = CPU0) -> Discovery:
    return Discovery((Found("one", device, options),), (), ())


def base(target: str = FP32) -> Candidate:
    return Candidate(f"only {target}", planned.single(target, devices=(CPU0,)), 1000)


THREADS = OptionSpec(name="threads", kind="int", default=8)
STREAMS = OptionSpec(name="streams", kind="int", default=0)
HINT = OptionSpec(name="hint", kind="str", default="latency", choices=("latency", "throughput"))


# --- the ways ---------------------------------------------------------------------------------------


def test_threads_are_divided_among_runs_when_the_backend_has_threads() -> None:
    found = [(way.candidate.plan.targets[0], way.n_in_flight) for way in ways_of(base(), discovery(THREADS))]
    assert found == [
        (FP32, 1),
        (FP32, 2),
        (f"{FP32}+threads=1", 8),
        (f"{FP32}+threads=2", 4),
        (f"{FP32}+threads=4", 2),
    ]


def test_streams_are_asked_for_when_the_backend_divides_threads_itself() -> None:
    found = [
        (way.candidate.plan.targets[0], way.n_in_flight)
        for way in ways_of(base(), discovery(THREADS, STREAMS, HINT))
    ]
    assert found[2:] == [(f"{FP32}+hint=throughput+streams={n}", n) for n in (2, 4, 8)]


def test_what_a_target_says_stays_when_ways_are_made() -> None:
    target = f"{FP32}+threads=3"
    found = ways_of(base(target), discovery(THREADS))
    assert {way.candidate.plan.targets for way in found} == {(target,)}


def test_requests_for_each_silicon_and_one_more_are_tried_when_parts_are_on_several() -> None:
    pipeline = Candidate("list", planned.plan(), 1000)
    assert [way.n_in_flight for way in ways_of(pipeline, discovery())] == [3, 4]


def test_memory_grows_with_requests_and_not_their_weights_when_several_are_computed() -> None:
    made = sized(600, 1000)
    assert memory_at(made, 1, 1) == {"host": 1000}
    assert memory_at(made, 3, 1) == {"host": 600 + 3 * 400}
    assert memory_at(made, 3, 8) == {"host": 2 * 600 + 24 * 400}


def test_a_way_is_out_when_it_needs_more_memory_than_there_is() -> None:
    made = sized(600, 1000, memory_bytes=2000)
    assert excess(made, 3, 1) == ""
    assert excess(made, 4, 1) == "2200 bytes of host are needed, 2000 may be used"


def sized(weight_bytes: int, total: int, memory_bytes: int | None = None) -> Plan:
    device = msgspec.structs.replace(CPU0, memory_bytes=memory_bytes)
    plan = planned.single(FP32, devices=(device,))
    parts = tuple(msgspec.structs.replace(part, weight_bytes=weight_bytes) for part in plan.partitions)
    predicted = msgspec.structs.replace(plan.predicted, memory_bytes={"host": total})
    return msgspec.structs.replace(plan, partitions=parts, predicted=predicted)


# --- one way under load -------------------------------------------------------------------------------


def load_backend(graph: Graph, backend: OneClock) -> LoadBackend:
    target = f"cpu:0/{backend.name}/fp32"
    return LoadBackend(places(backend), [[Piece(target, tuple(graph.nodes))]])


def test_a_load_tells_the_time_between_answers_and_of_each_request() -> None:
    chain = small_graph("chain")
    backend = OneClock(name="one", devices=[{"id": "cpu:0"}], default_ns=1_000, overhead_ns=500)
    made = load_backend(chain, backend)
    pieces = [Piece("cpu:0/one/fp32", tuple(chain.nodes))]
    executable = made.compile(PLAN, chain, load_configuration(pieces, 0, 2, 4))
    inputs = [np.ones((4, 8), np.float32)]
    runs = executable.kernel_runs(inputs, 20)
    told = {kernel.name: kernel.durations_ns for kernel in runs.kernels}
    # Six nodes and the call, whether one request or four are computed.
    assert told["alone"] == told["together"] == (6_500,)
    assert len(told["request"]) == 20 * 2 * 4
    assert runs.run_ns[0] == pytest.approx(40 * 6_500, rel=0.1)
    executable.close()
    executable.close()


def test_gathering_is_refused_when_answers_differ_from_those_alone() -> None:
    # Each row is divided by the largest of all rows.
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], "m", keepdims=1),
        helper.make_node("Div", ["x", "m"], ["y"], "y"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy")
    proto = helper.make_graph(nodes, "mixing", [x], [y])
    mixing = Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    backend = OneClock(name="one", devices=[{"id": "cpu:0"}])
    pieces = [Piece("cpu:0/one/fp32", tuple(mixing.nodes))]
    made = load_backend(mixing, backend).compile(PLAN, mixing, load_configuration(pieces, 0, 1, 2))
    # The second request is the first one with its values in other places: as large a largest one.
    executable_inputs = [np.arange(8, dtype=np.float32)[None] - 3]
    made.kernel_runs(executable_inputs, 3)
    summing = summed(mixing)
    pieces = [Piece("cpu:0/one/fp32", tuple(summing.nodes))]
    made = load_backend(summing, backend).compile(PLAN, summing, load_configuration(pieces, 0, 1, 2))
    with pytest.raises(
        InputError, match=r"requests of 'summing' cannot be gathered: output 'y' differs by .*"
    ):
        made.kernel_runs(executable_inputs, 3)


def summed(_: Graph) -> Graph:
    """Adds up along the rows as well: every request has all others in it."""
    nodes = [helper.make_node("CumSum", ["x", "zero"], ["y"], "y")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy")
    zero = helper.make_tensor("zero", TensorProto.INT64, [], [0])
    proto = helper.make_graph(nodes, "summing", [x], [y], [zero])
    return Graph.load(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), name="summing"
    )


def test_a_placement_is_refused_when_there_is_no_such_number() -> None:
    chain = small_graph("chain")
    backend = load_backend(chain, OneClock(name="one", devices=[{"id": "cpu:0"}]))
    with pytest.raises(TargetError, match="there is no placement 3; there are 1"):
        backend.compile(PLAN, chain, Configuration.of("fp32", {"placement": 3}))


# --- the whole ----------------------------------------------------------------------------------------


def test_requests_are_gathered_when_a_run_of_many_takes_no_longer(plugins: Plugins) -> None:
    one_plugin(plugins, default_ns=10_000)
    plan = choose(small_graph("chain"), objective="throughput", policy=POLICY)
    load = plan.throughput
    assert load is not None
    assert (load.batch, load.n_in_flight, load.worth_from) == (32, 1, 2)
    # 32 requests take six nodes and a call.
    assert load.requests_per_s == pytest.approx(1e9 * 32 / 61_000, rel=0.05)
    assert 0 < load.p50_ns <= load.p95_ns <= load.p99_ns
    assert load.n_requests >= 300
    assert plan.targets == (FP32,)
    assert plan.measured is not None
    assert plan.measured.median_ns == pytest.approx(61_000 / 32, rel=0.05)
    assert plan.finalists[0].name == f"only {FP32}, 1 in flight, 32 requests a run"
    assert any(one.name.startswith(f"only {FP32}, ") and "a run" not in one.name for one in plan.finalists)


def test_each_request_has_its_own_run_and_a_note_says_why_when_rows_would_be_mixed(plugins: Plugins) -> None:
    one_plugin(plugins)
    plan = choose(graph(), objective="throughput", policy=POLICY)
    assert plan.throughput is not None
    assert (plan.throughput.batch, plan.throughput.worth_from) == (1, 1)
    assert any("cannot be gathered" in note for note in plan.notes)


def test_fewer_threads_a_run_are_chosen_when_they_bring_more(plugins: Plugins) -> None:
    one_plugin(plugins, kind="Threaded", one_thread=0.5, costs_ns={"cpu:0/fp32": 1_000_000})
    plan = choose(graph(), objective="throughput", policy=POLICY)
    assert plan.targets == (f"{FP32}+threads=1",)
    assert plan.throughput is not None
    assert plan.throughput.n_in_flight == 2
    assert Target.parse(plan.targets[0]).configuration.options == (("threads", 1),)


def test_a_session_does_what_was_measured_and_finds_its_plan_again(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "hal_one_module", raising=False)
    one_plugin(plugins, default_ns=10_000_000)
    chain = small_graph("chain")
    with hal.compile(chain, objective="throughput") as session:
        first = session.plan
        assert first.throughput is not None
        assert (first.throughput.batch, session.n_in_flight) == (32, 1)
        asked = [example_inputs(chain, seed) for seed in range(40)]
        for answer, inputs in zip(session.stream(asked), asked, strict=True):
            np.testing.assert_allclose(answer, true_outputs(chain, inputs)[0], rtol=1e-5)
        assert session.metrics.n_requests == 40
        session.save(tmp_path / "chain.hal")
    with hal.load(tmp_path / "chain.hal") as session:
        assert session.plan.throughput == first.throughput
        for answer, inputs in zip(session.stream(asked), asked, strict=True):
            np.testing.assert_allclose(answer, true_outputs(chain, inputs)[0], rtol=1e-5)
        assert session._gathering is not None
    with hal.compile(chain, objective="throughput") as session:
        assert session.plan == first
    # A plan of an earlier version, which was not measured under load, is made anew.
    with Store.open() as store:
        (row,) = store._connection.execute("SELECT count(*) FROM plans").fetchone()
        assert row == 1
    monkeypatch.setattr(Store, "plan", lambda self, asked: msgspec.structs.replace(first, throughput=None))
    with hal.compile(chain, objective="throughput") as session:
        assert session.plan.throughput is not None
