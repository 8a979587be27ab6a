"""Checks of lifetimes, and of the optional abilities that a backend or an executable has."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, TypeVar
from unittest import SkipTest

import numpy as np
import psutil

from hal import stats
from hal.backend import (
    AsyncRun,
    BlobLoader,
    CompiledBlob,
    Configuration,
    DeviceTensors,
    DeviceTime,
    DynamicShapes,
    Executable,
    Fallback,
    KernelRuns,
    KernelTimes,
    MemoryUse,
    Placements,
)
from hal.errors import BackendError, InputError, UnsupportedGraph
from hal.graph.model import Graph
from hal.tensor import as_numpy
from hal.testing.graphs import GRAPHS, example_inputs, work
from hal.testing.suite import TOLERANCE, Problems, Suite, copies, inputs_of

A = TypeVar("A")

_N_RUNS = 5
#: One product of 8 x 8 against 48 of 64 x 64: 24576 times the arithmetic and 48 times the kernels, so that
#: twice the time is far from noise on any device whose clock is real.
_SMALL, _LARGE = (1, 8), (48, 64)
#: What runtimes fuse, fold and rewrite.
_ACCOUNTED = ("convolution", "residual", "attention", "quantized", "two_outputs", "integers")


class Lifetimes(Suite):
    """What outlives what."""

    def test_close_is_final(self) -> None:
        """A second close does nothing; a run after it raises BackendError."""
        problems = Problems()
        for device, precision, graph, where in self.usual():
            with problems.about(where):
                executable = self.opened().compile(device, graph, Configuration(precision))
                executable.run(inputs_of(graph))
                executable.close()
                with problems.expect_error(BackendError, "run after close"):
                    executable.run(inputs_of(graph))
                with problems.about(f"{where}, second close"):
                    executable.close()
        problems.finish()

    def test_executables_are_independent(self) -> None:
        """Two executables at once each give their own answers, also once one is closed."""
        problems = Problems()
        for device, precision, graph, where in self.usual():
            for _, _, other, _ in self.usual("dynamic_batch", "residual", "two_outputs", "add", "chain"):
                with problems.about(where), self.compiled(device, graph, precision) as first:
                    alone = copies(first.run(inputs_of(graph)))
                    with self.compiled(device, other, precision) as second:
                        second.run(inputs_of(other))
                        problems.compare(
                            alone, first.run(inputs_of(graph)), 1e-6, "beside another executable"
                        )
                    problems.compare(
                        alone, first.run(inputs_of(graph)), 1e-6, "after another executable's close"
                    )
                break
        problems.finish()

    def test_nothing_leaks(self) -> None:
        """Compiling, running and closing again and again keeps no threads and no open files."""
        problems, n_rounds = Problems(), 8
        for device, precision, graph, where in self.usual():
            with problems.about(where):
                for _ in range(3):  # pools that a runtime keeps for good are made here
                    self._round(device, graph, precision)
                before = _held()
                for _ in range(n_rounds):
                    self._round(device, graph, precision)
                for what, n_after in _held().items():
                    grown = n_after - before[what]
                    problems.expect(
                        grown < n_rounds, f"{n_rounds} rounds of compile, run and close left {grown} {what}"
                    )
        problems.finish()

    def _round(self, device: Any, graph: Graph, precision: str) -> None:
        with self.compiled(device, graph, precision) as executable:
            executable.run(inputs_of(graph))


class Abilities(Suite):
    """Optional protocols: those that are offered hold what they promise, the others are skipped."""

    def test_device_time_is_real(self) -> None:
        """Durations are positive, and far more work takes longer."""
        problems, n_run = Problems(), 0
        for device, precision, where in self._workers():
            with problems.about(where):
                medians = []
                for size in (_SMALL, _LARGE):
                    graph = work(*size)
                    with self.compiled(device, graph, precision) as executable:
                        timed = executable.ability(DeviceTime)
                        if timed is None:
                            break
                        n_run += 1
                        inputs = example_inputs(graph)
                        timed.timed_run(inputs)
                        durations_ns = [timed.timed_run(inputs) for _ in range(_N_RUNS)]
                    whole = all(isinstance(duration, int) and duration > 0 for duration in durations_ns)
                    problems.expect(whole, f"durations {durations_ns} ns; expected whole numbers above 0")
                    medians.append(stats.median(durations_ns))
                if len(medians) == 2:
                    _expect_longer(medians[0], medians[1], problems)
        self._finish(problems, n_run, "DeviceTime")

    def test_kernel_times_are_real(self) -> None:
        """Kernels name the graph's nodes, have a time per run, fit into the runs and grow with the work."""
        problems, n_run = Problems(), 0
        for device, precision, where in self._workers():
            with problems.about(where):
                medians = []
                for size in (_SMALL, _LARGE):
                    graph = work(*size)
                    with self.compiled(device, graph, precision) as executable:
                        kernels = executable.ability(KernelTimes)
                        if kernels is None:
                            break
                        n_run += 1
                        runs = kernels.kernel_runs(example_inputs(graph), _N_RUNS)
                    _check_kernels(runs, graph, size == _LARGE, problems)
                    medians.append(stats.median(runs.run_ns) if runs.run_ns else 0)
                if len(medians) == 2:
                    _expect_longer(medians[0], medians[1], problems)
        self._finish(problems, n_run, "KernelTimes")

    def test_kernels_account_for_nodes(self) -> None:
        """No node is both in a kernel and folded, and what is folded does not depend on the inputs."""
        problems, n_run = Problems(), 0
        for device, precision, graph, where in self.every(*_ACCOUNTED):
            # Support that is claimed and not there is what test_claimed_support_is_true finds.
            with (
                problems.about(where),
                contextlib.suppress(UnsupportedGraph),
                self.compiled(device, graph, precision) as executable,
            ):
                kernels = executable.ability(KernelTimes)
                if kernels is not None:
                    n_run += 1
                    _check_account(kernels.kernel_runs(inputs_of(graph), 1), graph, problems)
        self._finish(problems, n_run, "KernelTimes")

    def test_blobs_come_back(self) -> None:
        """A compiled blob loads and answers as before; a damaged one raises BackendError."""
        loader = self.opened().ability(BlobLoader)
        if loader is None:
            raise SkipTest("the backend loads no blobs")
        problems, n_run = Problems(), 0
        for device, precision, graph, where in self.usual():
            configuration = Configuration(precision)
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                compiled = executable.ability(CompiledBlob)
                if compiled is None:
                    continue
                n_run += 1
                blob, truth = compiled.blob(), copies(executable.run(inputs_of(graph)))
                loaded = loader.load_blob(device, blob, configuration)
                problems.compare(truth, loaded.run(inputs_of(graph)), 1e-6, "the loaded blob's answer")
                problems.expect(
                    loaded.signature == executable.signature, f"its signature is {loaded.signature}"
                )
                loaded.close()
                middle = len(blob) // 2
                flipped = blob[:middle] + bytes([blob[middle] ^ 0xFF]) + blob[middle + 1 :]
                damaged = {"an empty": b"", "half a": blob[:middle], "a foreign": b"not a blob" * 20}
                for what, bad in {**damaged, "a damaged": flipped}.items():
                    with problems.expect_error(BackendError, f"{what} blob"):
                        loader.load_blob(device, bad, configuration).close()
        self._finish(problems, n_run, "CompiledBlob")

    def test_ranges_of_sizes_are_kept(self) -> None:
        """A graph compiled for ranges answers at each size in them; a wrong fixed size is an InputError."""
        able = self.opened().ability(DynamicShapes)
        if able is None:
            raise SkipTest("the backend compiles for bound sizes only")
        model = Graph.load(GRAPHS["dynamic_batch"](), name="dynamic_batch")
        free, ranges = model.bind_ranges({"x": [(1, 5), 8]})
        problems, n_run = Problems(), 0
        for device, precision, _, where in self.every("dynamic_batch"):
            with problems.about(where):
                try:
                    executable = able.compile_ranges(device, free, Configuration(precision), ranges.limits)
                except UnsupportedGraph:  # this device needs bound sizes
                    continue
                n_run += 1
                given = executable.signature
                problems.expect(given == free.signature, f"the signature is {given}; expected the graph's")
                for n_rows in (5, 1, 3, 5, 2):
                    graph = model.bind({"x": (n_rows, 8)})
                    inputs = example_inputs(graph)
                    with self.compiled(device, graph, precision) as one:
                        wanted = copies(one.run(inputs))
                    what = f"the answer to {n_rows} rows"
                    problems.compare(wanted, executable.run(inputs), TOLERANCE[precision], what)
                bad = {
                    "a wrong fixed size": np.ones((2, 9), np.float32),
                    "a wrong rank": np.ones(8, np.float32),
                }
                for what, array in bad.items():
                    with problems.expect_error(InputError, what):
                        executable.run([array])
                executable.close()
        problems.finish()
        if not n_run:
            raise SkipTest("no device takes ranges of sizes")

    def test_pending_runs_answer(self) -> None:
        """Submitted runs give the answers of ``run``, several at once too, and waiting twice is harmless."""

        def check(executable: Executable, ability: AsyncRun, graph: Graph, problems: Problems) -> None:
            wanted = [copies(executable.run(inputs_of(graph, seed))) for seed in (0, 1, 0)]
            given = [inputs_of(graph, seed) for seed in (0, 1, 0)]
            pending = [ability.submit(inputs) for inputs in given]
            for index in (2, 0, 1):
                problems.compare(wanted[index], pending[index].wait(), 1e-6, f"submitted run {index}")

        self._check_ability(AsyncRun, check)

    def test_placed_tensors_work(self) -> None:
        """Placed inputs answer like plain ones, are copies, and can be outputs of a run."""

        def check(executable: Executable, ability: DeviceTensors, graph: Graph, problems: Problems) -> None:
            wanted = copies(executable.run(inputs_of(graph)))
            inputs = inputs_of(graph)
            placed = [ability.place(tensor) for tensor in inputs]
            for tensor in inputs:
                as_numpy(tensor).fill(7)
            problems.compare(wanted, executable.run(placed), 1e-6, "the answer to placed inputs")
            bound = [ability.place(array * 0) for array in wanted]
            back = executable.run(placed, outputs=bound)
            same = len(back) == len(bound) and all(a is b for a, b in zip(back, bound, strict=True))
            problems.expect(same, "run returned other tensors than the placed outputs it was given")

        self._check_ability(DeviceTensors, check)

    def test_memory_use_is_told(self) -> None:
        """Memory use is a whole number, 0 or more."""

        def check(executable: Executable, ability: MemoryUse, graph: Graph, problems: Problems) -> None:
            executable.run(inputs_of(graph))
            n_bytes = ability.memory_bytes()
            told = isinstance(n_bytes, int) and n_bytes >= 0
            problems.expect(told, f"memory_bytes is {n_bytes!r}; expected a whole number, 0 or more")

        self._check_ability(MemoryUse, check)

    def test_fallbacks_are_explained(self) -> None:
        """Every fallback names a node and two different places."""

        def check(executable: Executable, ability: Placements, graph: Graph, problems: Problems) -> None:
            for fallback in ability.fallbacks():
                if not isinstance(fallback, Fallback):
                    problems.add(
                        f"fallbacks returned {type(fallback).__name__}; expected hal.backend.Fallback"
                    )
                    continue
                problems.expect(bool(fallback.node), f"{fallback} names no node")
                moved = bool(fallback.asked and fallback.got) and fallback.asked != fallback.got
                problems.expect(moved, f"{fallback} does not say from where to where")

        self._check_ability(Placements, check)

    def _workers(self) -> list[tuple[Any, str, str]]:
        graph = work(*_LARGE)
        found = [
            (device, "fp32" if "fp32" in device.precisions else device.precisions[0])
            for device in self.devices()
        ]
        able = [(d, p, f"{self.written(d, p)} {graph.name}") for d, p in found if self.runs(d, graph, p)]
        if not able:
            raise SkipTest("no device runs a chain of MatMul and Relu, which is what is timed")
        return able

    def _check_ability(self, kind: type[A], check: Any) -> None:
        problems, n_run = Problems(), 0
        for device, precision, graph, where in self.usual():
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                ability = executable.ability(kind)
                if ability is not None:
                    n_run += 1
                    check(executable, ability, graph, problems)
        self._finish(problems, n_run, kind.__name__)

    def _finish(self, problems: Problems, n_run: int, ability: str) -> None:
        problems.finish()
        if not n_run:
            raise SkipTest(f"no executable has {ability}")


