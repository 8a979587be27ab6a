"""Plans on an emulated machine, through the real executor: answers, overlap, limits, predictions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from examples.decoder import TINY, decoder
from hal.backend import BackendRef, Executable
from hal.errors import BackendError
from hal.executor.executor import Place, compile_plan
from hal.executor.partitions import Piece
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.planning.costs import Modelled, model
from hal.planning.problem import Assignment
from hal.planning.simulate import simulate
from hal.profiling.imagined import estimated
from hal.records.files import to_json
from hal.records.machine import MachineProfile
from hal.records.machines import combine
from hal.tensor import as_numpy
from hal_emulator.backend import EmulatorBackend
from hal_emulator.timeline import Timeline
from tests.unit.imagined_machines import machine

WIDTH = 64


def branches() -> Graph:
    """Two equal branches of three products each, and their sum."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32), f"w{at}")
        for at in range(6)
    ]
    nodes = []
    for branch in range(2):
        value = "x"
        for step in range(3):
            made = f"b{branch}s{step}"
            nodes.append(helper.make_node("MatMul", [value, f"w{3 * branch + step}"], [made], made))
            value = made
    nodes.append(helper.make_node("Concat", ["b0s2", "b1s2"], ["y"], "y", axis=1))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "branches",
        [value("x", TensorProto.FLOAT, [WIDTH, WIDTH])],
        [value("y", TensorProto.FLOAT, [WIDTH, 2 * WIDTH])],
        weights,
    )
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def inputs_of(graph: Graph) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    found = []
    for spec in graph.signature.inputs:
        size = [int(size) for size in spec.shape]
        is_whole = spec.dtype == "int64"
        found.append(random.integers(0, 50, size) if is_whole else random.random(size).astype(spec.dtype))
    return found


def modelled_on(graph: Graph, profile: MachineProfile) -> tuple[Modelled, MachineProfile]:
    found = combine([("a", profile)])
    return model(estimated(graph, found), machine=found), found


def emulated(profile: MachineProfile, **options: object) -> tuple[EmulatorBackend, dict[str, Place]]:
    backend = EmulatorBackend(machine=json.loads(to_json(profile)), **options)  # type: ignore[arg-type]
    ref = BackendRef("hal_emulator.backend:EmulatorBackend")
    return backend, {f"{d.id}/emulator": Place(ref, backend, d) for d in backend.discover()}


def assigned(modelled: Modelled, devices: Sequence[str]) -> Assignment:
    """Units by device in turn; units of one device that follow each other run in one partition."""
    problem = modelled.problem
    names = [name.partition("/")[0] for name in problem.target_names]
    target = np.array([names.index(device) for device in devices], np.int32)
    partition = np.zeros(problem.n_units, np.int32)
    number = -1
    before = None
    for unit in problem.order:
        if target[unit] != before:
            number, before = number + 1, target[unit]
        partition[unit] = number
    return Assignment(target, partition)


def pieces_of(modelled: Modelled, plan: Assignment) -> list[Piece]:
    placed = modelled.placed
    found = []
    for number in range(plan.n_partitions):
        units = np.flatnonzero(plan.partition == number)
        nodes = tuple(node for unit in units for node in placed.units[unit].nodes)
        found.append(Piece(modelled.problem.target_names[plan.target[units[0]]], nodes))
    return found


def virtual_ns(backend: EmulatorBackend, executable: Executable, inputs: Sequence[np.ndarray]) -> int:
    """Of the second request, in which nothing is made for the first time."""
    executable.run(inputs)
    began_ns = backend.clock.now_ns()
    executable.run(inputs)
    return backend.clock.now_ns() - began_ns


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_takes_what_was_predicted_and_answers_rightly_when_it_is_carried_out(seed: int) -> None:
    graph = branches()
    modelled, profile = modelled_on(graph, machine(2, cpu_speed=0.5))
    random = np.random.default_rng(seed)
    devices = random.choice(["cuda:0", "cuda:1", "cpu:0"], modelled.problem.n_units)
    plan = assigned(modelled, list(devices))
    backend, places = emulated(profile)
    executable = compile_plan(graph, pieces_of(modelled, plan), places)
    inputs = inputs_of(graph)
    answer = as_numpy(executable.run(inputs)[0])
    expected = reference_outputs(graph.to_proto(), {"x": inputs[0]})["y"]
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)
    predicted = simulate(modelled.problem, plan).latency
    assert virtual_ns(backend, executable, inputs) == pytest.approx(predicted, rel=0.01)
    executable.close()


