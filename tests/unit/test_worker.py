from __future__ import annotations

import errno
import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from hal.backend import (
    AsyncRun,
    BackendRef,
    CompiledBlob,
    Configuration,
    Device,
    Diagnosis,
    KernelTimes,
    MemoryUse,
    Placements,
    Telemetry,
)
from hal.errors import (
    BackendError,
    ContractViolation,
    InputError,
    StorageError,
    TargetError,
    WorkerCrashed,
    WorkerTimeout,
)
from hal.tensor import as_numpy
from hal.testing import example_inputs, small_graph, true_outputs
from hal.worker import Deadlines, WorkerBackend
from hal.worker.process import MOST_CHANNELS

S = 1_000_000_000
FAKE = "hal.testing.fake:FakeBackend"
FP32 = Configuration.of("fp32")


def fake(**configuration: object) -> BackendRef:
    return BackendRef(FAKE, dict(configuration))


def test_worker_answers_like_the_reference_when_graphs_of_all_types_run() -> None:
    with WorkerBackend(fake(devices=[{"id": "cpu:0", "precisions": ["fp32", "bf16"]}])) as backend:
        (device,) = backend.discover()
        for name in (
            "add",
            "two_outputs",
            "integers",
            "booleans",
            "scalar",
            "empty",
            "bfloat16",
            "passthrough",
        ):
            graph = small_graph(name)
            executable = backend.compile(device, graph, FP32)
            assert executable.signature == graph.signature
            inputs = example_inputs(graph)
            outputs = executable.run(inputs)
            for output, expected in zip(outputs, true_outputs(graph, inputs), strict=True):
                answer = as_numpy(output)
                assert answer.dtype == expected.dtype
                np.testing.assert_array_equal(answer, expected)


def test_worker_passes_the_error_on_when_the_backend_raises() -> None:
    with WorkerBackend(fake()) as backend:
        (device,) = backend.discover()
        graph = small_graph("add")
        with pytest.raises(TargetError):
            backend.compile(device, graph, Configuration.of("fp32", {"nonsense": 1}))
        executable = backend.compile(device, graph, FP32)
        with pytest.raises(InputError):
            executable.run([np.zeros((1, 1), np.float32)] * 2)
        # It still works after errors.
        assert len(executable.run(example_inputs(graph))) == 1


def test_worker_keeps_earlier_outputs_when_it_runs_again() -> None:
    with WorkerBackend(fake()) as backend:
        graph = small_graph("add")
        executable = backend.compile(backend.discover()[0], graph, FP32)
        inputs = example_inputs(graph)
        first = executable.run(inputs)[0]
        kept = first.copy()
        executable.run([array + 1 for array in inputs])
        np.testing.assert_array_equal(first, kept)
        target = np.empty_like(kept)
        assert executable.run(inputs, [target])[0] is target
        np.testing.assert_array_equal(target, kept)


def test_worker_carries_large_tensors_when_the_arena_must_grow() -> None:
    from hal.graph.model import Graph
    from tests.unit.test_graph import model

    graph = Graph.load(model(dims=(1 << 20, 4)))
    with WorkerBackend(fake()) as backend:
        executable = backend.compile(backend.discover()[0], graph, FP32)
        inputs = np.random.default_rng(0).standard_normal((1 << 20, 4), np.float32)
        np.testing.assert_array_equal(executable.run([inputs])[0], np.maximum(inputs, 0))
        # Whoever maps a file takes its name away.
        assert [os.listdir(folder) for folder in backend._process.folders] == [[], []]


