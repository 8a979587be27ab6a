"""The greedy plans of other runtimes, and single targets."""

from __future__ import annotations

import numpy as np
import pytest

from hal.planning.check import check
from hal.planning.greedy import connected, exhausted, greedy
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from hal.planning.single import single
from hal.planning.solution import Finalists
from tests.unit.planning_problems import SHAPES, random_problem

CPU, GPU = 0, 1
NO = np.inf


def diamond(**fields: object) -> Problem:
    """0 feeds 1 and 2, which feed 3; the GPU cannot compute 1."""
    return Problem(
        **{
            "time": [[5, 1], [5, NO], [5, 1], [5, 1]],
            "silicon": [0, 1],
            "pool": [0, 1],
            "producer": [0, 1, 2, 3],
            "read_tensor": [0, 0, 1, 2],
            "read_unit": [1, 2, 3, 3],
            "target_names": ("cpu", "gpu"),
            **fields,
        }
    )


def test_connected_cuts_a_subgraph_when_a_path_leaves_and_comes_back() -> None:
    found = connected(diamond(), np.array([GPU, CPU, GPU, GPU], np.int32))
    assert found[0] == found[2]
    assert found[3] not in (found[0], found[1])
    assert found[0] < found[1] < found[3]


def test_connected_keeps_parts_apart_when_no_tensor_joins_them() -> None:
    problem = Problem(
        time=np.ones((2, 1)), silicon=[0], pool=[0], producer=[0, 1], read_tensor=[], read_unit=[]
    )
    target = np.zeros(2, np.int32)
    assert connected(problem, target).tolist() == [0, 1]
    assert exhausted(problem, target, np.zeros(1, np.int32)).tolist() == [0, 0]


def test_exhausted_runs_all_that_is_ready_when_a_target_has_its_turn() -> None:
    found = exhausted(diamond(), np.array([GPU, CPU, GPU, GPU], np.int32), np.array([1, 0], np.int32))
    assert found.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("shape", SHAPES)
def test_groupings_can_be_carried_out_when_targets_are_drawn_at_random(shape: str) -> None:
    from hal.planning.problem import Assignment

    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, 25, 3, shape=shape, allowed=1.0, start="partition", objective="latency")
        target = rng.integers(0, 3, 25).astype(np.int32)
        for partition in (
            connected(problem, target),
            exhausted(problem, target, np.arange(3, dtype=np.int32)),
        ):
            assert not check(problem, Assignment(target, partition)).violations


def test_greedy_offers_each_unit_on_the_first_that_can_when_one_target_cannot_do_all() -> None:
    best = Finalists(diamond(call=[1, 1]))
    greedy(best.problem, best, Budget(60))
    plans = {name: plan.target.tolist() for _, name, plan in best.distinct(8, "only ")}
    assert plans == {
        "greedy like HETERO": [GPU, CPU, GPU, GPU],
    }
    other = Finalists(diamond(start="unit"))
    greedy(other.problem, other, Budget(60))
    assert other.proposal is not None
    assert other.proposal.assignment.target.tolist() == [GPU, CPU, GPU, GPU]


def test_greedy_keeps_groups_together_when_units_must_share_a_device() -> None:
    best = Best(diamond(same_device=[-1, 0, 0, -1]))
    greedy(best.problem, best, Budget(60))
    assert best.proposal is not None
    assert best.proposal.assignment.target.tolist() == [GPU, CPU, CPU, GPU]


def test_single_offers_every_target_that_can_do_all_when_the_budget_is_spent() -> None:
    problem = diamond(time=np.array([[5, 1], [5, 9], [5, 1], [5, 1]]))
    best = Finalists(problem)
    single(problem, best, Budget(0))
    plans = best.distinct(0, "only ")
    assert [(name, value) for value, name, _ in plans] == [("only gpu", 12), ("only cpu", 20)]
    assert all(plan.n_partitions == 1 for _, _, plan in plans)


def test_single_leaves_a_target_out_when_it_cannot_do_all() -> None:
    best = Finalists(diamond())
    single(best.problem, best, Budget(60))
    assert [name for _, name, _ in best.distinct(8, "only ")] == ["only cpu"]


def test_single_uses_more_partitions_when_one_holds_too_much_at_once() -> None:
    problem = Problem(
        time=np.ones((8, 1)),
        silicon=[0],
        pool=[0],
        producer=np.arange(8),
        read_tensor=np.arange(7),
        read_unit=np.arange(1, 8),
        tensor_bytes=np.full(8, 10),
        capacity=[25],
        call=[1],
    )
    best = Best(problem)
    single(problem, best, Budget(60))
    assert best.proposal is not None
    assert best.proposal.assignment.n_partitions == 8
    assert best.proposal.checked.peaks[0] == 20


def test_single_offers_nothing_when_weights_alone_are_too_large() -> None:
    problem = diamond(
        time=np.ones((4, 2)), weight_bytes=np.full((4, 2), 10), capacity=[39, 39], start="partition"
    )
    best = Best(problem)
    single(problem, best, Budget(60))
    assert best.proposal is None
    assert best.rejected is not None
    assert best.rejected.violations[0].constraint == "memory"