def test_only_what_others_read_goes_to_the_host_when_a_partition_makes_more() -> None:
    graph = branches()
    modelled, profile = modelled_on(graph, machine(2))
    home = {"b0s0": 0, "b1s0": 0, "b0s1": 1, "b0s2": 1, "b1s1": 2, "b1s2": 2, "y": 3}
    partition = np.array([home[unit.name] for unit in modelled.placed.units], np.int32)
    devices = [modelled.problem.target_names.index(f"cuda:{number}/emulator/fp32") for number in (0, 1)]
    plan = Assignment(np.array([devices[int(number == 1)] for number in partition], np.int32), partition)
    backend, places = emulated(profile)
    executable = compile_plan(graph, pieces_of(modelled, plan), places)
    predicted = simulate(modelled.problem, plan).latency
    assert virtual_ns(backend, executable, inputs_of(graph)) == pytest.approx(predicted, abs=10)
    executable.close()


def test_branches_overlap_when_they_are_on_two_devices() -> None:
    graph = branches()
    # On processors alone nothing is sent anywhere, so that only computing counts.
    found = combine([("a", machine(0)), ("b", machine(0))])
    modelled = model(estimated(graph, found), machine=found)
    names = [unit.name for unit in modelled.placed.units]
    two = assigned(modelled, ["cpu:1" if name.startswith("b1") else "cpu:0" for name in names])
    one = assigned(modelled, ["cpu:0"] * len(names))
    taken = []
    for plan in (one, two):
        backend, places = emulated(found)
        executable = compile_plan(graph, pieces_of(modelled, plan), places)
        taken.append(virtual_ns(backend, executable, inputs_of(graph)))
        executable.close()
    assert taken[1] < 0.65 * taken[0]


