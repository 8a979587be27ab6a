"""Random placement problems and random plans for tests: every rule, every constraint, many shapes.

Durations are small whole numbers, zeros among them, so that ties and calls of no length are common and sums
are exact whatever their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from hal.planning.problem import CHARGES, OBJECTIVES, OUTSIDE, STARTS, Assignment, Problem

Edges = list[tuple[int, int]]
SHAPES = ("chain", "layered", "series_parallel", "forks", "random")


def edges_of(rng: np.random.Generator, shape: str, n: int) -> Edges:
    """A DAG over units 0 to n - 1, whose numbers are a topological order."""
    if shape == "chain":
        return [(unit, unit + 1) for unit in range(n - 1)]
    if shape == "forks":
        return _forks(rng, n)
    if shape == "series_parallel":
        return _series_parallel(rng, n)
    if shape == "layered":
        return _layered(rng, n)
    density = rng.uniform(0, 2.5) / max(n, 1)
    return [(a, b) for a in range(n) for b in range(a + 1, n) if rng.random() < density]


def _forks(rng: np.random.Generator, n: int) -> Edges:
    """Trees that open, or that close."""
    is_open = rng.random() < 0.5
    tree = [(int(rng.integers(max(0, unit - 4), unit)), unit) for unit in range(1, n)]
    return tree if is_open else sorted((n - 1 - b, n - 1 - a) for a, b in tree)


def _series_parallel(rng: np.random.Generator, n: int) -> Edges:
    """Blocks of branches that begin and end in one unit."""
    found: Edges = []
    last, unit = 0, 1
    while unit < n:
        width = int(rng.integers(1, 5))
        ends = []
        for _ in range(width):
            tip = last
            for _ in range(int(rng.integers(1, 4))):
                if unit >= n - 1:
                    break
                found.append((tip, unit))
                tip, unit = unit, unit + 1
            ends.append(tip)
        found += [(tip, unit) for tip in dict.fromkeys(ends)]
        last, unit = unit, unit + 1
    return found


def _layered(rng: np.random.Generator, n: int) -> Edges:
    width = int(rng.integers(1, max(2, int(np.sqrt(n)) + 1)))
    found = []
    for unit in range(width, n):
        low = (unit // width - 1) * width
        many = int(rng.integers(1, 1 + min(3, width)))
        found += [(int(a), unit) for a in rng.choice(np.arange(low, low + width), many, replace=False)]
    return sorted(found)


def random_problem(
    rng: np.random.Generator,
    n: int,
    t: int,
    *,
    shape: str = "random",
    limits: float = 0.0,
    allowed: float = 0.9,
    **fields: Any,
) -> Problem:
    """A problem with numbers and rules drawn at random.

    Args:
        rng: Of all numbers.
        n: Units.
        t: Targets.
        shape: One of SHAPES.
        limits: How likely each kind of constraint is.
        allowed: How likely a target can compute a unit; each unit has one target at least.
        fields: Of the problem, in place of what is drawn.
    """
    edges = edges_of(rng, shape, n)
    producer: list[int] = []
    tensors_of: list[list[int]] = [[] for _ in range(n)]
    for unit in range(n):
        for _ in range(1 + (rng.random() < 0.2)):
            tensors_of[unit].append(len(producer))
            producer.append(unit)
    reads = {(int(rng.choice(tensors_of[a])), b) for a, b in edges}
    for _ in range(int(rng.integers(0, 3))):
        reads |= {(len(producer), int(unit)) for unit in rng.integers(0, n, 2)}
        producer.append(OUTSIDE)
    v = len(producer)
    order = rng.permutation(len(reads))
    read_tensor, read_unit = np.array(sorted(reads), np.int64).reshape(-1, 2)[order].T

    silicon = _numbered(rng.integers(0, t, t)) if rng.random() < 0.5 else np.arange(t)
    pool = _numbered(rng.integers(0, t, t)) if rng.random() < 0.5 else np.arange(t)
    s, m = silicon.max() + 1, pool.max() + 1
    time = rng.integers(0, 10, (n, t)).astype(float)
    forbidden = rng.random((n, t)) > allowed
    forbidden[np.arange(n), rng.integers(0, t, n)] = False
    time[forbidden] = np.inf
    transfer = rng.integers(0, 6, (v, t, t)) * (rng.random((v, t, t)) < 0.7)
    transfer[:, np.arange(t), np.arange(t)] *= rng.random() < 0.3
    weight = rng.integers(0, 10, (n, t))
    size = rng.integers(0, 10, v)

    def sometimes(value: Any, otherwise: Any, share: float = limits) -> Any:
        return value if rng.random() < share else otherwise

    drawn = {
        "time": time,
        "silicon": silicon,
        "pool": pool,
        "producer": producer,
        "read_tensor": read_tensor,
        "read_unit": read_unit,
        "is_output": rng.random(v) < 0.3,
        "tensor_bytes": size,
        "transfer": transfer,
        "send": sometimes(rng.integers(0, 3, (v, t)), np.zeros((v, t)), 0.5),
        "receive": sometimes(rng.integers(0, 3, (v, t)), np.zeros((v, t)), 0.5),
        "call": sometimes(rng.integers(0, 3, t), np.zeros(t), 0.7),
        "energy": rng.integers(0, 10, (n, t)),
        "power": rng.integers(0, 3, t),
        "weight_bytes": weight,
        "workspace_bytes": rng.integers(0, 6, (n, t)),
        "error": rng.integers(0, 5, (n, t)),
        "slots": sometimes(rng.integers(0, 3, s), np.ones(s), 0.4),
        "link": sometimes(rng.integers(-1, min(2, t * t), (t, t)), np.full((t, t), -1), 0.5),
        "capacity": sometimes(
            np.ceil((weight.mean(1).sum() + size.sum() / 2) * rng.uniform(0.5, 1.5, m)), np.full(m, np.inf)
        ),
        "same_device": sometimes(
            np.where(rng.random(n) < 0.4, rng.integers(0, n, n) // 2, -1), np.full(n, -1)
        ),
        "max_error": sometimes(float(rng.integers(n, 3 * n + 1)), np.inf),
        "max_partitions": sometimes(int(rng.integers(1, 5)), 0),
        "partitions_per_target": sometimes(rng.integers(0, 3, t), np.zeros(t)),
        "charge": str(rng.choice(CHARGES)),
        "start": str(rng.choice(STARTS)),
        "overlap": bool(rng.random() < 0.7),
        "send_port": bool(rng.random() < 0.5),
        "receive_port": bool(rng.random() < 0.5),
        "objective": str(rng.choice(OBJECTIVES)),
    }
    return Problem(**{**drawn, **fields})


def _numbered(keys: np.ndarray) -> np.ndarray:
    """The same classes, numbered from 0 without gaps."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1)


