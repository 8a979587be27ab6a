from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hal.backend import Configuration, DeviceTime, Executable, KernelTimes, MemoryUse, Placements
from hal.errors import BackendError, InputError, PlanError, UnsupportedGraph
from hal.executor.executor import Executor, compile_plan
from hal.executor.in_flight import InFlight
from hal.executor.partitions import Piece
from hal.graph.model import Graph
from hal.tensor import as_numpy
from hal.testing import FakeBackend, example_inputs, small_graph, true_outputs
from tests.unit.placed_backends import Noting, OnDevice, OneClock, on_one_chip, places

A, B = "cpu:0/a/fp32", "cpu:0/b/fp32"
CPU, GPU = "cpu:0/both/fp32", "cuda:0/both/fp32"


def node(op: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output)


def diamond() -> Graph:
    """x -> h -> (left, right) -> y."""
    nodes = [
        node("Relu", ["x"], "h"),
        node("Neg", ["h"], "left"),
        node("Abs", ["h"], "right"),
        node("Add", ["left", "right"], "y"),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3))] for name in "xy"]
    proto = helper.make_graph(nodes, "diamond", *ends)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def apart(meet: threading.Barrier | None = None) -> Noting:
    """One backend on two chips, the second with memory of its own."""
    devices = [{"id": "cpu:0", "memory_pool": "host"}, {"id": "cuda:0"}]
    return Noting(name="both", devices=devices, meet=meet)


def check(executable: Executable, graph: Graph) -> None:
    inputs = example_inputs(graph)
    for got, want in zip(executable.run(inputs), true_outputs(graph, inputs), strict=True):
        np.testing.assert_allclose(as_numpy(got), want, rtol=1e-6)


# --- on one silicon -----------------------------------------------------------------------------------


def test_partitions_run_in_the_callers_thread_in_order_when_they_share_silicon() -> None:
    a, b = on_one_chip()
    graph = diamond()
    pieces = [Piece(A, ("h",)), Piece(B, ("right",)), Piece(A, ("left",)), Piece(B, ("y",))]
    executor = compile_plan(graph, pieces, places(a, b))
    check(executor, graph)
    assert a.log == ["cpu:0:h", "cpu:0:right", "cpu:0:left", "cpu:0:y"]
    assert a.threads | b.threads == {threading.current_thread().name}


def test_tensors_are_passed_on_as_they_are() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(B, ("left", "right", "y"))], places(a, b))
    executor.run(example_inputs(graph))
    assert b.given[0][0] is a.made[0]


def test_tensors_are_released_after_their_last_use() -> None:
    a, b = on_one_chip()
    graph = diamond()
    pieces = [Piece(A, ("h",)), Piece(B, ("left", "right")), Piece(A, ("y",))]
    executor = compile_plan(graph, pieces, places(a, b))
    executor.run(example_inputs(graph))
    handed = weakref.ref(as_numpy(a.made[0]))
    for noted in (a.given, a.made, b.given, b.made):
        noted.clear()
    gc.collect()
    assert handed() is None


def test_answers_are_right_when_many_threads_run_at_once() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h", "left")), Piece(B, ("right", "y"))], places(a, b))
    run_from_many_threads(executor, graph)


def run_from_many_threads(executor: Executable, graph: Graph) -> None:
    def one(seed: int) -> None:
        inputs = example_inputs(graph, seed)
        (got,) = executor.run(inputs)
        np.testing.assert_allclose(as_numpy(got), true_outputs(graph, inputs)[0])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))


def test_outputs_are_written_where_the_caller_wants_them() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h", "left")), Piece(B, ("right", "y"))], places(a, b))
    inputs, room = example_inputs(graph), np.zeros((2, 3), np.float32)
    (got,) = executor.run(inputs, [room])
    assert got is room
    np.testing.assert_allclose(room, true_outputs(graph, inputs)[0])


def test_outputs_are_the_callers_own_when_they_are_inputs_or_given_twice() -> None:
    nodes = [node("Relu", ["x"], "h"), node("Neg", ["h"], "y")]
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in "xhy"}
    proto = helper.make_graph(nodes, "g", [value["x"]], [value["y"], value["x"], value["h"]])
    graph = Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    a, b = on_one_chip()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(B, ("y",))], places(a, b))
    inputs = example_inputs(graph)
    y, x, h = (as_numpy(tensor) for tensor in executor.run(inputs))
    np.testing.assert_array_equal(x, inputs[0])
    assert not np.shares_memory(x, inputs[0])
    np.testing.assert_array_equal(y, -h)