def _expect_longer(small_ns: float, large_ns: float, problems: Problems) -> None:
    problems.expect(
        large_ns > 2 * small_ns,
        f"{_LARGE[0]} products of {_LARGE[1]}x{_LARGE[1]} took {large_ns:.0f} ns and {_SMALL[0]} of "
        f"{_SMALL[1]}x{_SMALL[1]} took {small_ns:.0f} ns; far more work must take longer",
    )


def _check_kernels(runs: KernelRuns, graph: Graph, large: bool, problems: Problems) -> None:
    problems.expect(len(runs.run_ns) == _N_RUNS, f"{len(runs.run_ns)} run times for {_N_RUNS} runs")
    problems.expect(
        all(duration > 0 for duration in runs.run_ns), f"run times {runs.run_ns} ns; expected above 0"
    )
    problems.expect(bool(runs.kernels), "no kernel was reported")
    named: set[str] = set(runs.folded)
    for kernel in runs.kernels:
        named.update(kernel.nodes)
        n_durations = len(kernel.durations_ns)
        problems.expect(
            n_durations == _N_RUNS, f"kernel {kernel.name!r} has {n_durations} times for {_N_RUNS} runs"
        )
        # A single small kernel may be shorter than a tick of the clock: 0 is legal, less is not.
        negative = any(duration < 0 for duration in kernel.durations_ns)
        problems.expect(not negative, f"kernel {kernel.name!r} has negative times {kernel.durations_ns} ns")
        problems.expect(bool(kernel.name and kernel.type), f"{kernel} lacks a name or a type")
    strangers = named - set(graph.nodes)
    problems.expect(not strangers, f"kernels name nodes that are not in the graph: {sorted(strangers)[:5]}")
    if large and runs.run_ns and all(len(kernel.durations_ns) == _N_RUNS for kernel in runs.kernels):
        total_ns = [sum(kernel.durations_ns[i] for kernel in runs.kernels) for i in range(_N_RUNS)]
        ratio = stats.median([t / max(r, 1) for t, r in zip(total_ns, runs.run_ns, strict=False)])
        problems.expect(
            0 < ratio <= 1.5, f"the kernels' times add up to {ratio:.2f} of the runs'; expected 0 to 1.5"
        )


