"""Reductions: the optimum stays, and plans find their way back."""

from __future__ import annotations

import numpy as np
import pytest

from hal.errors import InternalError
from hal.planning.check import check
from hal.planning.domains import domains
from hal.planning.exhaustive import search
from hal.planning.problem import Assignment, Problem
from hal.planning.reductions import Reduced, dominated, labels_decide, reduced
from hal.planning.search import Best, Budget
from tests.unit.planning_problems import SHAPES, random_problem

NO = np.inf


def pipeline(time: object, edges: list[tuple[int, int]], **fields: object) -> Problem:
    """A throughput problem in which targets alone decide; one tensor per unit."""
    times = np.array(time, float)
    n, t = times.shape
    return Problem(
        **{
            "time": times,
            "silicon": np.arange(t),
            "pool": np.arange(t),
            "producer": np.arange(n),
            "read_tensor": [a for a, _ in edges],
            "read_unit": [b for _, b in edges],
            "objective": "throughput",
            "charge": "target",
            **fields,
        }
    )


def optimum(problem: Problem) -> float:
    best = Best(problem)
    is_done, value = search(problem, best, Budget(300))
    assert is_done
    return value


def test_reduced_keeps_the_optimum_when_problems_are_random() -> None:
    fewer = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        problem = random_problem(
            rng,
            int(rng.integers(2, 7)),
            int(rng.integers(1, 4)),
            shape=SHAPES[seed % len(SHAPES)],
            limits=0.3,
        )
        small = reduced(problem)
        fewer += int((small.problem.allowed.sum() < problem.allowed.sum()) and small.is_same)
        if not domains(problem).any(axis=1).all():
            continue
        assert optimum(small.problem) == pytest.approx(optimum(problem)), seed
    assert fewer > 5


@pytest.mark.parametrize("contiguous", [False, True])
def test_reduced_keeps_the_optimum_when_targets_alone_decide(contiguous: bool) -> None:
    smaller = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        n, t = int(rng.integers(3, 8)), int(rng.integers(2, 4))
        problem = random_problem(
            rng,
            n,
            t,
            shape=SHAPES[seed % len(SHAPES)],
            limits=0.4,
            objective=("throughput", "energy")[seed % 5 == 0],
            start="partition",
            charge="target",
            tensor_bytes=None,
            workspace_bytes=None,
            transfer=None,
            call=None,
            max_partitions=0,
            weight_bytes=rng.integers(0, 4, (n, t)) * (rng.random((n, 1)) < 0.4),
            partitions_per_target=np.full(t, int(contiguous)),
        )
        assert labels_decide(problem)
        if not domains(problem).any(axis=1).all():
            continue
        small = reduced(problem)
        assert optimum(small.problem) == pytest.approx(optimum(problem)), seed
        smaller += not small.is_same
    assert smaller > 8


def test_reduced_joins_groups_when_their_units_share_a_device() -> None:
    problem = pipeline(
        np.full((4, 2), 8.0),
        [(0, 1), (1, 2), (2, 3)],
        same_device=[0, 0, 1, 1],
        weight_bytes=np.full((4, 2), 3),
        capacity=[6, 6],
    )
    small = reduced(problem)
    assert small.joined.tolist() == [0, 0, 1, 1]
    assert small.problem.time.tolist() == [[16, 16], [16, 16]]
    assert small.problem.weight_bytes.tolist() == [[6, 6], [6, 6]]
    plan = small.expanded(Assignment(np.array([1, 0], np.int32), np.array([0, 1], np.int32)))
    assert plan.target.tolist() == [1, 1, 0, 0]
    assert not check(problem, plan).violations


def test_reduced_joins_the_cycle_when_groups_form_one_and_targets_have_one_partition() -> None:
    edges = [(0, 1), (1, 2), (2, 3)]
    problem = pipeline(
        np.full((4, 2), 8.0),
        edges,
        same_device=[0, 1, 0, 1],
        weight_bytes=np.ones((4, 2), int),
        capacity=[99, 99],
    )
    assert reduced(problem).is_same
    assert reduced(problem.replace(partitions_per_target=[1, 1])).joined.tolist() == [0, 0, 0, 0]