def test_idle_threads_do_not_spin_when_there_are_several_partitions() -> None:
    from hal.backend import OptionSpec

    class Spinning(Noting):
        def options(self, device: object) -> Sequence[OptionSpec]:
            return (OptionSpec(name="spinning", kind="bool", default=True),)

        def check_options(self, configuration: Configuration) -> None:
            assert all(name == "spinning" for name, _ in configuration.options)

    backend = Spinning(name="a")
    graph = diamond()
    two = [Piece(A, ("h",)), Piece(f"{A}+spinning=true", ("left", "right", "y"))]
    compile_plan(graph, two, places(backend))
    compile_plan(graph, [Piece(A, tuple(graph.nodes))], places(backend))
    told = [dict(configuration.options) for _, configuration in backend.compiled]
    assert told == [{"spinning": False}, {"spinning": True}, {}]


def test_one_partition_is_the_backends_own_executable() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executable = compile_plan(graph, [Piece(A, tuple(graph.nodes))], places(a, b))
    assert not isinstance(executable, Executor)
    assert a.compiled[0][0] is graph


def test_bfloat16_is_handed_over_as_it_is() -> None:
    a, b = on_one_chip()
    graph = small_graph("bfloat16")
    nodes = tuple(graph.nodes)
    executor = compile_plan(graph, [Piece(A, nodes[:1]), Piece(B, nodes[1:])], places(a, b))
    check(executor, graph)
    assert as_numpy(b.given[0][0]).dtype.name == "bfloat16"


# --- on several silicons ------------------------------------------------------------------------------


def branches(meet: threading.Barrier | None = None) -> tuple[Noting, Graph, Executable]:
    backend, graph = apart(meet), diamond()
    pieces = [Piece(CPU, ("h",)), Piece(GPU, ("right",)), Piece(CPU, ("left",)), Piece(CPU, ("y",))]
    return backend, graph, compile_plan(graph, pieces, places(backend))


def test_branches_run_at_once_when_they_are_on_different_silicon() -> None:
    # Each run waits until another is under way: one after the other would never end.
    backend, graph = apart(), diamond()
    pieces = [Piece(CPU, ("h",)), Piece(GPU, ("right",)), Piece(CPU, ("left",)), Piece(CPU, ("y",))]
    executor = compile_plan(graph, pieces, places(backend))
    meet = threading.Barrier(2)
    for step in executor._program.steps[1:3]:  # type: ignore[attr-defined]
        run = step.compiled.executable.run
        step.compiled.executable.run = lambda *given, run=run: (meet.wait(timeout=60), run(*given))[1]
    check(executor, graph)
    assert meet.broken is False
    executor.close()


def test_partitions_of_one_silicon_keep_the_order_of_the_plan() -> None:
    backend, graph, executor = branches()
    for _ in range(20):
        backend.log.clear()
        check(executor, graph)
        assert [word for word in backend.log if word.startswith("cpu:0")] == [
            "cpu:0:h",
            "cpu:0:left",
            "cpu:0:y",
        ]
    assert len(backend.threads) == 2
    assert threading.current_thread().name not in backend.threads
    executor.close()


def test_tensors_are_copied_beside_computing_when_the_device_has_memory_of_its_own() -> None:
    backend, graph, executor = branches()
    executor.run(example_inputs(graph))
    on_gpu = [inputs for name, inputs in zip(backend.log, backend.given, strict=True) if "cuda:0" in name]
    assert [type(tensor) for tensor in on_gpu[0]] == [OnDevice]
    executor.close()


def test_answers_are_right_when_many_requests_are_in_flight() -> None:
    _, graph, executor = branches()
    run_from_many_threads(executor, graph)
    executor.close()


def test_tensors_stay_on_the_device_when_all_readers_are_there() -> None:
    backend, graph = apart(), diamond()
    other = Noting(name="other", devices=[{"id": "cuda:0"}])
    there = "cuda:0/other/fp32"
    pieces = [Piece(GPU, ("h",)), Piece(GPU, ("left",)), Piece(there, ("right",)), Piece(GPU, ("y",))]
    executor = compile_plan(graph, pieces, places(backend, other))
    check(executor, graph)
    check(executor, graph)  # with the same room on the device
    where = dict(zip(backend.log, backend.given, strict=True))
    assert [type(tensor).__name__ for tensor in where["cuda:0:left"]] == ["ndarray"]
    assert [type(tensor).__name__ for tensor in where["cuda:0:y"]] == ["OnDevice", "ndarray"]