def _check_account(runs: KernelRuns, graph: Graph, problems: Problems) -> None:
    twice = [kernel.name for kernel in runs.kernels if len(set(kernel.nodes)) < len(kernel.nodes)]
    problems.expect(not twice, f"kernels {twice[:5]} name a node twice")
    both = set(runs.folded) & {node for kernel in runs.kernels for node in kernel.nodes}
    problems.expect(not both, f"nodes {sorted(both)[:5]} are in a kernel and folded; expected one of the two")
    known = {str(name) for name in graph.model.graph.initializers}
    varying: list[str] = []
    for name, node in graph.nodes.items():
        if all(value is None or value.name in known for value in node.inputs):
            known.update(str(value.name) for value in node.outputs)
        else:
            varying.append(name)
    wrong = [name for name in varying if name in runs.folded]
    problems.expect(
        not wrong,
        f"nodes {wrong[:5]} are folded although their results depend on the inputs; name them in the kernels "
        "that compute them, or nowhere where that is unknown",
    )


def _held() -> dict[str, int]:
    """Threads, and open files where the system can tell."""
    process = psutil.Process()
    held = {"threads": max(process.num_threads(), threading.active_count())}
    if os.path.isdir("/proc/self/fd"):
        held["open files"] = process.num_fds()
    return held
