"""List scheduling: published examples, and laws on random problems."""

from __future__ import annotations

import numpy as np
import pytest

from hal.planning.domains import domains
from hal.planning.flat import flat
from hal.planning.list_scheduling import RULES, list_scheduling, listed, upward_rank
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from hal.planning.simulate import simulate
from hal.planning.timeline import off_the_line
from tests.unit.planning_problems import SHAPES, random_problem

#: The example of Topcuoglu, Hariri and Wu, 2002, figure 2 and table 1: time of ten tasks on three processors.
TIME = (
    (14, 16, 9),
    (13, 19, 18),
    (11, 13, 19),
    (13, 8, 17),
    (12, 13, 10),
    (13, 16, 9),
    (7, 15, 11),
    (5, 11, 14),
    (18, 12, 20),
    (21, 7, 16),
)
EDGES = (
    (0, 1, 18),
    (0, 2, 12),
    (0, 3, 9),
    (0, 4, 11),
    (0, 5, 14),
    (1, 7, 19),
    (1, 8, 16),
    (2, 6, 23),
    (3, 7, 27),
    (3, 8, 23),
    (4, 8, 13),
    (5, 7, 15),
    (6, 9, 17),
    (7, 9, 11),
    (8, 9, 13),
)


def published(**fields: object) -> Problem:
    """The published example."""
    source, sink, cost = np.array(EDGES).T
    return Problem(
        time=np.array(TIME, float),
        silicon=np.arange(3),
        pool=np.arange(3),
        producer=source,
        read_tensor=np.arange(len(EDGES)),
        read_unit=sink,
        transfer=cost[:, None, None] * (1.0 - np.eye(3)),
        charge="edge",
        start="unit",
        **fields,  # type: ignore[arg-type]
    )


def test_upward_rank_is_the_published_one_on_the_published_example():
    problem = published()
    found = upward_rank(flat(problem), domains(problem))
    expected = [108, 77, 80, 80, 69, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert found == pytest.approx(expected, abs=1e-3)


def test_heft_with_insertion_ends_when_the_paper_says_on_the_published_example():
    problem = published()
    found = listed(problem, "HEFT, insertion")
    assert found is not None
    plan = off_the_line(*found, np.zeros(10, np.bool_))
    assert simulate(problem, plan).latency == 80


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_list_scheduling_makes_legal_plans_when_problems_are_random(rule, shape):
    rng = np.random.default_rng(list(SHAPES).index(shape))
    n_placed = 0
    for _ in range(20):
        problem = random_problem(
            rng, int(rng.integers(1, 40)), int(rng.integers(1, 5)), shape=shape, limits=0.2
        )
        found = listed(problem, rule)
        if found is None:
            assert not domains(problem).any(axis=1).all()
            continue
        n_placed += 1
        assert problem.allowed[np.arange(problem.n_units), found.target].all()
        assert sorted(found.unit_at) == list(range(problem.n_units))
        place = np.argsort(found.unit_at)
        made = problem.producer[problem.read_tensor]
        inner = made >= 0
        assert (place[made[inner]] < place[problem.read_unit[inner]]).all()
        for group in set(problem.same_device.tolist()) - {-1}:
            assert len(set(found.target[problem.same_device == group].tolist())) == 1
    assert n_placed


def test_list_scheduling_offers_what_the_simulator_finds_when_problems_are_random():
    rng = np.random.default_rng(7)
    n_offered = 0
    for _ in range(60):
        problem = random_problem(rng, 25, 3, shape="layered", limits=0.0, objective="latency")
        best = Best(problem)
        list_scheduling(problem, best, Budget(60))
        assert best.proposal is not None
        assert simulate(problem, best.proposal.assignment).latency == pytest.approx(best.objective)
        n_offered += 1
    assert n_offered == 60


def test_list_scheduling_fills_another_target_when_the_fastest_is_full():
    problem = published(weight_bytes=np.full((10, 3), 10), capacity=np.array([40.0, 30.0, 30.0]))
    for rule in RULES:
        found = listed(problem, rule)
        assert found is not None
        assert np.bincount(found.target, minlength=3).tolist() == [4, 3, 3]


def test_listed_is_none_when_a_unit_has_no_target():
    problem = published(weight_bytes=np.full((10, 3), 10), capacity=np.array([9.0, 9.0, 9.0]))
    assert all(listed(problem, rule) is None for rule in RULES)


def test_list_scheduling_stops_when_the_budget_is_spent():
    problem = published()
    best = Best(problem)
    list_scheduling(problem, best, Budget(0))
    assert best.proposal is None