def test_worker_offers_abilities_when_the_child_has_them() -> None:
    with WorkerBackend(fake(telemetry={"power_mw": 7})) as backend:
        (device,) = backend.discover()
        telemetry, diagnosis = backend.ability(Telemetry), backend.ability(Diagnosis)
        assert telemetry is not None
        assert telemetry.telemetry(device) == {"power_mw": 7}
        assert diagnosis is not None
        assert diagnosis.diagnose()[0].message == "works"
        graph = small_graph("chain")
        executable = backend.compile(device, graph, FP32)
        assert executable.ability(AsyncRun) is None  # does not cross the boundary
        memory, placements = executable.ability(MemoryUse), executable.ability(Placements)
        assert memory is not None
        assert memory.memory_bytes() >= 0
        assert placements is not None
        assert placements.fallbacks() == ()
        kernels = executable.ability(KernelTimes)
        assert kernels is not None
        assert len(kernels.kernel_runs(example_inputs(graph), 3).run_ns) == 3
        blob = executable.ability(CompiledBlob)
        assert blob is not None
        again = backend.load_blob(device, blob.blob(), FP32)
        np.testing.assert_array_equal(
            again.run(example_inputs(graph))[0], executable.run(example_inputs(graph))[0]
        )
    with WorkerBackend(fake(abilities=[])) as bare:
        assert bare.ability(Telemetry) is None
        executable = bare.compile(bare.discover()[0], graph, FP32)
        assert executable.ability(KernelTimes) is None


def test_worker_says_how_it_ended_when_it_is_killed_between_calls() -> None:
    with WorkerBackend(fake()) as backend:
        os.kill(backend.pid, signal.SIGKILL)
        with pytest.raises(
            WorkerCrashed, match=r"its process was ended by SIGKILL while asked to discover devices"
        ):
            backend.discover()
        with pytest.raises(
            WorkerCrashed, match="cannot discover devices: its process was ended by SIGKILL earlier"
        ):
            backend.discover()


def test_worker_is_stopped_when_it_passes_its_deadline() -> None:
    ref = fake(fail=[{"at": "discover", "how": "hang"}])
    with WorkerBackend(ref, deadlines=Deadlines(discover_ns=S)) as backend:
        pid = backend.pid
        with pytest.raises(WorkerTimeout, match=r"did not discover devices within 1.00 s and was stopped"):
            backend.discover()
        assert not psutil.pid_exists(pid)


def test_worker_names_the_violation_when_a_backend_answers_with_wrong_types() -> None:
    with WorkerBackend(BackendRef("tests.unit.broken_backends:Untyped")) as backend:
        with pytest.raises(
            ContractViolation, match="answered 'discover' with something that is not plain data"
        ):
            backend.discover()
        with pytest.raises(
            ContractViolation, match="answered with a wrong type: Expected `object`, got `str`"
        ):
            backend.options(Device(id="cpu:0", name="x", kind="cpu", silicon="x", memory_pool="x"))


def test_worker_refuses_outputs_when_there_are_too_many() -> None:
    graph = small_graph("add")
    with WorkerBackend(BackendRef("tests.unit.broken_backends:Generous")) as backend:
        executable = backend.compile(backend.discover()[0], graph, FP32)
        with pytest.raises(ContractViolation, match="returned 2 outputs; expected 1"):
            executable.run(example_inputs(graph))


def test_worker_refuses_an_executable_when_its_outputs_have_other_names() -> None:
    with (
        WorkerBackend(BackendRef("tests.unit.broken_backends:Renaming")) as backend,
        pytest.raises(ContractViolation, match=r"executable with outputs other: float32\[1\]; expected"),
    ):
        backend.compile(backend.discover()[0], small_graph("add"), FP32)


def test_worker_sees_the_end_at_once_when_a_forked_process_lives_on() -> None:
    with WorkerBackend(BackendRef("tests.unit.broken_backends:Forking")) as backend:
        group = backend.pid
        with pytest.raises(WorkerCrashed, match="exited with status 9"):
            backend.discover()
    # What it forked was in its session and went with it.
    left = [p for p in psutil.process_iter(["pid"]) if _group(p.pid) == group]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def test_worker_reports_a_full_memory_when_tensors_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graph("add")
    with WorkerBackend(fake()) as backend:
        executable = backend.compile(backend.discover()[0], graph, FP32)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            StorageError, match=r"do not fit into shared memory nor into the temp.*: No space"
        ):
            executable.run(example_inputs(graph))
        monkeypatch.undo()
        assert len(executable.run(example_inputs(graph))) == 1


