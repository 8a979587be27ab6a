"""A placement problem as a pipeline sees it: how much each silicon, port and link carries per request.

Units that must share a target are one block. Only the targets of blocks count: each target is taken to run
one partition (``start="partition"``) or one per unit (``start="unit"``), so that loads are exact where a
target has one partition, where units start alone, or where neither calls nor handoffs within a target cost
anything and tensors are charged by edge or target. Elsewhere they are a little too low, never too high.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.compiled import compiled
from hal.planning.contraction import components
from hal.planning.partitions import Dag, dag, dag_of
from hal.planning.pipeline_arrays import Pipeline as Pipeline
from hal.planning.pipeline_reduce import may_reduce, reductions
from hal.planning.problem import OUTSIDE, Floats, Ints, Problem, Small


class Blocks(NamedTuple):
    """A pipeline, and how to come back from it.

    Attributes:
        pipeline: For compiled code.
        block: int64[units]: block of each unit.
        graph: Blocks as a graph; without edges inside. It has cycles where blocks were not closed.
        first: int64[n]: place in the topological order of each block's first unit.
    """

    pipeline: Pipeline
    block: Ints
    graph: Dag
    first: Ints


def is_contiguous(problem: Problem) -> bool:
    """Whether each target may have one partition only."""
    return problem.start == "partition" and bool((problem.partitions_per_target == 1).all())


def is_exact(problem: Problem) -> bool:
    """Whether the loads of a pipeline are those of the plan, whatever its partitions."""
    if is_contiguous(problem) or problem.start == "unit":
        return True
    within = problem.transfer[:, np.arange(problem.n_targets), np.arange(problem.n_targets)]
    return problem.charge != "partition" and not problem.call.any() and not within.any()


def blocks(problem: Problem, *, closed: bool) -> Blocks:
    """The problem's pipeline.

    Args:
        problem: The problem.
        closed: Join also what lies on a cycle of blocks, so that blocks form a DAG. Exact where each target
            has one partition, because that is convex.
    """
    key = f"_blocks_{closed}"
    found = problem.__dict__.get(key)
    if found is None:
        found = problem.__dict__[key] = _blocks(problem, closed)
    assert isinstance(found, Blocks)
    return found


def targets_of(found: Blocks, target: Small) -> Small:
    """int32[units]: targets of units from targets of blocks."""
    return np.ascontiguousarray(target[found.block], np.int32)


def _blocks(problem: Problem, closed: bool) -> Blocks:
    found = _build(problem, _numbered(problem, _joined(problem, closed)))
    while may_reduce(problem):
        label = reductions(found.pipeline)
        if label is None:
            break
        found = _build(problem, _numbered(problem, label[found.block]))
    return found


def _build(problem: Problem, block: Ints) -> Blocks:
    n_units, t = problem.n_units, problem.n_targets
    n = int(block.max()) + 1
    slots = np.where(problem.slots > 0, problem.slots.astype(np.float64), np.inf)
    each = slots[problem.silicon]
    by_unit = problem.start == "unit"
    finite = np.where(problem.allowed, problem.time + (problem.call if by_unit else 0.0), 0.0) / each
    time = np.where(_sums(~problem.allowed, block, n) > 0, np.inf, _sums(finite, block, n))
    owner = np.where(problem.producer == OUTSIDE, OUTSIDE, block[problem.producer])
    reader = block[problem.read_unit]
    # Within a block tensors cost nothing, unless each unit is a call.
    outer = (owner[problem.read_tensor] != reader) | by_unit
    keys, times = np.unique(problem.read_tensor[outer] * n + reader[outer], return_counts=True)
    tensor, reader = keys // n, keys % n
    kept = np.zeros(problem.n_tensors, bool)
    kept[tensor] = True
    kept |= problem.is_output & (owner != OUTSIDE)
    new = np.cumsum(kept) - 1
    tensor, owner = new[tensor], owner[kept]
    v = len(owner)
    by_reader = np.argsort(reader, kind="stable")
    inner = np.flatnonzero(owner != OUTSIDE)
    made = owner[tensor]
    real = (made != OUTSIDE) & (made != reader)
    first = np.full(n, n_units)
    np.minimum.at(first, block[problem.order], np.arange(n_units))
    pipeline = Pipeline(
        time=time,
        weight=_sums(problem.weight_bytes, block, n),
        error=_sums(problem.error, block, n),
        call=np.zeros(t) if by_unit else problem.call / each,
        silicon=problem.silicon.astype(np.int32),
        pool=problem.pool.astype(np.int32),
        slots=slots,
        capacity=problem.capacity,
        link=problem.link.astype(np.int32),
        owner=owner.astype(np.int32),
        is_output=problem.is_output[kept],
        send=np.ascontiguousarray(problem.send[kept]),
        receive=np.ascontiguousarray(problem.receive[kept]),
        transfer=np.ascontiguousarray(problem.transfer[kept]),
        readers_at=_starts(tensor, v),
        readers=reader.astype(np.int32),
        times=times.astype(np.int32),
        reads_at=_starts(reader, n),
        reads=tensor[by_reader].astype(np.int32),
        reads_times=times[by_reader].astype(np.int32),
        owned_at=_starts(owner[inner], n),
        owned=inner[np.argsort(owner[inner], kind="stable")].astype(np.int32),
        per_read=problem.charge == "edge" or (problem.charge == "partition" and by_unit),
        within=by_unit,
        overlap=problem.overlap,
        send_port=problem.send_port,
        receive_port=problem.receive_port,
    )
    return Blocks(pipeline, block, dag_of(n, made[real], reader[real]), first)


def _joined(problem: Problem, closed: bool) -> Ints:
    """A label of the block of each unit."""
    n = problem.n_units
    grouped = np.flatnonzero(problem.same_device >= 0)
    leader = np.full(n, -1)
    leader[problem.same_device[grouped[::-1]]] = grouped[::-1]
    label = np.arange(n)
    label[grouped] = leader[problem.same_device[grouped]]
    if closed and len(grouped):
        graph = dag(problem)
        edges: list[list[int]] = [[] for _ in range(n)]
        sources = np.repeat(label, np.diff(graph.after_at))
        for source, sink in zip(sources.tolist(), label[graph.after].tolist(), strict=True):
            edges[source].append(sink)
        label = np.array(components(edges))[label]
    return label


def _numbered(problem: Problem, label: Ints) -> Ints:
    """Blocks numbered from 0 by their first units in topological order."""
    place = np.empty(problem.n_units, np.int64)
    place[problem.order] = np.arange(problem.n_units)
    _, first, block = np.unique(label[problem.order], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[block][place], np.int64)


def _sums(values: npt.NDArray[Any], block: Ints, n: int) -> Floats:
    """float64[n, t]: sums of the rows of each block."""
    found = np.zeros((n, values.shape[1]))
    np.add.at(found, block, values)
    return found


def _starts(keys: Ints, count: int) -> Small:
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]).astype(np.int32)


class State(NamedTuple):
    """Where blocks are and what that loads, kept up to date by :func:`move`.

    Attributes:
        target: int32[n].
        counts: int32[v, t]: reads of each tensor by target.
        loads: float64[3 s + links]: of silicons, ports that send, ports that receive, links.
        used: float64[m]: bytes of weights by pool.
        sizes: int32[t]: blocks by target.
        error: float64[1]: sum.
    """

    target: Small
    counts: Small
    loads: Floats
    used: Floats
    sizes: Small
    error: Floats


@compiled
def state(p: Pipeline, target: Small) -> State:
    """The state of these targets."""
    n, t = p.time.shape
    v, n_silicons = len(p.owner), len(p.slots)
    counts = np.zeros((v, t), np.int32)
    loads = np.zeros(3 * n_silicons + p.link.max() + 1)
    used, sizes, error = np.zeros(len(p.capacity)), np.zeros(t, np.int32), np.zeros(1)
    for u in range(n):
        b = target[u]
        loads[p.silicon[b]] += p.time[u, b]
        used[p.pool[b]] += p.weight[u, b]
        error[0] += p.error[u, b]
        if sizes[b] == 0:
            loads[p.silicon[b]] += p.call[b]
        sizes[b] += 1
    for x in range(v):
        for at in range(p.readers_at[x], p.readers_at[x + 1]):
            counts[x, target[p.readers[at]]] += p.times[at]
    for x in range(v):
        charge(p, x, -1 if p.owner[x] < 0 else target[p.owner[x]], counts, loads, 1.0)
    return State(target.copy(), counts, loads, used, sizes, error)


@compiled
def charge(p: Pipeline, x: int, a: int, counts: Small, loads: Floats, sign: float) -> None:
    """Add (sign 1) or take away (-1) what tensor x, made on target a, loads."""
    n_silicons = len(p.slots)
    t = p.time.shape[1]
    leaves = a >= 0 and p.is_output[x]
    for b in range(t):
        many = counts[x, b]
        if many == 0 or (a == b and not p.within):
            continue
        s = p.silicon[b]
        factor = sign * many if p.per_read else sign
        if a < 0:
            loads[s] += factor * p.receive[x, b] / p.slots[s]
            continue
        long = factor * p.transfer[x, a, b]
        if a == b:
            loads[s] += long / p.slots[s]
            continue
        leaves = True
        loads[s] += factor * p.receive[x, b] / p.slots[s]
        if long == 0.0:
            continue
        c = p.silicon[a]
        if c == s or not p.overlap:
            loads[s] += long / p.slots[s]
            continue
        if p.send_port:
            loads[n_silicons + c] += long
        if p.receive_port:
            loads[2 * n_silicons + s] += long
        if p.link[a, b] >= 0:
            loads[3 * n_silicons + p.link[a, b]] += long
    if leaves:
        loads[p.silicon[a]] += sign * p.send[x, a] / p.slots[p.silicon[a]]


@compiled
def move(p: Pipeline, now: State, u: int, b: int) -> None:
    """Put block u on target b."""
    target, counts, loads = now.target, now.counts, now.loads
    a = target[u]
    if a == b:
        return
    for at in range(p.reads_at[u], p.reads_at[u + 1]):
        x = p.reads[at]
        maker = p.owner[x]
        if maker == u:
            continue
        home = -1 if maker < 0 else target[maker]
        charge(p, x, home, counts, loads, -1.0)
        counts[x, a] -= p.reads_times[at]
        counts[x, b] += p.reads_times[at]
        charge(p, x, home, counts, loads, 1.0)
    for at in range(p.owned_at[u], p.owned_at[u + 1]):
        x = p.owned[at]
        charge(p, x, a, counts, loads, -1.0)
        if p.within:
            for place in range(p.readers_at[x], p.readers_at[x + 1]):
                if p.readers[place] == u:
                    counts[x, a] -= p.times[place]
                    counts[x, b] += p.times[place]
        charge(p, x, b, counts, loads, 1.0)
    loads[p.silicon[a]] -= p.time[u, a]
    loads[p.silicon[b]] += p.time[u, b]
    now.used[p.pool[a]] -= p.weight[u, a]
    now.used[p.pool[b]] += p.weight[u, b]
    now.error[0] += p.error[u, b] - p.error[u, a]
    now.sizes[a] -= 1
    if now.sizes[a] == 0:
        loads[p.silicon[a]] -= p.call[a]
    if now.sizes[b] == 0:
        loads[p.silicon[b]] += p.call[b]
    now.sizes[b] += 1
    target[u] = b
