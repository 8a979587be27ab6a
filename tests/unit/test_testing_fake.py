import json
import re
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

from hal.backend import AsyncRun, BackendRef, Configuration, DeviceTime, Fallback, KernelTimes
from hal.errors import BackendError, TargetError, UnsupportedGraph
from hal.tensor import as_numpy
from hal.testing import GRAPHS, FakeBackend, example_inputs, small_graph, true_outputs


def compiled(backend, name="chain", precision="fp32", index=0):
    return backend.compile(backend.discover()[index], small_graph(name), Configuration(precision))


def test_fake_time_is_exact_when_costs_are_given():
    # three MatMul and three Relu, and the overhead of the run
    executable = compiled(FakeBackend(costs_ns={"MatMul": 5_000}, default_ns=200, overhead_ns=7))
    inputs = example_inputs(small_graph("chain"))
    assert executable.timed_run(inputs) == 15_607
    runs = executable.kernel_runs(inputs, 2)
    assert runs.run_ns == (15_607, 15_607)
    assert [kernel.durations_ns for kernel in runs.kernels] == [(5_000, 5_000), (200, 200)] * 3
    assert [kernel.nodes for kernel in runs.kernels] == [(name,) for name in small_graph("chain").nodes]


def test_fake_cost_is_the_most_specific_when_several_fit():
    costs = {"gpu:0/bf16/MatMul": 1, "gpu:0/MatMul": 2, "MatMul": 3, "gpu:0/fp32": 4, "gpu:0": 5}
    devices = [{"id": "cpu:0"}, {"id": "gpu:0", "precisions": ["fp32", "bf16"]}]
    backend = FakeBackend(devices=devices, costs_ns=costs, default_ns=6)
    cpu, gpu = backend.discover()
    found = [
        backend.cost_ns(device, precision, op)
        for device, precision, op in [
            (gpu, "bf16", "MatMul"),
            (gpu, "fp32", "MatMul"),
            (cpu, "fp32", "MatMul"),
            (gpu, "fp32", "Relu"),
            (gpu, "bf16", "Relu"),
            (cpu, "fp32", "Relu"),
        ]
    ]
    assert found == [1, 2, 3, 4, 5, 6]


def test_fake_devices_have_clocks_of_their_own_when_they_run():
    backend = FakeBackend(devices=[{"id": "cpu:0"}, {"id": "gpu:0"}])
    compiled(backend, index=1).run(example_inputs(small_graph("chain")))
    assert backend.clocks["cpu:0"].now_ns() == 0
    assert backend.clocks["gpu:0"].now_ns() == 6_100


def test_fake_jitter_is_the_same_when_the_seed_is():
    def times(seed):
        executable = compiled(FakeBackend(jitter=0.5, seed=seed))
        return [executable.timed_run(example_inputs(small_graph("chain"))) for _ in range(5)]

    assert times(1) == times(1) != times(2)
    assert len(set(times(1))) == 5
    assert all(3_000 <= time <= 9_100 for time in times(1))


@pytest.mark.parametrize("name", GRAPHS)
def test_fake_answers_are_the_references_when_precision_is_fp32(name):
    graph = small_graph(name)
    inputs = example_inputs(graph)
    for answer, truth in zip(
        compiled(FakeBackend(), name).run(inputs), true_outputs(graph, inputs), strict=True
    ):
        assert as_numpy(answer).dtype == truth.dtype
        assert as_numpy(answer).tobytes() == truth.tobytes()


def test_fake_answers_are_rounded_when_precision_is_bf16():
    inputs = example_inputs(small_graph("chain"))
    (answer,) = compiled(FakeBackend(), precision="bf16").run(inputs)
    assert np.array_equal(answer, as_numpy(answer).astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("at", "step"),
    [
        ("import", 0),
        ("discover", 1),
        ("capability", 2),
        ("compile", 3),
        ("first_run", 4),
        ("run", 4),
        ("run:2", 5),
        ("kernels", 6),
        ("close", 7),
    ],
)
@pytest.mark.parametrize(("how", "error"), [("raise", BackendError), ("bug", ZeroDivisionError)])
def test_fake_fails_at_the_step_when_told_to(at, step, how, error):
    done = []

    def steps():
        backend = FakeBackend(fail=[{"at": at, "how": how}])
        yield
        (device,) = backend.discover()
        yield
        graph = small_graph("chain")
        backend.capability(device, graph, "fp32")
        yield
        executable = backend.compile(device, graph, Configuration())
        yield
        executable.run(example_inputs(graph))
        yield
        executable.timed_run(example_inputs(graph))
        yield
        executable.kernel_runs(example_inputs(graph), 1)
        yield
        executable.close()
        yield

    with pytest.raises(error, match="the fake backend was told to"):
        done.extend(steps())
    # extend keeps what came before the failure
    assert len(done) == step


@pytest.mark.parametrize(("how", "status"), [("exit", 7), ("abort", -6), ("segfault", -11)])
def test_fake_ends_the_process_when_told_to(how, status):
    configuration = json.dumps({"fail": [{"at": "discover", "how": how}]})
    code = f"import json, hal.testing as t; t.FakeBackend(**json.loads('{configuration}')).discover()"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == status