def test_worker_says_so_when_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    n_open = psutil.Process().num_fds()
    monkeypatch.setattr(sys, "executable", "/nothing/here")
    with pytest.raises(BackendError, match="no process could be started for backend"):
        WorkerBackend(fake())
    assert psutil.Process().num_fds() == n_open


def test_executable_closes_without_a_word_when_its_worker_is_gone() -> None:
    backend = WorkerBackend(fake())
    executable = backend.compile(backend.discover()[0], small_graph("add"), FP32)
    backend.close()
    executable.close()


def test_worker_tells_last_words_when_the_child_wrote_any() -> None:
    with pytest.raises(
        WorkerCrashed, match=r"exited with status 3 while asked to open; its last words: goodbye"
    ):
        WorkerBackend(BackendRef("tests.unit.broken_backends:leave"))


def test_worker_refuses_when_it_is_used_after_close() -> None:
    backend = WorkerBackend(fake())
    executable = backend.compile(backend.discover()[0], small_graph("add"), FP32)
    executable.close()
    executable.close()
    with pytest.raises(BackendError, match="is closed; compile it again"):
        executable.run([])
    backend.close()
    backend.close()
    with pytest.raises(WorkerCrashed, match="it is closed"):
        backend.discover()


def test_worker_keeps_plugins_prints_away_from_stdout() -> None:
    script = (
        "from hal.worker import WorkerBackend\nfrom hal.backend import BackendRef\n"
        "b = WorkerBackend(BackendRef('tests.unit.broken_backends:chatty'))\n"
        "print(len(b.discover())); b.close()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


def test_worker_ends_when_its_parent_is_killed() -> None:
    script = (
        "from hal.worker import WorkerBackend\nfrom hal.backend import BackendRef\nimport os, signal\n"
        f"b = WorkerBackend(BackendRef({FAKE!r})); print(b.pid, *b._process.folders, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid, *folders = result.stdout.split()
    if psutil.pid_exists(int(pid)):
        psutil.wait_procs([psutil.Process(int(pid))], timeout=10)
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert not [folder for folder in folders if os.path.exists(folder)]


def test_worker_leaks_nothing_when_opened_many_times() -> None:
    process = psutil.Process()
    with WorkerBackend(fake()) as backend:
        backend.discover()
    before = process.num_fds()
    for _ in range(5):
        with WorkerBackend(fake()) as backend:
            backend.discover()
    assert process.num_fds() == before


# --- many threads -------------------------------------------------------------------------------------


def meeting(n_meeting: int) -> BackendRef:
    return BackendRef("tests.unit.isolated_backends:Meeting", {"n_meeting": n_meeting})


def test_runs_are_under_way_at_once_when_several_threads_call() -> None:
    with WorkerBackend(meeting(3)) as backend, ThreadPoolExecutor(3) as pool:
        graph = small_graph("add")
        executable = backend.compile(backend.discover()[0], graph, FP32)
        asked = [example_inputs(graph, seed) for seed in range(3)]
        # None of them ends before all are there.
        answers = list(pool.map(executable.run, asked))
        for inputs, (answer,) in zip(asked, answers, strict=True):
            np.testing.assert_array_equal(answer, true_outputs(graph, inputs)[0])


def test_all_runs_are_answered_when_more_threads_call_than_there_are_channels() -> None:
    n_threads = 2 * MOST_CHANNELS
    # So many at once as there are channels, then the other half.
    with WorkerBackend(meeting(MOST_CHANNELS)) as backend, ThreadPoolExecutor(n_threads) as pool:
        graph = small_graph("add")
        executable = backend.compile(backend.discover()[0], graph, FP32)
        asked = [example_inputs(graph, seed) for seed in range(n_threads)]
        answers = list(pool.map(executable.run, asked))
        for inputs, (answer,) in zip(asked, answers, strict=True):
            np.testing.assert_array_equal(answer, true_outputs(graph, inputs)[0])
        assert backend._process._n_channels == MOST_CHANNELS


def test_answers_are_right_when_executables_of_many_shapes_take_turns() -> None:
    from hal.graph.model import Graph
    from tests.unit.test_graph import model

    shapes = [(1 << number % 18, 4) for number in range(24)]  # the arena grows between small ones
    graphs = [Graph.load(model(dims=shape)) for shape in shapes]
    with WorkerBackend(fake()) as backend:
        device = backend.discover()[0]
        executables = [backend.compile(device, graph, FP32) for graph in graphs]
        for seed in range(2):
            for shape, executable in zip(shapes, executables, strict=True):
                inputs = np.random.default_rng(seed).standard_normal(shape, np.float32)
                np.testing.assert_array_equal(executable.run([inputs])[0], np.maximum(inputs, 0))


def test_calls_under_way_come_back_when_the_worker_is_closed() -> None:
    backend = WorkerBackend(meeting(2))
    graph = small_graph("add")
    executable = backend.compile(backend.discover()[0], graph, FP32)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(executable.run, example_inputs(graph))
        while backend._process._idle:
            os.sched_yield()
        backend.close()
        with pytest.raises(WorkerCrashed, match=r"was closed while asked to run|cannot run: it is closed"):
            under_way.result(timeout=60)


def test_a_call_is_told_that_the_worker_is_closed_when_its_folder_is_gone() -> None:
    backend = WorkerBackend(fake())
    channel = backend._process.take("run")
    backend.close()
    with pytest.raises(WorkerCrashed, match=r"cannot run: it is closed"):
        backend._laid(channel, [np.zeros(1_000_000, np.float32)], "run")


def test_fewer_channels_serve_when_the_system_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with WorkerBackend(fake()) as backend, ThreadPoolExecutor(4) as pool:
        graph = small_graph("add")
        executable = backend.compile(backend.discover()[0], graph, FP32)
        inputs = example_inputs(graph)
        monkeypatch.setattr(socket, "socketpair", none_left)
        assert len(list(pool.map(executable.run, [inputs] * 32))) == 32
        assert backend._process._n_channels == 1


def test_worker_leaves_nothing_when_it_is_forgotten() -> None:
    process = psutil.Process()
    before = process.num_fds()
    backend = WorkerBackend(fake())
    pid, folders = backend.pid, backend._process.folders
    del backend
    gc.collect()
    assert not psutil.pid_exists(pid)
    assert process.num_fds() == before
    assert not [folder for folder in folders if folder.exists()]


def test_worker_leaves_nothing_when_this_process_ends_and_nobody_closed_it() -> None:
    script = (
        "from hal.worker import WorkerBackend\nfrom hal.backend import BackendRef\n"
        f"b = WorkerBackend(BackendRef({FAKE!r})); print(b.pid, *b._process.folders)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    pid, *folders = result.stdout.split()
    assert result.stderr == ""
    assert not psutil.pid_exists(int(pid))
    assert not [folder for folder in folders if os.path.exists(folder)]


def test_no_file_is_left_when_the_child_dies_before_it_took_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graph("add")
    with WorkerBackend(fake()) as backend:
        executable = backend.compile(backend.discover()[0], graph, FP32)
        allocate, asked = os.posix_fallocate, itertools.count()

        def full(*given: int) -> None:
            if next(asked) == 0:  # in memory, where there is some
                raise OSError(errno.ENOSPC, "No space left on device")
            allocate(*given)

        monkeypatch.setattr(os, "posix_fallocate", full)
        os.kill(backend.pid, signal.SIGKILL)
        with pytest.raises(WorkerCrashed):
            executable.run(example_inputs(graph))
        assert [os.listdir(folder) for folder in backend._process.folders] == [[], []]
