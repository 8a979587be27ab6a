"""Local search over partitions: numbering and splitting, moves within limits, plans that get better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hal.planning.call_moves import anneal, number
from hal.planning.calls import applies, calls, rules_of
from hal.planning.check import check
from hal.planning.flat import flat
from hal.planning.problem import Assignment, Problem
from hal.planning.search import Best, Budget
from hal.planning.simulate import simulate
from tests.unit.planning_problems import plans, problems
from tests.workloads.dnn_partitioning import latency
from tests.workloads.instances import workloads

#: Seconds. The first run has its thousands of steps whatever the time; the tests need no more.
BRIEF = 0.1


def graph(edges: list[tuple[int, int]], time: list[list[float]], **fields: object) -> Problem:
    n, t = np.shape(time)
    drawn = {
        "time": time,
        "silicon": np.arange(t),
        "pool": np.arange(t),
        "producer": np.arange(n),
        "read_tensor": [a for a, _ in edges],
        "read_unit": [b for _, b in edges],
    }
    return Problem(**{**drawn, **fields})  # type: ignore[arg-type]


def numbered(problem: Problem, target: list[int], group: list[int]) -> tuple[int, list[int]]:
    partition = np.empty(problem.n_units, np.int32)
    count = number(
        flat(problem),
        np.array(target, np.int32),
        np.array(group, np.int32),
        rules_of(problem).rank,
        problem.partitions_per_target,
        partition,
    )
    return count, partition.tolist()


def test_number_splits_a_group_when_another_lies_between_its_units() -> None:
    problem = graph([(0, 1), (1, 2)], [[1, 1]] * 3)

    assert numbered(problem, [0, 1, 0], [0, 1, 0]) == (3, [0, 1, 2])


def test_number_refuses_to_split_when_the_target_may_have_one_partition() -> None:
    problem = graph([(0, 1), (1, 2)], [[1, 1]] * 3, partitions_per_target=[1, 0])

    assert numbered(problem, [0, 1, 0], [0, 1, 0])[0] == 0


def test_number_keeps_groups_whole_when_they_can_run_in_one_piece() -> None:
    problem = graph([(0, 1), (0, 2), (1, 3), (2, 4)], [[1, 1]] * 5)

    assert numbered(problem, [0, 0, 0, 1, 1], [5, 5, 5, 2, 2]) == (2, [0, 0, 0, 1, 1])


@settings(max_examples=80, deadline=None)
@given(problems(12, 3, start="partition", objective="latency"), st.integers(0, 10**6))
def test_number_gives_an_order_that_can_run_when_groups_are_any(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = problem.replace(time=rng.uniform(1, 2, problem.time.shape), partitions_per_target=None)
    target = rng.integers(0, problem.n_targets, problem.n_units).astype(np.int32)
    group = (target + problem.n_targets * rng.integers(0, 2, problem.n_units)) % (2 * problem.n_units)
    _, group = np.unique(np.stack([target, group]), axis=1, return_inverse=True)

    count, partition = numbered(problem, target.tolist(), group.reshape(-1).tolist())

    assert sorted(set(partition)) == list(range(count))
    assert np.isfinite(check(problem, Assignment(target, np.array(partition, np.int32))).values.latency)


@settings(max_examples=60, deadline=None)
@given(plans(10, 3, start="partition", objective="latency"), st.integers(0, 10**6))
def test_anneal_keeps_every_static_limit_when_it_begins_within_them(
    drawn: tuple[Problem, Assignment], seed: int
) -> None:
    problem, plan = drawn
    assume(not check(problem, plan).violations)
    rules = rules_of(problem)
    target, group = plan.target.copy(), plan.partition.copy()
    found = target.copy(), group.copy()

    value, _, over = anneal(flat(problem), rules, target, group, *found, 5.0, 0.1, 300, seed)

    judged = simulate(problem, Assignment(*found))
    assert over == 0
    assert value <= check(problem, plan).values.latency
    assert judged.objective("latency") == pytest.approx(value)
    # Activations are not looked at; weights are.
    assert {one.constraint for one in judged.violations} <= {"memory"}
    weights = problem.weight_bytes[np.arange(problem.n_units), found[0]]
    used = np.bincount(problem.pool[found[0]], weights, minlength=problem.n_pools)
    assert (used <= problem.capacity).all()


def test_anneal_gives_the_same_plan_when_seed_and_steps_are_the_same() -> None:
    problem = wide(np.random.default_rng(1), 6, 4)
    results = []
    for _ in range(2):
        target = np.zeros(problem.n_units, np.int32)
        group = target.copy()
        found = target.copy(), group.copy()
        anneal(flat(problem), rules_of(problem), target, group, *found, 20.0, 0.1, 2_000, 7)
        results.append(found)

    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


def wide(rng: np.random.Generator, blocks: int, branches: int, **fields: object) -> Problem:
    """Blocks of parallel branches, two silicons that overlap, links between them."""
    edges, last = [], 0
    for _ in range(blocks):
        end = last + branches + 1
        for branch in range(last + 1, end):
            edges += [(last, branch), (branch, end)]
        last = end
    n = last + 1
    transfer = np.full((n, 3, 3), 2.0) * (1 - np.eye(3))
    drawn = {
        "silicon": [0, 0, 1],
        "pool": [0, 0, 1],
        "transfer": transfer,
        "call": [1.0, 1.0, 2.0],
        "link": [[-1, -1, 0], [-1, -1, 0], [1, 1, -1]],
    }
    return graph(edges, rng.uniform(5, 20, (n, 3)).tolist(), **{**drawn, **fields})


def test_calls_runs_branches_side_by_side_when_that_pays() -> None:
    problem = graph([(0, 1), (0, 2), (1, 3), (2, 3)], [[1, 1], [50, 50], [50, 50], [1, 1]], call=[2.0, 2.0])
    best = Best(problem)

    calls(problem, best, Budget(BRIEF))

    # Unit 0, then 1 and 2 beside each other, then 3: three calls behind each other at least.
    assert best.objective == 2 + 1 + 2 + 50 + 2 + 1


def test_calls_makes_one_call_when_calls_are_dear() -> None:
    problem = graph([(0, 1), (1, 2)], [[3, 1], [1, 3], [3, 1]], call=[10.0, 10.0])
    best = Best(problem)

    calls(problem, best, Budget(BRIEF))

    assert best.objective == 15
    assert best.proposal is not None
    assert best.proposal.assignment.n_partitions == 1


@pytest.mark.parametrize("seed", range(3))
def test_calls_beats_every_single_target_when_two_silicons_share_wide_blocks(seed: int) -> None:
    problem = wide(np.random.default_rng(seed), 5, 4)
    best = Best(problem)

    calls(problem, best, Budget(BRIEF), seed)

    alone = problem.time.sum(axis=0) + problem.call
    assert best.objective < 0.8 * alone.min()


@settings(max_examples=25, deadline=None)
@given(problems(8, 3, start="partition"), st.integers(0, 100))
def test_calls_offers_only_plans_that_hold_when_problems_are_limited(problem: Problem, seed: int) -> None:
    best = Best(problem)

    calls(problem, best, Budget(BRIEF), seed)

    if best.proposal is not None:
        assert not simulate(problem, best.proposal.assignment).violations
    assert best.proposal is None or applies(problem)


def test_calls_makes_room_when_activations_do_not_fit() -> None:
    # On target 1 all is faster, but its pool has no room for the tensors beside all weights.
    n = 6
    problem = graph(
        [(at, at + 1) for at in range(n - 1)],
        [[10, 1]] * n,
        weight_bytes=np.full((n, 2), 10),
        tensor_bytes=np.full(n, 8),
        capacity=[np.inf, 60.0],
    )
    best = Best(problem)

    calls(problem, best, Budget(BRIEF))

    assert best.proposal is not None
    assert 0 < (best.proposal.assignment.target == 1).sum() < n
    assert best.objective < 10 * n


@pytest.mark.parametrize(
    ("name", "optimum"), [("LayerGraphs.bert24", 100.2185), ("OperatorGraphs.bert_l-3", 408.474408)]
)
def test_anneal_finds_the_published_optimum_when_accelerators_run_one_partition(
    name: str, optimum: float
) -> None:
    folder = workloads()
    if folder is None:
        pytest.skip("HAL_WORKLOADS does not name a folder with the public problems")
    problem = latency(folder / "dnn-partitioning" / "latency" / f"{name}_inference.json")
    target = np.full(problem.n_units, problem.n_targets - 1, np.int32)
    group = np.arange(problem.n_units, dtype=np.int32)
    found = target.copy(), group.copy()

    value, _, _ = anneal(flat(problem), rules_of(problem), target, group, *found, 30.0, 0.05, 400_000, 0)

    assert value == pytest.approx(optimum, rel=1e-6)
    assert not simulate(problem, Assignment(*found)).violations
