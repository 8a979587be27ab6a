"""What it costs to hand a tensor from one backend to the next, by the path that a runtime takes.

For each pair one child opens both backends and runs a small element-wise graph on the one, on the other, and
on the one after the other, in turn. The handoff is what the last takes beyond the first two.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import msgspec
import numpy as np
from onnx import TensorProto, helper

from hal import stats
from hal.backend import KernelTimes
from hal.errors import HalError
from hal.graph.model import Graph
from hal.profiling import switching
from hal.profiling.chain import CHAIN, HOST, Stage, along, chain_ref
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress, Silent
from hal.records.machine import Handoff, Link
from hal.sampling import Policy
from hal.tensor import Array
from hal.units import format_bytes
from hal.worker import Deadlines, WorkerBackend, WorkerExecutable

_log = logging.getLogger("hal.profiling")

#: Sizes (bytes) that a link is measured at: a small tensor, one in the first cache, one in the second, and
#: one as large as activations of vision models. Beyond, cost grows linearly.
SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20)
#: Rounds of one size: as many as fit into the time, within these bounds. Five is the least that has
#: percentiles worth the name.
_ROUNDS_NS, _ROUNDS_MIN, _ROUNDS_MAX = 120_000_000, 5, 15
#: On a busy machine rounds take many times longer; then this many have to do.
_ROUNDS_LEAST, _OVERDUE_NS = 3, 750_000_000
#: Short on purpose: the median of a round needs few runs, and many rounds tell more than long ones.
_POLICY = Policy(
    warm_up_min_ns=3_000_000,
    warm_up_max_ns=30_000_000,
    warm_up_window=3,
    burst_ns=2_000_000,
    burst_min_runs=1,
)
#: Children that are started together: starting is mostly imports, and each takes up to 500 MB.
_AT_ONCE = 4
_COLUMNS = 1024


class Route(NamedTuple):
    """A way for tensors through a chain.

    Attributes:
        source: End that makes the tensor, or :data:`~hal.profiling.chain.HOST`.
        destination: End that reads it.
        whole: Path of both in a row.
        parts: Paths of each alone; the host is not among them, for it computes nothing.
    """

    source: str
    destination: str
    whole: tuple[int | str, ...]
    parts: tuple[tuple[int | str, ...], ...]


class Pair(NamedTuple):
    """Two ends that are measured in one child, and the routes between them."""

    stages: tuple[Stage, ...]
    routes: tuple[Route, ...]
    same_silicon: bool


def pairs_of(ends: Sequence[Stage]) -> list[Pair]:
    """Every end with itself and with each later one, and with the host where its memory is its own."""
    pairs = []
    for at, one in enumerate(ends):
        if one.away:
            pairs.append(
                Pair(
                    (one,),
                    (Route(HOST, one.name, (HOST, 0), ((0,),)), Route(one.name, HOST, (0, HOST), ((0,),))),
                    same_silicon=False,
                )
            )
        for other in ends[at:]:
            forward = Route(one.name, other.name, (0, 1), ((0,), (1,)))
            backward = Route(other.name, one.name, (1, 0), ((0,), (1,)))
            routes = (forward,) if one is other else (forward, backward)
            pairs.append(Pair((one, other), routes, one.device.silicon == other.device.silicon))
    return pairs


def measure_links(
    ends: Sequence[Stage],
    *,
    sizes: Sequence[int] = SIZES,
    parts: Sequence[int] = switching.SIZES,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> tuple[Link, ...]:
    """Measure the handoff for every ordered pair, an end with itself among them.

    Args:
        ends: Devices of backends.
        sizes: Bytes of the tensors, rising; multiples of 4096.
        parts: Blocks of the parts that take turns, rising; see :mod:`hal.profiling.switching`.
        deadlines: Of each child's steps.
        progress: Told of each pair.

    Returns:
        One link per ordered pair; where it could not be measured, its reason says why.
    """
    progress = progress or Silent()
    pairs = pairs_of(ends)
    graphs = {n_bytes: _graph(n_bytes) for n_bytes in sizes}
    links: list[Link] = []
    for start in range(0, len(pairs), _AT_ONCE):
        batch = pairs[start : start + _AT_ONCE]
        progress.stage("starting backends for links")
        with ExitStack() as stack:
            opened = _opened(batch, deadlines)
            for chain in opened:
                if isinstance(chain, WorkerBackend):
                    stack.enter_context(chain)
            for n_done, (pair, chain) in enumerate(zip(batch, opened, strict=True), start):
                there = pair.routes[0]
                progress.stage(f"handing tensors from {there.source} to {there.destination}")
                progress.advance(n_done, len(pairs))
                links += _measure(pair, chain, graphs, parts, progress)
                if isinstance(chain, WorkerBackend):
                    chain.close()
    return tuple(links)


def handoff(n_bytes: int, whole: Sequence[float], parts: Sequence[Sequence[float]]) -> Handoff:
    """The handoff of one size from rounds.

    Args:
        n_bytes: Size of the tensor.
        whole: Time (ns) of both ends in a row, one value per round.
        parts: Time of each end alone, in the same rounds.
    """
    beyond = [together - sum(alone) for together, *alone in zip(whole, *parts, strict=True)]
    return Handoff(
        n_bytes=n_bytes,
        median_ns=max(round(stats.median(beyond)), 0),
        p10_ns=round(stats.percentile(beyond, 10)),
        p90_ns=round(stats.percentile(beyond, 90)),
        n=len(beyond),
        alone_ns=tuple(round(stats.median(alone)) for alone in parts),
    )


def _opened(pairs: Sequence[Pair], deadlines: Deadlines | None) -> list[WorkerBackend | HalError]:
    with ThreadPoolExecutor(max_workers=len(pairs)) as pool:
        return list(pool.map(lambda pair: _open(pair, deadlines), pairs))


def _open(pair: Pair, deadlines: Deadlines | None) -> WorkerBackend | HalError:
    chain = None
    try:
        chain = WorkerBackend(chain_ref(pair.stages), deadlines=deadlines)
        chain.discover()  # libraries load now, beside those of the other children
    except HalError as error:
        if chain is not None:
            chain.close()
        return error
    return chain


def _measure(
    pair: Pair,
    chain: WorkerBackend | HalError,
    graphs: dict[int, Graph],
    parts: Sequence[int],
    progress: Progress,
) -> Iterator[Link]:
    points: dict[Route, list[Handoff]] = {route: [] for route in pair.routes}
    reason = ""
    try:
        if isinstance(chain, HalError):
            raise chain
        for n_bytes, graph in graphs.items():
            inputs = [_values(n_bytes)]
            for route, found in _rounds(chain, pair.routes, graph, inputs, n_bytes).items():
                points[route].append(found)
    except HalError as error:  # costs this pair; sizes that were measured before stand
        reason = scrub(error.message)
        at = next((size for size in graphs if size not in [p.n_bytes for p in points[pair.routes[0]]]), 0)
        if points[pair.routes[0]]:
            reason = f"from {format_bytes(at)} on: {reason}"
        _log.warning("link %s: %s", " - ".join(stage.name for stage in pair.stages), error)
    links = [
        Link(
            source=route.source,
            destination=route.destination,
            same_silicon=pair.same_silicon,
            points=tuple(points[route]),
            reason=reason,
        )
        for route in pair.routes
    ]
    if isinstance(chain, WorkerBackend) and not reason:
        links = _with_switching(links, pair, parts, chain, progress)
    yield from links


def _with_switching(
    links: Sequence[Link], pair: Pair, parts: Sequence[int], chain: WorkerBackend, progress: Progress
) -> list[Link]:
    """Links with what alternating costs, where ends share a silicon and it can be measured."""
    if not pair.same_silicon or len(pair.stages) < 2:
        return list(links)
    progress.stage(f"taking turns between {pair.stages[0].name} and {pair.stages[1].name}")
    try:
        found = _turns(chain, parts)
    except HalError as error:
        _log.warning("switching on %s: %s", " - ".join(stage.name for stage in pair.stages), error)
        return list(links)
    if found is None:
        return list(links)
    blocks, pairs = found
    # The link there, then the one back; an end with itself has one, of the part that is handed something.
    return [
        msgspec.structs.replace(link, switching=switching.switching(link, blocks, pairs, end))
        for link, end in zip(links, (1, 0), strict=False)
    ]


def _turns(
    chain: WorkerBackend, parts: Sequence[int]
) -> tuple[Sequence[int], dict[tuple[int, int], switching.Pair]] | None:
    """Parts of all sizes after parts of all sizes, as far as they are not too slow, and these sizes.

    None where the ends compute by clocks of their own.
    """
    found: dict[tuple[int, int], switching.Pair] = {}
    inputs = [switching.values()]
    for at in range(len(parts)):
        # Both of this size first: where that takes too long, so would all that are larger.
        pairs = [(at, at), *((at, other) for other in range(at)), *((other, at) for other in range(at))]
        for one, other in pairs:
            graph, cut = switching.graph(parts[one], parts[other])
            executable = chain.compile(CHAIN, graph, along("fp32", (0, 1), cut))
            try:
                if executable.ability(KernelTimes) is None:
                    return None
                executable.prepare(inputs)
                seen = executable.kernel_runs(inputs, 2)
                if one == other and at and stats.median(seen.run_ns) > switching.LONGEST_NS:
                    return parts[:at], found
                found[one, other] = switching.Pair(executable.kernel_runs(inputs, switching.n_runs(seen)))
            finally:
                if chain.alive:
                    executable.close()
    return parts, found


def _rounds(
    chain: WorkerBackend, routes: Sequence[Route], graph: Graph, inputs: Sequence[Array], n_bytes: int
) -> dict[Route, Handoff]:
    """Bursts of every path in turn, in a new random order each round."""
    paths = dict.fromkeys(path for route in routes for path in (*route.parts, route.whole))
    executables: dict[tuple[int | str, ...], WorkerExecutable] = {}
    taken: dict[tuple[int | str, ...], list[float]] = {path: [] for path in paths}
    try:
        for path in paths:
            executables[path] = chain.compile(CHAIN, graph, along("fp32", path))
            executables[path].prepare(inputs)
            executables[path].warm_up(_POLICY)
        order, started_ns = random.Random(0), time.monotonic_ns()
        for n_round in range(_ROUNDS_MAX):
            if _enough(n_round, time.monotonic_ns() - started_ns):
                break
            waiting = list(paths)
            order.shuffle(waiting)
            for path in waiting:
                taken[path].append(stats.median(executables[path].burst(_POLICY)))
    finally:
        if chain.alive:
            for executable in executables.values():
                executable.close()
    return {
        route: handoff(n_bytes, taken[route.whole], [taken[part] for part in route.parts]) for route in routes
    }


def _enough(n_rounds: int, spent_ns: int) -> bool:
    least = _ROUNDS_MIN if spent_ns < _OVERDUE_NS else _ROUNDS_LEAST
    return n_rounds >= least and spent_ns >= _ROUNDS_NS


def _graph(n_bytes: int) -> Graph:
    """The cheapest graph that every runtime has, reads all of its input and makes a tensor of the size."""
    shape = [n_bytes // 4 // _COLUMNS, _COLUMNS]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        f"pass_{n_bytes}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Graph.load(model)


def _values(n_bytes: int) -> Array:
    row = np.random.default_rng(0).normal(size=_COLUMNS).astype(np.float32)
    return np.tile(row, (n_bytes // 4 // _COLUMNS, 1))