def test_requests_in_flight_share_the_devices_when_a_pipeline_runs() -> None:
    graph = Graph.load(decoder(TINY, dtype=onnx.TensorProto.FLOAT, seed=0))
    found = combine([("a", machine(0)), ("b", machine(0))])
    modelled = model(estimated(graph, found), machine=found)
    n = modelled.problem.n_units
    plan = assigned(modelled, ["cpu:0"] * (n // 2) + ["cpu:1"] * (n - n // 2))
    backend, places = emulated(found)
    executable = compile_plan(graph, pieces_of(modelled, plan), places)
    inputs = inputs_of(graph)
    alone = virtual_ns(backend, executable, inputs)
    began_ns = backend.clock.now_ns()
    held = [executable.run(inputs) for _ in range(8)]
    together = backend.clock.now_ns() - began_ns
    busiest = simulate(modelled.problem, plan).throughput
    # The first request fills the pipeline, each of the others takes what the busier device does.
    assert together == pytest.approx(alone + 7 * busiest, rel=0.01)
    assert together < 0.75 * 8 * alone
    del held
    executable.close()


def test_a_model_is_split_when_no_gpu_can_hold_it() -> None:
    graph = branches()
    # Half of the weights and four tensors: what each branch needs.
    tensor = WIDTH * WIDTH * 4
    modelled, profile = modelled_on(graph, machine(2, gpu_bytes=graph.weight_bytes // 2 + 4 * tensor))
    names = [unit.name for unit in modelled.placed.units]
    inputs = inputs_of(graph)
    _, places = emulated(profile)
    whole = assigned(modelled, ["cuda:0"] * len(names))
    with pytest.raises(BackendError, match=r"cuda:0 is out of memory: .* are missing; place less"):
        compile_plan(graph, pieces_of(modelled, whole), places).run(inputs)
    _, places = emulated(profile)
    number = {"b0": 0, "b1": 1, "y": 2}
    partition = np.array([number[name[:2]] for name in names], np.int32)
    targets = [
        modelled.problem.target_names.index(f"{d}/emulator/fp32") for d in ("cuda:0", "cuda:1", "cpu:0")
    ]
    split = Assignment(np.array(targets, np.int32)[partition], partition)
    executable = compile_plan(graph, pieces_of(modelled, split), places)
    answer = as_numpy(executable.run(inputs)[0])
    np.testing.assert_allclose(
        answer, reference_outputs(graph.to_proto(), {"x": inputs[0]})["y"], rtol=1e-3, atol=1e-4
    )
    executable.close()


def test_the_partition_is_named_when_its_device_is_lost() -> None:
    graph = branches()
    modelled, profile = modelled_on(graph, machine(2))
    names = [unit.name for unit in modelled.placed.units]
    plan = assigned(modelled, ["cuda:1" if name.startswith("b1") else "cuda:0" for name in names])
    _, places = emulated(profile, fail=[{"device": "cuda:1", "at": "run:2", "how": "lost"}])
    executable = compile_plan(graph, pieces_of(modelled, plan), places)
    inputs = inputs_of(graph)
    executable.run(inputs)
    with pytest.raises(BackendError, match=r"partition \d on cuda:1/emulator/fp32 .*: cuda:1 is gone"):
        executable.run(inputs)
    executable.close()


def test_a_tiny_decoder_runs_over_devices_when_its_plan_was_made_from_shapes_alone() -> None:
    whole = Graph.load(decoder(TINY, dtype=onnx.TensorProto.FLOAT, seed=0))
    bare = Graph.load(decoder(TINY, dtype=onnx.TensorProto.FLOAT), has_weights=False)
    modelled, profile = modelled_on(bare, machine(2))
    n = modelled.problem.n_units
    plan = assigned(modelled, ["cuda:0"] * (n // 2) + ["cuda:1"] * (n - n // 2))
    backend, places = emulated(profile)
    executable = compile_plan(whole, pieces_of(modelled, plan), places)
    inputs = inputs_of(whole)
    answer = as_numpy(executable.run(inputs)[0])
    expected = next(iter(reference_outputs(whole.to_proto(), {"tokens": inputs[0]}).values()))
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)
    predicted = simulate(modelled.problem, plan).latency
    assert virtual_ns(backend, executable, inputs) == pytest.approx(predicted, rel=0.02)
    executable.close()


# --- the timeline --------------------------------------------------------------------------------


def test_a_later_call_fills_a_gap_when_it_is_ready_earlier() -> None:
    line = Timeline()
    assert line.book(100, 50) == 150
    assert line.book(0, 100) == 100
    assert line.book(0, 10) == 160
    assert line.end_ns == 160


def test_busy_times_never_overlap_when_calls_come_in_any_order() -> None:
    random = np.random.default_rng(0)
    line = Timeline()
    booked = []
    for _ in range(300):
        ready, duration = int(random.integers(0, 5000)), int(random.integers(1, 40))
        end = line.book(ready, duration)
        assert end - duration >= ready
        booked.append((end - duration, end))
    booked.sort()
    assert all(before[1] <= behind[0] for before, behind in itertools.pairwise(booked))
    assert line.end_ns == booked[-1][1]


def test_old_gaps_are_forgotten_when_there_are_many() -> None:
    line = Timeline()
    for at in range(3000):
        line.book(10 * at, 1)
    assert line.book(0, 1) > 10_000
    assert line.end_ns == 29_991


def test_estimates_and_devices_agree_when_the_profile_tells_no_overheads() -> None:
    graph = branches()
    plain = machine(1)
    bare = msgspec.structs.replace(
        plain, devices=tuple(msgspec.structs.replace(device, properties={}) for device in plain.devices)
    )
    found = combine([("a", bare)])
    profile = estimated(graph, found)
    backend, places = emulated(found)
    for target in profile.targets:
        place = places[target.target.rpartition("/")[0]]
        executable = backend.compile(
            place.device, graph, modelled_on(graph, bare)[0].places[0].target.configuration
        )
        told = executable.kernel_runs(inputs_of(graph), 1)
        assert target.timing is not None
        assert told.run_ns[0] == pytest.approx(target.timing.median_ns, rel=1e-3)