def test_fake_hangs_when_told_to():
    backend = FakeBackend(fail=[{"at": "discover", "how": "hang"}])
    thread = threading.Thread(target=backend.discover, daemon=True)
    thread.start()
    thread.join(timeout=0.05)
    assert thread.is_alive()


def test_fake_answers_wrongly_only_then_when_told_to():
    executable = compiled(FakeBackend(fail=[{"at": "run:2", "how": "wrong"}]))
    inputs = example_inputs(small_graph("chain"))
    first, second, third = (as_numpy(executable.run(inputs)[0]) for _ in range(3))
    assert np.array_equal(first, third)
    assert np.allclose(second, first + 1)


def test_fake_takes_ten_times_as_long_when_told_to_be_slow():
    executable = compiled(FakeBackend(overhead_ns=0, fail=[{"at": "run:2", "how": "slow"}]))
    inputs = example_inputs(small_graph("chain"))
    assert [executable.timed_run(inputs) for _ in range(3)] == [6_000, 60_000, 6_000]


def test_fake_refuses_an_operator_when_told_to():
    backend = FakeBackend(
        fail=[{"at": "capability", "how": "refuse:MatMul"}], refuse={"Relu": "no relu today"}
    )
    (device,) = backend.discover()
    graph = small_graph("chain")
    answers = backend.capability(device, graph, "fp32")
    assert {answer.reason for answer in answers.values()} == {
        "operator MatMul was refused on demand",
        "no relu today",
    }
    with pytest.raises(
        UnsupportedGraph, match=r"fake cannot run 'chain' on cpu:0:\n  - node '.*': operator MatMul was"
    ):
        backend.compile(device, graph, Configuration())


@pytest.mark.parametrize(
    ("at", "how"),
    [
        ("lunch", "raise"),
        ("run:0", "raise"),
        ("compile", "wrong"),
        ("compile", "explode"),
        ("run", "refuse:Relu"),
    ],
)
def test_failures_say_what_there_is_when_one_is_unknown(at, how):
    expected = (
        f"cannot fail {how!r} at {at!r}; expected one of raise, bug, hang, exit, abort, segfault at one of"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        FakeBackend(fail=[{"at": at, "how": how}])


def test_fake_has_only_the_abilities_when_they_are_listed():
    executable = compiled(FakeBackend(abilities=["DeviceTime"]))
    assert executable.ability(DeviceTime) is executable
    assert executable.ability(KernelTimes) is None
    assert executable.ability(AsyncRun) is None


def test_fake_reports_fallbacks_when_configured():
    fallback = {"node": "relu_1", "asked": "gpu:0", "got": "cpu:0", "reason": "no kernel"}
    assert compiled(FakeBackend(fallbacks=[fallback])).fallbacks() == (Fallback(**fallback),)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"speed": 1}, "option 'speed' is unknown; expected one of mode, n_threads"),
        ({"mode": "turbo"}, "option 'mode' cannot be 'turbo'; expected plain, fast"),
        ({"n_threads": "two"}, "option 'n_threads' cannot be 'two'; expected any int"),
    ],
)
def test_fake_names_the_option_when_it_is_not_legal(options, text):
    backend = FakeBackend()
    with pytest.raises(TargetError, match=text):
        backend.compile(backend.discover()[0], small_graph("add"), Configuration.of("fp32", options))


def test_fake_says_compile_again_when_a_blob_is_of_another_precision():
    backend = FakeBackend()
    blob = compiled(backend).blob()
    with pytest.raises(
        BackendError, match=r"a blob of \d+ bytes is damaged or was not made for cpu:0 .*compile the model"
    ):
        backend.load_blob(backend.discover()[0], blob, Configuration("bf16"))


@pytest.mark.parametrize("what", ["run", "blob"])
def test_fake_says_compile_again_when_used_after_close(what):
    executable = compiled(FakeBackend())
    executable.close()
    with pytest.raises(BackendError, match=f"{what} after close; compile the graph again"):
        executable.run(example_inputs(small_graph("chain"))) if what == "run" else executable.blob()


def test_fake_reference_is_json_when_sent_to_another_process():
    ref = BackendRef("hal.testing.fake:FakeBackend", {"devices": [{"id": "npu:0"}], "fail": []})
    again = json.loads(json.dumps(ref.configuration))
    assert [device.id for device in FakeBackend(**again).discover()] == ["npu:0"]


def test_example_inputs_are_the_same_when_the_seed_is():
    graph = small_graph("booleans")
    one, same, other = (example_inputs(graph, seed) for seed in (1, 1, 2))
    assert [array.tobytes() for array in one] == [array.tobytes() for array in same]
    assert [array.tobytes() for array in one] != [array.tobytes() for array in other]


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graph_is_bound_when_loaded(name):
    graph = small_graph(name)
    assert graph.unbound == ()
    assert [(spec.dtype, spec.shape) for spec in graph.signature.outputs] == [
        (array.dtype.name, array.shape) for array in true_outputs(graph, example_inputs(graph))
    ]
