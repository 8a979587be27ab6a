"""The most that a device was seen to do: the two lines of its roofline, measured on every target.

The highest FLOP/s is that of a large matrix product, the highest bytes/s that of an operator with almost
nothing to compute on a tensor that no cache holds. Both are what was reached, not what a data sheet
promises. The best of many runs counts (their 10th percentile), for a ceiling is what nothing passes; every
other figure of hal is a median.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hal import host, stats
from hal.errors import BackendError, HalError
from hal.graph.model import Graph
from hal.profiling.chain import CHAIN, Stage, along, chain_ref
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress, Silent
from hal.records.machine import Ceiling
from hal.records.targets import Target
from hal.sampling import Policy
from hal.tensor import Array
from hal.worker import Deadlines, WorkerBackend

_log = logging.getLogger("hal.profiling")
K = TypeVar("K", bound=Hashable)

#: Time for the products, and for both kinds of copy together. A run under way when it is over is waited for.
_BUDGET_NS = 500_000_000
_POLICY = Policy(
    warm_up_min_ns=10_000_000,
    warm_up_max_ns=60_000_000,
    warm_up_window=2,
    burst_ns=30_000_000,
    burst_min_runs=2,
)
#: Runs of a size that is only tried: warming up, a burst and its lead-in.
_N_RUNS = 6
#: Sides of the matrices. The small ones find out what the large ones will take; on a GPU only the largest
#: is long against the start of a kernel.
_SIDES = (512, 1024, 2048, 4096, 8192)
_COLUMNS = 1024
#: Least bytes of the tensor that is copied, and the most.
_COPY_LEAST, _COPY_MOST, _COPY_STEP = 64 << 20, 1 << 30, 1 << 20
#: The tensor must be this many times as large as the last-level caches.
#: Source: J. D. McCalpin, STREAM's run rules: "each array must be at least 4 times the size of the sum of all
#: the last-level caches".
_CACHES = 4
#: Share of free memory that one tensor may take: parent, shared memory, child and output hold one each.
_MEMORY_SHARE = 12
#: Where Linux tells its caches; tests point it at a folder of their own.
#: Source: Linux kernel documentation, ABI/testing/sysfs-devices-system-cpu.
CPU_ROOT = Path("/sys/devices/system/cpu")


class Found(NamedTuple):
    """The rate of one target, and which one it was."""

    rate: float
    target: str


def measure_ceilings(
    stages: Sequence[tuple[Stage, Sequence[Target]]],
    *,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[Ceiling, ...], tuple[str, ...]]:
    """Measure every target for about a second.

    Memory moves bytes whatever they mean, so bytes are measured once per stage, and the best of a device
    holds for all of its precisions.

    Args:
        stages: Devices of backends, each with its targets.
        deadlines: Of each child's steps.
        progress: Told of each target.

    Returns:
        One ceiling per device and precision that some target reached, and a note for each target that
        failed.
    """
    progress = progress or Silent()
    products: dict[tuple[str, str], Found] = {}
    copies: dict[str, Found] = {}
    notes: list[str] = []
    n_done, n_total = 0, sum(len(targets) for _, targets in stages)
    for stage, targets in stages:
        child = _Child(stage, deadlines)
        copied = False
        try:
            for target in targets:
                progress.stage(f"measuring the ceilings of {target}")
                progress.advance(n_done, n_total)
                n_done += 1
                precision = target.configuration.precision
                try:
                    if not copied:
                        _keep(copies, stage.device.id, Found(_best_copy(child, precision), str(target)))
                        copied = True
                    found = Found(_best_product(child, precision), str(target))
                    _keep(products, (stage.device.id, precision), found)
                except HalError as error:  # costs this target
                    notes.append(f"no ceilings from {target}: {scrub(error.message)}")
                    _log.warning("ceilings of %s: %s", target, error)
        finally:
            child.close()
    ceilings = tuple(
        Ceiling(
            device=device,
            precision=precision,
            flops_per_s=product.rate,
            bytes_per_s=copies[device].rate,
            compute_target=product.target,
            copy_target=copies[device].target,
        )
        for (device, precision), product in products.items()
    )
    return ceilings, tuple(notes)


def last_level_cache_bytes(root: Path | None = None) -> int:
    """Size of all last-level caches of this machine together; 0 where the system does not tell.

    Args:
        root: Folder of the CPUs in sysfs.
    """
    found: dict[tuple[int, str], int] = {}
    for folder in (root or CPU_ROOT).glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, size = int((folder / "level").read_text()), (folder / "size").read_text().strip()
            shared_by = (folder / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):  # a virtual machine may show some and not others
            continue
        if size.endswith("K") and size[:-1].isdecimal():
            found[level, shared_by] = int(size[:-1]) << 10
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


class _Child:
    """The process of one stage, started anew where a target has ended it."""

    def __init__(self, stage: Stage, deadlines: Deadlines | None) -> None:
        self.stage = stage
        self._deadlines = deadlines
        self._backend: WorkerBackend | None = None

    def open(self) -> WorkerBackend:
        if self._backend is None or not self._backend.alive:
            self.close()
            self._backend = WorkerBackend(chain_ref([self.stage]), deadlines=self._deadlines)
            self._backend.discover()  # libraries load here, not in the time for measuring
        return self._backend

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()


def _keep(best: dict[K, Found], key: K, found: Found) -> None:
    if key not in best or found.rate > best[key].rate:
        best[key] = found


def _best_product(child: _Child, precision: str) -> float:
    """Operations per second of a matrix product, of the size that reached the most."""
    child.open()
    until_ns, best = time.monotonic_ns() + _BUDGET_NS, 0.0
    for side in _SIDES:
        last = side == _SIDES[-1]
        # The next size has eight times the operations on four times the bytes.
        duration_ns, last = _timed(child, _product(side), (side, side), precision, until_ns, (8, 4), last)
        best = max(best, 2 * side**3 / duration_ns * 1e9)
        if last:
            break
    return best


def _best_copy(child: _Child, precision: str) -> float:
    """Bytes per second of an element-wise operator or a reduction, whichever reached more.

    Where memory is read before it is written, as on most processors, a reduction, which only reads,
    reaches more; counting it keeps every kernel below the ceiling.
    """
    rates: list[float] = []
    failures: list[HalError] = []
    for make in (_copy, _reduction):
        try:
            rates.append(_rate(child, precision, make))
        except HalError as error:  # one of the two is enough
            failures.append(error)
            _log.debug("%s in %s: %s", child.stage.name, precision, error)
    if not rates:
        raise failures[0]
    return max(rates)


def _rate(child: _Child, precision: str, make: Callable[[tuple[int, int]], tuple[Graph, int]]) -> float:
    child.open()
    until_ns = time.monotonic_ns() + _BUDGET_NS // 2
    n_bytes, best, last = _copy_bytes(child.stage), 0.0, False
    while not last:
        # A processor starts a run in no time; what a GPU takes to start must not count for much.
        last = not child.stage.away or n_bytes * 4 > _copy_limit(child.stage)
        shape = (n_bytes // 4 // _COLUMNS, _COLUMNS)
        graph, moved_bytes = make(shape)
        duration_ns, last = _timed(child, graph, shape, precision, until_ns, (4, 4), last)
        best = max(best, moved_bytes / duration_ns * 1e9)
        n_bytes *= 4
    return best


def _timed(
    child: _Child,
    graph: Graph,
    shape: tuple[int, int],
    precision: str,
    until_ns: int,
    growth: tuple[int, int],
    last: bool,
) -> tuple[float, bool]:
    """The best time (ns) of a graph, and whether the next size would take too long.

    Args:
        child: Where.
        graph: One input.
        shape: Of the input.
        precision: To compute in.
        until_ns: When the time is over. What is left is used up by the last size.
        growth: How many times longer a run, and all that comes before it, takes at the next size.
        last: Whether there is none.
    """
    started_ns = time.monotonic_ns()
    backend = child.open()
    executable = backend.compile(CHAIN, graph, along(precision, (0,)))
    try:
        executable.prepare([_values(shape)])
        ready_ns = time.monotonic_ns()
        warm = executable.warm_up(_POLICY)
        run_ns = (time.monotonic_ns() - ready_ns) // warm.n_runs  # by our clock: a virtual one takes no time
        next_ns = growth[0] * run_ns * _N_RUNS + growth[1] * (ready_ns - started_ns)
        durations = executable.burst(_POLICY)
        last = last or time.monotonic_ns() + next_ns > until_ns
        while last and time.monotonic_ns() + 2 * run_ns < until_ns:
            durations += executable.burst(_POLICY)
    finally:
        if backend.alive:
            executable.close()
    return best_of(durations, f"{graph.name!r} on {child.stage.name}"), last


def best_of(durations: Sequence[int], what: str) -> float:
    """The 10th percentile (ns): the least would be a lucky reading of the clock.

    Args:
        durations: Of single runs.
        what: Names them in the error.

    Raises:
        BackendError: The clock stood still.
    """
    best_ns = stats.percentile(durations, 10)
    if best_ns <= 0:
        raise BackendError(
            f"{what} took {best_ns:g} ns by its own clock over {len(durations)} runs; expected more than 0: "
            "mend the backend's timed_run"
        )
    return best_ns


def _copy_bytes(stage: Stage) -> int:
    """Size of the tensor: beyond all caches, within what memory allows."""
    wanted = max(_COPY_LEAST, min(_CACHES * last_level_cache_bytes(), _COPY_MOST))
    return max(min(wanted, _copy_limit(stage)) // _COPY_STEP, 1) * _COPY_STEP


def _copy_limit(stage: Stage) -> int:
    free = min(host.available_memory_bytes(), stage.device.memory_bytes or _COPY_MOST * _MEMORY_SHARE)
    return min(free // _MEMORY_SHARE, _COPY_MOST)


def _product(side: int) -> Graph:
    """``float32[side, side]`` times a weight: kernels of models get their weights ready before they run."""
    weight = np.tile(_values((side, _SIDES[0])), side // _SIDES[0]) / np.float32(side**0.5)
    return _graph("MatMul", (side, side), (side, side), {"w": weight})


def _copy(shape: tuple[int, int]) -> tuple[Graph, int]:
    """An element-wise operator, and the bytes that it reads and writes."""
    return _graph("Relu", shape, shape), 2 * 4 * shape[0] * shape[1]


def _reduction(shape: tuple[int, int]) -> tuple[Graph, int]:
    """A maximum per row, and the bytes that it reads and writes."""
    return _graph("ReduceMax", shape, (shape[0], 1), axes=[1], keepdims=1), 4 * shape[0] * (shape[1] + 1)


def _graph(
    op: str,
    takes: tuple[int, int],
    gives: tuple[int, int],
    weights: Mapping[str, Array] | None = None,
    **attributes: Any,
) -> Graph:
    weights = weights or {}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *weights], ["y"], **attributes)],
        f"{op}_{takes[0]}x{takes[1]}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    # Operator set 17: the axes of ReduceMax are an attribute, which every runtime takes.
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def _values(shape: tuple[int, int]) -> Array:
    """Normal numbers, one row for all: making gigabytes of different ones would take seconds."""
    row = np.random.default_rng(0).normal(size=shape[1]).astype(np.float32)
    return np.tile(row, (shape[0], 1))