# --- what it tells ------------------------------------------------------------------------------------


def test_kernels_are_partitions() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(B, ("left", "right", "y"))], places(a, b))
    told = executor.ability(KernelTimes)
    assert told is not None
    runs = told.kernel_runs(example_inputs(graph), 3)
    assert [(kernel.name, kernel.type, kernel.nodes) for kernel in runs.kernels] == [
        ("0", A, ("h",)),
        ("1", B, ("left", "right", "y")),
    ]
    assert all(len(kernel.durations_ns) == 3 for kernel in runs.kernels)
    assert len(runs.run_ns) == 3
    assert not runs.defines_units


def test_kernels_name_handoffs_when_tensors_are_copied_beside_computing() -> None:
    _, graph, executor = branches()
    told = executor.ability(KernelTimes)
    assert told is not None
    kernels = told.kernel_runs(example_inputs(graph), 2).kernels
    assert [kernel.name for kernel in kernels] == ["0", "1", "2", "3", "h to cuda:0/both/fp32"]
    assert (kernels[-1].type, len(kernels[-1].durations_ns)) == ("handoff", 2)
    executor.close()


def test_memory_and_fallbacks_are_those_of_all_partitions() -> None:
    graph = small_graph("chain")
    nodes = tuple(graph.nodes)
    moved = ({"node": "n", "asked": "cpu:0", "got": "host"},)
    a, b = on_one_chip(fallbacks=moved)
    executor = compile_plan(graph, [Piece(A, nodes[:3]), Piece(B, nodes[3:])], places(a, b))
    told, moves = executor.ability(MemoryUse), executor.ability(Placements)
    assert told is not None
    assert told.memory_bytes() == graph.weight_bytes
    assert moves is not None
    assert [fallback.node for fallback in moves.fallbacks()] == ["n", "n"]
    b.abilities = frozenset()
    assert executor.ability(MemoryUse) is None


# --- errors -------------------------------------------------------------------------------------------


def test_errors_name_the_partition_when_it_fails() -> None:
    device = {"id": "cpu:0", "silicon": "chip", "memory_pool": "host"}
    good = FakeBackend(name="a", devices=[device])
    bad = FakeBackend(name="b", devices=[device], fail=[{"at": "run", "how": "bug"}])
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(B, ("left", "right", "y"))], places(good, bad))
    with pytest.raises(BackendError) as caught:
        executor.run(example_inputs(graph))
    assert caught.value.message == (
        "partition 1 on cpu:0/b/fp32 (3 nodes, 'left' to 'y'): ZeroDivisionError: the fake backend was told "
        "to have a bug at 'run'"
    )


def test_errors_of_one_request_leave_the_next_one_alone_when_silicons_run_at_once() -> None:
    devices = [{"id": "cpu:0", "memory_pool": "host"}, {"id": "cuda:0"}]
    backend = FakeBackend(name="both", devices=devices, fail=[{"at": "run:2", "how": "raise"}])
    graph = diamond()
    pieces = [Piece(CPU, ("h",)), Piece(GPU, ("right",)), Piece(CPU, ("left", "y"))]
    executor = compile_plan(graph, pieces, places(backend))
    check(executor, graph)
    with pytest.raises(
        BackendError, match=r"^partition 0 on cpu:0/both/fp32 \(1 nodes, 'h'\): the fake backend"
    ):
        executor.run(example_inputs(graph))
    for _ in range(2):  # the other parts' second runs
        with pytest.raises(BackendError):
            executor.run(example_inputs(graph))
    check(executor, graph)
    executor.close()


def test_errors_name_the_partition_when_it_cannot_be_compiled() -> None:
    device = {"id": "cpu:0", "silicon": "chip", "memory_pool": "host"}
    good = Noting(name="a", devices=[device])
    bad = Noting(name="b", devices=[device], refuse={"Abs": "no Abs today"})
    graph = diamond()
    with pytest.raises(UnsupportedGraph) as caught:
        compile_plan(graph, [Piece(A, ("h", "left")), Piece(B, ("right", "y"))], places(good, bad))
    assert caught.value.message == (
        "partition 1 on cpu:0/b/fp32 (2 nodes, 'right' to 'y'): b cannot run 'diamond_part' on cpu:0: "
        "node 'right': no Abs today"
    )
    assert good.alive == 0


