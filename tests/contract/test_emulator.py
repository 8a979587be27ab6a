"""The emulator charges time, memory and ways as its profile says, and fails on demand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hal.backend import Configuration, Device, Executable
from hal.errors import BackendError, TargetError, UnsupportedGraph
from hal.graph.facts import facts
from hal.graph.fusion import kernels
from hal.graph.model import Graph
from hal.records.files import to_json
from hal.records.machine import MachineProfile
from hal.tensor import as_numpy
from hal.testing import example_inputs, small_graph
from hal_emulator import answers as answering
from hal_emulator.backend import EmulatorBackend
from hal_emulator.tensor import EmulatedTensor
from tests.unit.imagined_machines import CALL_NS, LATENCY_NS, LAUNCH_NS, ceiling, link, machine

FP32 = Configuration("fp32")
#: MatMul and Relu, three times.
CHAIN = small_graph("chain")


def content(profile: MachineProfile) -> dict[str, object]:
    """As a configuration holds it."""
    found: dict[str, object] = json.loads(to_json(profile))
    return found


def emulated(
    profile: MachineProfile | None = None, **options: object
) -> tuple[EmulatorBackend, list[Device]]:
    backend = EmulatorBackend(machine=content(profile or machine(2)), **options)  # type: ignore[arg-type]
    return backend, list(backend.discover())


def kernels_ns(graph: Graph) -> int:
    """What the kernels of a graph take on a device of 1 operation and 1 byte a ns."""
    known = facts(graph)
    found = 0
    for group in kernels(known)[0]:
        work = known.work([node.name for node in group])
        found += LAUNCH_NS + max(work.flops or 0, work.moved_bytes or 0)
    return found


def moved_ns(arrays: Sequence[object]) -> int:
    return sum(LATENCY_NS + as_numpy(array).nbytes for array in arrays)


def taken(backend: EmulatorBackend, executable: Executable, inputs: Sequence[object]) -> int:
    began_ns = backend.clock.now_ns()
    executable.run(inputs)  # type: ignore[arg-type]
    return backend.clock.now_ns() - began_ns


# --- time ----------------------------------------------------------------------------------------


def test_a_run_takes_call_kernels_and_ways_when_it_is_on_a_gpu() -> None:
    backend, (gpu, _, _) = emulated()
    inputs = example_inputs(CHAIN)
    executable = backend.compile(gpu, CHAIN, FP32)
    outputs = executable.run(inputs)
    expected = CALL_NS + kernels_ns(CHAIN) + moved_ns(inputs) + moved_ns(outputs)
    assert backend.clock.now_ns() == expected
    assert executable.timed_run(inputs) == expected
    assert backend.clock.now_ns() == 2 * expected


def test_a_run_takes_call_and_kernels_when_it_is_on_the_processor() -> None:
    backend, (_, _, cpu) = emulated()
    executable = backend.compile(cpu, CHAIN, FP32)
    assert taken(backend, executable, example_inputs(CHAIN)) == CALL_NS + kernels_ns(CHAIN)


def test_kernels_are_told_when_they_are_asked_for() -> None:
    backend, (gpu, _, _) = emulated()
    told = backend.compile(gpu, CHAIN, FP32).kernel_runs(example_inputs(CHAIN), 2)
    assert sum(kernel.durations_ns[0] for kernel in told.kernels) == kernels_ns(CHAIN)
    assert told.run_ns == (CALL_NS + kernels_ns(CHAIN),) * 2
    assert [kernel.type for kernel in told.kernels] == ["MatMul"] * 3


def test_costs_hold_in_place_of_the_roofline_when_they_are_given() -> None:
    backend, (gpu, other, _) = emulated(costs_ns={"MatMul": 5_000, "cuda:1/MatMul": 7_000})
    for device, cost in ((gpu, 5_000), (other, 7_000)):
        told = backend.compile(device, CHAIN, FP32).kernel_runs(example_inputs(CHAIN), 1)
        assert [kernel.durations_ns[0] for kernel in told.kernels] == [cost] * 3


def test_a_faster_ceiling_is_taken_when_a_precision_has_one() -> None:
    one = machine(1)
    one = msgspec.structs.replace(one, ceilings=(*one.ceilings, ceiling("cuda:0", 4.0, "fp16")))
    backend, (gpu, _) = emulated(one)
    assert gpu.precisions == ("fp32", "fp16")
    slow = backend.compile(gpu, CHAIN, FP32).kernel_runs(example_inputs(CHAIN), 1)
    fast = backend.compile(gpu, CHAIN, Configuration("fp16")).kernel_runs(example_inputs(CHAIN), 1)
    assert fast.run_ns[0] < slow.run_ns[0]


def test_devices_overlap_when_they_do_not_wait_for_each_other() -> None:
    backend, devices = emulated()
    inputs = example_inputs(CHAIN)
    each = [backend.compile(device, CHAIN, FP32) for device in devices[:2]]
    alone = each[0].timed_run(inputs)
    began_ns = backend.clock.now_ns()
    held = [executable.run(inputs) for executable in each]
    assert backend.clock.now_ns() - began_ns == alone
    del held


def test_runs_of_one_device_follow_each_other_when_they_come_at_once() -> None:
    backend, (gpu, _, _) = emulated()
    inputs = example_inputs(CHAIN)
    first, second = backend.compile(gpu, CHAIN, FP32), backend.compile(gpu, CHAIN, FP32)
    alone = first.timed_run(inputs)
    began_ns = backend.clock.now_ns()
    first.run(inputs)
    second.run(inputs)
    assert backend.clock.now_ns() - began_ns == 2 * alone


def two_in_a_row(profile: MachineProfile) -> tuple[int, int, int]:
    """Virtual time of ``add`` on one GPU and then another; of each alone on the processor; bytes between."""
    backend, (first, second, cpu) = emulated(profile)
    graph = small_graph("add")
    inputs = example_inputs(graph)
    one, two = backend.compile(first, graph, FP32), backend.compile(second, graph, FP32)
    plain = backend.compile(cpu, graph, FP32).timed_run(inputs)
    began_ns = backend.clock.now_ns()
    made = one.run(inputs)[0]
    passed = [two.place(made), *[two.place(tensor) for tensor in inputs[1:]]]  # type: ignore[attr-defined]
    two.run(passed)
    return backend.clock.now_ns() - began_ns, plain, as_numpy(made).nbytes


def test_a_tensor_takes_the_way_over_the_host_when_gpus_have_no_link() -> None:
    total, plain, n_bytes = two_in_a_row(machine(2))
    way = LATENCY_NS + n_bytes
    n_given = len(example_inputs(small_graph("add")))
    # Model inputs to the first, its output to the host and on, the second's output to the host.
    assert total == 2 * plain + (n_given + 3) * way


def test_a_tensor_takes_the_direct_way_when_gpus_have_a_link() -> None:
    linked = machine(2)
    direct = link("cuda:0/emulator", "cuda:1/emulator", latency_ns=LATENCY_NS + 500)
    total, plain, n_bytes = two_in_a_row(msgspec.structs.replace(linked, links=(*linked.links, direct)))
    n_given = len(example_inputs(small_graph("add")))
    assert total == 2 * plain + (n_given + 2) * (LATENCY_NS + n_bytes) + 500


def test_copies_take_turns_when_they_go_the_same_way() -> None:
    backend, (gpu, other, _) = emulated()
    executable = backend.compile(gpu, CHAIN, FP32)
    array = np.zeros(1000, np.float32)
    held = [executable.place(array), executable.place(array)]  # type: ignore[attr-defined]
    assert [tensor.ready_ns for tensor in held] == [14_000, 28_000]
    elsewhere = backend.compile(other, CHAIN, FP32).place(array)  # type: ignore[attr-defined]
    assert elsewhere.ready_ns == 14_000


def test_nothing_is_fetched_when_a_tensor_stays_on_the_device() -> None:
    backend, (gpu, _, _) = emulated()
    executable = backend.compile(gpu, CHAIN, FP32)
    inputs = example_inputs(CHAIN)
    there = [executable.place(tensor) for tensor in inputs]  # type: ignore[attr-defined]
    rooms = [executable.place(as_numpy(tensor)) for tensor in executable.run(inputs)]  # type: ignore[attr-defined]
    began_ns = backend.clock.now_ns()
    outputs = executable.run(there, rooms)
    assert outputs[0] is rooms[0]
    assert backend.clock.now_ns() - began_ns == CALL_NS + kernels_ns(CHAIN)


def test_the_host_has_waited_when_it_reads_a_tensor() -> None:
    backend, (gpu, _, cpu) = emulated()
    inputs = example_inputs(CHAIN)
    made = backend.compile(gpu, CHAIN, FP32).run(inputs)[0]
    assert isinstance(made, EmulatedTensor)
    other = backend.compile(cpu, CHAIN, FP32)
    before = other.run(inputs)[0]
    assert isinstance(before, EmulatedTensor)
    assert before.ready_ns < made.ready_ns
    as_numpy(made)
    after = other.run(inputs)[0]
    assert isinstance(after, EmulatedTensor)
    assert after.ready_ns == made.ready_ns + CALL_NS + kernels_ns(CHAIN)


# --- memory --------------------------------------------------------------------------------------


def test_weights_are_refused_with_figures_when_they_do_not_fit() -> None:
    backend, (gpu, _, _) = emulated(machine(2, gpu_bytes=CHAIN.weight_bytes - 1))
    with pytest.raises(BackendError) as caught:
        backend.compile(gpu, CHAIN, FP32)
    assert f"{CHAIN.weight_bytes} bytes are needed for the weights of 'chain'" in caught.value.message
    assert "so that 1 are missing" in caught.value.message
    assert backend.telemetry(gpu) == {"memory_used_bytes": 0}


def test_memory_is_given_back_when_executables_close_and_tensors_are_forgotten() -> None:
    backend, (gpu, _, _) = emulated(machine(2, gpu_bytes=1 << 20))
    executable = backend.compile(gpu, CHAIN, FP32)
    assert executable.memory_bytes() == CHAIN.weight_bytes  # type: ignore[attr-defined]
    outputs = executable.run(example_inputs(CHAIN))
    n_bytes = as_numpy(outputs[0]).nbytes
    assert backend.telemetry(gpu) == {"memory_used_bytes": CHAIN.weight_bytes + n_bytes}
    del outputs
    executable.close()
    executable.close()
    assert backend.telemetry(gpu) == {"memory_used_bytes": 0}


def test_a_run_is_refused_when_its_tensors_do_not_fit() -> None:
    backend, (gpu, _, _) = emulated(machine(2, gpu_bytes=CHAIN.weight_bytes + 8))
    executable = backend.compile(gpu, CHAIN, FP32)
    with pytest.raises(
        BackendError, match=r"cuda:0 is out of memory: \d+ bytes are needed for a run of 'chain'"
    ):
        executable.run(example_inputs(CHAIN))
    assert backend.telemetry(gpu) == {"memory_used_bytes": CHAIN.weight_bytes}


# --- faults --------------------------------------------------------------------------------------


def test_a_device_stays_lost_when_it_is_lost_in_a_run() -> None:
    backend, (gpu, other, _) = emulated(fail=[{"device": "cuda:0", "at": "run:2", "how": "lost"}])
    inputs = example_inputs(CHAIN)
    executable, beside = backend.compile(gpu, CHAIN, FP32), backend.compile(other, CHAIN, FP32)
    executable.run(inputs)
    for _ in range(2):
        with pytest.raises(BackendError, match="cuda:0 is gone: it was lost at run:2"):
            executable.run(inputs)
    with pytest.raises(BackendError, match="plan without it"):
        backend.compile(gpu, CHAIN, FP32)
    beside.run(inputs)
    found = backend.discover()
    assert "lost at run:2" in found[0].unavailable
    assert not found[1].unavailable


def test_memory_runs_out_once_when_that_is_asked_for() -> None:
    backend, (gpu, _, _) = emulated(fail=[{"device": "cuda:0", "at": "run:1", "how": "out_of_memory"}])
    executable = backend.compile(gpu, CHAIN, FP32)
    with pytest.raises(BackendError, match="cuda:0 is out of memory at run:1, as the emulator was told"):
        executable.run(example_inputs(CHAIN))
    executable.run(example_inputs(CHAIN))


def test_compiling_fails_when_that_is_asked_for() -> None:
    backend, (gpu, _, _) = emulated(fail=[{"device": "cuda:0", "at": "compile", "how": "out_of_memory"}])
    with pytest.raises(BackendError, match="out of memory at compile"):
        backend.compile(gpu, CHAIN, FP32)


@pytest.mark.parametrize(
    "fault",
    [{"device": "cuda:0", "at": "run:0", "how": "lost"}, {"device": "a", "at": "run", "how": "dies"}, {}],
)
def test_a_fault_is_refused_when_it_is_not_known(fault: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected the keys device, at"):
        emulated(fail=[fault])


# --- what it is made from ------------------------------------------------------------------------


def test_there_are_no_devices_when_no_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAL_EMULATE", raising=False)
    assert EmulatorBackend().discover() == ()


def test_the_variable_names_the_machine_when_the_configuration_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "machine.json"
    path.write_bytes(to_json(machine(1)))
    monkeypatch.setenv("HAL_EMULATE", str(path))
    assert [device.id for device in EmulatorBackend().discover()] == ["cuda:0", "cpu:0"]


def test_a_file_is_refused_when_it_is_absent_or_no_profile(tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match="cannot be read: No such file or directory; name a machine profile"
    ):
        EmulatorBackend(machine=str(tmp_path / "absent.json"))
    (tmp_path / "other.json").write_text('{"devices": 3}')
    with pytest.raises(BackendError, match="is no machine profile"):
        EmulatorBackend(machine=str(tmp_path / "other.json"))


def test_graphs_and_options_are_refused_when_they_are_not_known() -> None:
    backend, (gpu, _, _) = emulated()
    with pytest.raises(UnsupportedGraph, match="bf16: cuda:0 has ceilings in fp32 only"):
        backend.compile(gpu, CHAIN, Configuration("bf16"))
    with pytest.raises(TargetError, match="the emulator has no options; it was given threads"):
        backend.compile(gpu, CHAIN, Configuration.of("fp32", {"threads": 2}))


@pytest.mark.parametrize("name", ["attention", "convolution", "residual", "conditional"])
def test_answers_agree_when_the_reference_computes_in_place_of_onnx_runtime(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = small_graph(name)
    inputs = [as_numpy(tensor) for tensor in example_inputs(graph)]
    quick = answering.answers(graph, "fp32")(inputs)
    monkeypatch.setattr(answering, "_session", lambda graph: None)
    for mine, reference in zip(quick, answering.answers(graph, "fp32")(inputs), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-5)