def random_assignment(rng: np.random.Generator, problem: Problem) -> Assignment:
    """A plan that keeps the order, the start rule and supported targets; any such plan can come out."""
    n = problem.n_units
    before: list[list[int]] = [[] for _ in range(n)]
    after: list[list[int]] = [[] for _ in range(n)]
    for tensor, reader in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True):
        if (maker := int(problem.producer[tensor])) != OUTSIDE:
            before[reader].append(maker)
            after[maker].append(reader)
    target, partition = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    alone = problem.start == "unit"
    merging = 0.0 if alone else rng.random()
    targets = rng.choice(problem.n_targets, int(rng.integers(1, problem.n_targets + 1)), replace=False)
    waiting = [len(makers) for makers in before]
    ready = [unit for unit in range(n) if not waiting[unit]]
    owners: list[int] = []
    while ready:
        unit = ready.pop(int(rng.integers(len(ready))))
        can = np.flatnonzero(problem.allowed[unit])
        likes = [b for b in can if b in targets] or can
        b = int(rng.choice(likes))
        low = max((int(partition[maker]) for maker in before[unit]), default=0)
        joins = [p for p in range(low, len(owners)) if owners[p] == b]
        if joins and rng.random() < merging:
            partition[unit] = rng.choice(joins)
        else:
            partition[unit] = len(owners)
            owners.append(b)
        target[unit] = b
        for reader in after[unit]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return Assignment(target, partition)


def damaged(rng: np.random.Generator, problem: Problem, assignment: Assignment) -> Assignment:
    """The plan with some numbers changed: it may break anything."""
    target, partition = assignment.target.copy(), assignment.partition.copy()
    for _ in range(int(rng.integers(1, 3))):
        unit = int(rng.integers(problem.n_units))
        if rng.random() < 0.5:
            target[unit] = rng.integers(-1 if rng.random() < 0.1 else 0, problem.n_targets)
        else:
            partition[unit] = rng.integers(-1 if rng.random() < 0.1 else 0, assignment.n_partitions + 1)
    return Assignment(target, partition)


@st.composite
def problems(draw: st.DrawFn, max_units: int = 10, max_targets: int = 4, **fields: Any) -> Problem:
    """Random problems whose size, shape and rules shrink."""
    rules = {
        "charge": draw(st.sampled_from(("partition", "edge", "target"))),
        "start": draw(st.sampled_from(STARTS)),
        "overlap": draw(st.booleans()),
        "send_port": draw(st.booleans()),
        "receive_port": draw(st.booleans()),
        "objective": draw(st.sampled_from(OBJECTIVES)),
    }
    return random_problem(
        np.random.default_rng(draw(st.integers(0, 10**6))),
        draw(st.integers(1, max_units)),
        draw(st.integers(1, max_targets)),
        shape=draw(st.sampled_from(SHAPES)),
        limits=draw(st.sampled_from((0.0, 0.5))),
        **{**rules, **fields},
    )


@st.composite
def plans(draw: st.DrawFn, max_units: int = 10, max_targets: int = 4, **fields: Any) -> Any:
    """Random problems, each with a plan that can be carried out: (problem, assignment)."""
    problem = draw(problems(max_units, max_targets, **fields))
    return problem, random_assignment(np.random.default_rng(draw(st.integers(0, 10**6))), problem)