def test_a_plan_is_refused_when_a_target_is_not_here() -> None:
    a, b = on_one_chip()
    graph = diamond()
    with pytest.raises(PlanError) as caught:
        compile_plan(graph, [Piece(A, ("h", "left")), Piece("npu:0/c/fp32", ("right", "y"))], places(a, b))
    assert caught.value.message == (
        "partition 1 on npu:0/c/fp32 (2 nodes, 'right' to 'y') cannot be placed: npu:0/c is not here; "
        "available are cpu:0/a, cpu:0/b; plan again for this machine"
    )


def test_inputs_are_refused_when_they_do_not_fit_the_model() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(B, ("left", "right", "y"))], places(a, b))
    with pytest.raises(InputError, match=r"input 'x' is float32\[3, 2\]; expected x: float32\[2, 3\]"):
        executor.run([np.zeros((3, 2), np.float32)])
    with pytest.raises(InputError, match="0 inputs were given, 'x' missing"):
        executor.run([])
    assert a.log == []


def test_times_are_the_devices_own_when_they_have_a_clock() -> None:
    backend = OneClock(name="a", default_ns=1_000, overhead_ns=100)
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(A, ("left", "right", "y"))], places(backend))
    timed = executor.ability(DeviceTime)
    assert timed is not None
    assert timed.timed_run(example_inputs(graph)) == 4 * 1_000 + 2 * 100
    # Partitions are timed by the host's clock, by which these devices do not live.
    assert executor.ability(KernelTimes) is None
    pipeline = InFlight(executor, 3, backend.clock)
    assert pipeline.timed_run(example_inputs(graph)) == 4 * 1_000 + 2 * 100
    check(pipeline, graph)
    pipeline.close()


def test_a_plan_is_refused_when_its_backends_live_by_different_clocks() -> None:
    real, emulated = Noting(name="a"), OneClock(name="b")
    with pytest.raises(PlanError) as caught:
        compile_plan(diamond(), [Piece(A, ("h",)), Piece(B, ("left", "right", "y"))], places(real, emulated))
    assert caught.value.message == (
        "the backends a, b live by different clocks, and a plan that mixes them has no duration; leave the "
        "emulated or the real ones out"
    )
    assert (real.alive, emulated.alive) == (0, 0)


def test_a_closed_executor_says_so() -> None:
    a, b = on_one_chip()
    graph = diamond()
    executor = compile_plan(graph, [Piece(A, ("h",)), Piece(B, ("left", "right", "y"))], places(a, b))
    assert (a.alive, b.alive) == (1, 1)
    executor.close()
    executor.close()
    assert (a.alive, b.alive) == (0, 0)
    with pytest.raises(BackendError, match="this executor is closed; compile the plan again"):
        executor.run(example_inputs(graph))


# --- the end of the process ---------------------------------------------------------------------------


HANGING = """
import threading
from hal.errors import HalError
from tests.unit.surviving import GRAPH, Rig
from hal.testing import example_inputs

rig = Rig()
begun = threading.Event()
rig.backends["cuda:1"].on_run = lambda number: (begun.set(), threading.Event().wait()) and None
runner = rig.runner("cuda:0", "cuda:1", "cuda:1")
threading.Thread(target=runner.run, args=(example_inputs(GRAPH),), daemon=True).start()
assert begun.wait(timeout=60)
print("over", flush=True)
"""


def test_the_process_ends_when_a_partition_hangs_on_a_silicon_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def test_threads_end_when_an_executor_is_forgotten() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("hal-silicon")}

    before = threads()
    backend, graph = apart(), diamond()
    executor = compile_plan(graph, [Piece(CPU, ("h",)), Piece(GPU, ("left", "right", "y"))], places(backend))
    check(executor, graph)
    mine = threads() - before
    assert len(mine) == 2
    del executor
    gc.collect()
    for thread in mine:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_what_would_end_a_thread_reaches_the_caller() -> None:
    backend, graph = apart(), diamond()
    executor = compile_plan(graph, [Piece(CPU, ("h",)), Piece(GPU, ("left", "right", "y"))], places(backend))
    assert isinstance(executor, Executor)
    inside = executor._compiled[1].executable
    inside.run = lambda *_: sys.exit("out")  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"partition 1 on .*SystemExit: out"):
        executor.run(example_inputs(graph))
    executor.close()