def test_reduced_joins_a_unit_with_its_reader_when_handing_over_takes_longer() -> None:
    problem = pipeline(
        [[5, 5], [1, 1], [5, 5]],
        [(0, 1), (1, 2)],
        receive=np.array([[1, 1], [9, 9], [0, 0]]),
        send=np.array([[1, 1], [9, 9], [0, 0]]),
    )
    small = reduced(problem)
    assert small.joined.tolist() == [0, 1, 1]
    cheap = problem.replace(receive=np.zeros((3, 2)), send=np.zeros((3, 2)))
    assert reduced(cheap).is_same


def test_reduced_leaves_a_unit_alone_when_it_weighs_something_and_memory_is_scarce() -> None:
    problem = pipeline(
        [[5, 5], [1, 1], [5, 5]],
        [(0, 1), (1, 2)],
        receive=np.full((3, 2), 9.0),
        send=np.full((3, 2), 9.0),
        weight_bytes=np.ones((3, 2), int),
        capacity=[2, 2],
    )
    assert reduced(problem).is_same


def test_reduced_leaves_units_as_they_are_when_partitions_cost_something() -> None:
    problem = pipeline(np.ones((2, 2)), [(0, 1)], same_device=[0, 0], call=[1, 1])
    assert not labels_decide(problem)
    assert reduced(problem).is_same


def test_dominated_finds_a_target_when_another_on_its_silicon_is_never_worse() -> None:
    problem = pipeline([[1, 2, 9], [3, 3, 1]], [(0, 1)], silicon=[0, 0, 1], pool=[0, 0, 1])
    can = domains(problem)
    assert dominated(problem, can) == [1]
    assert dominated(problem.replace(silicon=[0, 1, 2], slots=[1, 1, 1], silicon_names=()), can) == []
    assert dominated(problem.replace(call=[1, 0, 0]), can) == []
    assert dominated(problem.replace(partitions_per_target=[1, 1, 1]), can) == []
    assert reduced(problem).problem.allowed.tolist() == [[True, False, True], [True, False, True]]


def test_dominated_keeps_the_first_when_two_targets_are_equal() -> None:
    problem = pipeline(np.ones((2, 2)), [(0, 1)], silicon=[0, 0], pool=[0, 0])
    assert dominated(problem, domains(problem)) == [1]


def test_plans_and_bounds_reach_the_whole_when_found_in_the_smaller_problem() -> None:
    problem = pipeline(np.full((4, 2), 8.0), [(0, 1), (1, 2), (2, 3)], same_device=[0, 0, 1, 1])
    small = reduced(problem)
    outer = Best(problem)
    inner = small.best(outer)
    inner.offer(Assignment(np.array([0, 1], np.int32), np.array([0, 1], np.int32)), "test")
    inner.prove(3.0, "by hand")
    assert outer.objective == inner.objective == 16
    assert (outer.bound, outer.bound_source) == (3.0, "by hand")


def test_the_smaller_problem_starts_from_the_best_plan_when_there_is_one() -> None:
    problem = pipeline(np.full((4, 2), 8.0), [(0, 1), (1, 2), (2, 3)], same_device=[0, 0, 1, 1])
    outer = Best(problem)
    outer.offer(Assignment(np.array([1, 1, 0, 0], np.int32), np.array([0, 0, 1, 1], np.int32)), "test")
    inner = reduced(problem).best(outer)
    assert inner.proposal is not None
    assert inner.proposal.assignment.target.tolist() == [1, 0]


def test_offer_raises_when_the_whole_is_worth_something_else() -> None:
    whole = pipeline(np.full((2, 1), 8.0), [(0, 1)])
    wrong = Reduced(whole, pipeline([[5.0]], []), np.zeros(2, np.int64))
    inner = wrong.best(Best(whole))
    with pytest.raises(InternalError, match=r"worth 5\.0 in the reduced problem is worth 16\.0 in the whole"):
        inner.offer(Assignment(np.zeros(1, np.int32), np.zeros(1, np.int32)), "test")
