"""Throughput: each solver against all plans of small problems, and the parts they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from hal.planning.check import check
from hal.planning.evaluate import evaluate
from hal.planning.milp_throughput import milp_throughput
from hal.planning.milp_windows import milp_windows
from hal.planning.partitions import dag, partitioned
from hal.planning.pipeline_ideals import load_dual, pipeline_ideals
from hal.planning.pipeline_local import pipeline_local
from hal.planning.pipeline_model import blocks, is_contiguous, is_exact, move, state, targets_of
from hal.planning.pipeline_order import pipeline_order, topological
from hal.planning.pipeline_segments import classes
from hal.planning.problem import Assignment, Problem
from hal.planning.search import Best, Budget
from hal.planning.simulate import simulate

Solver = Callable[[Problem, Best, Budget, int], None]


def pipeline(
    seed: int, n: int, t: int, *, alike: bool = False, contiguous: bool = False, **fields: object
) -> Problem:
    """A random problem of units that read one or two earlier ones; tensor n comes from outside."""
    rng = np.random.default_rng(seed)
    pairs = {(int(rng.integers(u)), u) for u in range(1, n)}
    pairs |= {(int(rng.integers(u)), u) for u in range(1, n) if rng.random() < 0.5}
    reads = [*sorted(pairs), (n, 0), (n, n - 1)]
    one = (n, 1) if alike else (n, t)
    made: dict[str, object] = {
        "time": np.broadcast_to(rng.integers(0, 9, one).astype(float), (n, t)),
        "silicon": np.arange(t),
        "pool": np.arange(t),
        "producer": np.append(np.arange(n), -1),
        "read_tensor": np.array([tensor for tensor, _ in reads]),
        "read_unit": np.array([unit for _, unit in reads]),
        "send": np.broadcast_to(rng.integers(0, 4, (n + 1, one[1])).astype(float), (n + 1, t)),
        "receive": np.broadcast_to(rng.integers(0, 4, (n + 1, one[1])).astype(float), (n + 1, t)),
        "partitions_per_target": np.full(t, int(contiguous)),
        "charge": "target",
        "overlap": False,
        "objective": "throughput",
    }
    return Problem(**{**made, **fields})  # type: ignore[arg-type]


def best_of_all(problem: Problem) -> float:
    """The least largest load of all plans with the partitions that :func:`partitioned` finds."""
    values = [np.inf]
    for target in itertools.product(range(problem.n_targets), repeat=problem.n_units):
        checked = check(problem, partitioned(problem, target))
        if not checked.violations:
            values.append(checked.objective(problem))
    return min(values)


def solved(problem: Problem, *solvers: Solver, seconds: float = 20.0) -> Best:
    """What solvers find, one after the other."""
    best = Best(problem)
    for solver in solvers:
        solver(problem, best, Budget(seconds), 0)
    return best


def steps(count: int) -> Budget:
    """A budget that is spent after its clock was read so many times."""
    reads = itertools.count()
    return Budget(count, lambda: float(next(reads)))


def test_partitioned_gives_one_partition_per_target_when_targets_are_convex() -> None:
    problem = pipeline(0, 30, 3)
    cut = np.sort(np.random.default_rng(0).integers(0, 3, 30))
    target = np.empty(30, np.int64)
    target[problem.order] = cut
    made = partitioned(problem, target)
    assert made.n_partitions == len(np.unique(cut))
    assert (made.target == target).all()


def test_partitioned_gives_plans_that_run_when_targets_are_random() -> None:
    rng = np.random.default_rng(1)
    for seed in range(30):
        problem = pipeline(seed, 25, 3)
        made = partitioned(problem, rng.integers(0, 3, 25))
        assert not check(problem, made).violations
        assert made.n_partitions < 25


def test_partitioned_finds_the_fewest_when_a_target_must_come_back() -> None:
    # 0 -> 1 -> 2, and 3 apart: the outer two of the chain on one target, the others on another.
    problem = Problem(
        time=np.ones((4, 2)),
        silicon=np.arange(2),
        pool=np.arange(2),
        producer=np.arange(4),
        read_tensor=np.array([0, 1]),
        read_unit=np.array([1, 2]),
    )
    made = partitioned(problem, [0, 1, 0, 1])
    assert made.n_partitions == 3
    assert made.partition[1] == made.partition[3]


def test_partitioned_gives_each_unit_its_own_when_units_start_alone() -> None:
    problem = pipeline(2, 12, 2, start="unit")
    made = partitioned(problem, np.zeros(12))
    assert sorted(made.partition.tolist()) == list(range(12))
    assert not check(problem, made).violations


@pytest.mark.parametrize("charge", ["edge", "partition", "target"])
@pytest.mark.parametrize("start", ["unit", "partition"])
@pytest.mark.parametrize("overlap", [False, True])
def test_loads_are_the_evaluators_when_blocks_moved_at_random(charge: str, start: str, overlap: bool) -> None:
    rng = np.random.default_rng(3)
    for share in (1, 2):
        n, t = 20, 4
        problem = pipeline(
            3,
            n,
            t,
            charge=charge,
            start=start,
            overlap=overlap,
            silicon=np.arange(t) // share,
            transfer=rng.random((n + 1, t, t)),
            call=rng.random(t),
            slots=np.full(t // share, 2),
            link=rng.integers(-1, 3, (t, t)),
            is_output=rng.random(n + 1) < 0.3,
            same_device=np.where(rng.random(n) < 0.3, 0, -1),
            send_port=True,
            receive_port=True,
        )
        found = blocks(problem, closed=False)
        p = found.pipeline
        size = len(p.time)
        now = state(p, rng.integers(0, t, size).astype(np.int32))
        for _ in range(100):
            move(p, now, int(rng.integers(size)), int(rng.integers(t)))
        again = state(p, now.target)
        np.testing.assert_allclose(now.loads, again.loads, atol=1e-9)
        np.testing.assert_array_equal(now.counts, again.counts)
        value = evaluate(problem, partitioned(problem, targets_of(found, now.target))).throughput
        if is_exact(problem):
            assert now.loads.max() == pytest.approx(value)
        else:
            assert now.loads.max() <= value + 1e-9


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alike", [False, True])
def test_solvers_agree_with_all_plans_when_targets_run_several_partitions(seed: int, alike: bool) -> None:
    problem = pipeline(seed, 7, 3, alike=alike)
    expected = best_of_all(problem)
    best = solved(problem, milp_throughput)
    assert best.objective == pytest.approx(expected)
    assert best.bound == pytest.approx(expected, rel=1e-6)
    annealed = Best(problem)
    pipeline_local(problem, annealed, steps(80), seed)
    assert annealed.objective == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alike", [False, True])
def test_ideals_agree_with_all_plans_when_targets_run_one_partition(seed: int, alike: bool) -> None:
    grouped = np.where(np.arange(7) % 5 == seed % 5, 0, -1)
    problem = pipeline(seed, 7, 3, alike=alike, contiguous=True, same_device=grouped)
    expected = best_of_all(problem)
    best = solved(problem, pipeline_ideals)
    assert best.objective == pytest.approx(expected)
    assert best.bound == pytest.approx(expected)
    assert best.is_optimal
    assert solved(problem, pipeline_order).objective >= expected - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_ideals_bound_all_plans_when_handoffs_differ_by_the_other_end(seed: int) -> None:
    moved = np.random.default_rng(seed).integers(0, 5, (8, 3, 3)).astype(float)
    problem = pipeline(
        seed, 7, 3, contiguous=True, transfer=moved, overlap=True, send_port=True, receive_port=True
    )
    expected = best_of_all(problem)
    best = solved(problem, pipeline_ideals)
    assert best.bound <= expected + 1e-9
    assert best.objective >= expected - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_bound_of_the_program_holds_when_costs_depend_on_partitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = pipeline(
        seed,
        6,
        3,
        charge=("edge", "partition")[seed % 2],
        start=("partition", "unit")[seed // 2 % 2],
        call=rng.integers(0, 3, 3).astype(float),
        transfer=rng.integers(0, 5, (7, 3, 3)).astype(float),
        overlap=bool(seed % 3),
        send_port=True,
        receive_port=True,
        silicon=np.array([0, 1, 1]),
    )
    best = solved(problem, milp_throughput)
    assert best.bound <= best_of_all(problem) + 1e-6


def test_reductions_keep_the_optimum_when_units_take_no_time() -> None:
    reduced = 0
    for seed in range(12):
        problem = pipeline(seed, 8, 2)
        idle = np.random.default_rng(seed).random(8) < 0.5
        problem = problem.replace(time=np.where(idle[:, None], 0.0, problem.time))
        reduced += len(blocks(problem, closed=False).pipeline.time) < 8
        assert solved(problem, milp_throughput).objective == pytest.approx(best_of_all(problem))
        convex = problem.replace(partitions_per_target=np.ones(2, np.int64))
        assert solved(convex, pipeline_ideals).objective == pytest.approx(best_of_all(convex))
    assert reduced > 3


def test_solvers_keep_memory_and_groups_when_both_are_tight() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        weight = np.repeat(rng.integers(1, 5, (8, 1)), 3, axis=1)
        problem = pipeline(
            seed,
            8,
            3,
            weight_bytes=weight,
            capacity=np.full(3, float(np.ceil(weight[:, 0].sum() / 3) + 2)),
            same_device=np.array([0, -1, -1, 0, -1, -1, 1, 1]),
        )
        expected = best_of_all(problem)
        best = solved(problem, milp_throughput)
        assert best.objective == pytest.approx(expected)
        annealed = Best(problem)
        pipeline_local(problem, annealed, steps(80), seed)
        assert annealed.objective == pytest.approx(expected)


def test_program_proves_nothing_above_the_optimum_when_no_plan_fits() -> None:
    problem = pipeline(0, 6, 2, weight_bytes=np.full((6, 2), 10), capacity=np.full(2, 20.0))
    best = solved(problem, pipeline_order, milp_throughput)
    assert best.proposal is None
    assert best.bound == 0.0


def test_windows_improve_a_plan_when_it_is_bad() -> None:
    problem = pipeline(5, 24, 3)
    best = Best(problem)
    start = best.offer(Assignment(np.zeros(24, np.int32), np.zeros(24, np.int32)), "one target")
    milp_windows(problem, best, steps(40), 0)
    assert best.objective < 0.8 * start
    assert best.proposal is not None
    judged = simulate(problem, best.proposal.assignment)
    assert judged.objective("throughput") == pytest.approx(best.objective)


def test_order_keeps_targets_convex_when_they_run_one_partition() -> None:
    problem = pipeline(6, 60, 4, contiguous=True)
    best = Best(problem)
    pipeline_order(problem, best, steps(40), 0)
    assert is_contiguous(problem)
    assert best.proposal is not None
    assert best.proposal.assignment.n_partitions <= 4
    before = best.objective
    pipeline_local(problem, best, steps(30), 0)
    assert best.objective <= before
    assert best.proposal.assignment.n_partitions <= 4


def test_order_is_the_same_when_the_seed_is() -> None:
    problem = pipeline(7, 40, 3)
    plans = []
    for _ in range(2):
        best = Best(problem)
        pipeline_order(problem, best, steps(30), 4)
        pipeline_local(problem, best, steps(10), 4)
        assert best.proposal is not None
        plans.append(best.proposal.assignment.target.tolist())
    assert plans[0] == plans[1]


def test_topological_orders_follow_tensors_when_random() -> None:
    problem = pipeline(8, 50, 2)
    graph = dag(problem)
    for seed, depth_first in ((0, 0.0), (1, 0.5), (2, 1.0)):
        order = topological(
            graph.after_at, graph.after, graph.before_at, np.zeros(50, np.int64), depth_first, seed
        )
        place = np.argsort(order)
        for u in range(50):
            assert all(place[u] < place[w] for w in graph.after[graph.after_at[u] : graph.after_at[u + 1]])


def test_classes_hold_interchangeable_targets_only_when_alike() -> None:
    problem = pipeline(9, 6, 4, alike=True)
    assert classes(problem).members == ((0, 1, 2, 3),)
    weight = np.zeros((6, 4), np.int64)
    weight[:, 2] = 1
    assert classes(problem.replace(weight_bytes=weight)).members == ((0, 1, 3), (2,))
    shared = problem.replace(silicon=np.array([0, 0, 1, 2]), slots=None, silicon_names=())
    assert classes(shared).members == ((0,), (1,), (2, 3))
    moved = np.zeros((7, 4, 4))
    moved[:, 0, 1] = 3.0
    assert classes(problem.replace(transfer=moved)).members == ((0,), (1,), (2, 3))


def test_load_dual_is_below_any_spread_and_tight_when_targets_are_alike() -> None:
    time = np.random.default_rng(0).random((50, 1))
    worth, share, bound = load_dual(time, np.array([4.0]))
    assert bound == pytest.approx(time.sum() / 4)
    assert worth.sum() == pytest.approx(bound)
    assert share @ np.array([4.0]) == pytest.approx(1.0)
    unlike = np.random.default_rng(1).random((200, 3))
    _, _, bound = load_dual(unlike, np.ones(3))
    spread = np.bincount(unlike.argmin(axis=1), unlike.min(axis=1), minlength=3).max()
    assert unlike.min(axis=1).sum() / 3 <= bound <= spread
